"""From tensors to launches: what the backends of the CUDA kernels share.

Python allocates results and workspace; the kernels fill them, on torch's current stream. Nothing
waits for the device: the seed and the lengths of sequences stay where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastattn.backends.native import DTYPES, as_rows, require_dtype, rows_contiguous, view
from fastattn.dropout import drop_threshold
from fastattn.ops import checks

if TYPE_CHECKING:
    from fastattn.backends import Call, HiddenCall

LAYER_NORM = "dropout_add_layer_norm"  # the operator whose kernels hold a whole row
# Partial sums over rows, of the backward passes on hidden states: enough to fill a GPU, and few
# beside the rows of a batch. Not measured yet (2026-11-24).
_MAX_PARTS = 512
_GELU_ROWS = 4  # of a block of threads


class Kernels:
    """A backend whose kernels are those of csrc/cuda."""

    NAME: str
    DEVICE_TYPE: str
    ATTENTION = "cuda"  # the functions of the native module begin with it
    MIN_BFLOAT16 = (8, 0)  # older GPUs have no matrix instruction for it

    def unavailable_reason(self) -> str | None:
        """Returns why the backend cannot run on this machine, or None."""
        raise NotImplementedError

    def architecture_reasons(self) -> list[str]:
        """Returns why the GPU cannot run any of the kernels."""
        raise NotImplementedError

    def capability(self) -> tuple[int, int]:
        """Returns the compute capability of the GPU."""
        raise NotImplementedError

    @property
    def module(self) -> Any:
        """The native module that holds the kernels."""
        raise NotImplementedError

    def unsupported_reasons(self, call: Call) -> list[str]:
        """Returns why the backend cannot serve a call."""
        reasons = self._device_reasons(call.device_type)
        if call.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"dtype must be float16 or bfloat16, got {call.dtype}")
        if call.dtype == torch.bfloat16 and not reasons:
            reasons += self._bfloat16_reasons()
        largest = getattr(self.module, f"{self.ATTENTION}_max_head_dim")
        if call.head_dim > largest:
            reasons.append(f"head_dim must be at most {largest}, got {call.head_dim}")
        return reasons

    def hidden_reasons(self, call: HiddenCall) -> list[str]:
        """Returns why the operators on hidden states cannot serve a call."""
        reasons = self._device_reasons(call.device_type)
        if call.dtype == torch.float64:
            reasons.append("float64 is not supported")
        largest = self.module.cuda_max_hidden_size
        if call.op == LAYER_NORM and call.hidden_size > largest:
            reasons.append(f"hidden_size must be at most {largest}, got {call.hidden_size}")
        return reasons

    def _device_reasons(self, device_type: str) -> list[str]:
        if device_type == self.DEVICE_TYPE:
            return self.architecture_reasons()
        where = "a GPU" if self.DEVICE_TYPE == "cuda" else "the CPU"
        return [f"tensors must be on {where}, got {device_type}"]

    def _bfloat16_reasons(self) -> list[str]:
        if self.capability() >= self.MIN_BFLOAT16:
            return []
        wanted, got = (".".join(map(str, x)) for x in (self.MIN_BFLOAT16, self.capability()))
        return [
            f"bfloat16 needs a GPU of compute capability {wanted} or newer, got {got}; "
            "float16 is served"
        ]

    def _run(self, function: str, device: torch.device, *arguments: Any) -> None:
        """Calls a function of the native module with the current stream of the device."""
        launch = getattr(self.module, function)
        if device.type != "cuda":
            launch(*arguments, 0)
            return
        with torch.cuda.device(device):
            launch(*arguments, torch.cuda.current_stream(device).cuda_stream)

    def attention_fwd(
        self, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
    ) -> None:
        """Fills out and lse."""
        q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
        kept, numbers = _native_options(q, k, *options)
        tensors = map(view, (out, lse, q, k, v))
        native = (*map(view, kept), *numbers)
        self._run(f"{self.ATTENTION}_attention_fwd", q.device, DTYPES[q.dtype], *tensors, native)

    def attention_bwd(
        self,
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
        q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
        dout, out = rows_contiguous(dout), rows_contiguous(out)
        cu_seqlens_q = options[0]
        batch_size = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        part = None if dbias is None else _part_of(dbias, batch_size, q.shape[-2])
        delta = torch.empty_like(lse)
        kept, numbers = _native_options(q, k, *options)
        tensors = map(view, (dq, dk, dv, part, delta, dout, dlse, q, k, v, out, lse))
        native = (*map(view, kept), *numbers)
        self._run(f"{self.ATTENTION}_attention_bwd", q.device, DTYPES[q.dtype], *tensors, native)
        if dbias is not None and part is not None and part is not dbias:
            dims = [i for i in (0, 1) if dbias.shape[i] != part.shape[i]]
            dbias.copy_(part.sum(dims, keepdim=True) if dims else part)

    def layer_norm_fwd(
        self,
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
        require_dtype(torch.float32, weight=weight, bias=bias, x_bias=x_bias)
        x, residual = as_rows(x), as_rows(residual)
        vectors = [None if vector is None else vector.contiguous() for vector in (bias, x_bias)]
        self._run(
            "cuda_layer_norm_fwd",
            x.device,
            DTYPES[x.dtype],
            DTYPES[residual.dtype],
            *map(view, (as_rows(out), mean, rstd, x, residual, weight.contiguous(), *vectors)),
            eps,
            view(seed),
            0 if seed is None else drop_threshold(dropout_p),
        )

    def layer_norm_bwd(
        self,
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
        require_dtype(torch.float32, weight=weight, x_bias=x_bias, mean=mean, rstd=rstd)
        require_dtype(residual.dtype, dout=dout)
        x, residual, dout = as_rows(x), as_rows(residual), as_rows(dout)
        weight = weight.contiguous()
        x_bias = None if x_bias is None else x_bias.contiguous()
        parts = max(1, min(x.shape[0], _MAX_PARTS))
        partials = weight.new_empty((2 if dx_bias is None else 3, parts, x.shape[1]))
        dx, dresidual = None if dx is None else as_rows(dx), as_rows(dresidual)
        results = (dx, dresidual, dweight, dbias, dx_bias, partials)
        self._run(
            "cuda_layer_norm_bwd",
            x.device,
            DTYPES[x.dtype],
            DTYPES[residual.dtype],
            *map(view, (*results, dout, x, residual, weight, x_bias, mean, rstd, seed)),
            0 if seed is None else drop_threshold(dropout_p),
        )

    def gelu_fwd(self, out: Tensor, x: Tensor, bias: Tensor | None) -> None:
        """Fills out, contiguous and of the shape and dtype of x."""
        require_dtype(torch.float32, bias=bias)
        x = as_rows(x)
        bias = None if bias is None else bias.contiguous()
        tensors = map(view, (out.view(x.shape), x, bias))
        self._run("cuda_gelu_fwd", x.device, DTYPES[x.dtype], *tensors)

    def gelu_bwd(
        self, dx: Tensor, dbias: Tensor | None, dout: Tensor, x: Tensor, bias: Tensor | None
    ) -> None:
        """Fills dx, contiguous and of the shape and dtype of x, and dbias if it is given."""
        require_dtype(torch.float32, bias=bias)
        require_dtype(x.dtype, dout=dout)
        x, dout = as_rows(x), as_rows(dout)
        bias = None if bias is None else bias.contiguous()
        partials = None
        if dbias is not None:
            parts = max(1, min(-(-x.shape[0] // _GELU_ROWS), _MAX_PARTS))
            partials = dbias.new_empty((1, parts, x.shape[1]))
        tensors = map(view, (dx.view(x.shape), dbias, partials, dout, x, bias))
        self._run("cuda_gelu_bwd", x.device, DTYPES[x.dtype], *tensors)

    def hidden_dropout(self, out: Tensor, x: Tensor, seed: Tensor, dropout_p: float) -> None:
        """Fills out, contiguous and of the shape and dtype of x."""
        x = as_rows(x)
        tensors = map(view, (out.view(x.shape), x, seed))
        threshold = drop_threshold(dropout_p)
        self._run("cuda_hidden_dropout", x.device, DTYPES[x.dtype], *tensors, threshold)


def _native_options(
    q: Tensor,
    k: Tensor,
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
) -> tuple[tuple[Tensor | None, ...], tuple[float, ...]]:
    """The options of a call in the order of the native functions: tensors, then numbers.

    The caller keeps the tensors, some of which are copies, until the kernels are launched.
    """
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        if q.device.type == "cpu":  # emulated; reading them on a GPU would wait for it
            checks.check_cu_seqlens_values("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
            checks.check_cu_seqlens_values("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        cu_seqlens_q, cu_seqlens_k = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    tensors = (cu_seqlens_q, cu_seqlens_k, key_padding_mask, bias, alibi_slopes, seed)
    numbers = (softmax_scale, softcap, window_left, window_right, drop_threshold(dropout_p))
    num_threads = 1  # of the CPU, in the native functions of the backend "cpu"
    return tensors, (*numbers, num_threads)


def _part_of(dbias: Tensor, batch_size: int, num_heads: int) -> Tensor:
    """Returns what the kernel of dbias fills: dbias itself, or partial results to be added up.

    Sequences and heads that share a bias are summed within the kernel if its tiles alone are
    enough work for a GPU, which they are if it has a row for each query and a column for each key.
    """
    bias_batch, bias_heads, rows, cols = dbias.shape
    shared = rows > 1 and cols > 1
    leading = (bias_batch, bias_heads) if shared else (batch_size, num_heads)
    if leading == (bias_batch, bias_heads) and dbias.is_contiguous():
        return dbias
    return dbias.new_empty((*leading, rows, cols))
