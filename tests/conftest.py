"""Fixtures of all tests: a known state of torch, and every backend this machine has."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter, which must be asked for before anything
# imports triton.
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastattn import testing  # noqa: E402
from fastattn.backends import cpu, triton  # noqa: E402
from fastattn.backends.cuda import EMULATED, EMULATED_HOPPER  # noqa: E402
from fastattn.errors import BackendError  # noqa: E402

# Repeatable: no example depends on the day, and a slow machine is not a failure.
hypothesis.settings.register_profile(
    "fastattn", derandomize=True, deadline=None, database=None, print_blob=False
)
hypothesis.settings.load_profile("fastattn")

INSTRUCTION_SETS = cpu.instruction_sets()
BACKENDS = ["reference", *(f"cpu-{name}" for name in INSTRUCTION_SETS)]
if triton.INTERPRETED:
    BACKENDS.append(triton.NAME)
EMULATED_NAMES = [EMULATED.NAME] if EMULATED.unavailable_reason() is None else []
BACKENDS += EMULATED_NAMES
if EMULATED_HOPPER.unavailable_reason() is None:
    BACKENDS.append(EMULATED_HOPPER.NAME)


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors on shared cores: threads would mostly wait for each other. Tests of threading
    # ask for more.
    torch.set_num_threads(1)


# Triton's interpreter takes about a second for a call with its gradients, so by default it gets a
# sample of the cases of each test. The emulator of CUDA takes a tenth of that, and gets all; the
# kernels for Hopper share much with the others and have tests of their own, and get a sample.
ALL_TRITON_CASES = os.environ.get("FASTATTN_TEST_ALL_TRITON", "0") not in ("", "0")
SAMPLES = {triton.NAME: 10, EMULATED_HOPPER.NAME: 10}
# Element types that they refuse; refusals have their own tests.
REFUSED = {
    triton.NAME: {torch.float64},
    EMULATED.NAME: {torch.float32, torch.float64},
    EMULATED_HOPPER.NAME: {torch.float32, torch.float64},
}
# What only the call says; any other refusal fails the test.
CUDA_LIMITS = re.compile("dtype must be float16 or bfloat16|head_dim must be at most")
# Tests of float64 that do not say so in a parameter.
FLOAT64_TESTS = (
    "test_gradcheck",
    "test_autocast_leaves_float64_alone",
    "test_mean_over_seeds_is_attention_without_dropout",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_test: dict[object, list[pytest.Item]] = {}
    for item in items:
        backend = _backend_of(item)
        if backend in REFUSED:
            by_test.setdefault((getattr(item, "function", None), backend), []).append(item)
    kept = {id(item) for cases in by_test.values() for item in _sample(cases)}
    dropped = {id(item) for cases in by_test.values() for item in cases} - kept
    items[:] = [item for item in items if id(item) not in dropped]


def _parameters(item: pytest.Item) -> dict[str, object]:
    return getattr(getattr(item, "callspec", None), "params", {})


def _backend_of(item: pytest.Item) -> object:
    """The backend that a fixture names, if one does."""
    parameters = _parameters(item)
    return parameters.get("backend", parameters.get("kernels"))


def _is_refused(case: pytest.Item, backend: str) -> bool:
    parameters = _parameters(case)
    if "kernels" in parameters:  # of hidden states
        dtypes = parameters.get("dtypes", (parameters.get("dtype"),))
        return torch.float64 in dtypes  # type: ignore[operator]
    return parameters.get("dtype") in REFUSED[backend]


def _sample(cases: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of one test that run where a CPU plays a GPU."""
    backend = str(_backend_of(cases[0]))
    served = [
        case
        for case in cases
        if not _is_refused(case, backend) and not case.name.startswith(FLOAT64_TESTS)
    ]
    if backend not in SAMPLES or (ALL_TRITON_CASES and backend == triton.NAME):
        return served
    hypothetical = any(hasattr(getattr(case, "function", None), "hypothesis") for case in served)
    if hypothetical and backend == triton.NAME:
        return []  # dozens of calls in one test; tests/backends/test_triton.py has fewer
    # A step that has no divisor in common with the number of dtypes meets all of them.
    step = next(step for step in (1, 5, 7, 11, 13, 17) if len(served) <= step * SAMPLES[backend])
    return served[::step]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """A test in float32, or of a larger head_dim, has nothing to say about the CUDA kernels."""
    try:
        return (yield)
    except BackendError as error:
        emulated = _backend_of(pyfuncitem) in (EMULATED.NAME, EMULATED_HOPPER.NAME)
        if not emulated or not CUDA_LIMITS.search(str(error)):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def num_threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _use(name: str) -> Iterator[str]:
    """Forces the instruction set of "cpu-<instruction set>"; yields the backend's name."""
    if name in (EMULATED.NAME, EMULATED_HOPPER.NAME):
        testing.default_dtype = torch.float16
        yield name
        testing.default_dtype = torch.float32
        return
    backend, _, instruction_set = name.partition("-")
    if not instruction_set:
        yield backend
        return
    before = cpu.instruction_set()
    cpu.set_instruction_set(instruction_set)
    yield backend
    cpu.set_instruction_set(before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every backend here; the CPU kernels once for each instruction set."""
    yield from _use(request.param)


@pytest.fixture
def cpu_backend() -> str:
    """The CPU backend as users get it, where the instruction set makes no difference."""
    if cpu.unavailable_reason() is not None:
        pytest.skip(str(cpu.unavailable_reason()))
    return cpu.NAME


@pytest.fixture(params=INSTRUCTION_SETS or [pytest.param("none", marks=pytest.mark.skip)])
def cpu_kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU kernels alone, once for each instruction set."""
    yield from _use(f"{cpu.NAME}-{request.param}")


@pytest.fixture(params=[*(f"{cpu.NAME}-{name}" for name in INSTRUCTION_SETS), *EMULATED_NAMES])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels on hidden states: the CPU's, and the emulated ones of CUDA."""
    yield from _use(request.param)
