"""Dropout, residual and LayerNorm: every instruction set against float64, and inside torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastattn import dropout
from fastattn.backends import cpu
from fastattn.errors import BackendError
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.testing import GRAD_FACTOR, OUT_FACTOR, assert_as_accurate_as, guarded

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
# Of x, of residual, and of the parameters.
DTYPES = [
    (F32, F32, F32),
    (F64, F64, F64),
    (F16, F16, F16),
    (BF16, BF16, BF16),
    (BF16, F32, F32),
    (F16, F32, F32),
]
EPS = 1e-5


def name_of(value: Any) -> str | None:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "-".join(name_of(part) or str(part) for part in value)
    return None


@dataclass
class Case:
    """One call: its tensors, the gradient of its result, and its dropout."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor
    x_bias: Tensor | None
    dout: Tensor
    dropout_p: float = 0.0

    def seed(self) -> Tensor:
        """The seed that a call with :meth:`generator` draws."""
        return dropout.draw_seed(self.x.device, self.generator())

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(11)

    def leaves(self, dtype: torch.dtype | None = None) -> list[Tensor | None]:
        """The inputs as leaves of a graph; with a dtype, converted to it."""
        inputs = (self.x, self.residual, self.weight, self.bias, self.x_bias)
        return [
            x if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs
        ]


def random(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape).to(dtype)


def make_case(
    *shape: int,
    dtypes: tuple[torch.dtype, ...] = (F32, F32, F32),
    dropout_p: float = 0.0,
    with_x_bias: bool = False,
) -> Case:
    x_dtype, residual_dtype, parameter_dtype = dtypes
    return Case(
        x=random(*shape, dtype=x_dtype),
        residual=random(*shape, dtype=residual_dtype),
        weight=(1.0 + 0.5 * random(shape[-1])).to(parameter_dtype),
        bias=random(shape[-1], dtype=parameter_dtype),
        x_bias=random(shape[-1], dtype=parameter_dtype) if with_x_bias else None,
        dout=random(*shape, dtype=torch.promote_types(x_dtype, residual_dtype)),
        dropout_p=dropout_p,
    )


Run = Callable[..., Tensor]


def stock(case: Case) -> Run:
    """What a stock BERT layer does with the same mask, in the dtypes of its tensors."""

    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Any) -> Tensor:
        h = x if x_bias is None else x + x_bias.to(x.dtype)
        if case.dropout_p > 0.0:
            mask = dropout.hidden_keep_mask(
                case.seed(), h[..., 0].numel(), h.shape[-1], case.dropout_p
            )
            h = h * mask.view(h.shape) * dropout.keep_scale(case.dropout_p)
        return F.layer_norm(h + residual, h.shape[-1:], weight, bias, EPS)

    return run


def fused(case: Case, backend: str | None = None) -> Run:
    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Any) -> Tensor:
        return dropout_add_layer_norm(
            x,
            residual,
            weight,
            bias,
            EPS,
            case.dropout_p,
            case.generator(),
            x_bias,
            backend=backend,
        )

    return run


def differentiate(run: Run, case: Case, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Returns out and every gradient."""
    leaves = case.leaves(dtype)
    out = run(*leaves)
    inputs = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(out, inputs, case.dout.to(out.dtype))
    names = ("dx", "dresidual", "dweight", "dbias", "dx_bias")
    return {"out": out.detach(), **dict(zip(names, grads, strict=False))}


def check(case: Case, backend: str | None = None) -> None:
    """Asserts that every result is as accurate as torch's own, and of the dtype it must have."""
    ours = differentiate(fused(case, backend), case)
    eager = differentiate(stock(case), case)
    exact = differentiate(stock(case), case, F64)
    for name, result in ours.items():
        factor = GRAD_FACTOR if name.startswith("d") else OUT_FACTOR
        assert_as_accurate_as(result, eager[name], exact[name], factor=factor, name=name)
        assert result.dtype == eager[name].dtype


@pytest.mark.parametrize("dtypes", DTYPES, ids=name_of)
@pytest.mark.parametrize("hidden_size", [7, 16, 33, 384, 768, 1000])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_shapes(kernels, hidden_size, dtypes, dropout_p):
    check(make_case(3, 19, hidden_size, dtypes=dtypes, dropout_p=dropout_p), kernels)


@pytest.mark.parametrize("dtypes", DTYPES, ids=name_of)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_x_bias(kernels, dtypes, dropout_p):
    check(make_case(3, 19, 100, dtypes=dtypes, dropout_p=dropout_p, with_x_bias=True), kernels)


@pytest.mark.parametrize("dtypes", DTYPES, ids=name_of)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_reference(dtypes, dropout_p):
    case = make_case(3, 19, 33, dtypes=dtypes, dropout_p=dropout_p, with_x_bias=True)
    check(case, backend="reference")


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_one_column(kernels, dropout_p):
    """The variance is 0: out is the bias, and no gradient reaches x but rounding."""
    case = make_case(5, 19, 1, dropout_p=dropout_p, with_x_bias=True)
    results = differentiate(fused(case, kernels), case)
    torch.testing.assert_close(results["out"], case.bias.expand_as(case.x), rtol=0.0, atol=0.0)
    torch.testing.assert_close(results["dbias"], case.dout.sum((0, 1)))
    rounding = 16 * torch.finfo(F32).eps * EPS**-0.5
    for name in ("dx", "dresidual", "dweight"):
        assert results[name].abs().max() <= rounding


@pytest.mark.parametrize("shape", [(33,), (1, 33), (0, 33), (2, 0, 5), (2, 3, 4, 5), (900, 40)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_any_number_of_rows(kernels, shape, dropout_p):
    check(make_case(*shape, dropout_p=dropout_p, with_x_bias=True), kernels)


def test_a_far_away_mean_costs_no_digits(kernels):
    """Sums of squares would: the variance here is a millionth of the squared mean."""
    case = make_case(20, 384)
    case.residual += 1000.0
    check(case, kernels)


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, F32, F32)], ids=name_of)
@pytest.mark.parametrize("layout", ["guarded", "transposed", "columns", "expanded"])
def test_strides(kernels, layout, dtypes):
    """The numbers around a slice are NaN; none may reach a result."""
    case = make_case(6, 5, 35, dtypes=dtypes, dropout_p=0.2, with_x_bias=True)
    expected = fused(case, kernels)(*case.leaves())
    for name in ("x", "residual", "dout"):
        tensor = getattr(case, name)
        if layout == "guarded":
            tensor = guarded(tensor)
        elif layout == "transposed":
            tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
        elif layout == "columns":
            tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        elif name == "dout":
            tensor = tensor[:1, :1].expand_as(tensor)
        setattr(case, name, tensor)
    if layout == "guarded":
        case.weight, case.bias = guarded(case.weight), guarded(case.bias)
    assert torch.equal(fused(case, kernels)(*case.leaves()), expected)
    check(case, kernels)


@pytest.mark.parametrize("hidden_size", [33, 256, 257, 700])
@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, F32, F32), (F16, F16, F16)])
def test_dropout_follows_the_rule(kernels, hidden_size, dtypes):
    """Where the rule drops, x has no effect and no gradient; elsewhere it has both."""
    case = make_case(50, hidden_size, dtypes=dtypes, dropout_p=0.3)
    keep = dropout.hidden_keep_mask(case.seed(), 50, hidden_size, 0.3)
    results = differentiate(fused(case, kernels), case)
    assert torch.equal(results["dx"] != 0, keep)
    scaled = (results["dresidual"].float() * dropout.keep_scale(0.3) * keep).to(case.x.dtype)
    torch.testing.assert_close(results["dx"], scaled)
    case.x = case.x.masked_fill(~keep, float("nan"))
    again = differentiate(fused(case, kernels), case)
    assert all(torch.equal(again[name], results[name]) for name in results)


def test_every_kernel_and_the_reference_drop_the_same(kernels):
    case = make_case(20, 500, dropout_p=0.1, with_x_bias=True)
    ours = differentiate(fused(case, kernels), case)
    reference = differentiate(fused(case, "reference"), case)
    for name, result in ours.items():
        torch.testing.assert_close(result, reference[name], rtol=1e-5, atol=1e-5)


def test_the_seed_comes_from_the_generator(cpu_kernels):
    case = make_case(8, 100, dropout_p=0.5)
    arguments = (case.x, case.residual, case.weight, case.bias, EPS)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = (dropout_add_layer_norm(*arguments, 0.5, generator) for _ in range(2))
    again = dropout_add_layer_norm(*arguments, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    dropout_add_layer_norm(*arguments)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    third = dropout_add_layer_norm(*arguments, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout_add_layer_norm(*arguments, 0.5), third)


@pytest.mark.parametrize("dtypes", DTYPES, ids=name_of)
def test_the_number_of_threads_changes_no_bit(cpu_kernels, num_threads, dtypes):
    case = make_case(700, 200, dtypes=dtypes, dropout_p=0.2, with_x_bias=True)
    runs = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        runs.append(differentiate(fused(case), case))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("x_dtype", [F32, F64, F16, BF16], ids=name_of)
@pytest.mark.parametrize("residual_dtype", [F32, F64, F16, BF16], ids=name_of)
def test_mixed_dtypes(cpu_kernels, x_dtype, residual_dtype):
    """The result has the dtype of residual + x, and each gradient that of its own tensor."""
    case = make_case(4, 33, dtypes=(x_dtype, residual_dtype, F32), dropout_p=0.2, with_x_bias=True)
    results = differentiate(fused(case), case)
    assert results["out"].dtype == (case.residual + case.x).dtype
    assert results["dx"].dtype == x_dtype and results["dresidual"].dtype == residual_dtype
    exact = differentiate(stock(case), case, F64)
    for name, result in results.items():
        coarsest = max(torch.finfo(dtype).eps for dtype in (result.dtype, F32))
        torch.testing.assert_close(result.double(), exact[name], rtol=coarsest, atol=8 * coarsest)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=name_of)
def test_autocast(cpu_kernels, dtype):
    """As the output half of a BERT layer: dense in 16 bits, the residual stream in float32."""
    torch.manual_seed(1)
    dense, norm = torch.nn.Linear(48, 33), torch.nn.LayerNorm(33, eps=EPS)
    torch.nn.init.normal_(norm.weight)
    hidden, residual = random(5, 48).requires_grad_(), random(5, 33).requires_grad_()
    dout = random(5, 33)
    leaves = (hidden, residual, *dense.parameters(), *norm.parameters())

    def results(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", dtype):
            out = run(dense(hidden))
        return [out.detach(), *torch.autograd.grad(out, leaves, dout)]

    ours = results(lambda x: dropout_add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps))
    theirs = results(lambda x: norm(x + residual))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their, rtol=1e-2, atol=1e-2)
    # What the matrix product does not touch has every digit.
    torch.testing.assert_close(ours[0], theirs[0])


def operator_arguments(case: Case) -> tuple[Any, ...]:
    seed = case.seed() if case.dropout_p > 0.0 else None
    return (*case.leaves(), seed, EPS, case.dropout_p)


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, F32, F32)], ids=name_of)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("with_x_bias", [False, True])
def test_opcheck(cpu_kernels, dtypes, dropout_p, with_x_bias):
    case = make_case(2, 3, 33, dtypes=dtypes, dropout_p=dropout_p, with_x_bias=with_x_bias)
    arguments = operator_arguments(case)
    arguments[2].data = arguments[2].data.float()
    torch.library.opcheck(torch.ops.fastattn.layer_norm_fwd.default, arguments)
    x, residual, weight, _, x_bias, seed, *_ = (
        x.detach() if isinstance(x, Tensor) else x for x in arguments
    )
    _, mean, rstd = (x.detach() for x in torch.ops.fastattn.layer_norm_fwd(*arguments))
    torch.library.opcheck(
        torch.ops.fastattn.layer_norm_bwd.default,
        (case.dout, x, residual, weight, x_bias, mean, rstd, seed, dropout_p),
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck(cpu_kernels, backend, dropout_p):
    case = make_case(3, 5, dtypes=(F64, F64, F64), dropout_p=dropout_p, with_x_bias=True)
    assert torch.autograd.gradcheck(fused(case, backend), case.leaves())


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_one_tensor_as_x_and_residual(cpu_kernels, dropout_p):
    """Its two gradients are added; where they are one tensor, that must not be changed in place."""
    case = make_case(6, 33, dropout_p=dropout_p)
    case.residual = case.x
    parts = differentiate(fused(case), case)
    x = case.x.clone().requires_grad_()
    out = fused(case)(x, x, case.weight, case.bias, None)
    (dx,) = torch.autograd.grad(out, x, case.dout)
    assert torch.equal(dx, parts["dx"] + parts["dresidual"])


def test_only_the_parameters_may_need_a_gradient(cpu_kernels):
    case = make_case(6, 33, dropout_p=0.2)
    weight = case.weight.clone().requires_grad_()
    out = fused(case)(case.x, case.residual, weight, case.bias, None)
    (dweight,) = torch.autograd.grad(out, weight, case.dout)
    assert torch.equal(dweight, differentiate(fused(case), case)["dweight"])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, F32, F32)], ids=name_of)
def test_compile(cpu_kernels, dtypes, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(
        dropout_add_layer_norm, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for rows in (4, 7):
        case = make_case(rows, 33, dtypes=dtypes, with_x_bias=True)

        def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Any) -> Tensor:
            return compiled(x, residual, weight, bias, EPS, x_bias=x_bias)

        expected = differentiate(fused(case), case)
        for name, result in differentiate(run, case).items():
            assert torch.equal(result, expected[name])


def test_compile_with_dropout(cpu_kernels):
    """Forward and backward of the compiled graph use one seed."""
    torch.compiler.reset()
    compiled = torch.compile(dropout_add_layer_norm, fullgraph=True, backend="aot_eager")
    case = make_case(20, 300)
    x = case.x.requires_grad_()
    zero, one = torch.zeros(20, 300), torch.ones(300)
    out = compiled(x, zero, one, torch.zeros(300), EPS, 0.4)
    (dx,) = torch.autograd.grad(out, x, case.dout)
    dropped = out == out.mode(dim=-1, keepdim=True).values  # of a row, all have one value
    assert 0.3 < dropped.float().mean() < 0.5
    assert torch.equal(dx == 0, dropped)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(cpu_kernels, use_reentrant):
    """The recomputed forward draws the seed of the first one."""
    case = make_case(6, 33)
    leaves = case.leaves()[:4]
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        arguments = (*leaves, EPS, 0.4)
        if checkpointed:
            out = checkpoint(dropout_add_layer_norm, *arguments, use_reentrant=use_reentrant)
        else:
            out = dropout_add_layer_norm(*arguments)
        out.backward(case.dout)
        grads.append([leaf.grad for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_no_gradient_of_a_gradient(cpu_kernels):
    case = make_case(4, 33)
    leaves = case.leaves()[:4]
    out = dropout_add_layer_norm(*leaves, EPS)
    (dx,) = torch.autograd.grad(out, leaves[0], case.dout, create_graph=True)
    with pytest.raises(NotImplementedError) as raised:
        torch.autograd.grad(dx.sum(), leaves[0])
    assert str(raised.value) == (
        "dropout_add_layer_norm: the gradient of a gradient must be taken on the reference "
        "backend; got one through a fused kernel. Call "
        'dropout_add_layer_norm(..., backend="reference").'
    )
    double = make_case(2, 4, dtypes=(F64, F64, F64), dropout_p=0.3)
    assert torch.autograd.gradgradcheck(fused(double, "reference"), double.leaves())


def test_without_kernels_the_reference_runs(monkeypatch):
    case = make_case(6, 33, dropout_p=0.2)
    expected = fused(case, "reference")(*case.leaves())
    monkeypatch.setattr(cpu, "_load_error", "the native module is not there")
    assert torch.equal(fused(case)(*case.leaves()), expected)
    with pytest.raises(BackendError, match='dropout_add_layer_norm: backend "cpu" cannot serve'):
        fused(case, "cpu")(*case.leaves())
    meta = (x.to("meta") for x in (case.x, case.residual, case.weight, case.bias))
    assert dropout_add_layer_norm(*meta, EPS).shape == case.x.shape


VALID = {
    "x": torch.ones(2, 3),
    "residual": torch.ones(2, 3),
    "weight": torch.ones(3),
    "bias": torch.ones(3),
    "eps": EPS,
}
WRONG_ARGUMENTS = [
    ({"x": 1}, TypeError, "x must be a torch.Tensor; got int."),
    (
        {"x": torch.ones(())},
        ValueError,
        "x must have a last dimension of at least 1; got shape ().",
    ),
    ({"residual": None}, TypeError, "residual must be a torch.Tensor; got NoneType."),
    (
        {"residual": torch.ones(2, 3, dtype=torch.bool)},
        TypeError,
        "residual must be float32, float64, float16 or bfloat16; got torch.bool. "
        "Convert it with residual.to(dtype).",
    ),
    (
        {"residual": torch.ones(3)},
        ValueError,
        "residual must have the shape of x, (2, 3); got (3,).",
    ),
    (
        {"residual": torch.ones(2, 3, device="meta")},
        ValueError,
        "residual must be on the device of x, cpu; got meta. Move it with residual.to(x.device).",
    ),
    ({"weight": None}, TypeError, "weight must be a torch.Tensor; got NoneType."),
    (
        {"bias": torch.ones(2)},
        ValueError,
        "bias must have the shape of x's last dimension, (3,); got (2,).",
    ),
    (
        {"x_bias": torch.ones(1, 3)},
        ValueError,
        "x_bias must have the shape of x's last dimension, (3,); got (1, 3).",
    ),
    ({"eps": "1e-5"}, TypeError, "eps must be a number; got str."),
    ({"eps": -1.0}, ValueError, "eps must be at least 0 and finite; got -1.0."),
    ({"eps": float("nan")}, ValueError, "eps must be at least 0 and finite; got nan."),
    ({"dropout_p": None}, TypeError, "dropout_p must be a number; got NoneType."),
    (
        {"dropout_p": -0.1},
        ValueError,
        "dropout_p must be in [0, 1), the probability of dropping; got -0.1.",
    ),
    (
        {"backend": "gpu"},
        ValueError,
        'backend must be None or one of "cpu", "cuda", "triton", "cuda-hopper", '
        '"cuda-emulated", "cuda-hopper-emulated", "reference"; '
        "got 'gpu'.",
    ),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(change, kind, message):
    with pytest.raises(kind) as raised:
        dropout_add_layer_norm(**VALID | change)
    assert str(raised.value) == f"dropout_add_layer_norm: {message}"


def test_wrong_tensors_of_the_operators(cpu_kernels):
    """Whoever calls the operators themselves cannot make a kernel read past a tensor's end."""
    x, vector, stats = random(4, 33), random(33), random(4)
    forward = torch.ops.fastattn.layer_norm_fwd
    backward = torch.ops.fastattn.layer_norm_bwd
    message = "fastattn: {} must be torch.float32; got torch.bfloat16. Call the functions of"
    with pytest.raises(TypeError, match=message.format("weight")):
        forward(x, x, vector.bfloat16(), vector, None, None, EPS, 0.0)
    with pytest.raises(TypeError, match=message.format("rstd")):
        backward(x, x, x, vector, None, stats, stats.bfloat16(), None, 0.0)
    with pytest.raises(TypeError, match=message.format("dout")):
        backward(x.bfloat16(), x, x, vector, None, stats, stats, None, 0.0)
    with pytest.raises(ValueError, match="residual must have the dtype of x, or be float32"):
        forward(x, x.bfloat16(), vector, vector, None, None, EPS, 0.0)
    with pytest.raises(ValueError, match="must be contiguous and have one number for each"):
        forward(x, x, vector, random(32), None, None, EPS, 0.0)
    with pytest.raises(ValueError, match="must have two dimensions, and the same sizes"):
        forward(x, random(3, 33), vector, vector, None, None, EPS, 0.0)
