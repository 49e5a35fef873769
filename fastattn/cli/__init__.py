"""The command ``fastattn``: info, check, finetune, bench."""

from fastattn.cli.app import main

__all__ = ["main"]
