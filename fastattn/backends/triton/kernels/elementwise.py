"""Bias and exact GELU, forward and backward, and dropout of hidden states.

    h  = x + bias
    out = h * (1 + erf(h / sqrt(2))) / 2
    dx  = dout * ((1 + erf(h / sqrt(2))) / 2 + h * exp(-h**2 / 2) / sqrt(2 * pi)),  dbias = sum(dx)

A program takes a tile of BLOCK_ROWS rows and BLOCK_COLS columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.blocks import narrow
from fastattn.backends.triton.kernels.philox import hidden_keep, load_key

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_TAU = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 * pi)


@triton.jit
def _load_sum(x, bias, row, stride, col, mask, COLS: tl.constexpr):
    """Returns h, float32."""
    h = tl.load(x + row[:, None] * stride + col[None, :], mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        h += tl.load(bias + col, mask=col < COLS, other=0.0)[None, :]
    return h


@triton.jit(do_not_specialize=["rows"])
def gelu_fwd_kernel(
    out,
    x,
    bias,
    x_stride,
    rows,
    COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Fills a tile of out. Grid: (tiles of rows, tiles of columns)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    mask = (row[:, None] < rows) & (col[None, :] < COLS)
    h = _load_sum(x, bias, row, x_stride, col, mask, COLS)
    result = h * (0.5 + 0.5 * tl.erf(h * _SQRT_HALF))
    tl.store(
        out + row[:, None] * COLS + col[None, :], narrow(result, out.dtype.element_ty), mask=mask
    )


@triton.jit(do_not_specialize=["rows"])
def gelu_bwd_kernel(
    dx,
    dbias,
    dout,
    x,
    bias,
    dout_stride,
    x_stride,
    rows,
    COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Fills dx and a program's part of dbias, (programs, COLS). Grid: (programs, tiles of columns).

    Programs take tiles of rows in turn.
    """
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    total = tl.zeros((BLOCK_COLS,), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        mask = (row[:, None] < rows) & (col[None, :] < COLS)
        h = _load_sum(x, bias, row, x_stride, col, mask, COLS)
        slope = 0.5 + 0.5 * tl.erf(h * _SQRT_HALF) + h * _INV_SQRT_TAU * tl.exp(-0.5 * h * h)
        grad = tl.load(dout + row[:, None] * dout_stride + col[None, :], mask=mask, other=0.0)
        grad = grad.to(tl.float32) * slope
        tl.store(
            dx + row[:, None] * COLS + col[None, :], narrow(grad, dx.dtype.element_ty), mask=mask
        )
        total += tl.sum(grad, 0)
    if bias is not None:
        tl.store(dbias + tl.program_id(0) * COLS + col, total, mask=col < COLS)


@triton.jit(do_not_specialize=["rows"])
def hidden_dropout_kernel(
    out,
    x,
    seed,
    x_stride,
    rows,
    threshold,
    keep_scale,
    COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Fills a tile of out. Grid: (tiles of rows, tiles of columns)."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    col0 = tl.program_id(1) * BLOCK_COLS
    row = row0 + tl.arange(0, BLOCK_ROWS)
    col = col0 + tl.arange(0, BLOCK_COLS)
    mask = (row[:, None] < rows) & (col[None, :] < COLS)
    key0, key1 = load_key(seed)
    keep = hidden_keep(key0, key1, row0, col0, threshold, BLOCK_ROWS, BLOCK_COLS)
    values = tl.load(x + row[:, None] * x_stride + col[None, :], mask=mask, other=0.0)
    values = tl.where(keep, values.to(tl.float32) * keep_scale, 0.0)
    tl.store(
        out + row[:, None] * COLS + col[None, :], narrow(values, out.dtype.element_ty), mask=mask
    )
