"""Prints the coverage table, or writes it: ``python -m fastattn.coverage [FILE]``."""

import sys
from pathlib import Path

from fastattn.coverage import page

if __name__ == "__main__":
    text = page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
