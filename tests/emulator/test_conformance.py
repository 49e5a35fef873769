"""What each instruction does: the emulator, a GPU, and the definition agree.

The emulator could misread an instruction in the same way as a kernel that was written with it. So
conformance.cu runs every one of them on operands chosen here, and what comes out is compared with
the definition in the PTX ISA, written down once more in numpy. Where there is a GPU the same source
runs on it; with FASTATTN_RECORD_CONFORMANCE=1 its results are stored in golden/, from where every
run of the tests compares them with the emulator's.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

HERE = Path(__file__).parent
CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCE = HERE / "conformance.cu"
GOLDEN = HERE / "golden"

BLOCKS, LANES, INPUTS, OUTPUTS = 32, 32, 16, 8
LANE = np.arange(LANES)
G, T = LANE // 4, LANE % 4  # the PTX ISA's groupID and threadID_in_group

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """What one output word of each lane must be, shape (blocks, lanes)."""

    index: int
    bits: Words | None = None  # exactly these
    pairs: torch.dtype | None = None  # two 16-bit numbers; all NaN are alike
    values: Floats | None = None  # or this float32
    tolerance: Floats | float = 0.0


def random_words(rng: np.random.Generator) -> Words:
    return rng.integers(0, 2**32, (BLOCKS, LANES, INPUTS), dtype=np.uint32)


def as_floats(words: Words) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(words).view(np.float32)


def from_float16s(words: Words, dtype: torch.dtype) -> Floats:
    """The two numbers of each word, shape (..., 2)."""
    numbers = torch.from_numpy(np.ascontiguousarray(words).view(np.int16).copy()).view(dtype)
    return numbers.double().numpy().reshape(*words.shape, 2)


def to_float16s(pairs: npt.NDArray[np.float32], dtype: torch.dtype) -> Words:
    """(..., 2) -> words, the first number in the low half."""
    numbers = torch.from_numpy(np.ascontiguousarray(pairs)).to(dtype).view(torch.int16)
    return numbers.numpy().view(np.uint16).reshape(*pairs.shape).view(np.uint32)[..., 0]


# ---- ldmatrix ----


def ldmatrix_statement(words: Words, matrices: int, transposed: bool) -> list[Column]:
    rows = words[:, :, :4].copy().view(np.uint16)  # (blocks, 32 rows, 8 numbers)
    chosen = words[:, :, 4] % 32
    columns = []
    for i in range(matrices):
        # Row j of matrix i is where lane 8 * i + j points.
        matrix = np.stack([rows[b, chosen[b, 8 * i : 8 * i + 8]] for b in range(len(words))])
        if transposed:
            matrix = matrix.transpose(0, 2, 1)
        low, high = matrix[:, G, 2 * T], matrix[:, G, 2 * T + 1]
        columns.append(Column(i, bits=(low | high.astype(np.uint32) << 16).astype(np.uint32)))
    return columns


# ---- mma ----


def mma_operands(rng: np.random.Generator, dtype: torch.dtype) -> Words:
    words = random_words(rng)
    numbers = rng.standard_normal((BLOCKS, LANES, 6, 2)).astype(np.float32)
    numbers *= np.float32(2.0) ** rng.integers(-6, 4, numbers.shape).astype(np.float32)
    words[..., :6] = to_float16s(numbers, dtype)
    words[..., 6:10] = rng.standard_normal((BLOCKS, LANES, 4)).astype(np.float32).view(np.uint32)
    return words


def mma_statement(words: Words, dtype: torch.dtype) -> list[Column]:
    """PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type"."""
    fragments = from_float16s(words[..., :6], dtype)
    a = np.zeros((len(words), 16, 16))
    b = np.zeros((len(words), 16, 8))
    for i in range(8):  # a_i: row, column
        row = G + (8 if 2 <= i < 4 or i >= 6 else 0)
        col = T * 2 + (i & 1) + (8 if i >= 4 else 0)
        a[:, row, col] = fragments[:, :, i // 2, i % 2]
    for i in range(4):  # b_i: row, column
        row = T * 2 + (i & 1) + (8 if i >= 2 else 0)
        b[:, row, G] = fragments[:, :, 4 + i // 2, i % 2]
    product, size = a @ b, np.abs(a) @ np.abs(b)
    c = as_floats(words[..., 6:10]).astype(np.float64)
    columns = []
    for i in range(4):  # c_i: row, column
        row, col = G + (8 if i >= 2 else 0), T * 2 + (i & 1)
        # 16 additions; tensor cores cut off digits, which costs up to twice a rounding.
        tolerance = 16 * 2.0**-22 * (size[:, row, col] + np.abs(c[..., i]))
        columns.append(Column(i, values=product[:, row, col] + c[..., i], tolerance=tolerance))
    return columns


# ---- numbers and functions ----


def number_operands(rng: np.random.Generator, dtype: torch.dtype) -> Words:
    """Any bits; in every other block numbers half-way between two of 16 bits, or next to that."""
    words = random_words(rng)
    lower = rng.integers(0, 2**15 - 1, (BLOCKS // 2, LANES, INPUTS), dtype=np.uint16)
    neighbours = torch.from_numpy(np.stack([lower, lower + 1]).view(np.int16)).view(dtype)
    middle = neighbours.double().mean(0).float().numpy()
    near = middle.view(np.int32) + rng.integers(-1, 2, middle.shape, dtype=np.int32)
    words[::2] = near.view(np.uint32) | rng.integers(0, 2, middle.shape, dtype=np.uint32) << 31
    return words


def numbers_statement(words: Words, dtype: torch.dtype) -> list[Column]:
    floats = as_floats(words)
    unpacked = from_float16s(words[..., 2], dtype)
    rounded = to_float16s(np.repeat(floats[..., 3:4], 2, axis=-1), dtype)
    return [
        Column(0, bits=to_float16s(floats[..., :2], dtype), pairs=dtype),
        Column(1, values=unpacked[..., 0]),
        Column(2, values=unpacked[..., 1]),
        Column(3, values=from_float16s(rounded, dtype)[..., 0]),
    ]


def function_operands(rng: np.random.Generator) -> Words:
    words = random_words(rng)
    x = rng.standard_normal((BLOCKS, LANES)) * 2.0 ** rng.integers(-20, 7, (BLOCKS, LANES))
    special = [0.0, 1.0, -1.0, 128.0, 127.5, -126.0, -126.5, -150.0, np.inf, -np.inf, np.nan, 1e-39]
    x[0, : len(special)] = special
    words[..., 0] = x.astype(np.float32).view(np.uint32)
    return words


def function_statement(words: Words) -> list[Column]:
    x = as_floats(words)[..., 0].astype(np.float64)
    smallest = float(np.finfo(np.float32).tiny)

    def flush(y: Floats) -> Floats:
        return np.where(np.abs(y) < smallest, 0.0, y)

    exp2 = flush(np.exp2(x).astype(np.float32).astype(np.float64))
    log2 = np.log2(flush(x))
    erf = torch.special.erf(torch.from_numpy(x)).numpy()
    product = words[..., 1].astype(np.uint64) * words[..., 2].astype(np.uint64)
    ones = np.array([value.bit_count() for value in words[..., 1].ravel().tolist()])
    return [
        # PTX ISA: 2^-22 relative; and 2^-22 absolute where log2 is near 0.
        Column(0, values=exp2, tolerance=2.0**-22 * exp2 + 2.0**-149),
        Column(1, values=log2, tolerance=2.0**-22 * np.maximum(np.abs(log2), 1.0)),
        # CUDA C++ programming guide, "Mathematical functions": tanhf 2 ulp, erff 2 ulp.
        Column(2, values=np.tanh(x), tolerance=2.0**-22 * np.abs(np.tanh(x))),
        Column(3, values=erf, tolerance=2.0**-22 * np.abs(erf)),
        Column(4, bits=(product >> np.uint64(32)).astype(np.uint32)),
        Column(5, bits=ones.reshape(x.shape).astype(np.uint32)),
    ]


# ---- lanes and memory ----


def shuffle_statement(words: Words) -> list[Column]:
    value = words[..., 0]
    chosen = np.take_along_axis(value, (words[..., 1] % 32).astype(np.int64), axis=1)
    down = value[:, np.where(LANE + 3 < 32, LANE + 3, LANE)]
    votes = ((words[..., 2] % 2).astype(np.uint64) << LANE.astype(np.uint64)).sum(axis=1)
    ballot = np.repeat(votes.astype(np.uint32)[:, None], LANES, axis=1)
    results = [chosen, value[:, LANE ^ 1], value[:, LANE ^ 20], down, value[:, LANE ^ 31], ballot]
    return [Column(i, bits=result) for i, result in enumerate(results)]


def copy_statement(words: Words) -> list[Column]:
    copied = np.where(words[..., :1] % 2 != 0, words[..., :4], 0)[:, LANE ^ 1]
    return [Column(i, bits=copied[..., i]) for i in range(4)]


def access_operands(rng: np.random.Generator) -> Words:
    words = random_words(rng)
    words[..., 5] = rng.standard_normal((BLOCKS, LANES)).astype(np.float32).view(np.uint32)
    return words


def access_statement(words: Words) -> list[Column]:
    w = words[:, LANE ^ 5]
    third = w[..., 2] & 0xFFFF | (w[..., 3] & 0xFF) << 16 | (w[..., 4] & 0xFF) << 24
    results = [w[..., 0], w[..., 1], third, w[..., 5], third >> 16, third >> 8 & 0xFF, w[..., 5]]
    return [Column(i, bits=result.astype(np.uint32)) for i, result in enumerate(results)]


@dataclass(frozen=True)
class Operation:
    """An operation of conformance.cu: its operands and its definition."""

    name: str
    operands: Callable[[np.random.Generator], Words]
    statement: Callable[[Words], list[Column]]


HALF, BF16 = torch.float16, torch.bfloat16


def ldmatrix(name: str, matrices: int, transposed: bool) -> Operation:
    return Operation(name, random_words, lambda w: ldmatrix_statement(w, matrices, transposed))


def of_dtype(
    name: str,
    operands: Callable[[np.random.Generator, torch.dtype], Words],
    statement: Callable[[Words, torch.dtype], list[Column]],
    dtype: torch.dtype,
) -> Operation:
    return Operation(name, lambda rng: operands(rng, dtype), lambda w: statement(w, dtype))


# In the order of kOperations.
OPERATIONS = [
    ldmatrix("ldmatrix_x4", 4, transposed=False),
    ldmatrix("ldmatrix_x4_trans", 4, transposed=True),
    ldmatrix("ldmatrix_x2", 2, transposed=False),
    ldmatrix("ldmatrix_x2_trans", 2, transposed=True),
    of_dtype("mma_half", mma_operands, mma_statement, HALF),
    of_dtype("mma_bf16", mma_operands, mma_statement, BF16),
    of_dtype("numbers_half", number_operands, numbers_statement, HALF),
    of_dtype("numbers_bf16", number_operands, numbers_statement, BF16),
    Operation("functions", function_operands, function_statement),
    Operation("shuffles", random_words, shuffle_statement),
    Operation("copies", random_words, copy_statement),
    Operation("accesses", access_operands, access_statement),
]
NAMES = [operation.name for operation in OPERATIONS]
operations = pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=NAMES)


def operands_of(number: int) -> Words:
    return OPERATIONS[number].operands(np.random.default_rng(number))


def quieten(words: Words, dtype: torch.dtype) -> Words:
    """Makes one NaN of all."""
    isnan = np.isnan(from_float16s(words, dtype))
    halves = np.where(
        isnan, 0x7FFF, np.ascontiguousarray(words).view(np.uint16).reshape(isnan.shape)
    )
    return halves[..., 0] | halves[..., 1] << 16


@np.errstate(all="ignore")
def check(number: int, words: Words, output: Words) -> None:
    """Asserts that the output of an operation is what its definition says."""
    for column in OPERATIONS[number].statement(words):
        actual = output[..., column.index]
        if column.bits is not None:
            expected = column.bits
            if column.pairs is not None:
                actual, expected = quieten(actual, column.pairs), quieten(expected, column.pairs)
            np.testing.assert_array_equal(actual, expected)
            continue
        assert column.values is not None
        values, numbers = column.values, as_floats(actual).astype(np.float64)
        same = (numbers == values) | (np.isnan(numbers) & np.isnan(values))
        rounding = np.maximum(2.0**-24 * np.abs(values), 2.0**-150)
        near = np.abs(numbers - values) <= column.tolerance + rounding
        wrong = np.argwhere(~(same | near))
        assert len(wrong) == 0, (
            f"output {column.index} of block and lane {wrong[0]}: "
            f"{numbers[tuple(wrong[0])]!r} instead of {values[tuple(wrong[0])]!r}"
        )


def run(library: ctypes.CDLL, number: int, input_pointer: int, output_pointer: int) -> None:
    library.conformance.restype = ctypes.c_char_p
    error = library.conformance(
        number, ctypes.c_void_p(input_pointer), ctypes.c_void_p(output_pointer), BLOCKS
    )
    assert error is None, error


@pytest.fixture(scope="module")
def emulated(compile_library: Callable[..., ctypes.CDLL]) -> Callable[[int, Words], Words]:
    """emulated(number, words) -> what the emulator gives."""
    library = compile_library("conformance", [(CSRC, SOURCE)])

    def emulated(number: int, words: Words) -> Words:
        output = np.zeros((BLOCKS, LANES, OUTPUTS), np.uint32)
        run(library, number, words.ctypes.data, output.ctypes.data)
        return output

    return emulated


@operations
def test_the_emulator_does_what_is_defined(
    emulated: Callable[[int, Words], Words], number: int
) -> None:
    words = operands_of(number)
    check(number, words, emulated(number, words))


def golden_files() -> list[object]:
    files = sorted(GOLDEN.glob("*.npz"))
    if files:
        return [pytest.param(path, id=path.stem) for path in files]
    reason = "no results of a GPU are stored yet; tests/emulator/golden is empty"
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]


@operations
@pytest.mark.parametrize("path", golden_files())
def test_the_emulator_does_what_a_gpu_did(
    emulated: Callable[[int, Words], Words], path: Path, number: int
) -> None:
    with np.load(path) as stored:
        words = stored[f"{OPERATIONS[number].name}_input"]
        output = stored[f"{OPERATIONS[number].name}_output"]
    check(number, words, output)
    check(number, words, emulated(number, words))


def find_nvcc() -> str | None:
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / "nvcc"
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for candidate in ("nvcc", f"{home}/bin/nvcc", str(wheels)):
        if found := shutil.which(candidate):
            return found
    return None


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, Words], Words]:
    """gpu(number, words) -> what the GPU at hand gives."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    target = tmp_path_factory.mktemp("conformance") / "conformance.so"
    major, minor = torch.cuda.get_device_capability()
    command = [nvcc, "-std=c++17", f"-I{CSRC}", f"-arch=sm_{major}{minor}", "-Xcompiler=-fPIC"]
    command += ["-shared", "-cudart=static", "-o", str(target), str(SOURCE)]
    library_folder = Path(nvcc).resolve().parents[1] / "lib"
    subprocess.run([*command, f"-L{library_folder}"], check=True)
    library = ctypes.CDLL(str(target))

    def gpu(number: int, words: Words) -> Words:
        given = torch.from_numpy(words.view(np.int32)).cuda()
        result = torch.zeros(BLOCKS, LANES, OUTPUTS, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()  # the launch is on the default stream, not on torch's
        run(library, number, given.data_ptr(), result.data_ptr())
        torch.cuda.synchronize()
        return result.cpu().numpy().view(np.uint32)

    return gpu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_gpu_does_what_is_defined(gpu: Callable[[int, Words], Words]) -> None:
    results: dict[str, Words] = {}
    for number, operation in enumerate(OPERATIONS):
        if operation.name == "mma_bf16" and torch.cuda.get_device_capability() < (8, 0):
            continue
        words = operands_of(number)
        output = gpu(number, words)
        check(number, words, output)
        results |= {f"{operation.name}_input": words, f"{operation.name}_output": output}
    if os.environ.get("FASTATTN_RECORD_CONFORMANCE", "0") not in ("", "0"):
        name = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
        GOLDEN.mkdir(exist_ok=True)
        arrays: dict[str, Any] = dict(results)
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)
