"""LayerNorm's kernels with one mistake each, every one of which must be caught.

As in test_planted_bugs.py, which does this for attention.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastattn import dropout
from tests.emulator.memory import apart

DRIVER = Path(__file__).with_name("layer_norm_driver.cpp")
WRONG = "wrong result"
# More than one warp a row, a last block of columns that is not full, and more rows than parts.
ROWS, HIDDEN_SIZE, PARTS = 5, 1100, 2


@dataclass(frozen=True)
class Bug:
    """One mistake, in one file, and how it shows: a pattern of the report, or WRONG."""

    name: str
    file: str
    old: str
    new: str
    shows: str


BUGS = [
    Bug(
        "sums overwrite those that others still read",
        "rows.cuh",
        "  sync_threads();  // whoever still reads the sums before these\n",
        "",
        "race: sts writes",
    ),
    Bug(
        "sums are read before they are there",
        "rows.cuh",
        "  }\n  sync_threads();\n  FASTATTN_UNROLL\n",
        "  }\n  FASTATTN_UNROLL\n",
        "race: |uninitialised: lds",
    ),
    Bug(
        "partial sums are read before they are there",
        "column_sums.cu",
        "  sync_threads();\n",
        "",
        "race: |uninitialised: lds",
    ),
    Bug(
        "room for one sum of two",
        "layer_norm.cu",
        "grid, warps * kWarpSize, 2 * warps * 4, stream, args);",
        "grid, warps * kWarpSize, warps * 4, stream, args);",
        "out of bounds: sts .* in shared memory",
    ),
    Bug(
        "the backward pass drops what the forward pass has kept",
        "layer_norm.cu",
        "args.dropout.apply(g[b], row, part.block(b));",
        "args.dropout.apply(g[b], row, b);",
        WRONG,
    ),
    Bug(
        "columns past the end count in the variance",
        "layer_norm.cu",
        "if (cols.has(i)) squares[0]",
        "if (cols.has(i) || true) squares[0]",
        WRONG,
    ),
    Bug(
        "two blocks take a row",
        "layer_norm.cu",
        "row < args.rows; row += args.parts) {",
        "row < args.rows; row += 1) {",
        "two writers: ",
    ),
]


class Call(ctypes.Structure):
    """Call of layer_norm_driver.cpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("dout", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("rstd", ctypes.c_void_p),
        ("dx", ctypes.c_void_p),
        ("dresidual", ctypes.c_void_p),
        ("dweight", ctypes.c_void_p),
        ("dbias", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("seed", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("drop_threshold", ctypes.c_int64),
    )


def outcome(library: ctypes.CDLL) -> str | None:
    """What is wrong with the kernels, or None."""
    generator = torch.Generator().manual_seed(3)
    given = {
        name: torch.randn(shape, generator=generator)
        for name, shape in [
            ("x", (ROWS, HIDDEN_SIZE)),
            ("residual", (ROWS, HIDDEN_SIZE)),
            ("weight", (HIDDEN_SIZE,)),
            ("bias", (HIDDEN_SIZE,)),
            ("dout", (ROWS, HIDDEN_SIZE)),
        ]
    }
    seed, dropout_p = torch.tensor(17), 0.1
    leaves = {name: given[name].double().requires_grad_() for name in given if name != "dout"}
    keep = dropout.hidden_keep_mask(seed, ROWS, HIDDEN_SIZE, dropout_p)
    kept = leaves["x"] * keep * dropout.keep_scale(dropout_p)
    out = torch.nn.functional.layer_norm(
        leaves["residual"] + kept, (HIDDEN_SIZE,), leaves["weight"], leaves["bias"], eps=1e-5
    )
    out.backward(given["dout"].double())
    truth = {"out": out.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}

    results = {
        name: torch.full(x.shape, float("nan")) for name, x in truth.items() if x is not None
    }
    others = {"mean": ROWS, "rstd": ROWS, "partials": 2 * PARTS * HIDDEN_SIZE}
    scratch = {name: torch.full((size,), float("nan")) for name, size in others.items()}
    tensors = {name: apart(x) for name, x in {**given, **results, **scratch, "seed": seed}.items()}
    call = Call(
        **{name: x.data_ptr() for name, x in tensors.items()},
        rows=ROWS,
        hidden_size=HIDDEN_SIZE,
        parts=PARTS,
        drop_threshold=dropout.drop_threshold(dropout_p),
    )
    library.layer_norm.restype = ctypes.c_char_p
    finding = library.layer_norm(ctypes.byref(call))
    if finding is not None:
        return str(finding.decode())
    for name in results:
        try:
            # Sums of 1100 numbers of size 1 in float32; the mistakes are thousands of times larger.
            torch.testing.assert_close(tensors[name].double(), truth[name], rtol=1e-5, atol=1e-5)
        except AssertionError as error:
            return f"{WRONG}: {name}: {error}"
    return None


Build = Callable[["Bug | None"], ctypes.CDLL]


@pytest.fixture(scope="module")
def build(
    changed_sources: Callable[..., Path], compile_library: Callable[..., ctypes.CDLL]
) -> Build:
    """build(bug) -> the kernels with that bug, or without any."""

    def build(bug: Bug | None) -> ctypes.CDLL:
        right = changed_sources([])
        wrong = changed_sources([(bug.file, bug.old, bug.new)] if bug else [])
        in_header = bug is not None and bug.file.endswith(".cuh")
        sources = [(right, DRIVER)]
        for file in ("layer_norm.cu", "column_sums.cu"):
            has_bug = bug is not None and (in_header or bug.file == file)
            root = wrong if has_bug else right
            sources.append((root, root / "cuda" / file))
        return compile_library(re.sub(r"\W+", "-", bug.name if bug else "layer_norm"), sources)

    return build


def test_without_a_bug_there_is_no_finding(build: Build) -> None:
    assert outcome(build(None)) is None


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(build: Build, bug: Bug) -> None:
    found = outcome(build(bug))
    assert found is not None
    assert re.search(bug.shows, found), found
