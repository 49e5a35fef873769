"""Result files as tables: rows of strings, for the screen and for Markdown alike."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastattn.bench.cases import DTYPES, NAMED_CASES
from fastattn.bench.timing import is_ours

Result = dict[str, Any]

_PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
_GPU_BACKENDS = ("cuda", "triton", "cuda-hopper")
_ALL_PASSES = {"forward": "forward", "backward": "backward", "forward_backward": "both"}


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


def attention_summary(result: Result, *, named_only: bool = False) -> Table:
    """Times and ratios, one line a case; ``named_only`` leaves out those named after a size."""
    named = {case.name for case in NAMED_CASES}
    header = ["case", "shape"]
    for words in _PASSES.values():
        header += [f"{words}, ms", "best peer, ms", "ratio"]
    rows = []
    for case in _timed(result):
        if named_only and case["name"] not in named:
            continue
        row = [case["name"], _shape(case)]
        for name in _PASSES:
            ours, peer = _medians(case[name])
            row += [_ms(ours), f"{_ms(peer)} ({case[name]['best_peer']})", _ratio(case[name])]
        rows.append(row)
    return Table(header, rows, num_words=2)


def gpu_summary(result: Result) -> Table:
    """Times of our backends on a GPU beside the best peer's, one line a case and pass.

    A ratio is that of the fastest of ours. "graph" is the same as a CUDA graph, without what the
    CPU does for a call.
    """
    ours = [f"{name}, ms" for name in _GPU_BACKENDS]
    header = ["case", "pass", *ours, "peer, ms", "best peer", "ratio"]
    header += [f"graph: {ours[0]}", *ours[1:], "peer, ms", "ratio", "of peak", "target"]
    rows = []
    for case in result["cases"]:
        for name, words in _ALL_PASSES.items():
            found, graph = case[name], case[name].get("graph")
            row = [case["name"], words, *_gpu_medians(found), found["best_peer"] or ""]
            row += [_ratio(found), *(_gpu_medians(graph) if graph else [""] * (len(ours) + 1))]
            row += [_ratio(graph) if graph else "", _share(found.get("peak_share"))]
            rows.append([*row, _target(case["target"])])
    return Table(header, rows, num_words=2)


def _gpu_medians(found: dict[str, Any]) -> list[str]:
    times = found["times"]
    names = (*(f"fastattn-{name}" for name in _GPU_BACKENDS), found["best_peer"])
    return [_ms(times[name]["median_ms"]) if name in times else "" for name in names]


def peers(result: Result) -> Table:
    """The median of every implementation that was timed, one line a case and pass."""
    timed = _timed(result)
    names = list(
        dict.fromkeys(name for case in timed for each in _ALL_PASSES for name in _times(case, each))
    )
    names.sort(key=lambda name: not is_ours(name))
    rows = []
    for case in timed:
        for each, words in _ALL_PASSES.items():
            times = _times(case, each)
            if times:
                cells = [_ms(times[name]["median_ms"]) if name in times else "" for name in names]
                rows.append([case["name"], words, *cells])
    return Table(["case", "pass", *(f"{name}, ms" for name in names)], rows, num_words=2)


def _times(case: dict[str, Any], name: str) -> dict[str, Any]:
    return case.get(name, {}).get("times", {})


def refusals(result: Result) -> list[str]:
    """What was not timed and why, the cases of one reason together; cases that were not run."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for case in result["cases"]:
        for name, reason in case.get("refused", {}).items():
            by_reason.setdefault((name, reason), []).append(case["name"])
    lines = []
    for (name, reason), cases in by_reason.items():
        where = "all cases" if len(cases) == len(result["cases"]) > 1 else ", ".join(cases)
        lines.append(f"No {name}: {reason} ({where}).")
    skipped: dict[str, list[str]] = {}
    for case_name, reason in result.get("skipped", {}).items():
        skipped.setdefault(reason, []).append(case_name)
    return lines + [f"Not run: {', '.join(cases)}: {reason}." for reason, cases in skipped.items()]


def attention_targets(result: Result) -> Table:
    """Ratios and shares of the peak beside what the project aims at."""
    aims = result["peak_share_targets"]
    header = ["case", "pass", "median, ms", "quartiles, ms", "ratio", "target", "GFLOP/s"]
    header += ["of peak", "aim"]
    rows = []
    for case in _timed(result):
        for name, words in _ALL_PASSES.items():
            found = case.get(name)
            if found is None:
                continue
            if "times" in found:
                ours = found["times"]["fastattn"]
                row = [case["name"], words, _ms(ours["median_ms"]), _spread(ours), _ratio(found)]
                row.append(_target(found["target"]))
            else:  # of the time of both passes less that of one
                row = [case["name"], f"{words}, by difference", "", "", "", ""]
            row.append(f"{found['gflops']:.0f}")
            rows.append([*row, _share(found.get("peak_share")), _share(aims.get(name))])
    return Table(header, rows, num_words=2)


def attention_notes(result: Result, with_targets: bool) -> list[str]:
    """Sentences about memory, threads and the machine's peak."""
    notes = [
        "Shapes are batch x heads x length x head_dim; a ratio is the best peer's time by ours."
    ]
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
        peaks = _peaks(result)
        notes.append(f"The machine's measured peak, multiply-adds in registers: {peaks}.")
    if with_targets and "peak_gb_per_s" in result:
        notes.append(f"Its bandwidth, by STREAM's triad: {result['peak_gb_per_s']:.1f} GB/s.")
    ragged = [case for case in _timed(result) if case["packed"]]
    if ragged:
        notes.append(
            f"{', '.join(case['name'] for case in ragged)}: torch gets the padded batch and its "
            "mask, fastattn the tokens alone, as in a patched model."
        )
    if with_targets:
        notes += [
            f"{case['name']}: {', '.join(map(str, case['lengths']))} tokens." for case in ragged
        ]
    return notes


def bert_summary(result: Result, with_targets: bool) -> Table:
    """Steps and ratios, one line a case; the peer is named where it is not the stock model."""
    header = ["case", "batches", "padding", "stock, ms", "fastattn, ms", "ratio", "tokens/s"]
    header += ["target", "quartiles of stock, ms", "of fastattn, ms"] if with_targets else []
    rows = []
    for case in result["cases"]:
        ours, stock = _medians(case)
        peer = "" if case["best_peer"] == "stock" else f" ({case['best_peer']})"
        row = [case["name"], _batches(case), f"{_padding(case):.0%}", _ms(stock) + peer]
        row += [_ms(ours), _ratio(case), f"{_tokens_per_s(case):,.0f}"]
        if with_targets:
            spreads = (case["times"][name] for name in (case["best_peer"], "fastattn"))
            row += [_target(case["target"]), *map(_spread, spreads)]
        rows.append(row)
    return Table(header, rows, num_words=2)


def _tokens_per_s(case: dict[str, Any]) -> float:
    """Of tokens that are not padding, in ours."""
    return sum(case["tokens"]) / sum(case["times_ms"]["fastattn"]) * 1e3


def epochs_summary(result: Result) -> Table:
    """Seconds of training, what came before it, and what it reached, one line a case."""
    header = ["case", "compiled", "batches", "steps", "sizes", "padding", "before, s"]
    header += ["training, s", "target, s", "tokens/s", "GFLOP/s", "of peak"]
    rows = []
    for case in result["cases"]:
        row = [case["name"], case["compile_mode"] or "no", f"{case['batch_size']}"]
        row += [f"{case['steps']}", f"{len(case['sizes'])}", f"{case['padding']:.1%}"]
        row += [f"{case['warmup_s']:.1f}", f"{case['training_s']:.1f}", _target(case["target_s"])]
        row += [f"{case['tokens_per_s']:,.0f}", f"{case['gflops']:,.0f}"]
        rows.append([*row, f"{case['peak_share']:.1%}"])
    return Table(header, rows, num_words=2)


def epochs_notes(result: Result) -> list[str]:
    """Sentences about the peak, and about graphs that were compiled while the clock ran."""
    notes = []
    if result["peak_gflops"]:
        notes.append(f"The machine's measured peak: {_peaks(result)}.")
    late = {case["name"]: case["graphs"]["meanwhile"] for case in result["cases"]}
    notes += [
        f"{name}: {count} graphs were compiled during the training, and are in its time."
        for name, count in late.items()
        if count
    ]
    return notes


def _peaks(result: Result) -> str:
    rates = result["peak_gflops"].items()
    return ", ".join(f"{rate:,.0f} GFLOP/s in {DTYPES[dtype]}" for dtype, rate in rates)


def layers_summary(result: Result) -> Table:
    """Times and ratios of parts of a layer, one line a case and pass."""
    header = ["case", "pass", "fastattn, ms", "best peer, ms", "ratio", "GB/s", "of bandwidth"]
    rows = []
    for case in result["cases"]:
        for name, words in _ALL_PASSES.items():
            found = case[name]
            ours, peer = _medians(found)
            row = [case["name"], words, _ms(ours), f"{_ms(peer)} ({found['best_peer']})"]
            rate = found.get("gb_per_s")
            row += [_ratio(found), "" if rate is None else f"{rate:.1f}"]
            rows.append([*row, _share(found.get("bandwidth_share"))])
    return Table(header, rows, num_words=2)


def memory_summary(result: Result) -> Table:
    """Peak memory beside the inputs, or beside what a training holds anyway."""
    names = list(
        dict.fromkeys(name for case in result["cases"] for name in case["peak_extra_bytes"])
    )
    rows = []
    for case in result["cases"]:
        sizes = case["peak_extra_bytes"]
        cells = [f"{sizes[name] / 2**20:,.0f}" if name in sizes else "" for name in names]
        what = _shape(case) if "seqlen" in case else "training step"
        aim = _target(case.get("target"))
        rows.append([case["name"], what, *cells, f"{case['share']:.1%}", aim])
    header = ["case", "shape", *(f"{name}, MiB" for name in names), "of eager, of stock", "target"]
    return Table(header, rows, num_words=2)


def growth_summary(result: Result) -> Table:
    """The exponents, one line for each size that grows."""
    names = list(dict.fromkeys(name for case in result["cases"] for name in case["exponents"]))
    names.sort(key=lambda name: not is_ours(name))
    rows = []
    for case in result["cases"]:
        sizes = [point["value"] for point in case["points"]]
        span = f"{sizes[0]:g} to {sizes[-1]:g}" if sizes else ""
        found = (case["exponents"].get(name) for name in names)
        rows.append([case["name"], span, *("" if x is None else f"{x:.2f}" for x in found)])
    return Table(["grows", "over", *(f"exponent, {name}" for name in names)], rows, num_words=2)


def growth_points(result: Result) -> Table:
    """The times that the exponents were fitted to."""
    names = list(dict.fromkeys(name for case in result["cases"] for name in case["exponents"]))
    names.sort(key=lambda name: not is_ours(name))
    rows = []
    for case in result["cases"]:
        for point in case["points"]:
            times = point["times"]
            cells = [_ms(times[name]["median_ms"]) if name in times else "" for name in names]
            rows.append([case["name"], f"{point['value']:g}", *cells])
    return Table(["grows", "to", *(f"{name}, ms" for name in names)], rows)


def install_summary(result: Result) -> Table:
    """Seconds and sizes of an installation."""
    rows = [
        ["build of the wheel from the sources, CPU kernels", f"{result['build_s']:.1f} s"],
        ["installation of the wheel", f"{result['install_s']:.1f} s"],
        ["size of the wheel", f"{result['wheel_bytes'] / 2**20:.2f} MiB"],
        ["installed", f"{result['installed_bytes'] / 2**20:.2f} MiB"],
    ]
    rows += [[f"process: {x['name']}", f"{x['median_ms'] / 1e3:.2f} s"] for x in result["cases"]]
    return Table(["what", "takes"], rows)


def bert_profile(result: Result) -> Table:
    """The share of each kind of work in our step."""
    groups = list(result["cases"][0]["profile_ms"]) if result["cases"] else []
    rows = []
    for case in result["cases"]:
        total = sum(case["profile_ms"].values()) or 1.0
        shares = [f"{case['profile_ms'][group] / total:.0%}" for group in groups]
        rows.append([case["name"], *shares])
    return Table(["what remains in our step", *groups], rows)


def shown(result: Result) -> tuple[list[Table], list[str]]:
    """Returns every table of a result, and the sentences that belong to them."""
    kind, of_gpu = result["kind"].removeprefix("gpu-"), result["kind"].startswith("gpu-")
    notes = refusals(result)
    if kind == "attention" and of_gpu:
        return [gpu_summary(result), peers(result)], notes
    if kind == "attention":
        found = [attention_summary(result), attention_targets(result), peers(result)]
        return found, attention_notes(result, with_targets=True) + notes
    if kind == "bert":
        found = [bert_summary(result, with_targets=True)]
        return found + ([] if of_gpu else [bert_profile(result)]), notes
    if kind == "epochs":
        return [epochs_summary(result)], epochs_notes(result) + notes
    if kind == "growth":
        return [growth_summary(result), growth_points(result)], notes
    one = {"layers": layers_summary, "memory": memory_summary, "install": install_summary}[kind]
    return [one(result)], notes


def provenance(result: Result) -> str:
    """The sentence that says where the figures of a result are from."""
    machine, versions, git = result["machine"], result["versions"], result["git"]
    commit = "no commit" if git is None else f"commit {git['commit'][:10]}"
    if git is not None and git["dirty"]:
        commit += " with uncommitted changes"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    gpu = machine.get("gpu")
    where = f"{machine['model']}, {threads}, {machine['instruction_set']}"
    if gpu is not None:
        where = f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['torch_cuda']}"
    return (
        f"`{result['command']}` on {where}; "
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
    return "" if found["ratio"] is None else f"{found['ratio']:.2f}"


def _target(target: float | None) -> str:
    return "" if target is None else f"{target:g}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
