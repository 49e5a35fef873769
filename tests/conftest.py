"""Fixtures of all tests: a known state of torch, and every backend this machine has."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter, which must be asked for before anything
# imports triton.
HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastattn.backends import cpu, triton  # noqa: E402

# Repeatable: no example depends on the day, and a slow machine is not a failure.
hypothesis.settings.register_profile(
    "fastattn", derandomize=True, deadline=None, database=None, print_blob=False
)
hypothesis.settings.load_profile("fastattn")

INSTRUCTION_SETS = cpu.instruction_sets()
BACKENDS = ["reference", *(f"cpu-{name}" for name in INSTRUCTION_SETS)]
if triton.INTERPRETED:
    BACKENDS.append(triton.NAME)


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors on shared cores: threads would mostly wait for each other. Tests of threading
    # ask for more.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _is_served(item)]


def _is_served(item: pytest.Item) -> bool:
    """Whether the backend of a test has the dtype of the test; refusals have their own tests."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    backend, dtype = parameters.get("backend"), parameters.get("dtype")
    return (backend, dtype) != (triton.NAME, torch.float64)


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
