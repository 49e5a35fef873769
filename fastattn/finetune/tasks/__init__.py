"""What a model can be fine-tuned for: ``--task`` names one of these.

Each is a :class:`~fastattn.finetune.tasks.base.Task` in a file of its own. Importing this package
imports none of them: the command line reads the names and must not wait for Transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fastattn.data.peptides import PACKAGED_PEPTIDES
from fastattn.data.sources import PACKAGED_IMDB

if TYPE_CHECKING:
    from fastattn.finetune.tasks.base import Task

DEFAULT_TASK = "classification"

# Name of the task: its module in this package, and its class there.
_TASKS = {
    "classification": ("classification", "Classification"),
    "multilabel": ("multilabel", "Multilabel"),
    "token-classification": ("token_classification", "TokenClassification"),
    "question-answering": ("question_answering", "QuestionAnswering"),
    "masked-lm": ("masked_lm", "MaskedLM"),
    "translation": ("translation", "Translation"),
}
TASK_NAMES = tuple(_TASKS)
# Data that comes with fastattn or from PyPI, by its names for --data; the one without --data first.
PACKAGED = {
    "classification": (PACKAGED_IMDB, PACKAGED_PEPTIDES),
    "multilabel": ("messages",),
    "token-classification": ("news",),
    "question-answering": ("passages",),
    "masked-lm": (PACKAGED_IMDB,),
    "translation": ("english-german",),
}


def get_task(name: str) -> Task:
    """Returns the task of a name, one of ``TASK_NAMES``."""
    module, class_name = _TASKS[name]
    task: Task = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)()
    return task
