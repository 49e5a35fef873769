"""The pictures: training steps beside stock Transformers, the operation by length, and growth.

Each is drawn as SVG and as PNG on a transparent background, in colours that read on white and on
black. The same result gives the same bytes of SVG with the same matplotlib.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastattn.bench.timing import is_ours

Result = dict[str, Any]

# Grey of middle brightness: 4.0 to 1 on white, 4.8 to 1 on GitHub's black.
_INK = "#808080"
_PEER = "#9aa0a6"
_COLOURS = {"float32": "#3b82c4", "bfloat16": "#d9822b"}
_LINES = ("#3b82c4", "#9aa0a6", "#d9822b", "#3d9a50", "#b455a0", "#c0504d", "#8a6d3b")
_DPI = 150
_WIDTH = 7.5


def require_matplotlib() -> None:
    """Raises an ImportError that says how to get matplotlib if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "bench render: matplotlib must be installed to draw; got none. "
            "Run `pip install 'fastattn[bench]'`."
        )


def draw(result: Result, stem: Path) -> list[Path]:
    """Draws what there is to see of a result as ``<stem>.svg`` and ``<stem>.png``.

    Returns:
        The files; none for a kind that has no picture.
    """
    make = PICTURES.get(result["kind"])
    if make is None or not _has_something(result):
        return []
    require_matplotlib()
    from matplotlib import rc_context

    settings = {
        "svg.hashsalt": "fastattn",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "axes.edgecolor": _INK,
        "axes.titlesize": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    files = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
    with rc_context(settings):
        figure = make(result)
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            figure.savefig(file, transparent=True, dpi=_DPI, metadata=metadata)
    return files


def _has_something(result: Result) -> bool:
    if result["kind"] == "growth":
        return any(len(case["points"]) > 1 for case in result["cases"])
    return result["kind"] != "attention" or bool(_by_length(result))


def _figure(height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _machine(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['model']}, {machine['instruction_set']}, {machine['threads']} threads"


def _steps(result: Result) -> Any:
    """Our step as a share of the fastest peer's, which is the grey bar behind; one bar a case."""
    cases = result["cases"]
    figure, axes = _figure(0.9 + 0.42 * len(cases))
    names = [case["name"] for case in cases]
    axes.barh(names, [1.0] * len(cases), color=_PEER, alpha=0.35, height=0.72)
    axes.barh(
        names,
        [1.0 / case["ratio"] for case in cases],
        color=[_COLOURS[case["dtype"]] for case in cases],
        height=0.72,
    )
    longest = max([1.0, *(1.0 / case["ratio"] for case in cases)])
    for index, case in enumerate(cases):
        medians = (case["times"][name]["median_ms"] for name in ("fastattn", case["best_peer"]))
        ours, peer = (_seconds(ms) for ms in medians)
        place = max(1.0, 1.0 / case["ratio"]) + 0.01 * longest
        told = f"{case['ratio']:.1f}x: {ours} for {peer}"
        axes.text(place, index, told, va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * longest)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25%", "50%", "75%", "100%"])
    label = "time of a step, stock Transformers (grey) = 100%; float32 blue, bfloat16 orange\n"
    figure.supxlabel(label + _machine(result), fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _seconds(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def _operation(result: Result) -> Any:
    """GFLOP/s of forward + backward over the length."""
    cases = _by_length(result)
    figure, axes = _figure(3.2)
    names = list(dict.fromkeys(name for x in cases for name in x["forward_backward"]["times"]))
    for name, colour in _coloured(names):
        has = [case for case in cases if name in case["forward_backward"]["times"]]
        rates = []
        for case in has:
            found = case["forward_backward"]
            times = found["times"]
            ours = times["fastattn"]["median_ms"]
            rates.append(found["gflops"] * ours / times[name]["median_ms"])
        axes.plot([case["seqlen"] for case in has], rates, marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    lengths = sorted({case["seqlen"] for case in cases})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"tokens; {_machine(result)}", fontsize=9)
    axes.set_ylabel("GFLOP/s, forward + backward", fontsize=9)
    _finish(axes)
    return figure


def _by_length(result: Result) -> list[dict[str, Any]]:
    """The cases of head_dim 64 in float32, without padding and dropout."""
    cases = [
        case
        for case in result["cases"]
        if "forward_backward" in case
        and (case["head_dim"], case["dtype"], case["dropout_p"]) == (64, "float32", 0.0)
        and not case["packed"]
    ]
    return sorted(cases, key=lambda case: int(case["seqlen"]))


def _growth(result: Result) -> Any:
    """Times over sizes on logarithmic axes, one panel a size that grows."""
    cases = [case for case in result["cases"] if len(case["points"]) > 1]
    figure, panels = _figure(3.0, columns=len(cases))
    names = list(dict.fromkeys(name for case in cases for name in case["exponents"]))
    for axes, case in zip(panels if len(cases) > 1 else [panels], cases, strict=True):
        for name, colour in _coloured(names):
            has = [point for point in case["points"] if name in point["times"]]
            sizes = [point["size"] for point in has]
            times = [point["times"][name]["median_ms"] for point in has]
            exponent = case["exponents"].get(name)
            label = f"{name}: {exponent:.2f}" if exponent is not None else name
            axes.plot(sizes, times, marker=".", color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        what = "share of real tokens" if case["name"] == "padding" else case["name"]
        axes.set_title(what)
        _plain_ticks(axes, [point["size"] for point in case["points"]])
        axes.margins(y=0.35)  # room for the legend
        _finish(axes)
    first = panels if len(cases) == 1 else panels[0]
    first.set_ylabel("ms", fontsize=9)
    figure.supxlabel(f"exponents in the legends; {_machine(result)}", fontsize=9, color=_INK)
    return figure


def _plain_ticks(axes: Any, sizes: list[float]) -> None:
    shown = sorted(sizes)[:: max(1, len(sizes) // 4)]
    axes.set_xticks(shown, [f"{size:g}" for size in shown])
    axes.minorticks_off()


def _coloured(names: list[str]) -> list[tuple[str, str]]:
    """Ours first, in its own colour."""
    ordered = sorted(names, key=lambda name: not is_ours(name))
    return [(name, _LINES[index % len(_LINES)]) for index, name in enumerate(ordered)]


def _finish(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=7)
    for text in legend.get_texts():
        text.set_color(_INK)


PICTURES: dict[str, Callable[[Result], Any]] = {
    "bert": _steps,
    "attention": _operation,
    "growth": _growth,
}
