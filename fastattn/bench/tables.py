"""Result files as tables: rows of strings, for the screen and for Markdown alike."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastattn.bench.cases import DTYPES

Result = dict[str, Any]

_PASSES = {"forward": "forward", "forward_backward": "forward + backward"}


class Table(NamedTuple):
    """A table; every column but the first ``num_words`` holds numbers."""

    header: list[str]
    rows: list[list[str]]
    num_words: int = 1

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        marks = ["---" if i < self.num_words else "---:" for i in range(len(self.header))]
        lines = [self.header, marks, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def attention_summary(result: Result) -> Table:
    """Times and ratios, one line a case."""
    header = ["case", "shape"]
    for words in _PASSES.values():
        header += [f"{words}, ms", "torch, ms", "ratio"]
    rows = []
    for case in _timed(result):
        row = [case["name"], _shape(case)]
        for name in _PASSES:
            ours, peer = _medians(case[name])
            row += [_ms(ours), f"{_ms(peer)} ({case[name]['best_peer']})", _ratio(case[name])]
        rows.append(row)
    return Table(header, rows, num_words=2)


def gpu_summary(result: Result) -> Table:
    """Times of both of our backends on a GPU beside the best peer's, one line a case and pass."""
    header = ["case", "pass", "cuda, ms", "triton, ms", "torch, ms", "best of torch's"]
    header += ["ratio, cuda", "ratio, triton", "target"]
    rows = []
    for case in result["cases"]:
        for name, words in _PASSES.items():
            found = case[name]
            best, ratios = found["best_peer"], found["ratios"]
            medians = {who: times["median_ms"] for who, times in found["times"].items()}
            row = [case["name"], words]
            for who in ("fastattn-cuda", "fastattn-triton", best):
                row.append(_ms(medians[who]) if who in medians else "")
            row.append(best or "")
            for who in ("fastattn-cuda", "fastattn-triton"):
                row.append(f"{ratios[who]:.2f}" if who in ratios else "")
            rows.append([*row, _target(case["target"])])
    return Table(header, rows, num_words=2)


def gpu_notes(result: Result) -> list[str]:
    """What was not timed, and why."""
    return [
        f"{case['name']}: no {name}: {reason}"
        for case in result["cases"]
        for name, reason in case["refused"].items()
    ]


def attention_targets(result: Result) -> Table:
    """Ratios and shares of the peak beside what the project aims at."""
    aims = result["peak_share_targets"]
    header = ["case", "pass", "median, ms", "quartiles, ms", "ratio", "target", "GFLOP/s"]
    header += ["of peak", "aim"]
    rows = []
    for case in _timed(result):
        for name, words in _PASSES.items():
            found = case[name]
            ours = found["times"]["fastattn"]
            row = [case["name"], words, _ms(ours["median_ms"]), _spread(ours), _ratio(found)]
            row += [_target(found["target"]), f"{found['gflops']:.0f}"]
            rows.append([*row, f"{found['peak_share']:.0%}", _share(aims.get(name))])
        back = case.get("backward")
        if back is None:
            continue
        row = [case["name"], "backward, by difference", "", "", "", "", f"{back['gflops']:.0f}"]
        rows.append([*row, f"{back['peak_share']:.0%}", _share(aims.get("backward"))])
    return Table(header, rows, num_words=2)


def attention_notes(result: Result, with_targets: bool) -> list[str]:
    """Sentences about memory, threads and the machine's peak."""
    notes = ["Shapes are batch x heads x length x head_dim; a ratio is torch's time by ours."]
    for case in result["cases"]:
        if "peak_extra_bytes" in case:
            ours, eager = (case["peak_extra_bytes"][name] / 2**20 for name in ("fastattn", "eager"))
            note = (
                f"Memory, {_shape(case)}, {DTYPES[case['dtype']]}, forward + backward: "
                f"{ours:,.0f} MiB at the peak beside the inputs, where eager attention takes "
                f"{eager:,.0f} MiB ({case['eager_is']}): {case['share']:.1%}"
            )
            notes.append(note + (f"; target {case['target']:.0%}." if with_targets else "."))
    scaling = result["thread_scaling"]
    if scaling is not None:
        note = (
            f"From one thread to two, {scaling['case']}: {scaling['forward']['ratio']:.2f} times "
            f"as fast forward, {scaling['forward_backward']['ratio']:.2f} forward + backward"
        )
        notes.append(note + (f"; target {scaling['target']:g}." if with_targets else "."))
    if with_targets and result["peak_gflops"]:
        peaks = ", ".join(
            f"{rate:,.0f} GFLOP/s in {DTYPES[dtype]}"
            for dtype, rate in result["peak_gflops"].items()
        )
        notes.append(f"The machine's measured peak, multiply-adds in registers: {peaks}.")
    ragged = [case for case in _timed(result) if case["packed"]]
    for case in ragged:
        lengths = ", ".join(map(str, case["lengths"]))
        notes.append(
            f"{case['name']}: {lengths} tokens; torch gets the padded batch and its mask, fastattn "
            "the tokens alone, as in a patched model."
        )
    return notes


def bert_summary(result: Result, with_targets: bool) -> Table:
    """Steps and ratios, one line a case."""
    header = ["case", "batches", "padding", "stock, ms", "fastattn, ms", "ratio"]
    header += ["target", "quartiles of stock, ms", "of fastattn, ms"] if with_targets else []
    rows = []
    for case in result["cases"]:
        ours, stock = (case["times"][name] for name in ("fastattn", "stock"))
        row = [case["name"], _batches(case), f"{_padding(case):.0%}", _ms(stock["median_ms"])]
        row += [_ms(ours["median_ms"]), _ratio(case)]
        if with_targets:
            row += [_target(case["target"]), _spread(stock), _spread(ours)]
        rows.append(row)
    return Table(header, rows, num_words=2)


def bert_profile(result: Result) -> Table:
    """The share of each kind of work in our step."""
    groups = list(result["cases"][0]["profile_ms"]) if result["cases"] else []
    rows = []
    for case in result["cases"]:
        total = sum(case["profile_ms"].values()) or 1.0
        shares = [f"{case['profile_ms'][group] / total:.0%}" for group in groups]
        rows.append([case["name"], *shares])
    return Table(["what remains in our step", *groups], rows)


def provenance(result: Result) -> str:
    """The sentence that says where the figures of a result are from."""
    machine, versions, git = result["machine"], result["versions"], result["git"]
    commit = "no commit" if git is None else f"commit {git['commit'][:10]}"
    if git is not None and git["dirty"]:
        commit += " with uncommitted changes"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"`{result['command']}` on {machine['model']}, {threads}, {machine['instruction_set']}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}, "
        f"fastattn {versions['fastattn']} ({commit}), {result['date'][:10]}."
    )


def _timed(result: Result) -> list[dict[str, Any]]:
    return [case for case in result["cases"] if "forward" in case]


def _shape(case: dict[str, Any]) -> str:
    sizes = (case["batch_size"], case["num_heads"], case["seqlen"], case["head_dim"])
    return " x ".join(map(str, sizes))


def _medians(found: dict[str, Any]) -> tuple[float, float]:
    times = found["times"]
    return times["fastattn"]["median_ms"], times[found["best_peer"]]["median_ms"]


def _batches(case: dict[str, Any]) -> str:
    lengths = sorted({length for _, length in case["shapes"]})
    span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
    return f"{case['batch_size']} x {span}"


def _padding(case: dict[str, Any]) -> float:
    return 1 - sum(case["tokens"]) / sum(rows * length for rows, length in case["shapes"])


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(times: dict[str, Any]) -> str:
    return f"{_ms(times['q1_ms'])}-{_ms(times['q3_ms'])}"


def _ratio(found: dict[str, Any]) -> str:
    return f"{found['ratio']:.2f}"


def _target(target: float | None) -> str:
    return "" if target is None else f"{target:g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
