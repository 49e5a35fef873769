"""The float32 linear layer: our product against float64, in every orientation and on every CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastattn.backends import cpu
from fastattn.ops.linear import linear, linears

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason="needs the native module"
)

SHAPES = [(1, 1, 1), (48, 32, 192), (49, 33, 193), (97, 384, 50), (385, 400, 7), (130, 97, 400)]
FEW_ROWS = [(2, 3, 5), (5, 4, 16), (7, 35, 37), (12, 64, 64), (24, 97, 130), (95, 33, 100)]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our product, on whatever CPU the tests run."""
    monkeypatch.setattr(cpu, "prefers_own_matmul", lambda: True)
    monkeypatch.setattr(cpu, "few_rows", lambda: 0)


def assert_close(
    ours: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor, factor: float = 2
) -> None:
    floor = 2 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (ours - truth).abs().max() <= factor * (torchs - truth).abs().max() + floor


@pytest.mark.parametrize(("m", "n", "k"), SHAPES + FEW_ROWS)
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_product(cpu_kernels, m, n, k, a_transposed, b_transposed) -> None:
    # Views of wider matrices: rows are apart, and what lies between them must not be read.
    a = torch.full((k, m + 3) if a_transposed else (m, k + 3), torch.nan)[:, :-3].normal_()
    b = torch.full((n, k + 5) if b_transposed else (k, n + 5), torch.nan)[:, :-5].normal_()
    wide = torch.full((m, n + 2), torch.nan)
    c = wide[:, :n]
    cpu.matmul(c, a, b, a_transposed=a_transposed, b_transposed=b_transposed)
    op_a, op_b = (a.T if a_transposed else a), (b.T if b_transposed else b)
    assert_close(c, op_a @ op_b, op_a.double() @ op_b.double())
    once = c.clone()
    cpu.matmul(c, a, b, a_transposed=a_transposed, b_transposed=b_transposed, accumulate=True)
    assert_close(c, once + op_a @ op_b, once.double() + op_a.double() @ op_b.double())
    assert wide[:, n:].isnan().all()


@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_and_its_gradients(ours, with_bias) -> None:
    x = torch.randn(3, 50, 70, requires_grad=True)
    weight = torch.randn(90, 70, requires_grad=True)
    bias = torch.randn(90, requires_grad=True) if with_bias else None
    dout = torch.randn(3, 50, 90)
    inputs = [t for t in (x, weight, bias) if t is not None]
    truths = [t.detach().double().requires_grad_() for t in inputs]
    out, torchs, truth = linear(x, weight, bias), F.linear(x, weight, bias), F.linear(*truths)
    assert_close(out, torchs, truth)
    grads = torch.autograd.grad(out, inputs, dout)
    torch_grads = torch.autograd.grad(torchs, inputs, dout)
    true_grads = torch.autograd.grad(truth, truths, dout.double())
    for grad, torch_grad, true_grad in zip(grads, torch_grads, true_grads, strict=True):
        assert_close(grad, torch_grad, true_grad)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("used", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("frozen", [None, 0, 1, 3])
def test_several_on_one_input(ours, with_bias, used, frozen) -> None:
    x, *parameters = torch.randn(3, 40, 20), *(torch.randn(n, 20) for n in (30, 30, 70))
    parameters += [torch.randn(n) for n in (30, 30, 70)] if with_bias else []
    inputs = [t.requires_grad_(index != frozen) for index, t in enumerate((x, *parameters))]
    truths = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    douts = [torch.randn(3, 40, n) for n in (30, 30, 70)]

    def grads(f, x, *parameters):
        weights, biases = parameters[:3], parameters[3:] or (None,) * 3
        outputs = f(x, weights, biases)
        loss = sum((outputs[i] * douts[i].to(x.dtype)).sum() for i in used)
        wanted = [t for t in (x, *parameters) if t.requires_grad]
        return outputs, torch.autograd.grad(loss, wanted, allow_unused=True)

    def one_by_one(x, weights, biases):
        return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))

    results = grads(linears, *inputs), grads(one_by_one, *inputs), grads(one_by_one, *truths)
    for ours, torchs, truth in zip(*(r[0] + r[1] for r in results), strict=True):
        assert (ours is None) == (truth is None)
        if truth is not None:
            assert_close(ours, torchs, truth)


@pytest.mark.parametrize(("rows", "is_ours"), [(1, False), (2, True), (95, True)])
def test_few_rows(cpu_kernels, monkeypatch, rows, is_ours) -> None:
    """One short text: the same bits with gradients and without."""
    monkeypatch.setattr(cpu, "prefers_own_matmul", lambda: True)
    calls = []
    matmul = cpu.matmul
    monkeypatch.setattr(cpu, "matmul", lambda *x, **y: (calls.append(x), matmul(*x, **y)))
    inputs = [torch.randn(size) for size in ((1, rows, 70), (50, 70), (30, 70), (50,))]
    inputs = [x.requires_grad_() for x in inputs]
    douts = [torch.randn(1, rows, 50), torch.randn(1, rows, 30)]

    def results(linears, x, w1, w2, bias):
        outputs = linears(x, (w1, w2), (bias, None))
        loss = sum((out * dout).sum() for out, dout in zip(outputs, douts, strict=True))
        return outputs + torch.autograd.grad(loss, (x, w1, w2, bias))

    def torchs_linears(x, weights, biases):
        return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))

    ours = results(linears, *inputs)
    torchs = results(torchs_linears, *inputs)
    truths = results(torchs_linears, *(x.detach().double().requires_grad_() for x in inputs))
    for mine, theirs, truth in zip(ours, torchs, truths, strict=True):
        assert_close(mine, theirs, truth, factor=3)
    with torch.no_grad():
        without = linears(inputs[0], inputs[1:3], (inputs[3], None))
    with torch.inference_mode():
        inferred = linears(inputs[0].clone(), inputs[1:3], (inputs[3], None))
    for mine, again, once_more in zip(ours[:2], without, inferred, strict=True):
        assert torch.equal(mine, again) and torch.equal(mine, once_more)
        assert not again.requires_grad
    assert len(calls) == (6 if is_ours else 0)


def test_few_rows_and_frozen_weights(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "prefers_own_matmul", lambda: True)
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(6, 8)
    linear(x, weight, torch.randn(6, requires_grad=True)).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, 8))
    assert weight.grad is None


def test_few_rows_in_the_hands_of_torch(monkeypatch) -> None:
    """Modes that watch operators, and transforms, see torch's own product."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(cpu, "prefers_own_matmul", lambda: True)
    x, weight = torch.randn(5, 8), torch.randn(6, 8)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 5 * 6 * 8
    mapped = torch.vmap(linear, in_dims=(0, None))(x[:, None], weight)
    torch.testing.assert_close(mapped[:, 0], x @ weight.T)


@pytest.mark.parametrize("few_rows", [0, 95])
def test_second_derivative(monkeypatch, few_rows) -> None:
    monkeypatch.setattr(cpu, "prefers_own_matmul", lambda: True)
    monkeypatch.setattr(cpu, "few_rows", lambda: few_rows)
    inputs = [torch.randn(20, 16, requires_grad=True), torch.randn(24, 16, requires_grad=True)]
    exact = [t.detach().double().requires_grad_() for t in inputs]

    def second(f, x, weight):
        (dx,) = torch.autograd.grad(f(x, weight).sin().sum(), x, create_graph=True)
        (dweight,) = torch.autograd.grad(f(x, weight).cos().sum(), weight, create_graph=True)
        return torch.autograd.grad(dx.square().sum() + dweight.sin().sum(), (x, weight))

    results = second(linear, *inputs), second(F.linear, *inputs), second(F.linear, *exact)
    for ours, torchs, truth in zip(*results, strict=True):
        assert_close(ours, torchs, truth, factor=3)


@pytest.mark.parametrize("rows", [500, 20])
def test_same_bits_on_any_number_of_threads(num_threads, rows) -> None:
    a, b = torch.randn(rows, 300), torch.randn(200, 300)
    products = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        products.append(torch.empty(rows, 200))
        cpu.matmul(products[-1], a, b, b_transposed=True)
    assert torch.equal(products[0], products[1]) and torch.equal(products[0], products[2])


def test_operators_are_sound() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    weight = torch.randn(3, 7, requires_grad=True)
    bias = torch.randn(3, requires_grad=True)
    other = torch.randn(4, 7, requires_grad=True)
    torch.library.opcheck(torch.ops.fastattn.linears.default, (x, [weight], [bias]))
    torch.library.opcheck(torch.ops.fastattn.linears.default, (x, [weight, other], []))
    torch.library.opcheck(torch.ops.fastattn.matmul.default, (x, weight, False, True))
    left, right = [x, torch.randn(5, 4)], [torch.randn(7, 4, requires_grad=True), torch.eye(4)]
    torch.library.opcheck(torch.ops.fastattn.matmul_sum.default, (left, right))


def test_compiles_whole(ours) -> None:
    x, weight = torch.randn(100, 64), torch.randn(32, 64)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), linear(x, weight))


def test_meta_tensors() -> None:
    """torch has no autocast for them, and raises if it is asked about one."""
    x, weight = torch.empty(2, 3, 4, device="meta"), torch.empty(5, 4, device="meta")
    out = linear(x, weight)
    assert out.is_meta and out.shape == (2, 3, 5)


def test_other_dtypes_and_autocast_are_torchs(ours) -> None:
    x, weight = torch.randn(100, 64), torch.randn(32, 64)
    assert torch.equal(
        linear(x.bfloat16(), weight.bfloat16()), F.linear(x.bfloat16(), weight.bfloat16())
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        outputs = linears(x, (weight, weight), (None, torch.ones(32)))
        assert [out.dtype for out in outputs] == [torch.bfloat16] * 2
