"""``python -m fastattn``: the command line, for launchers that start modules."""

from fastattn.cli import main

if __name__ == "__main__":
    main()
