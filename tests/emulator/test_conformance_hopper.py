"""What each product of a warpgroup is: the emulator, a GPU, and the definition agree.

As test_conformance.py has it for the instructions of a warp.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.emulator.test_conformance import CSRC, find_nvcc

SOURCE = Path(__file__).with_name("conformance_hopper.cu")
BLOCKS = 3
HALF, BF16 = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Operation:
    """An operation of conformance_hopper.cu: what it multiplies, of the two tiles' numbers."""

    name: str
    dtype: torch.dtype
    factors: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def by_rows(cols: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda left, right: (left[..., :cols], right[..., :cols].mT)


def by_cols(cols: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda left, right: (left, right[..., :cols])


def transposed(cols: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda left, right: (left.mT, right[..., :cols])


# In the order of kOperations.
OPERATIONS = [
    Operation("rows_half", HALF, by_rows(64)),
    Operation("rows_bf16", BF16, by_rows(64)),
    Operation("narrow_rows_half", HALF, by_rows(32)),
    Operation("cols_half", HALF, by_cols(64)),
    Operation("cols_bf16", BF16, by_cols(64)),
    Operation("few_cols_bf16", BF16, by_cols(32)),
    Operation("transposed_half", HALF, transposed(64)),
    Operation("transposed_bf16", BF16, transposed(64)),
    Operation("transposed_few_cols_half", HALF, transposed(32)),
    Operation("narrow_cols_half", HALF, lambda left, right: (left * 0 + 1, right[..., :32])),
]
operations = pytest.mark.parametrize(
    "number", range(len(OPERATIONS)), ids=lambda n: OPERATIONS[n].name
)


def check(library: ctypes.CDLL, number: int, device: str) -> None:
    """Asserts that a product is what its definition says."""
    operation = OPERATIONS[number]
    generator = torch.Generator().manual_seed(number)
    factors = torch.randn(BLOCKS, 2, 64, 64, generator=generator).to(operation.dtype).to(device)
    given = torch.randn(BLOCKS, 64, 64, generator=generator).to(device)
    result = torch.zeros_like(given)
    if device == "cuda":
        torch.cuda.synchronize()  # the launch is on the default stream, not on torch's
    library.conformance_hopper.restype = ctypes.c_char_p
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (factors, given, result)]
    error = library.conformance_hopper(number, *pointers, BLOCKS)
    assert error is None, error
    if device == "cuda":
        torch.cuda.synchronize()
    left, right = operation.factors(*factors.cpu().double().unbind(1))
    product, size = left @ right, left.abs() @ right.abs()
    cols = product.shape[-1]
    given, result = given.cpu()[..., :cols].double(), result.cpu()[..., :cols].double()
    # 64 additions; tensor cores cut off digits, which costs up to twice a rounding.
    tolerance = 64 * 2.0**-22 * (size + given.abs())
    assert ((result - product - given).abs() <= tolerance).all()


@pytest.fixture(scope="module")
def emulated(compile_library: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    return compile_library("conformance_hopper", [(CSRC, SOURCE)])


@operations
def test_the_emulator_does_what_is_defined(emulated: ctypes.CDLL, number: int) -> None:
    check(emulated, number, "cpu")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same on the GPU at hand."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    target = tmp_path_factory.mktemp("conformance") / "conformance_hopper.so"
    command = [nvcc, "-std=c++17", f"-I{CSRC}", "-gencode", "arch=compute_90a,code=sm_90a"]
    command += ["-Xcompiler=-fPIC", "-shared", "-cudart=static", "-o", str(target), str(SOURCE)]
    subprocess.run([*command, f"-L{Path(nvcc).resolve().parents[1] / 'lib'}"], check=True)
    return ctypes.CDLL(str(target))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="there is no GPU of compute capability 9.0",
)
@operations
def test_the_gpu_does_what_is_defined(gpu: ctypes.CDLL, number: int) -> None:
    check(gpu, number, "cuda")
