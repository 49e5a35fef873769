"""The operators on hidden states on the host: from tensors to launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastattn.backends.native import as_rows
from fastattn.backends.triton.kernels.elementwise import (
    gelu_bwd_kernel,
    gelu_fwd_kernel,
    hidden_dropout_kernel,
)
from fastattn.backends.triton.kernels.layer_norm import (
    layer_norm_bwd_kernel,
    layer_norm_fwd_kernel,
)
from fastattn.backends.triton.launch import launch
from fastattn.dropout import HIDDEN_BLOCK, drop_threshold, keep_scale

# Elements of a tile. A row of LayerNorm is one tile at least, and dropout serves 256 at a time.
_TILE = 1024
_ELEMENTWISE_COLS = 256
# Programs of a backward pass, each with its own sum over rows.
_MAX_PARTS = 256


def _row_tile(columns: int) -> dict[str, int]:
    """The constants of a kernel whose program holds whole rows."""
    block_cols = max(HIDDEN_BLOCK, 1 << (columns - 1).bit_length())
    return {
        "COLS": columns,
        "BLOCK_ROWS": max(1, _TILE // block_cols),
        "BLOCK_COLS": block_cols,
    }


def _elementwise_tile(columns: int) -> dict[str, int]:
    """The constants of a kernel whose program holds a part of some rows."""
    return {
        "COLS": columns,
        "BLOCK_ROWS": _TILE // _ELEMENTWISE_COLS,
        "BLOCK_COLS": _ELEMENTWISE_COLS,
    }


def _tiles(tensor: Tensor, tile: dict[str, int]) -> tuple[int, int]:
    """The number of tiles along rows and columns."""
    rows, columns = tensor.shape
    return -(-rows // tile["BLOCK_ROWS"]), -(-columns // tile["BLOCK_COLS"])


def _run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    num_warps = min(max(arguments["BLOCK_COLS"] // 256, 4), 16)
    launch(kernel, grid, arguments["x"].device, arguments, num_warps=num_warps, num_stages=1)


def _dropout_arguments(seed: Tensor | None, dropout_p: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "threshold": drop_threshold(dropout_p),
        "keep_scale": keep_scale(dropout_p),
    }


def layer_norm_fwd(
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> None:
    """Fills out, contiguous and like residual, and mean and rstd, one number for each row."""
    x, residual = as_rows(x), as_rows(residual)
    tile = _row_tile(x.shape[1])
    arguments = {
        "out": out,
        "mean": mean,
        "rstd": rstd,
        "x": x,
        "residual": residual,
        "weight": weight.contiguous(),
        "bias": bias.contiguous(),
        "x_bias": None if x_bias is None else x_bias.contiguous(),
        "x_stride": x.stride(0),
        "residual_stride": residual.stride(0),
        "rows": x.shape[0],
        "eps": eps,
        **_dropout_arguments(seed, dropout_p),
        **tile,
    }
    _run(layer_norm_fwd_kernel, _tiles(x, tile)[:1], arguments)


def layer_norm_bwd(
    dx: Tensor | None,
    dresidual: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dx_bias: Tensor | None,
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    x_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
) -> None:
    """Fills the gradients. dx is None where it would be equal to dresidual."""
    x, residual, dout = as_rows(x), as_rows(residual), as_rows(dout)
    tile = _row_tile(x.shape[1])
    parts = min(_tiles(x, tile)[0], _MAX_PARTS)
    dvectors = weight.new_empty((3, parts, x.shape[1]))
    arguments = {
        "dx": dx,
        "dresidual": dresidual,
        "dvectors": dvectors,
        "dout": dout,
        "x": x,
        "residual": residual,
        "weight": weight.contiguous(),
        "x_bias": None if x_bias is None else x_bias.contiguous(),
        "mean": mean,
        "rstd": rstd,
        "dout_stride": dout.stride(0),
        "x_stride": x.stride(0),
        "residual_stride": residual.stride(0),
        "rows": x.shape[0],
        **_dropout_arguments(seed, dropout_p),
        **tile,
    }
    _run(layer_norm_bwd_kernel, (parts,), arguments)
    for part, total in zip(dvectors, (dweight, dbias, dx_bias), strict=True):
        if total is not None:
            torch.sum(part, 0, out=total)


def gelu_fwd(out: Tensor, x: Tensor, bias: Tensor | None) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    x = as_rows(x)
    tile = _elementwise_tile(x.shape[1])
    arguments = {
        "out": out,
        "x": x,
        "bias": None if bias is None else bias.contiguous(),
        "x_stride": x.stride(0),
        "rows": x.shape[0],
        **tile,
    }
    _run(gelu_fwd_kernel, _tiles(x, tile), arguments)


def gelu_bwd(
    dx: Tensor, dbias: Tensor | None, dout: Tensor, x: Tensor, bias: Tensor | None
) -> None:
    """Fills dx, contiguous and of the shape and dtype of x, and dbias if it is given."""
    x, dout = as_rows(x), as_rows(dout)
    tile = _elementwise_tile(x.shape[1])
    row_tiles, col_tiles = _tiles(x, tile)
    # Only a sum over rows asks for programs that take more than one tile.
    programs = row_tiles if bias is None else min(row_tiles, _MAX_PARTS)
    parts = None if bias is None else bias.new_empty((programs, x.shape[1]))
    arguments = {
        "dx": dx,
        "dbias": parts,
        "dout": dout,
        "x": x,
        "bias": None if bias is None else bias.contiguous(),
        "dout_stride": dout.stride(0),
        "x_stride": x.stride(0),
        "rows": x.shape[0],
        **tile,
    }
    _run(gelu_bwd_kernel, (programs, col_tiles), arguments)
    if dbias is not None and parts is not None:
        torch.sum(parts, 0, out=dbias)


def hidden_dropout(out: Tensor, x: Tensor, seed: Tensor, dropout_p: float) -> None:
    """Fills out, contiguous and of the shape and dtype of x."""
    x = as_rows(x)
    tile = _elementwise_tile(x.shape[1])
    arguments = {
        "out": out,
        "x": x,
        "x_stride": x.stride(0),
        "rows": x.shape[0],
        **_dropout_arguments(seed, dropout_p),
        **tile,
    }
    _run(hidden_dropout_kernel, _tiles(x, tile), arguments)
