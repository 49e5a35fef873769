"""Attention on the host: from tensors to launches."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastattn.backends.native import rows_contiguous
from fastattn.backends.triton import config, target
from fastattn.backends.triton.arguments import Rows, Rule
from fastattn.backends.triton.kernels.attention_bwd import delta_kernel, dkdv_kernel, dq_kernel
from fastattn.backends.triton.kernels.attention_dbias import dbias_kernel
from fastattn.backends.triton.kernels.attention_fwd import attention_fwd_kernel
from fastattn.backends.triton.kernels.key_ends import key_ends_kernel
from fastattn.backends.triton.launch import launch
from fastattn.dropout import drop_threshold, keep_scale
from fastattn.ops import checks

_LOG2_E = math.log2(math.e)
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # 0 would make NaN of the maximum of no scores
_DELTA_TILE = 4096  # elements
_KEY_ENDS_BLOCK = 1024


class _Call(NamedTuple):
    """What all kernels of a call have in common."""

    q: Tensor
    k: Tensor
    v: Tensor
    rule: Rule
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    batch_size: int
    max_seqlen_k: int | None
    softmax_scale: float

    @property
    def packed(self) -> bool:
        return self.cu_seqlens_q is not None

    def rows(self, tensor: Tensor) -> Rows:
        """(batch, seqlen, heads, head_dim) or (total, heads, head_dim) for a kernel."""
        batch_stride = 0 if self.packed else tensor.stride(0)
        return Rows(tensor, batch_stride, tensor.stride(-3), tensor.stride(-2))

    def lengths(self) -> dict[str, Any]:
        """The arguments that say where sequences and heads lie."""
        return {
            "cu_seqlens_q": self.cu_seqlens_q,
            "cu_seqlens_k": self.cu_seqlens_k,
            "batch_size": self.batch_size,
            "rows_q": self.q.shape[0],
            "rows_k": self.k.shape[0],
            "seqlen_q": self.q.shape[-3],
            "seqlen_k": self.k.shape[-3],
            "num_heads": self.q.shape[-2],
            "heads_per_kv": self.q.shape[-2] // self.k.shape[-2],
        }

    def tiles(self, tensor: Tensor, block: int) -> int:
        """How many tiles of rows there are; see ``locate_tile``."""
        if self.packed:
            return tensor.shape[0] // block + self.batch_size + 1
        return -(-tensor.shape[1] // block) * self.batch_size

    def shape(self, kernel: str, precision: str) -> config.Shape:
        """What the sizes of a kernel's tiles depend on."""
        head_dim, seqlen = self.q.shape[-1], self.k.shape[-3]
        if self.packed:  # the longest, or without it the mean
            mean = seqlen // max(self.batch_size, 1)
            seqlen = mean if self.max_seqlen_k is None else self.max_seqlen_k
        kind = config.IEEE if precision == "ieee" else config.TF32
        if self.q.dtype != torch.float32:
            rule = self.rule
            is_plain = rule.bias is None and rule.slopes is None and rule.cap is None
            kind = config.HALF if is_plain else config.RULED
        block_d = max(16, 1 << (head_dim - 1).bit_length())
        return config.Shape(kernel, kind, block_d, self.rule.seed is not None, seqlen)

    def sizes(self, kernel: str) -> tuple[config.Config, dict[str, Any]]:
        """The configuration of a kernel, and its arguments that are constants."""
        where = target.of(self.q.device)
        precision = "ieee"
        if self.q.dtype == torch.float32:
            precision = target.float32_precision(where)
        shape = self.shape(kernel, precision)
        chosen = config.config_of(where, shape)
        block_d = shape.head_dim
        if kernel == "dbias":
            block_d = min(block_d, config.dbias_columns(where, shape.kind))
        constants = {
            "HEAD_DIM": self.q.shape[-1],
            "BLOCK_M": chosen.block_m,
            "BLOCK_N": chosen.block_n,
            "BLOCK_D": block_d,
            "PRECISION": precision,
        }
        return chosen, constants

    def run(
        self, name: str, kernel: Any, tiles: int, heads: int, arguments: dict[str, Any]
    ) -> None:
        """Launches a kernel that meets queries and keys, a program for each tile of each head."""
        chosen, constants = self.sizes(name)
        common: dict[str, Any] = {"rule": self.rule, "tiles": tiles, **self.lengths()}
        common |= {"q": self.rows(self.q), "k": self.rows(self.k), "v": self.rows(self.v)}
        launch(
            kernel,
            tiles * heads,
            self.q.device,
            {**arguments, **common, **constants},
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
        )


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    key_padding_mask: Tensor | None,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    seed: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    softmax_scale: float,
    softcap: float,
    window_left: int,
    window_right: int,
    dropout_p: float,
) -> _Call:
    """Brings the operator's arguments into the form of the kernels."""
    batch_size = q.shape[0]
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if q.device.type == "cpu":  # under the interpreter; reading them on a GPU would wait
            checks.check_cu_seqlens_values("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
            checks.check_cu_seqlens_values("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        batch_size = cu_seqlens_q.shape[0] - 1
        cu_seqlens_q, cu_seqlens_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    key_ends = None
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask.contiguous().view(torch.uint8)
        key_ends = _key_ends(key_padding_mask)
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.contiguous()
    bias_strides = [0, 0, 0, 0]
    if bias is not None:
        bias_strides = [
            0 if size == 1 else stride
            for size, stride in zip(bias.shape, bias.stride(), strict=True)
        ]
    rule = Rule(
        scale=softmax_scale / softcap if softcap > 0.0 else softmax_scale * _LOG2_E,
        cap=softcap * _LOG2_E if softcap > 0.0 else None,
        left=window_left if window_left >= 0 else None,
        right=window_right if window_right >= 0 else None,
        bias=bias,
        bias_batch_stride=bias_strides[0],
        bias_head_stride=bias_strides[1],
        bias_row_stride=bias_strides[2],
        bias_col_stride=bias_strides[3],
        slopes=alibi_slopes,
        slopes_batch_stride=0
        if alibi_slopes is None or alibi_slopes.shape[0] == 1
        else q.shape[-2],
        key_mask=key_padding_mask,
        key_ends=key_ends,
        seed=seed,
        threshold=drop_threshold(dropout_p),
        keep_scale=keep_scale(dropout_p),
    )
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    return _Call(q, k, v, rule, cu_seqlens_q, cu_seqlens_k, batch_size, max_seqlen_k, softmax_scale)


def _key_ends(key_mask: Tensor) -> Tensor:
    """(batch, seqlen_k) -> (batch,) int32: the last key attended to, plus 1."""
    key_ends = key_mask.new_empty(key_mask.shape[:1], dtype=torch.int32)
    arguments = {
        "key_ends": key_ends,
        "key_mask": key_mask,
        "seqlen_k": key_mask.shape[1],
        "BLOCK": _KEY_ENDS_BLOCK,
    }
    programs = key_mask.shape[0]
    launch(key_ends_kernel, programs, key_mask.device, arguments, num_warps=4, num_stages=1)
    return key_ends


def attention_fwd(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> None:
    """Fills out and lse."""
    call = _call(q, k, v, *options)
    # The kernel takes maxima before it scales, so that the scale must be positive.
    scale = call.rule.scale
    rule = call.rule._replace(scale=max(abs(scale), _SMALLEST_SCALE))
    call = call._replace(q=call.q if scale >= 0.0 else -call.q, rule=rule)
    chosen, _ = call.sizes("fwd")
    call.run(
        "fwd",
        attention_fwd_kernel,
        call.tiles(q, chosen.block_m),
        q.shape[-2],
        {"out": call.rows(out), "lse": lse},
    )


def attention_bwd(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor | None,
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *options: Any,
) -> None:
    """Fills dq, dk, dv, and dbias if it is given."""
    call = _call(q, k, v, *options)
    dout, out, lse = rows_contiguous(dout), rows_contiguous(out), lse.contiguous()
    delta = _delta(call, out, dout, dlse, lse)
    saved = {
        "dout": call.rows(dout),
        "lse": lse,
        "delta": delta,
    }
    chosen, _ = call.sizes("dkdv")
    call.run(
        "dkdv",
        dkdv_kernel,
        call.tiles(k, chosen.block_n),
        k.shape[-2],
        {
            "dk": call.rows(dk),
            "dv": call.rows(dv),
            "softmax_scale": call.softmax_scale,
            **saved,
        },
    )
    chosen, _ = call.sizes("dq")
    call.run(
        "dq",
        dq_kernel,
        call.tiles(q, chosen.block_m),
        q.shape[-2],
        {"dq": call.rows(dq), "softmax_scale": call.softmax_scale, **saved},
    )
    if dbias is not None:
        _dbias(call, dbias, saved)


def _delta(call: _Call, out: Tensor, dout: Tensor, dlse: Tensor | None, lse: Tensor) -> Tensor:
    """Returns rowsum(out * dout) - dlse, float32 and of the shape of lse."""
    delta = torch.empty_like(lse)
    _, constants = call.sizes("dq")
    rows, num_heads = out.shape[-3:-1]
    block_m = _DELTA_TILE // constants["BLOCK_D"]
    tiles = -(-rows // block_m)
    launch(
        delta_kernel,
        tiles * num_heads * (1 if call.packed else out.shape[0]),
        out.device,
        {
            "delta": delta,
            "out": call.rows(out),
            "dout": call.rows(dout),
            "dlse": None if dlse is None else dlse.contiguous(),
            "tiles": tiles,
            "rows": rows,
            "num_heads": num_heads,
            "HEAD_DIM": constants["HEAD_DIM"],
            "BLOCK_M": block_m,
            "BLOCK_D": constants["BLOCK_D"],
        },
        num_warps=4,
        num_stages=1,
    )
    return delta


def _dbias(call: _Call, dbias: Tensor, saved: dict[str, Any]) -> None:
    """Fills the gradient of the bias.

    Sequences and heads that share a bias are summed within a program if its tiles alone are enough
    programs, which they are if it has a row for each query and a column for each key. Otherwise
    each has its own partial result, small then, and torch adds those up.
    """
    bias_batch, bias_heads, bias_rows, bias_cols = dbias.shape
    num_heads = call.q.shape[-2]
    inside = bias_rows > 1 and bias_cols > 1
    batch, heads = (bias_batch, bias_heads) if inside else (call.batch_size, num_heads)
    part = dbias if (batch, heads) == (bias_batch, bias_heads) and dbias.is_contiguous() else None
    if part is None:
        part = dbias.new_empty((batch, heads, bias_rows, bias_cols))
    chosen, _ = call.sizes("dbias")
    tiles = -(-bias_rows // chosen.block_m) * -(-bias_cols // chosen.block_n)
    call.run(
        "dbias",
        dbias_kernel,
        tiles,
        heads * batch,
        {
            "dbias": part,
            "shared_sequences": 1 if batch == call.batch_size else call.batch_size,
            "shared_heads": 1 if heads == num_heads else num_heads,
            "bias_heads": heads,
            "bias_rows": bias_rows,
            "bias_cols": bias_cols,
            "ONE_ROW": bias_rows == 1,
            "ONE_COL": bias_cols == 1,
            **saved,
        },
    )
    if part is not dbias:
        dims = [i for i, size in enumerate((bias_batch, bias_heads)) if size != part.shape[i]]
        dbias.copy_(part.sum(dims, keepdim=True) if dims else part)
