"""Dropout, residual and LayerNorm of rows that fit into registers, forward and backward.

    h    = residual + keep * keep_scale * (x + x_bias)
    xhat = (h - mean) * rstd
    out  = xhat * weight + bias

    dxhat = dout * weight
    dh    = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
    dresidual = dh,  dx = keep * keep_scale * dh
    dweight = sum(dout * xhat),  dbias = sum(dout),  dx_bias = sum(dx)

The backward pass computes h again. Its programs take rows in turn and keep their own sums of the
vectors' gradients, which are added up afterwards: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastattn.backends.triton.kernels.blocks import narrow
from fastattn.backends.triton.kernels.philox import hidden_keep, load_key


@triton.jit
def _load(base, row, stride, col, mask):
    """Returns (rows, columns) in float32."""
    pointers = base + row[:, None] * stride + col[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_vector(base, col, COLS: tl.constexpr):
    """Returns one number for each column."""
    return tl.load(base + col, mask=col < COLS, other=0.0)


@triton.jit
def _sum_row(x, residual, x_bias, keep, keep_scale, HAS_BIAS: tl.constexpr, DROPS: tl.constexpr):
    """Returns h."""
    h = x
    if HAS_BIAS:
        h += x_bias[None, :]
    if DROPS:
        h = tl.where(keep, h * keep_scale, 0.0)
    return residual + h


@triton.jit(do_not_specialize=["rows"])
def layer_norm_fwd_kernel(
    out,
    mean,
    rstd,
    x,
    residual,
    weight,
    bias,
    x_bias,
    seed,
    x_stride,
    residual_stride,
    rows,
    eps,
    threshold,
    keep_scale,
    COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Fills BLOCK_ROWS rows of out, mean and rstd. Grid: (tiles of rows,)."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = row0 + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    mask = (row[:, None] < rows) & (col[None, :] < COLS)
    keep = True
    if seed is not None:
        key0, key1 = load_key(seed)
        keep = hidden_keep(key0, key1, row0, 0, threshold, BLOCK_ROWS, BLOCK_COLS)
    vector = 0.0
    if x_bias is not None:
        vector = _load_vector(x_bias, col, COLS)
    x_tile = _load(x, row, x_stride, col, mask)
    residual_tile = _load(residual, row, residual_stride, col, mask)
    h = _sum_row(
        x_tile, residual_tile, vector, keep, keep_scale, x_bias is not None, seed is not None
    )
    h = tl.where(mask, h, 0.0)
    row_mean = tl.sum(h, 1) / COLS
    centred = tl.where(mask, h - row_mean[:, None], 0.0)
    row_rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / COLS + eps)
    result = centred * row_rstd[:, None] * _load_vector(weight, col, COLS)[None, :]
    result += _load_vector(bias, col, COLS)[None, :]
    tl.store(
        out + row[:, None] * COLS + col[None, :], narrow(result, out.dtype.element_ty), mask=mask
    )
    tl.store(mean + row, row_mean, mask=row < rows)
    tl.store(rstd + row, row_rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def layer_norm_bwd_kernel(
    dx,
    dresidual,
    dvectors,
    dout,
    x,
    residual,
    weight,
    x_bias,
    mean,
    rstd,
    seed,
    dout_stride,
    x_stride,
    residual_stride,
    rows,
    threshold,
    keep_scale,
    COLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Fills dx, if it is given, and dresidual, and a program's part of dvectors.

    dvectors: (3, programs, COLS), for dweight, dbias and dx_bias. Grid: (programs,).
    """
    col = tl.arange(0, BLOCK_COLS)
    weights = _load_vector(weight, col, COLS)
    vector = 0.0
    if x_bias is not None:
        vector = _load_vector(x_bias, col, COLS)
    key0 = 0
    key1 = 0
    if seed is not None:
        key0, key1 = load_key(seed)
    dweight = tl.zeros((BLOCK_COLS,), tl.float32)
    dbias = tl.zeros((BLOCK_COLS,), tl.float32)
    dx_bias = tl.zeros((BLOCK_COLS,), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row0 = tl.cast(tile, tl.int64) * BLOCK_ROWS
        row = row0 + tl.arange(0, BLOCK_ROWS)
        mask = (row[:, None] < rows) & (col[None, :] < COLS)
        keep = True
        if seed is not None:
            keep = hidden_keep(key0, key1, row0, 0, threshold, BLOCK_ROWS, BLOCK_COLS)
        x_tile = _load(x, row, x_stride, col, mask)
        residual_tile = _load(residual, row, residual_stride, col, mask)
        h = _sum_row(
            x_tile, residual_tile, vector, keep, keep_scale, x_bias is not None, seed is not None
        )
        row_mean = tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        row_rstd = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        xhat = tl.where(mask, (h - row_mean) * row_rstd, 0.0)
        dout_tile = _load(dout, row, dout_stride, col, mask)
        dweight += tl.sum(dout_tile * xhat, 0)
        dbias += tl.sum(dout_tile, 0)
        dxhat = dout_tile * weights[None, :]
        along = tl.sum(dxhat * xhat, 1)[:, None] / COLS
        dh = row_rstd * (dxhat - tl.sum(dxhat, 1)[:, None] / COLS - xhat * along)
        offsets = row[:, None] * COLS + col[None, :]
        tl.store(dresidual + offsets, narrow(dh, dresidual.dtype.element_ty), mask=mask)
        if seed is not None:
            dh = tl.where(keep, dh * keep_scale, 0.0)
        if dx is not None:
            tl.store(dx + offsets, narrow(dh, dx.dtype.element_ty), mask=mask)
        if x_bias is not None:
            dx_bias += tl.sum(tl.where(mask, dh, 0.0), 0)
    part = dvectors + tl.program_id(0) * COLS + col
    size = tl.num_programs(0) * COLS
    tl.store(part, dweight, mask=col < COLS)
    tl.store(part + size, dbias, mask=col < COLS)
    if x_bias is not None:
        tl.store(part + 2 * size, dx_bias, mask=col < COLS)
