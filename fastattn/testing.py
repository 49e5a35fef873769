"""Inputs, truth and tolerances for checking attention; shared by tests, benches and self-tests.

The truth is :mod:`fastattn.reference` in float64. A result passes if its largest error is at most
``factor`` times that of plain torch in the same dtype, plus a floor of a few roundings:

    err(ours) <= factor * err(eager) + 2 * max|r + 0.3 - 0.3 - r|      r: the truth, rounded

so the tolerance follows the dtype, and a kernel may not be worse than what it replaces.

    inputs = make_inputs([7, 0, 12], num_heads=4, head_dim=64, dtype=torch.bfloat16, causal=True)
    print(*check_against_reference(inputs, backend="cpu"), sep="\\n")
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastattn
from fastattn import dropout, reference

# Of inputs that name none. Tests of a backend that serves 16 bits alone set it.
default_dtype = torch.float32

LAYOUTS = ("contiguous", "guarded", "heads_first")
OUT_FACTOR = 2.0
GRAD_FACTOR = 3.0
_GUARD = 3  # elements of NaN on each side of every dimension of a guarded tensor
# More roundings that the floor allows where the computation is not wider than its results. A
# backward kernel computes the weights again from lse, which plain torch has at hand; and plain
# torch in float64 is the truth itself, with an error of 0.
_ROUNDINGS = {torch.float32: 16, torch.float64: 256}


@dataclass(frozen=True)
class Inputs:
    """One call of :func:`fastattn.attention` and the gradients of its results."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor | None
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    seed: int  # of the generator that the dropout seed is drawn from
    options: dict[str, Any]  # keyword arguments of fastattn.attention

    def with_options(self, **options: Any) -> Inputs:
        """Returns the same tensors with more options."""
        return replace(self, options={**self.options, **options})

    def generator(self) -> torch.Generator:
        """Returns a fresh generator, so that every run draws the same dropout seed."""
        return torch.Generator(self.q.device).manual_seed(self.seed)


class Outputs(NamedTuple):
    """What a run gives; ``dbias`` is None if the bias needs no gradient."""

    out: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor | None


class Accuracy(NamedTuple):
    """How far one result is from the truth, and how far it may be."""

    name: str
    error: float
    eager_error: float
    allowed: float
    worst: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"{self.name}: error {self.error:.3g} at {self.worst}, plain torch "
            f"{self.eager_error:.3g}, allowed {self.allowed:.3g}"
        )


def make_inputs(
    lengths_q: Sequence[int],
    lengths_k: Sequence[int] | None = None,
    *,
    num_heads: int = 2,
    num_heads_kv: int | None = None,
    head_dim: int = 32,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    packed: bool = False,
    tail: int = 0,
    layout: str = "contiguous",
    bias_shape: Sequence[int] | None = None,
    with_dlse: bool = False,
    seed: int = 0,
    **options: Any,
) -> Inputs:
    """Makes random inputs, the same ones for the same arguments on every device.

    Args:
        lengths_q: rows of each sequence of q; 0 is a length.
        lengths_k: the same for k and v. Default: lengths_q.
        dtype: of q, k and v. Default: ``default_dtype``.
        packed: packed layout instead of a batch. In a batch every sequence of q is as long as
            the longest; where k and v are ragged, the padding is NaN and a key_padding_mask
            names it.
        tail: rows of NaN after the last packed sequence, which belong to no sequence.
        layout: "contiguous", "guarded" (slices of a bigger tensor whose other elements are NaN),
            or "heads_first" (a transposed (batch, heads, seqlen, head_dim) tensor).
        bias_shape: adds a float32 bias (float64 for float64) of this shape that needs a gradient.
        with_dlse: adds a gradient of lse.
        options: more keyword arguments of :func:`fastattn.attention`.
    """
    lengths_q = tuple(lengths_q)
    lengths_k = lengths_q if lengths_k is None else tuple(lengths_k)
    num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
    dtype = default_dtype if dtype is None else dtype
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def sequences(lengths: tuple[int, ...], heads: int, ragged: bool) -> Tensor:
        longest = max(lengths, default=0)
        rows = [normal(length, heads, head_dim) for length in lengths]
        if packed:
            rows.append(torch.full((tail, heads, head_dim), float("nan"), dtype=dtype))
            return torch.cat(rows)
        fill = float("nan")
        x = torch.full((len(lengths), longest, heads, head_dim), fill, dtype=dtype)
        for sequence, values in zip(x, rows, strict=True):
            sequence[: len(values)] = values
            if not ragged:
                sequence[len(values) :] = normal(longest - len(values), heads, head_dim)
        return x

    q = sequences(lengths_q, num_heads, ragged=False)
    k, v = (sequences(lengths_k, num_heads_kv, ragged=True) for _ in range(2))
    dout = normal(*q.shape)
    statistics = reference.statistics_dtype(dtype)
    lse_shape = (num_heads, len(q)) if packed else (len(q), num_heads, q.shape[1])
    dlse = normal(*lse_shape, dtype=statistics).to(device) if with_dlse else None
    if packed:
        options["cu_seqlens_q"] = cu_seqlens(lengths_q).to(device)
        if lengths_k != lengths_q:
            options["cu_seqlens_k"] = cu_seqlens(lengths_k).to(device)
    elif len(set(lengths_k)) > 1:
        options["key_padding_mask"] = _rows_within(lengths_k).to(device)
    if bias_shape is not None:
        bias = normal(*bias_shape, dtype=statistics).to(device)
        options["bias"] = bias.requires_grad_()
    q, k, v, dout = (as_layout(x.to(device), layout) for x in (q, k, v, dout))
    return Inputs(q, k, v, dout, dlse, lengths_q, lengths_k, seed, options)


def as_layout(x: Tensor, layout: str) -> Tensor:
    """Returns the values of ``x`` with the strides of one of ``LAYOUTS``."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "heads_first":
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "guarded":
        return guarded(x)
    raise ValueError(f"as_layout: layout must be one of {LAYOUTS}; got {layout!r}.")


def guarded(x: Tensor) -> Tensor:
    """Returns a copy of ``x`` that is a slice of a bigger tensor whose other elements are NaN."""
    whole = x.new_full([size + 2 * _GUARD for size in x.shape], float("nan"))
    inside = whole[tuple(slice(_GUARD, _GUARD + size) for size in x.shape)]
    return inside.copy_(x)


def guards_intact(inside: Tensor) -> bool:
    """Says whether the elements around a tensor of :func:`guarded` are still NaN."""
    sizes = [size + 2 * _GUARD for size in inside.shape]
    whole = inside.as_strided(sizes, torch.empty(sizes, device="meta").stride(), 0).clone()
    whole[tuple(slice(_GUARD, _GUARD + size) for size in inside.shape)] = float("nan")
    return bool(whole.isnan().all())


def cu_seqlens(lengths: Sequence[int]) -> Tensor:
    """Returns 0 and the running sum of the lengths, int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def _rows_within(lengths: Sequence[int]) -> Tensor:
    """(batch, max(lengths)) bool, True before the end of each sequence."""
    return torch.arange(max(lengths, default=0)) < torch.tensor(lengths)[:, None]


def pack(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """(batch, seqlen, ...) -> (total, ...): the rows of each sequence before its end."""
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])


def packed_inputs(padded: Inputs) -> Inputs:
    """Returns the sequences of a batch in the packed layout, with the same values."""
    lengths_q, lengths_k = padded.lengths_q, padded.lengths_k
    dlse = padded.dlse
    if dlse is not None:
        dlse = pack(dlse.transpose(1, 2), lengths_q).transpose(0, 1)
    options = {**padded.options, "cu_seqlens_q": cu_seqlens(lengths_q)}
    options["cu_seqlens_k"] = cu_seqlens(lengths_k)
    options["max_seqlen_q"], options["max_seqlen_k"] = padded.q.shape[1], padded.k.shape[1]
    options.pop("key_padding_mask", None)
    return replace(
        padded,
        q=pack(padded.q, lengths_q),
        k=pack(padded.k, lengths_k),
        v=pack(padded.v, lengths_k),
        dout=pack(padded.dout, lengths_q),
        dlse=dlse,
        options=options,
    )


def backend_outputs(inputs: Inputs, backend: str | None = None) -> Outputs:
    """Runs :func:`fastattn.attention` and its backward pass on a backend."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        options = {**inputs.options, "bias": bias, "generator": inputs.generator()}
        out, lse = fastattn.attention(q, k, v, **options, return_lse=True, backend=backend)
        return out, lse

    return _differentiate(attend, inputs, inputs.q.dtype)


def reference_outputs(inputs: Inputs) -> Outputs:
    """Runs the reference in float64 on the values of the inputs: the truth."""
    return _differentiate(_reference_attend(inputs, torch.float64), inputs, torch.float64)


def eager_outputs(inputs: Inputs) -> Outputs:
    """Runs plain torch in the dtype of the inputs: the accuracy to be had without a kernel."""
    return _differentiate(_reference_attend(inputs, inputs.q.dtype), inputs, inputs.q.dtype)


_Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], "tuple[Tensor, Tensor]"]


def _reference_attend(inputs: Inputs, compute_dtype: torch.dtype) -> _Attend:
    """Returns the reference as a function of q, k, v and bias, with the same dropout seed."""
    options = {name: value for name, value in inputs.options.items() if name != "bias"}
    left, right = options.pop("window", (-1, -1))
    options["window"] = (left, 0) if options.pop("causal", False) else (left, right)
    if options.get("softmax_scale") is None:
        options["softmax_scale"] = inputs.q.shape[-1] ** -0.5
    if options.get("dropout_p", 0.0) > 0.0:
        options["seed"] = dropout.draw_seed(inputs.q.device, inputs.generator())

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return reference.attention(q, k, v, bias=bias, compute_dtype=compute_dtype, **options)

    return attend


def _differentiate(attend: _Attend, inputs: Inputs, dtype: torch.dtype) -> Outputs:
    """Runs forward and backward in ``dtype``; strides are kept if it is that of the inputs."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    leaves = [q, k, v]
    bias = inputs.options.get("bias")
    if bias is not None:
        bias_dtype = torch.float64 if dtype == torch.float64 else bias.dtype
        bias = bias.detach().to(bias_dtype)
        if inputs.options["bias"].requires_grad:
            leaves.append(bias.requires_grad_())
    out, lse = attend(q, k, v, bias)
    results, grads = [out], [inputs.dout.to(dtype)]
    if inputs.dlse is not None:
        results.append(lse)
        grads.append(inputs.dlse.to(lse.dtype))
    dq, dk, dv, *dbias = torch.autograd.grad(results, leaves, grads)
    return Outputs(out.detach(), lse.detach(), dq, dk, dv, dbias[0] if dbias else None)


def check_against_reference(
    inputs: Inputs, backend: str | None = None, *, atol: float = 0.0
) -> list[Accuracy]:
    """Runs a backend and asserts that it is as accurate as plain torch.

    Returns:
        The accuracy of out, lse and each gradient.
    """
    ours = backend_outputs(inputs, backend)
    return assert_outputs_as_accurate_as(
        ours, eager_outputs(inputs), reference_outputs(inputs), atol=atol
    )


def assert_outputs_as_accurate_as(
    ours: Outputs, eager: Outputs, truth: Outputs, *, atol: float = 0.0
) -> list[Accuracy]:
    """:func:`assert_as_accurate_as` of every result; gradients have the wider factor."""
    return [
        assert_as_accurate_as(
            getattr(ours, name),
            getattr(eager, name),
            getattr(truth, name),
            factor=GRAD_FACTOR if name.startswith("d") else OUT_FACTOR,
            # A gradient is made from out as it was rounded, in whatever dtype it is itself.
            dtype=ours.out.dtype if name.startswith("d") else None,
            atol=atol,
            name=name,
        )
        for name in Outputs._fields
        if getattr(truth, name) is not None
    ]


def assert_as_accurate_as(
    ours: Tensor,
    eager: Tensor,
    truth: Tensor,
    *,
    factor: float = OUT_FACTOR,
    dtype: torch.dtype | None = None,
    atol: float = 0.0,
    name: str = "out",
) -> Accuracy:
    """Asserts that ``ours`` is at most ``factor`` times as far from the truth as ``eager``.

    Args:
        ours: the result to judge.
        eager: the same from plain torch in the same dtype.
        truth: the same in float64. Where it is infinite, ``ours`` must be the same infinity.
        dtype: whose roundings make the floor. Default: that of ``ours``.
        atol: allowed on top, for results whose truth is 0 by cancellation, so that neither
            the truth nor plain torch gives a scale for the rounding.

    Raises:
        AssertionError: with both errors and the worst coordinate.
    """
    if ours.shape != truth.shape:
        raise AssertionError(
            f"{name}: shape {tuple(ours.shape)} must be {tuple(truth.shape)}, that of the truth"
        )
    finite = truth.isfinite()
    if not torch.equal(ours[~finite].double(), truth[~finite].double()):
        raise AssertionError(f"{name}: must be infinite exactly where the truth is")
    if not ours[finite].isfinite().all():
        worst = tuple((finite & ~ours.isfinite()).nonzero()[0].tolist())
        raise AssertionError(f"{name}: must be finite, got {ours[worst]} at {worst}")
    if truth.numel() == 0:
        return Accuracy(name, 0.0, 0.0, 0.0, ())
    error, worst_index = _largest_error(ours, truth, finite)
    eager_error, _ = _largest_error(eager, truth, finite)
    allowed = factor * eager_error + _floor(truth[finite], dtype or ours.dtype) + atol
    worst = tuple(int(x) for x in torch.unravel_index(torch.tensor(worst_index), truth.shape))
    accuracy = Accuracy(name, error, eager_error, allowed, worst)
    if not error <= allowed:
        raise AssertionError(f"{accuracy}; got {ours[worst]:.9g}, truth {truth[worst]:.9g}")
    return accuracy


def _largest_error(x: Tensor, truth: Tensor, finite: Tensor) -> tuple[float, int]:
    """Returns the largest distance to the truth and its flat index."""
    error = torch.where(finite, x.double() - truth.double(), 0.0).abs().flatten()
    index = int(error.argmax())
    return float(error[index]), index


def _floor(truth: Tensor, dtype: torch.dtype) -> float:
    """Returns the error that any arithmetic in ``dtype`` near the truth may leave."""
    if truth.numel() == 0:
        return 0.0
    rounded = truth.to(dtype)
    floor = 2.0 * float((rounded + 0.3 - 0.3 - rounded).abs().max())
    scale = max(1.0, float(rounded.abs().max()))
    return floor + _ROUNDINGS.get(dtype, 0) * torch.finfo(dtype).eps * scale
