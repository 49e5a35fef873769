"""Bias and GELU: every instruction set against float64, and the operator inside torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastattn.backends import cpu
from fastattn.errors import BackendError
from fastattn.ops.gelu import bias_gelu
from fastattn.testing import GRAD_FACTOR, OUT_FACTOR, assert_as_accurate_as, guarded

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")


def name_of(value: Any) -> str | None:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "-".join(map(str, value)) if isinstance(value, tuple) else None


def differentiate(gelu: Any, x: Tensor, bias: Tensor | None, dout: Tensor) -> list[Tensor]:
    """Returns out, dx and, if there is a bias, dbias."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, bias) if tensor is not None]
    out = gelu(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


def stock(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias.to(x.dtype))


def truth(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64, without the cancellation that 1 + erf(h / sqrt(2)) has on the left side."""
    h = x if bias is None else x + bias
    return h * torch.special.erfc(h * -(0.5**0.5)) / 2


def check(x: Tensor, bias: Tensor | None, dout: Tensor, backend: str | None = None) -> None:
    """Asserts that out and the gradients are as accurate as torch's own, and typed like inputs."""

    def ours_gelu(*arguments: Tensor) -> Tensor:
        return bias_gelu(*arguments, backend=backend)

    ours = differentiate(ours_gelu, x, bias, dout)
    eager = differentiate(stock, x, bias, dout)
    exact = differentiate(truth, *(t if t is None else t.double() for t in (x, bias)), dout)
    for name, result, other, true in zip(("out", "dx", "dbias"), ours, eager, exact, strict=False):
        factor = OUT_FACTOR if name == "out" else GRAD_FACTOR
        assert_as_accurate_as(result, other, true, factor=factor, name=name)
    assert [t.dtype for t in ours] == [x.dtype, x.dtype, *([] if bias is None else [bias.dtype])]


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(shape)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("hidden_size", [1, 7, 16, 33, 384, 768, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
def test_shapes(kernels, hidden_size, dtype, with_bias):
    x, dout = (random(2, 23, hidden_size, dtype=dtype) for _ in range(2))
    check(x, random(hidden_size, dtype=dtype) if with_bias else None, dout, kernels)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_reference(dtype):
    x, dout = (random(2, 23, 33, dtype=dtype) for _ in range(2))
    check(x, random(33, dtype=dtype), dout, backend="reference")


@pytest.mark.parametrize("shape", [(33,), (1, 33), (0, 33), (2, 0, 5), (2, 3, 4, 5), (700, 40)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_number_of_rows(kernels, shape, with_bias):
    x, dout = random(*shape), random(*shape)
    check(x, random(shape[-1]) if with_bias else None, dout, kernels)


def test_rows_longer_than_a_unit_of_work(kernels):
    x, dout = random(3, 40001), random(3, 40001)
    check(x, random(40001), dout, kernels)
    check(x, None, dout, kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("layout", ["guarded", "transposed", "columns", "expanded"])
def test_strides(kernels, layout, with_bias, dtype):
    """The numbers around a slice are NaN; none may reach a result."""
    x, dout = (random(6, 5, 35, dtype=dtype) for _ in range(2))
    bias = random(35) if with_bias else None
    contiguous = bias_gelu(x, bias, backend=kernels)
    if layout == "guarded":
        x, dout = guarded(x), guarded(dout)
        bias = guarded(bias) if with_bias else None
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "columns":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        dout = dout[:1, :1].expand(6, 5, 35)
    assert torch.equal(bias_gelu(x, bias, backend=kernels), contiguous)
    check(x, bias, dout, kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_every_magnitude_keeps_its_digits(kernels, dtype):
    """Far to the left too, where 1 + erf cancels: the error is relative, not absolute."""
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.logspace(-30, 0, 1000)]).to(dtype)
    exact = truth(x.double())
    nonzero = exact != 0.0
    relative = ((bias_gelu(x, backend=kernels).double() - exact) / exact)[nonzero].abs()
    # exp(-h^2/2) amplifies the rounding of h^2/2, which is up to 72 here (in the truth as well).
    assert relative.max() < 250 * torch.finfo(dtype).eps
    assert relative[x[nonzero].abs() < 3].max() < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_special_values(kernels, dtype):
    x = torch.tensor([INF, -INF, NAN, 3e4, -3e4, 0.0, -20.0, 20.0], dtype=dtype).requires_grad_()
    out = bias_gelu(x, backend=kernels)
    (slope,) = torch.autograd.grad(out.sum(), x)
    expected = torch.tensor([INF, 0.0, NAN, 3e4, 0.0, 0.0, 0.0, 20.0], dtype=dtype)
    torch.testing.assert_close(out.detach(), expected, equal_nan=True, rtol=0.0, atol=1e-80)
    expected = torch.tensor([1.0, 0.0, NAN, 1.0, 0.0, 0.5, 0.0, 1.0], dtype=dtype)
    torch.testing.assert_close(
        slope, expected, equal_nan=True, rtol=torch.finfo(dtype).eps, atol=1e-80
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_the_number_of_threads_changes_no_bit(cpu_kernels, num_threads, dtype):
    x, bias, dout = random(700, 200, dtype=dtype), random(200), random(700, 200, dtype=dtype)
    runs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(differentiate(bias_gelu, x, bias, dout))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_bias_of_another_dtype(cpu_kernels):
    """As under autocast, where x has 16 bits and the parameter does not."""
    x, dout = (random(9, 33, dtype=torch.bfloat16) for _ in range(2))
    check(x, random(33), dout)
    check(x, random(33, dtype=torch.float64), dout)


def test_autocast_changes_nothing(cpu_kernels):
    for dtype in (torch.float32, torch.bfloat16):
        x = random(4, 33, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(bias_gelu(x), bias_gelu(x))
            assert bias_gelu(x).dtype == F.gelu(x).dtype == dtype


@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(cpu_kernels, with_bias):
    x = random(4, 33).requires_grad_()
    bias = random(33).requires_grad_() if with_bias else None
    torch.library.opcheck(torch.ops.fastattn.gelu_fwd.default, (x, bias))
    detached = (x.detach(), None if bias is None else bias.detach())
    torch.library.opcheck(torch.ops.fastattn.gelu_bwd.default, (random(4, 33), *detached))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck(cpu_kernels, backend):
    x = random(3, 7, dtype=torch.float64).requires_grad_()
    bias = random(7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: bias_gelu(*t, backend=backend), (x, bias))
    assert torch.autograd.gradcheck(lambda x: bias_gelu(x, backend=backend), (x,))


def test_only_the_bias_may_need_a_gradient(cpu_kernels):
    x, bias, dout = random(9, 33), random(33).requires_grad_(), random(9, 33)
    (dbias,) = torch.autograd.grad(bias_gelu(x, bias), bias, dout)
    assert torch.equal(dbias, differentiate(bias_gelu, x, bias, dout)[2])


def test_compile(cpu_kernels):
    torch.compiler.reset()
    x, bias, dout = random(4, 33), random(33), random(4, 33)
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        differentiate(compiled, x, bias, dout),
        differentiate(bias_gelu, x, bias, dout),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_no_gradient_of_a_gradient(cpu_kernels):
    x = random(4, 33).requires_grad_()
    (dx,) = torch.autograd.grad(bias_gelu(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError) as raised:
        torch.autograd.grad(dx.sum(), x)
    assert str(raised.value) == (
        "bias_gelu: the gradient of a gradient must be taken on the reference backend; got one "
        'through a fused kernel. Call bias_gelu(..., backend="reference").'
    )
    double = random(3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: bias_gelu(x, backend="reference"), (double,))


def test_without_kernels_the_reference_runs(monkeypatch):
    x, bias = random(4, 33), random(33)
    monkeypatch.setattr(cpu, "_load_error", "the native module is not there")
    assert torch.equal(bias_gelu(x, bias), bias_gelu(x, bias, backend="reference"))
    with pytest.raises(BackendError, match='bias_gelu: backend "cpu" cannot serve this call'):
        bias_gelu(x, backend="cpu")
    assert bias_gelu(x.to("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("x", "bias", "kind", "message"),
    [
        (None, None, TypeError, "x must be a torch.Tensor; got NoneType."),
        (
            torch.ones(2, 3).to_sparse(),
            None,
            TypeError,
            "x must be an ordinary tensor; got one of layout torch.sparse_coo. Convert it with "
            "x.to_dense().",
        ),
        (
            torch.ones(2, 3, dtype=torch.int32),
            None,
            TypeError,
            "x must be float32, float64, float16 or bfloat16; got torch.int32. "
            "Convert it with x.to(dtype).",
        ),
        (
            torch.ones(3, 0),
            None,
            ValueError,
            "x must have a last dimension of at least 1; got shape (3, 0).",
        ),
        (torch.ones(2, 3), 1.0, TypeError, "bias must be a torch.Tensor; got float."),
        (
            torch.ones(2, 3),
            torch.ones(2),
            ValueError,
            "bias must have the shape of x's last dimension, (3,); got (2,).",
        ),
        (
            torch.ones(2, 3),
            torch.ones(3, device="meta"),
            ValueError,
            "bias must be on the device of x, cpu; got meta. Move it with bias.to(x.device).",
        ),
    ],
)
def test_wrong_arguments(x, bias, kind, message):
    with pytest.raises(kind) as raised:
        bias_gelu(x, bias)
    assert str(raised.value) == f"bias_gelu: {message}"


def test_wrong_dtypes_of_the_operators(cpu_kernels):
    """Whoever calls the operators themselves cannot make a kernel read past a tensor's end."""
    x = random(4, 33)
    half = random(33, dtype=torch.bfloat16)
    message = "fastattn: {} must be torch.float32; got torch.bfloat16. Call the functions of"
    with pytest.raises(TypeError, match=message.format("bias")):
        torch.ops.fastattn.gelu_fwd(x, half)
    with pytest.raises(TypeError, match=message.format("dout")):
        torch.ops.fastattn.gelu_bwd(x.bfloat16(), x, None)
    with pytest.raises(ValueError, match="must be contiguous and have one number for each"):
        torch.ops.fastattn.gelu_fwd(x, random(32))
    with pytest.raises(ValueError, match="must have two dimensions, and the same sizes"):
        torch.ops.fastattn.gelu_bwd(random(3, 33), x, None)
