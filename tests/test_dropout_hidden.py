"""The dropout rule of hidden states: its element map, its statistics, its operator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastattn import dropout
from fastattn.backends import cpu
from fastattn.errors import BackendError
from fastattn.ops.dropout import dropout as hidden_dropout
from fastattn.testing import guarded

SEED = 0x1234_5678_9ABC_DEF0
# Draws of SEED: row 0, column 0, and places (row, column).
GOLDEN_FIRST_ROW = [27284, 10472, 17918, 44736, 29781, 29031, 1638, 64837, 752, 42586]
GOLDEN_FIRST_COLUMN = [27284, 50631, 20865, 55228, 895, 42163, 28403, 37486, 26426, 63628]
GOLDEN_PLACES = {(1, 63): 35904, (2, 64): 19976, (3, 255): 5282, (4, 256): 17626, (39, 699): 57542}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def scalar_draw(seed: int, row: int, col: int) -> int:
    """The 16-bit draw of one element, from the words of the rule, in Python integers."""
    c = [
        32 * (col // 256) + (col % 64) // 2,
        row % 2**32,
        row >> 32,
        int.from_bytes(b"HIDD", "big"),
    ]
    key = [seed % 2**32, seed >> 32]
    for _ in range(7):
        product0, product1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (product1 >> 32) ^ c[1] ^ key[0],
            product1 % 2**32,
            (product0 >> 32) ^ c[3] ^ key[1],
            product0 % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    word = c[(col % 256) // 64]
    return word >> 16 if col % 2 else word % 2**16


def bits(rows: int, hidden_size: int, seed: int = SEED) -> Tensor:
    return dropout.hidden_random_bits(torch.tensor(seed), rows, hidden_size)


def keep_mask(rows: int, hidden_size: int, dropout_p: float, seed: int = SEED) -> Tensor:
    return dropout.hidden_keep_mask(torch.tensor(seed), rows, hidden_size, dropout_p)


def test_golden_draws():
    """These numbers are the rule: a change of them changes every trained model's dropout."""
    draws = bits(40, 700)
    assert draws[0, :10].tolist() == GOLDEN_FIRST_ROW
    assert draws[:10, 0].tolist() == GOLDEN_FIRST_COLUMN
    assert {at: int(draws[at]) for at in GOLDEN_PLACES} == GOLDEN_PLACES


def test_element_map_is_the_documented_one():
    draws = bits(3, 600)
    expected = [[scalar_draw(SEED, row, col) for col in range(600)] for row in range(3)]
    assert draws.tolist() == expected


@pytest.mark.parametrize(("rows", "hidden_size"), [(0, 5), (1, 1), (7, 33), (20, 256), (3, 257)])
def test_a_draw_does_not_depend_on_the_size(rows, hidden_size):
    assert torch.equal(bits(rows, hidden_size), bits(20, 600)[:rows, :hidden_size])


def test_keep_mask_compares_with_the_threshold():
    assert torch.equal(keep_mask(33, 21, 0.25), bits(33, 21) >= 16384)


@pytest.mark.parametrize("dropout_p", [1e-9, 0.1, 0.5, 0.9, 0.999999])
def test_keep_rate(dropout_p):
    """The number of dropped elements lies within 4.5 standard deviations."""
    keep = keep_mask(2048, 768, dropout_p)
    p = dropout.drop_threshold(dropout_p) / 65536
    deviation = math.sqrt(keep.numel() * p * (1 - p))
    assert abs((~keep).sum() - keep.numel() * p) < 4.5 * deviation


@pytest.mark.parametrize("shift", [0, 8])
def test_draws_are_uniform(shift):
    """Both bytes of the draws fill 256 cells evenly: chi-square, standardised."""
    counts = torch.bincount((bits(1024, 512) >> shift & 0xFF).flatten(), minlength=256).double()
    expected = counts.sum() / 256
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs((statistic - 255) / math.sqrt(2 * 255)) < 4.5


def test_every_column_of_a_block_has_the_same_rate():
    """256 columns of a block, each drawn 16384 times."""
    counts = keep_mask(4096, 1024, 0.5).view(4096, 4, 256).sum((0, 1)).double()
    deviations = (counts - 8192) / math.sqrt(16384 / 4)
    assert deviations.abs().max() < 4.5
    assert 0.7 < deviations.var() < 1.3


def correlation(x: Tensor, y: Tensor) -> float:
    """Of two samples of fair bits, in standard deviations of the sample correlation."""
    x, y = (sample.flatten().double() - 0.5 for sample in (x, y))
    return float((4 * x * y).mean() * math.sqrt(x.numel()))


@pytest.mark.parametrize("distance", [1, 2, 3, 31, 32, 63, 64, 65, 128, 256])
def test_rows_and_columns_are_independent(distance):
    keep = keep_mask(1024, 768, 0.5)
    assert abs(correlation(keep[distance:], keep[:-distance])) < 4.5
    assert abs(correlation(keep[:, distance:], keep[:, :-distance])) < 4.5


@pytest.mark.parametrize("other", [SEED + 1, SEED ^ 1 << 32, SEED ^ 1 << 62, 0])
def test_seeds_are_independent(other):
    first, second = (keep_mask(512, 768, 0.5, seed) for seed in (SEED, other))
    assert abs(correlation(first, second)) < 4.5


def test_attention_weights_of_the_same_seed_are_independent():
    hidden = keep_mask(512, 512, 0.5)
    attention = dropout.keep_mask(torch.tensor(SEED), 1, 1, 512, 512, 0.5)[0, 0]
    assert abs(correlation(hidden, attention)) < 4.5


@pytest.mark.parametrize("hidden_size", [1, 7, 31, 33, 64, 255, 256, 257, 384, 1000])
@pytest.mark.parametrize("dropout_p", [1e-9, 0.1, 0.5, 0.999999])
def test_operator_follows_the_rule(kernels, hidden_size, dropout_p):
    x = torch.rand(2, 19, hidden_size) + 1.0
    seed = torch.tensor(SEED)
    out = torch.ops.fastattn.hidden_dropout(x, seed, dropout_p, kernels)
    keep = keep_mask(38, hidden_size, dropout_p).view(x.shape)
    assert torch.equal(out, torch.where(keep, x * dropout.keep_scale(dropout_p), 0.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_operator_equals_its_reference(kernels, dtype):
    x = guarded(torch.randn(3, 50, 77, dtype=dtype)).requires_grad_()
    dout = torch.randn(3, 50, 77, dtype=dtype)
    results = []
    for backend in (kernels, "reference"):
        out = hidden_dropout(x, 0.3, torch.Generator().manual_seed(1), backend=backend)
        results.append((out, *torch.autograd.grad(out, x, dout)))
        assert out.dtype == dtype
    # The scale has more bits than a 16-bit product keeps of it.
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=tolerance, atol=0.0)


def test_operator_in_torch(cpu_kernels):
    x = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)
    arguments = (x, torch.tensor(SEED), 0.4)
    torch.library.opcheck(torch.ops.fastattn.hidden_dropout.default, arguments)

    def run(x: Tensor) -> Tensor:
        return torch.ops.fastattn.hidden_dropout(x, *arguments[1:])

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)
    torch.compiler.reset()
    compiled = torch.compile(hidden_dropout, fullgraph=True, backend="aot_eager")
    out = compiled(x, 0.4)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx == 0, out == 0)


def test_operator_draws_its_seed_from_the_generator(cpu_kernels):
    x = torch.ones(8, 100)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = (hidden_dropout(x, 0.5, generator) for _ in range(2))
    assert torch.equal(first, hidden_dropout(x, 0.5, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, second)
    assert hidden_dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    third = hidden_dropout(x, 0.5)
    torch.manual_seed(5)
    assert torch.equal(hidden_dropout(x, 0.5), third)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,)])
def test_operator_takes_any_number_of_rows(kernels, shape):
    assert hidden_dropout(torch.ones(shape), 0.5, backend=kernels).shape == shape


@pytest.mark.parametrize(
    ("x", "dropout_p", "kind", "message"),
    [
        ([1.0], 0.1, TypeError, "x must be a torch.Tensor; got list."),
        (
            torch.ones(2, 3, dtype=torch.int64),
            0.1,
            TypeError,
            "x must be float32, float64, float16 or bfloat16; got torch.int64. "
            "Convert it with x.to(dtype).",
        ),
        (
            torch.ones(()),
            0.1,
            ValueError,
            "x must have a last dimension of at least 1; got shape ().",
        ),
        (
            torch.ones(3, 0),
            0.1,
            ValueError,
            "x must have a last dimension of at least 1; got shape (3, 0).",
        ),
        (torch.ones(2, 3), "0.1", TypeError, "dropout_p must be a number; got str."),
        (torch.ones(2, 3), True, TypeError, "dropout_p must be a number; got bool."),
        (
            torch.ones(2, 3),
            1.0,
            ValueError,
            "dropout_p must be in [0, 1), the probability of dropping; got 1.0.",
        ),
    ],
)
def test_wrong_arguments(x, dropout_p, kind, message):
    with pytest.raises(kind) as raised:
        hidden_dropout(x, dropout_p)
    assert str(raised.value) == f"dropout: {message}"


def test_wrong_backends(monkeypatch):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError) as raised:
        hidden_dropout(x, 0.1, backend="gpu")
    assert str(raised.value) == (
        'dropout: backend must be None or one of "cpu", "cuda", "triton", "cuda-hopper", '
        '"cuda-emulated", "cuda-hopper-emulated", "reference"; '
        "got 'gpu'."
    )
    with pytest.raises(BackendError) as refused:
        hidden_dropout(x.to("meta"), 0.1, backend="cpu")
    assert str(refused.value) == (
        'dropout: backend "cpu" cannot serve this call: tensors must be on the CPU, got meta. '
        "Leave backend=None to let fastattn choose one that can."
    )
    monkeypatch.setattr(cpu, "_load_error", "the native module is not there")
    with pytest.raises(BackendError, match="cannot serve this call: the native module is not"):
        hidden_dropout(x, 0.1, backend="cpu")
    torch.manual_seed(0)
    fallback = hidden_dropout(x, 0.1)
    torch.manual_seed(0)
    assert torch.equal(hidden_dropout(x, 0.1, backend="reference"), fallback)
