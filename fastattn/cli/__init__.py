"""The command ``fastattn``: info, check, explain, finetune, search, bench."""

from fastattn.cli.app import main

__all__ = ["main"]
