"""The command ``fastattn``: info, check, explain, finetune, search, data, bench."""

from fastattn.cli.app import main

__all__ = ["main"]
