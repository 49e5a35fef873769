"""The Triton backend: what it refuses, its dropout bits, its operators, and how torch sees them.

Kernels run on a GPU, or without one in Triton's interpreter on CPU tensors. The operation's own
tests (``tests/ops``) run over the backend too.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastattn
from fastattn import backends, dropout
from fastattn.backends import cpu, triton
from fastattn.backends.triton import config, target
from fastattn.errors import BackendError
from fastattn.ops.dropout import dropout as hidden_dropout
from fastattn.ops.gelu import bias_gelu
from fastattn.ops.layer_norm import dropout_add_layer_norm
from fastattn.testing import (
    assert_as_accurate_as,
    backend_outputs,
    check_against_reference,
    make_inputs,
)

needs_kernels = pytest.mark.skipif(
    triton.unavailable_reason() is not None, reason=str(triton.unavailable_reason())
)
DEVICE = "cuda" if torch.cuda.is_available() and not triton.INTERPRETED else "cpu"
INTERPRETED_CALL = backends.Call("cpu", torch.float32, 64, False, ())


def run_python(program: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("version", ["3.4", "3.4.0", "3.10.1", "4.0.0+git1234"])
def test_supported_versions(version):
    assert triton.version_reason(version) is None


@pytest.mark.parametrize("version", ["3.3.1", "2.1.0", "unknown"])
def test_unsupported_versions_say_so(version):
    assert triton.version_reason(version) == f"triton must be 3.4 or newer, got {version}"


def test_missing_triton_changes_nothing():
    """Without triton, with the interpreter asked for or not, everything else is as it was."""
    out = run_python(
        """
        import sys
        sys.modules["triton"] = None  # as if it were not installed
        import torch, fastattn
        q, k, v = torch.randn(3, 1, 5, 2, 300).unbind()
        print(fastattn.explain(q, k, v))
        print(fastattn.attention(q, k, v).shape)
        try:
            fastattn.attention(q, k, v, backend="triton")
        except fastattn.BackendError as error:
            print(error)
        """
    )
    assert 'not triton: triton is not installed; pip install "triton>=3.4"' in out
    assert "torch.Size([1, 5, 2, 300])" in out
    assert 'attention: backend "triton" cannot serve this call: triton is not installed' in out


def test_importing_fastattn_does_not_import_triton():
    program = "import sys, torch, fastattn; print('triton' in sys.modules, 'triton' in {0})"
    out = run_python(program.format("fastattn.backends.NAMES"))
    assert out.split() == ["False", "True"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    out = run_python(
        """
        from fastattn.backends import triton
        triton._version_reason = None  # as if it were installed
        print(triton.unavailable_reason())
        """,
        TRITON_INTERPRET="0",
    )
    assert out == "torch sees no GPU\n"


@needs_kernels
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64 is not supported"),
        ({"head_dim": 257}, "head_dim must be at most 256, got 257"),
    ],
)
def test_what_is_refused(change, reason):
    call = INTERPRETED_CALL._replace(device_type=DEVICE, **change)
    assert triton.unsupported_reasons(call) == [reason]


def test_other_devices_are_refused():
    where = "on the CPU under TRITON_INTERPRET=1" if triton.INTERPRETED else "on a GPU"
    call = INTERPRETED_CALL._replace(device_type="meta")
    assert triton.unsupported_reasons(call) == [f"tensors must be {where}, got meta"]


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    reason = "the GPU must have compute capability 7.5 or newer, got 7.0"
    assert triton.device_reasons("cuda") == [reason]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert triton.device_reasons("cuda") == []


@pytest.mark.parametrize(
    ("where", "largest"),
    [
        (target.Target("cuda", "sm_75"), 128),
        (target.Target("cuda", "sm_89"), 256),
        (target.Target("hip", "gfx1100"), 256),
        (target.Target("xpu", "xpu"), 256),
    ],
)
def test_head_dim_is_limited_by_the_table_of_the_gpu(monkeypatch, where, largest):
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(triton, "_architecture_reasons", lambda device_type: [])
    monkeypatch.setattr(target, "of", lambda device: where)
    call = INTERPRETED_CALL._replace(
        device_type="xpu" if where.kind == "xpu" else "cuda", head_dim=largest
    )
    assert triton.unsupported_reasons(call) == []
    reason = f"head_dim must be at most {largest}, got {largest + 1}"
    assert triton.unsupported_reasons(call._replace(head_dim=largest + 1)) == [reason]


def test_intel_gpus_are_tried(monkeypatch):
    """Triton serves them; which chip it is makes no difference here."""
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(target, "INTERPRETED", False)
    assert triton.device_reasons("xpu") == []
    assert target.of(torch.device("xpu", 0)) == target.Target("xpu", "xpu")
    call = INTERPRETED_CALL._replace(device_type="xpu")
    monkeypatch.setattr(triton, "unavailable_reason", lambda: None)
    assert backends.select(call) == triton.NAME


@pytest.mark.skipif(not triton.INTERPRETED, reason="kernels run on a GPU")
@needs_kernels
def test_the_interpreter_is_not_chosen_unasked(monkeypatch):
    monkeypatch.setattr(cpu, "_load_error", "the native module is not there")
    q, k, v = torch.randn(3, 1, 5, 2, 8).unbind()
    explanation = fastattn.explain(q, k, v)
    assert explanation.backend == "reference"
    assert explanation.reasons["triton"] == [
        'triton\'s interpreter is slow; ask for it with backend="triton"'
    ]
    assert fastattn.explain(q, k, v, backend="triton").backend == "triton"
    torch.manual_seed(0)
    first = hidden_dropout(q, 0.5)
    torch.manual_seed(0)
    assert torch.equal(first, hidden_dropout(q, 0.5, backend="reference"))


def test_hidden_operators_refuse_with_a_reason():
    x = torch.randn(2, 4097, device=DEVICE)
    if triton.unavailable_reason() is not None:
        reason = str(triton.unavailable_reason())
    else:
        reason = "hidden_size must be at most 4096, got 4097"
    with pytest.raises(BackendError) as raised:
        bias_gelu(x, backend="triton")
    assert str(raised.value) == (
        f'bias_gelu: backend "triton" cannot serve this call: {reason}. '
        "Leave backend=None to let fastattn choose one that can."
    )


@pytest.mark.parametrize(
    ("where", "precision", "wish", "expected"),
    [
        (target.Target("cuda", "sm_90"), "highest", "", "ieee"),
        (target.Target("cuda", "sm_90"), "high", "", "tf32"),
        (target.Target("cuda", "sm_90"), "highest", "tf32x3", "tf32x3"),
        (target.Target("cuda", "sm_75"), "high", "tf32", "ieee"),
        (target.Target("hip", "gfx942"), "high", "tf32", "ieee"),
        (target.Target("xpu", "xpu"), "high", "tf32", "ieee"),
        (target.INTERPRETER, "high", "tf32", "ieee"),
    ],
)
def test_float32_products_follow_torch(monkeypatch, where, precision, wish, expected):
    monkeypatch.setenv("TRITON_F32_DEFAULT", wish)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert target.float32_precision(where) == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_float32_products_follow_the_newer_settings_of_torch():
    """With which torch.get_float32_matmul_precision raises."""
    out = run_python(
        """
        import torch
        from fastattn.backends.triton.target import Target, float32_precision
        gpu = Target("cuda", "sm_90")
        torch.backends.fp32_precision = "tf32"
        print(float32_precision(gpu))
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        print(float32_precision(gpu))
        torch.backends.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        print(float32_precision(gpu))
        """
    )
    assert out.split() == ["tf32", "ieee", "tf32"]


@pytest.mark.parametrize("name", [*config.TABLES, "sm_120", "gfx1100"])
def test_every_target_has_every_configuration(name):
    where = target.Target("hip" if name.startswith("gfx") else "cuda", name)
    table = config.table_of(where)
    for kind, kernel in itertools.product((config.RULED, *table), config.KERNELS):
        if (kind, kernel) == (config.HALF, "dbias") and config.RULED in table:
            continue  # a call with a bias is of the other kind
        for head_dim in (16, 32, 64, 128, 256)[: 4 if name == "sm_75" else 5]:
            shape = config.Shape(kernel, kind, head_dim, False, 512)
            chosen = config.config_of(where, shape)
            # The dropout rule's tiles, and what a tensor core takes.
            assert chosen.block_m % 16 == 0 and chosen.block_n % 16 == 0


@needs_kernels
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (16, 64), (64, 32)])
def test_dropout_bits_are_those_of_the_rule(block_m, block_n):
    """Of every tile of a matrix."""
    kernels = pytest.importorskip("fastattn.backends.triton.kernels.philox")
    seed = torch.tensor(2**62 + 2**40 + 12345, device=DEVICE)
    rows, cols, heads, sequences = 2 * block_m, 3 * block_n, 2, 2
    kept = torch.zeros(sequences, heads, rows, cols, dtype=torch.uint8, device=DEVICE)
    kernels.attention_keep_kernel[(rows // block_m, cols // block_n, heads * sequences)](
        kept,
        seed,
        dropout.drop_threshold(0.3),
        heads,
        rows,
        cols,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
    )
    assert torch.equal(kept.bool(), dropout.keep_mask(seed, sequences, heads, rows, cols, 0.3))


def random_call(number: int) -> dict[str, Any]:
    """Any combination of layout, lengths, heads and options, as arguments of make_inputs."""
    choose = random.Random(number)
    lengths_q = [choose.randint(8, 90), *choose.choices(range(90), k=choose.randint(0, 1))]
    lengths_k = [choose.randint(8, 90), *(choose.randint(0, 90) for _ in lengths_q[1:])]
    num_heads_kv = choose.randint(1, 2)
    num_heads = num_heads_kv * choose.randint(1, 2)
    call: dict[str, Any] = {
        "lengths_q": lengths_q,
        "lengths_k": lengths_k,
        "num_heads": num_heads,
        "num_heads_kv": num_heads_kv,
        "head_dim": choose.choice([8, 24, 64, 100, 256]),
        "dtype": choose.choice([torch.float32, torch.float16, torch.bfloat16]),
        "packed": choose.random() < 0.5,
        "layout": choose.choice(["contiguous", "guarded", "heads_first"]),
        "with_dlse": choose.random() < 0.5,
        "seed": number,
        "causal": choose.random() < 0.5,
        "softcap": choose.choice([0.0, 1.0, 20.0]),
        "dropout_p": choose.choice([0.0, 0.1, 0.5]),
        "device": DEVICE,
    }
    if choose.random() < 0.5:
        full = (len(lengths_q), num_heads, max(lengths_q))
        call["bias_shape"] = (*(choose.choice((1, size)) for size in full), max(lengths_k))
    if choose.random() < 0.5:
        call["window"] = choose.choice([(3, 5), (20, -1), (-1, 4), (64, 64)])
    if choose.random() < 0.5:
        call["alibi_slopes"] = torch.linspace(0.0, 0.5, num_heads).to(DEVICE)
    return call


def tolerance(call: dict[str, Any]) -> float:
    """What rowsum(out * dout) of a rounded out may leave in the sum that is a small bias' gradient.

    A wrong formula is wrong by 1.
    """
    half = call["dtype"].itemsize == 2
    return 8 * torch.finfo(call["dtype"]).eps if half and "bias_shape" in call else 0.0


@needs_kernels
@pytest.mark.parametrize("number", range(10))
def test_any_combination(number):
    call = random_call(number)
    check_against_reference(make_inputs(**call), "triton", atol=tolerance(call))


@needs_kernels
@pytest.mark.parametrize("sizes", [(16, 16), (16, 64), (64, 16)])
def test_sizes_of_tiles_change_no_meaning(monkeypatch, sizes):
    """Many tiles, with every kind of mask at their edges."""
    where = target.of(torch.device(DEVICE, 0)).name
    by_head_dim = {256: config.Config(*sizes, 4, 1)}
    tiles = dict.fromkeys(config.KERNELS, by_head_dim)
    monkeypatch.setitem(config.TABLES, where, {config.HALF: tiles, config.IEEE: tiles})
    for options in ({"causal": True, "dropout_p": 0.3}, {"window": (20, 9)}):
        inputs = make_inputs([70], [83], num_heads=1, device=DEVICE, **options)
        check_against_reference(inputs, "triton")


def test_measured_sizes_go_before_the_others(monkeypatch):
    """For the class of shapes they were measured for, and no other."""
    where = target.Target("cuda", "sm_90")
    shape = config.Shape("fwd", config.HALF, 64, True, 256)
    best = config.Config(16, 16, 1, 1)
    monkeypatch.setitem(config.measured(), ("sm_90", shape), best)
    assert config.config_of(where, shape._replace(head_dim=32, seqlen=100)) == best
    others = ({"dropout": False}, {"seqlen": 257}, {"kind": config.RULED}, {"head_dim": 128})
    for change in others:
        assert config.config_of(where, shape._replace(**change)) != best


def test_rows_of_the_measured_table_are_whole():
    """Every row is about a class of shapes, has sizes, and says where and when it was measured."""
    rows = json.loads(config.MEASURED.read_text("utf-8"))
    assert len({config.row_key(row) for row in rows}) == len(rows)
    for row in rows:
        shape = config.row_key(row)[1]
        assert shape == shape.classed() and shape.kernel in config.KERNELS
        assert len(row["config"]) == 4 and row["gpu"] and row["date"] and row["triton"]


@needs_kernels
@pytest.mark.parametrize("softmax_scale", [-0.7, 0.0])
def test_scales_that_turn_the_order_of_scores(softmax_scale):
    """The forward kernel takes maxima before it scales."""
    for options in ({}, {"softcap": 3.0}):
        inputs = make_inputs(
            [20], num_heads=1, device=DEVICE, softmax_scale=softmax_scale, window=(9, 4), **options
        )
        check_against_reference(inputs, "triton")


@needs_kernels
def test_rows_more_than_2_to_the_31_elements_apart(tmp_path):
    """Of a file without contents, whose rows are all there is in memory of it."""
    row_stride, rows, head_dim = 2**28, 10, 8
    size = (rows - 1) * row_stride + head_dim
    path = tmp_path / "rows"
    with path.open("wb") as file:
        file.truncate(2 * size)
    whole = torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)
    strided = whole.as_strided((1, rows, 1, head_dim), (0, row_stride, 0, 1))
    small = torch.randn(1, rows, 1, head_dim).half()
    strided.copy_(small)
    assert_same(strided, small)


def assert_same(strided: Tensor, small: Tensor) -> None:
    """One tensor as q, k, v and dout gives the results of another one."""
    results = []
    for rows in (strided, small):
        leaf = rows.detach().requires_grad_()
        out = fastattn.attention(leaf, leaf, leaf, backend="triton")
        results.append([out, *torch.autograd.grad(out, leaf, rows)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@needs_kernels
def test_head_dim_that_is_no_power_of_two_reads_nothing_beyond():
    for head_dim in (1, 40, 136):
        inputs = make_inputs(
            [33], head_dim=head_dim, num_heads=1, layout="guarded", device=DEVICE, packed=True
        )
        check_against_reference(inputs, "triton")


def operator_arguments(name: str) -> tuple[Any, ...]:
    """The arguments of the forward operator, for torch's own checks."""
    q, k, v = torch.randn(3, 2, 5, 2, 8, device=DEVICE).unbind()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    bias = torch.randn(2, 1, 5, 5, device=DEVICE, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]], device=DEVICE)
    seed = torch.tensor(3, device=DEVICE)
    if name == "plain":
        options = (None, None, None, None, None, None, 5, 5, 0.3, 0.0, -1, -1, 0.0)
    else:
        options = (None, None, mask, bias, None, seed, 5, 5, 0.3, 2.0, 3, 0, 0.2)
    return (*leaves, *options, "triton")


@needs_kernels
@pytest.mark.parametrize("name", ["plain", "options"])
def test_opcheck(name):
    arguments = operator_arguments(name)
    torch.library.opcheck(torch.ops.fastattn.attention_fwd.default, arguments)
    arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    out, lse = torch.ops.fastattn.attention_fwd(*arguments)
    (q, k, v), options = arguments[:3], arguments[3:]
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    torch.library.opcheck(
        torch.ops.fastattn.attention_bwd.default,
        (dout, dlse, q, k, v, out, lse, options[3] is not None, *options),
    )


def test_second_derivative_is_refused():
    pytest.importorskip("triton")
    q, k, v = torch.randn(3, 1, 3, 1, 2, device=DEVICE, requires_grad=True).unbind()
    out = fastattn.attention(q, k, v, backend="triton")
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="the gradient of a gradient must be taken on"):
        dq.sum().backward()


@needs_kernels
def test_compiles_without_a_graph_break():
    inputs = make_inputs([20, 7], num_heads=2, head_dim=16, dropout_p=0.2, device=DEVICE)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        torch.manual_seed(1)
        return fastattn.attention(q, k, v, backend="triton", **inputs.options)

    leaves = [x.nan_to_num().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    compiled = torch.compile(
        lambda q, k, v: fastattn.attention(q, k, v, backend="triton", **inputs.options),
        fullgraph=True,
        backend="aot_eager",
    )
    results = []
    for run in (attend, compiled):
        torch.manual_seed(1)
        out = run(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, inputs.dout)])
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_traces_for_a_gpu_that_is_not_there(monkeypatch):
    """Shapes alone are enough: no tensor is read, so that nothing waits for a device."""
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(triton, "unavailable_reason", lambda: None)
    monkeypatch.setattr(triton, "_architecture_reasons", lambda device_type: [])
    monkeypatch.setattr(target, "of", lambda device: target.Target("cuda", "sm_90"))

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        lengths = {"cu_seqlens_q": cu_seqlens, "max_seqlen_q": 50}
        return fastattn.attention(q, k, v, **lengths, dropout_p=0.1, backend="triton")

    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (torch.empty(100, 4, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        cu_seqlens = torch.empty(4, dtype=torch.int32, device="cuda")
        graph = make_fx(attend, tracing_mode="fake")(q, k, v, cu_seqlens)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert torch.ops.fastattn.attention_fwd.default in called
    assert not {torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default} & {
        *called
    }


HIDDEN_DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Operator = Callable[..., Tensor]


def hidden_operator(name: str, dropout_p: float) -> Operator:
    """An operator with its options, as a function of tensors and of the backend."""

    def generator() -> torch.Generator:
        return torch.Generator(DEVICE).manual_seed(1)

    def layer_norm(*tensors: Tensor, backend: str | None) -> Tensor:
        x, residual, weight, bias, *x_bias = tensors
        rest = (1e-5, dropout_p, generator(), *x_bias)
        return dropout_add_layer_norm(x, residual, weight, bias, *rest, backend=backend)

    def dropped(x: Tensor, backend: str | None) -> Tensor:
        return hidden_dropout(x, dropout_p, generator(), backend=backend)

    return {"layer_norm": layer_norm, "gelu": bias_gelu, "dropout": dropped}[name]


def differentiated(
    operator: Operator, tensors: list[Tensor], dout: Tensor, backend: str
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = operator(*leaves, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


@needs_kernels
@pytest.mark.parametrize("dtype", HIDDEN_DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [7, 256, 300])
@pytest.mark.parametrize(
    ("name", "vectors", "dropout_p"),
    [
        ("layer_norm", 3, 0.2),
        ("layer_norm", 2, 0.0),
        ("gelu", 1, 0.0),
        ("gelu", 0, 0.0),
        ("dropout", 0, 0.2),
    ],
)
def test_hidden_operators(name, vectors, dropout_p, hidden_size, dtype):
    """As accurate as plain torch, which drops the same elements, and typed like the inputs."""
    operator = hidden_operator(name, dropout_p)
    shape = (2, 11, hidden_size)
    tensors = [torch.randn(shape, device=DEVICE).to(dtype)]
    if name == "layer_norm":
        tensors.append(torch.randn(shape, device=DEVICE))
    tensors += [torch.randn(hidden_size, device=DEVICE) for _ in range(vectors)]
    dout = torch.randn(shape, device=DEVICE)
    wide = [x.double() for x in tensors]
    ours = differentiated(operator, tensors, dout, "triton")
    eager = differentiated(operator, tensors, dout, "reference")
    truth = differentiated(operator, wide, dout.to(ours[0].dtype).double(), "reference")
    for result, other, exact in zip(ours, eager, truth, strict=True):
        assert result.dtype == other.dtype
        assert_as_accurate_as(result, other, exact, factor=3.0, name=name)


@needs_kernels
def test_hidden_operators_of_strided_rows_and_many_rows(monkeypatch):
    """More rows than programs of a backward pass; rows of a bigger tensor; none at all."""
    hidden = pytest.importorskip("fastattn.backends.triton.hidden")
    monkeypatch.setattr(hidden, "_MAX_PARTS", 3)
    operator = hidden_operator("layer_norm", 0.2)
    whole = torch.randn(50, 20, device=DEVICE)
    vectors = [torch.randn(9, device=DEVICE) for _ in range(3)]
    tensors = [whole[:, 2:11], whole[:, 11:], *vectors]
    dout = torch.randn(50, 9, device=DEVICE)
    ours = differentiated(operator, tensors, dout, "triton")
    theirs = differentiated(operator, tensors, dout, "reference")
    for result, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-4, atol=1e-4)
    empty = differentiated(operator, [x[:0] for x in tensors[:2]] + vectors, dout[:0], "triton")
    assert empty[0].shape == (0, 9) and all((x == 0).all() for x in empty[1:])


@needs_kernels
@pytest.mark.parametrize(("name", "dropout_p"), [("layer_norm", 0.2), ("gelu", 0.0)])
def test_hidden_operators_compile(name, dropout_p):
    x, residual = torch.randn(2, 4, 33, device=DEVICE).unbind()
    vectors = [torch.randn(33, device=DEVICE) for _ in range(3)]
    tensors = [x, residual, *vectors] if name == "layer_norm" else [x, vectors[0]]

    def run(*tensors: Tensor) -> Tensor:
        if name == "gelu":
            return bias_gelu(*tensors, backend="triton")
        return dropout_add_layer_norm(
            *tensors[:4], 1e-5, dropout_p, None, tensors[4], backend="triton"
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        torch.manual_seed(1)
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@needs_kernels
@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")
def test_replays_from_a_cuda_graph():
    inputs = make_inputs([128] * 2, packed=True, head_dim=64, dtype=torch.float16, device=DEVICE)
    expected = backend_outputs(inputs, "triton").out  # compiles the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fastattn.attention(inputs.q, inputs.k, inputs.v, backend="triton", **inputs.options)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
