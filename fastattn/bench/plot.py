"""The picture: how many times as fast as stock Transformers, one bar a case."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

# Grey of middle brightness reads on white and on black; the background is transparent.
_INK = "#808080"
_COLOURS = {"float32": "#3b82c4", "bfloat16": "#d9822b"}


def require_matplotlib() -> None:
    """Raises an ImportError that says how to get matplotlib if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "bench render: matplotlib must be installed to draw; got none. "
            "Run `pip install 'fastattn[bench]'`."
        )


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Draws the cases of a result of ``bench bert`` as ``<stem>.svg`` and ``<stem>.png``.

    The same result gives the same bytes of SVG with the same matplotlib.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cases = result["cases"]
    settings = {
        "svg.hashsalt": "fastattn",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    with rc_context(settings):
        figure = Figure(figsize=(7.5, 0.8 + 0.42 * len(cases)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(
            [case["name"] for case in cases],
            [case["ratio"] for case in cases],
            color=[_COLOURS[case["dtype"]] for case in cases],
            height=0.65,
        )
        axes.bar_label(bars, labels=[f"{case['ratio']:.1f}x" for case in cases], padding=4)
        axes.axvline(1.0, color=_INK, linewidth=1, linestyle="--")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        machine = result["machine"]
        axes.set_xlabel(
            "times as fast as stock Transformers (dashed line), "
            f"{machine['model']}, {machine['threads']} threads"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        files = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, transparent=True, dpi=150, metadata=metadata)
    return files
