"""The command ``fastattn``: info, check, finetune."""

from fastattn.cli.app import main

__all__ = ["main"]
