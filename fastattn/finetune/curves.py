"""The curves of a run: a picture, and TensorBoard's files.

Both draw what the Trainer logged: loss and learning rate of training, the validation loss and
metric, and the tokens trained on a second, padding not counted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback

from fastattn.finetune.output import TENSORBOARD

History = Sequence[Mapping[str, Any]]  # what the Trainer logged, one entry a moment
Points = tuple[list[int], list[float]]


def writes_tensorboard(asked: bool | None) -> bool:
    """Returns whether TensorBoard's files are written: where it is installed, if not asked."""
    return importlib.util.find_spec("tensorboard") is not None if asked is None else asked


def require_libraries(tensorboard: bool | None) -> None:
    """Raises an ImportError if what draws the curves is not installed.

    Args:
        tensorboard: whether its files are asked for.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "finetune: matplotlib must be installed to draw the curves; got none. "
            "Run `pip install 'fastattn[finetune]'`."
        )
    if tensorboard and not writes_tensorboard(None):
        raise ImportError(
            "finetune: tensorboard must be installed to write its files; got none. "
            "Run `pip install 'fastattn[tensorboard]'`, or leave --tensorboard out."
        )


class _Curves(TensorBoardCallback):
    """The Trainer's own callback, in a folder of our choice; Transformers 4 has one in its args."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.logging_dir = str(folder)

    def _init_summary_writer(self, args: Any, log_dir: str | None = None) -> None:
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir)


def tensorboard_callback(output: Path) -> TensorBoardCallback:
    """Returns the Trainer's own callback, set to write into ``output``/tensorboard."""
    return _Curves(output / TENSORBOARD)


def points(history: History, name: str) -> Points:
    """Returns the steps at which a value was logged, and the values."""
    rows = [row for row in history if row.get(name) is not None]
    return [row["step"] for row in rows], [row[name] for row in rows]


def draw(history: History, metric: str, best_step: int | None, path: Path) -> None:
    """Draws the curves of a run into a PNG file.

    Args:
        metric: the task's, as in ``eval_<metric>``.
        best_step: where the checkpoint that was kept is from; None: no mark.
    """
    # The object interface, which needs no display and leaves a user's pyplot alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True).flat
    panels: tuple[tuple[str, dict[str, str]], ...] = (
        ("loss", {"loss": "training", "eval_loss": "validation"}),
        (metric.replace("_", " "), {f"eval_{metric}": "validation"}),
        ("learning rate", {"learning_rate": ""}),
        ("tokens/s, mean so far", {"tokens_per_second": ""}),
    )
    for ax, (title, lines) in zip(axes, panels, strict=True):
        for name, label in lines.items():
            # Few points, as of an evaluation each epoch, are seen only as dots.
            steps, values = points(history, name)
            ax.plot(steps, values, marker="o" if len(steps) < 30 else "", ms=3, label=label)
        if best_step and any(name.startswith("eval_") for name in lines):
            ax.axvline(best_step, color="gray", ls=":", label="best, kept")
        if any(lines.values()):
            ax.legend(frameon=False)
        ax.set(title=title, xlabel="step")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
