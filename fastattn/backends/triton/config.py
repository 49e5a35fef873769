"""Sizes of tiles for each architecture, kernel, kind of product and shape: two tables.

``measured.json`` holds what was the fastest on a GPU: a row for each architecture, kernel, kind of
product, head_dim, and dropout or none, at short and at long sequences, with its date, GPU and
versions. ``python bench/gpu_tables.py tiles``, a step of ``make gpu``, measures candidates and
writes its rows. It has no row yet: nothing has been measured on a GPU.

The tables below serve what has no row. Their entries are chosen by what the compilers say: every
one compiles for its architecture within its shared memory, and for 16-bit elements without spilling
registers; among those, few instructions an element and many warps at once.
``tests/backends/test_triton_compile.py`` checks the first two, here for all of them (triton 3.9,
2026-11-30). Some float32 kernels for NVIDIA GPUs spill 8 to 24 bytes, where the compiler keeps
registers few to run more programs at once; dk and dv of head_dim 256 without tensor cores, where a
product keeps whole rows in registers, up to 32. With Triton 3.4 to 3.8 the configuration that BERT
trains with was compiled for each target: no spill but one of 16 bytes in dk and dv for sm_90 with
3.6, and of 8 with 3.8.

What to expect of an H200, by the code for sm_90 (triton 3.9, 2026-11-28; head_dim 64, packed): the
inner loops take 12.1 instructions a score forward and 20.3 with dropout; backward with dropout 20.5
for dk and dv and 19.6 for dq. At one instruction a cycle from each of its 4 x 132 schedulers
(1.755 GHz), that alone limits forward to 627 and 374 TFLOP/s and backward with dropout to 473. The
aims, 340 and 272 forward and 184 backward with dropout, take 54, 73 and 39 % of those cycles.

Nothing is tuned at run time, so no step of a training waits for it, and what a compiled kernel is
does not depend on when it was compiled. Triton keeps compiled kernels in its cache on disk, which
outlives the process and which processes share. Sizes change speed and rounding, never meaning.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from fastattn.backends.triton.target import Target


class Config(NamedTuple):
    """Queries and keys of a tile, warps of a program, and loads in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# Kinds of products: of 16-bit elements, the same where scores have a bias, ALiBi or a softcap,
# which take registers; of float32 by tensor cores, of float32 without.
HALF, RULED, TF32, IEEE = "half", "half ruled", "tf32", "ieee"
KERNELS = ("fwd", "dkdv", "dq", "dbias")
# Classes of shapes: up to these.
HEAD_DIMS = (64, 128, 256)
SEQLENS = (256, 1 << 31)
MEASURED = Path(__file__).with_name("measured.json")


class Shape(NamedTuple):
    """What the sizes of a kernel's tiles depend on, beside the GPU."""

    kernel: str
    kind: str
    head_dim: int  # padded to a power of two
    dropout: bool
    seqlen: int  # of the keys

    def classed(self) -> Shape:
        """Returns the shape with the largest head_dim and seqlen of its class."""
        head_dim = next(x for x in HEAD_DIMS if self.head_dim <= x)
        return self._replace(head_dim=head_dim, seqlen=next(x for x in SEQLENS if self.seqlen <= x))


_Table = dict[str, dict[str, dict[int, Config]]]  # kind, kernel, largest padded head_dim

_SM_80: _Table = {
    HALF: {
        "fwd": {64: Config(128, 64, 8, 2), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 8, 2)},
        "dkdv": {64: Config(32, 64, 4, 1), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 32, 4, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 1)},
    },
    RULED: {
        "fwd": {64: Config(128, 64, 8, 3), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 8, 2)},
        "dkdv": {64: Config(32, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 64, 4, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 1)},
        "dbias": {128: Config(64, 32, 8, 1), 256: Config(32, 32, 8, 1)},
    },
    TF32: {
        "fwd": {64: Config(64, 32, 4, 2), 128: Config(64, 32, 8, 1), 256: Config(32, 16, 8, 1)},
        "dkdv": {64: Config(32, 32, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
        "dq": {64: Config(32, 32, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
        "dbias": {64: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    },
    IEEE: {
        "fwd": {64: Config(32, 32, 8, 1), 128: Config(16, 64, 16, 1), 256: Config(16, 16, 8, 1)},
        "dkdv": {64: Config(32, 32, 8, 1), 128: Config(16, 16, 8, 1), 256: Config(16, 16, 8, 1)},
        "dq": {64: Config(32, 32, 8, 1), 128: Config(32, 16, 8, 1), 256: Config(16, 16, 4, 1)},
        "dbias": {256: Config(32, 32, 8, 1)},
    },
}

# Triton has no matrix instructions for sm_75: 16-bit elements are multiplied one by one as well.
_SM_75: _Table = {
    HALF: {
        "fwd": {64: Config(32, 32, 8, 1), 128: Config(64, 16, 8, 1)},
        "dkdv": {64: Config(32, 32, 8, 1), 128: Config(16, 16, 8, 1)},
        "dq": {64: Config(32, 32, 8, 1), 128: Config(16, 16, 8, 1)},
        "dbias": {128: Config(32, 32, 8, 1)},
    },
    IEEE: {
        **{
            kernel: {head_dim: sizes for head_dim, sizes in by_head_dim.items() if head_dim <= 128}
            for kernel, by_head_dim in _SM_80[IEEE].items()
        },
        "dbias": {64: Config(32, 32, 8, 1), 128: Config(32, 16, 4, 1)},
    },
}

# As sm_80, with 99 KiB of shared memory for its 163: sm_86, sm_89, sm_120, and what is not known.
_SM_86: _Table = {
    **_SM_80,
    HALF: {
        **_SM_80[HALF],
        "dkdv": {64: Config(32, 64, 4, 1), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 32, 4, 2), 128: Config(64, 64, 8, 1), 256: Config(32, 32, 8, 1)},
    },
    RULED: {
        "fwd": {64: Config(128, 32, 8, 2), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 8, 2)},
        "dkdv": {64: Config(32, 64, 8, 1), 128: Config(32, 64, 8, 1), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 64, 4, 2), 128: Config(64, 64, 8, 1), 256: Config(16, 32, 8, 1)},
        "dbias": {128: Config(64, 32, 8, 1), 256: Config(16, 32, 8, 1)},
    },
}

# wgmma takes 64 rows: of queries in fwd and dq, of keys in dkdv.
_SM_90: _Table = {
    **_SM_80,
    HALF: {
        "fwd": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(128, 32, 8, 1)},
        "dkdv": {64: Config(64, 64, 4, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 64, 4, 2), 128: Config(128, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    },
    RULED: {
        "fwd": {64: Config(128, 64, 8, 3), 128: Config(128, 64, 8, 2), 256: Config(128, 32, 8, 2)},
        "dkdv": {64: Config(64, 64, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(16, 32, 8, 1)},
        "dq": {64: Config(64, 64, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 1)},
        "dbias": {256: Config(64, 32, 8, 1)},
    },
}

_SM_100: _Table = {
    **_SM_80,
    HALF: {
        "fwd": {64: Config(128, 32, 8, 3), 128: Config(64, 64, 4, 2), 256: Config(128, 32, 8, 2)},
        "dkdv": {64: Config(64, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dq": {64: Config(64, 64, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    },
    RULED: {
        "fwd": {64: Config(128, 32, 8, 3), 128: Config(64, 64, 4, 2), 256: Config(128, 32, 8, 2)},
        "dkdv": {64: Config(64, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(16, 32, 8, 1)},
        "dq": {64: Config(64, 64, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 1)},
        "dbias": {256: Config(64, 32, 8, 1)},
    },
    TF32: {
        **_SM_80[TF32],
        "dkdv": {64: Config(32, 32, 8, 2), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    },
    IEEE: {**_SM_80[IEEE], "dbias": {256: Config(64, 32, 16, 1)}},
}

# 64 KiB of shared memory, and wavefronts of 64.
_GFX9: _Table = {
    HALF: {
        "fwd": {64: Config(128, 32, 8, 1), 128: Config(64, 32, 4, 1), 256: Config(64, 16, 8, 1)},
        "dkdv": {64: Config(32, 64, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(32, 16, 4, 1)},
        "dq": {64: Config(64, 32, 4, 1), 128: Config(64, 16, 8, 1), 256: Config(32, 16, 8, 1)},
        "dbias": {256: Config(64, 32, 4, 1)},
    },
    IEEE: {
        "fwd": {64: Config(64, 32, 4, 1), 128: Config(32, 32, 4, 1), 256: Config(32, 16, 8, 1)},
        "dkdv": {64: Config(32, 32, 4, 1), 128: Config(16, 32, 4, 1), 256: Config(16, 16, 4, 1)},
        "dq": {64: Config(32, 32, 4, 1), 128: Config(32, 16, 4, 1), 256: Config(64, 16, 4, 1)},
        "dbias": {64: Config(32, 32, 4, 1), 128: Config(32, 16, 4, 1), 256: Config(64, 16, 4, 1)},
    },
}

# The interpreter's time goes by the number of operations, whatever their size.
_INTERPRETER: _Table = {
    kind: {
        "fwd": {256: Config(64, 128, 4, 1)},
        "dkdv": {256: Config(128, 64, 4, 1)},
        "dq": {256: Config(64, 128, 4, 1)},
        "dbias": {256: Config(64, 128, 4, 1)},
    }
    for kind in (HALF, IEEE)
}

TABLES = {
    "sm_75": _SM_75,
    "sm_80": _SM_80,
    "sm_86": _SM_86,
    "sm_90": _SM_90,
    "sm_100": _SM_100,
    "gfx942": _GFX9,
    "interpreter": _INTERPRETER,
}
# KiB that one program may use.
SHARED_MEMORY_KIB = {
    "sm_75": 64,
    "sm_80": 163,
    "sm_86": 99,
    "sm_90": 227,
    "sm_100": 227,
    "gfx942": 64,
}


def table_of(target: Target) -> _Table:
    """Returns the table of a target: its own, or the one that needs least."""
    if target.name in TABLES:
        return TABLES[target.name]
    return _GFX9 if target.kind == "hip" else _SM_86


def max_head_dim(target: Target) -> int:
    """Returns the largest head_dim that the table of a target has sizes for."""
    return max(table_of(target)[HALF]["fwd"])


@functools.cache
def measured() -> dict[tuple[str, Shape], Config]:
    """Returns what was measured: the sizes for each target's name and class of shapes."""
    return {row_key(row): Config(*row["config"]) for row in json.loads(MEASURED.read_text("utf-8"))}


def row_key(row: dict[str, Any]) -> tuple[str, Shape]:
    """Returns what a row of the measured table is about."""
    return row["target"], Shape(*(row[field] for field in Shape._fields))


def config_of(target: Target, shape: Shape) -> Config:
    """Returns the sizes of a kernel's tiles."""
    found = measured().get((target.name, shape.classed()))
    if found is not None:
        return found
    table = table_of(target)
    by_head_dim = table.get(shape.kind, table[HALF])[shape.kernel]
    return next(config for largest, config in by_head_dim.items() if shape.head_dim <= largest)


def dbias_columns(target: Target, kind: str) -> int:
    """Returns how many columns of q and k, or dout and v, are multiplied at a time for dbias.

    Fewer where registers hold whole rows of factors: of float32, or without matrix instructions.
    """
    return 64 if kind == RULED and target.name != "sm_75" else 32
