"""The dropout rule: its generator, its element map, its statistics, its seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fastattn
from fastattn import dropout

# From the known-answer tests published with Random123: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]
SEED = 0x1234_5678_9ABC_DEF0
# Draws of SEED: row 0 and column 0 of the first head, and places (sequence, head, row, column).
GOLDEN_FIRST_ROW = [6036, 2284, 421, 64416, 56899, 8825, 47347, 40789, 42048, 22860]
GOLDEN_FIRST_COLUMN = [6036, 58884, 10543, 59863, 45779, 16740, 50028, 5606, 1505, 63001]
GOLDEN_PLACES = {
    (0, 0, 17, 17): 51840,
    (1, 0, 0, 0): 9916,
    (0, 1, 0, 0): 49416,
    (1, 1, 15, 16): 56415,
    (1, 1, 16, 15): 11885,
}


def scalar_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-7 in Python integers, written apart from the package's."""
    c, k = list(counter), list(key)
    for _ in range(7):
        product0, product1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (product1 >> 32) ^ c[1] ^ k[0],
            product1 % 2**32,
            (product0 >> 32) ^ c[3] ^ k[1],
            product0 % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def scalar_draw(seed: int, sequence: int, head: int, row: int, col: int) -> int:
    """The 16-bit draw of one attention weight, from the words of the rule."""
    lane = 4 * (row % 8) + (col % 8) // 2
    counter = (32 * (col // 16) + lane, row // 16, head, sequence)
    words = scalar_philox(counter, (seed % 2**32, (seed >> 32) % 2**32))
    word = words[2 * ((row % 16) // 8) + (col % 16) // 8]
    return word >> 16 if col % 2 else word % 2**16


def tensor(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def bits(seed: int, *shape: int) -> Tensor:
    return dropout.random_bits(tensor(seed), *shape)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    seed = key[0] | key[1] << 32
    signed = seed - 2**64 if seed >= 2**63 else seed
    words = dropout.philox(tuple(tensor(x) for x in counter), tensor(signed))
    assert tuple(int(word) for word in words) == expected
    assert scalar_philox(counter, key) == expected


def test_philox_equals_a_scalar_one():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 50), generator=generator)
    seeds = torch.randint(-(2**63), 2**63 - 1, (50,), generator=generator)
    words = torch.stack(dropout.philox(tuple(counters), seeds))
    for i, seed in enumerate(seeds.tolist()):
        key = (seed % 2**32, (seed >> 32) % 2**32)
        assert scalar_philox(tuple(counters[:, i].tolist()), key) == tuple(words[:, i].tolist())


def test_golden_draws():
    """These numbers are the rule: a change of them changes every trained model's dropout."""
    draws = bits(SEED, 2, 2, 18, 18)
    assert draws[0, 0, 0, :10].tolist() == GOLDEN_FIRST_ROW
    assert draws[0, 0, :10, 0].tolist() == GOLDEN_FIRST_COLUMN
    assert [int(draws[at]) for at in GOLDEN_PLACES] == list(GOLDEN_PLACES.values())


def test_element_map_is_the_documented_one():
    shape = (2, 3, 37, 50)
    draws = bits(SEED, *shape)
    for sequence, head in ((0, 0), (1, 2)):
        for row in range(shape[2]):
            for col in range(shape[3]):
                expected = scalar_draw(SEED, sequence, head, row, col)
                assert int(draws[sequence, head, row, col]) == expected


@pytest.mark.parametrize(("size_q", "size_k"), [(1, 1), (16, 16), (17, 15), (5, 100), (64, 3)])
def test_a_draw_does_not_depend_on_the_size(size_q, size_k):
    whole = bits(SEED, 3, 4, 64, 100)
    assert torch.equal(bits(SEED, 2, 3, size_q, size_k), whole[:2, :3, :size_q, :size_k])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_empty_shapes(shape):
    assert bits(SEED, *shape).shape == shape


def test_all_is_dropped_at_1():
    assert dropout.drop_threshold(1.0) == 65536 and dropout.keep_scale(1.0) == 0.0
    assert not dropout.keep_mask(tensor(SEED), 2, 3, 70, 70, 1.0).any()


def test_keep_mask_compares_with_the_threshold():
    draws = bits(SEED, 2, 2, 33, 21)
    keep = dropout.keep_mask(tensor(SEED), 2, 2, 33, 21, 0.25)
    assert torch.equal(keep, draws >= 16384)


@pytest.mark.parametrize(
    ("dropout_p", "threshold"),
    [
        (0.0, 0),
        (1e-9, 1),
        (1 / 65536, 1),
        (0.1, 6554),
        (0.5, 32768),
        (0.999999, 65535),
        (math.nextafter(1.0, 0.0), 65535),
    ],
)
def test_threshold_and_scale(dropout_p, threshold):
    assert dropout.drop_threshold(dropout_p) == threshold
    assert dropout.keep_scale(dropout_p) == 65536 / (65536 - threshold)


@pytest.mark.parametrize("dropout_p", [1e-9, 0.1, 0.5, 0.9, 0.999999])
def test_keep_rate(dropout_p):
    """The number of dropped weights lies within 4.5 standard deviations."""
    keep = dropout.keep_mask(tensor(SEED), 4, 4, 512, 256, dropout_p)
    p = dropout.drop_threshold(dropout_p) / 65536
    deviation = math.sqrt(keep.numel() * p * (1 - p))
    assert abs((~keep).sum() - keep.numel() * p) < 4.5 * deviation


def chi_square(counts: Tensor) -> float:
    """Standardised: about normal with mean 0 and deviation 1 if all cells are equally likely."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("shift", [0, 8])
def test_draws_are_uniform(shift):
    """Both bytes of the draws fill 256 cells evenly."""
    cells = (bits(SEED, 2, 4, 256, 256) >> shift & 0xFF).flatten()
    assert abs(chi_square(torch.bincount(cells, minlength=256).double())) < 4.5


def test_every_place_of_a_tile_has_the_same_rate():
    """256 places of a 16 x 16 tile, each drawn 16384 times."""
    keep = dropout.keep_mask(tensor(SEED), 4, 4, 512, 512, 0.5)
    counts = keep.view(16, 32, 16, 32, 16).sum((0, 1, 3)).double()
    # A count is binomial with variance n/4, half of a Poisson variable's.
    deviations = (counts - 8192) / math.sqrt(16384 / 4)
    assert deviations.abs().max() < 4.5
    assert 0.7 < deviations.var() < 1.3


def correlation(x: Tensor, y: Tensor) -> float:
    """Of two samples of fair bits, in standard deviations of the sample correlation."""
    x, y = (sample.flatten().double() - 0.5 for sample in (x, y))
    return float((4 * x * y).mean() * math.sqrt(x.numel()))


@pytest.mark.parametrize("distance", [1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 64])
def test_rows_and_columns_are_independent(distance):
    keep = dropout.keep_mask(tensor(SEED), 2, 4, 256, 256, 0.5)
    assert abs(correlation(keep[:, :, distance:], keep[:, :, :-distance])) < 4.5
    assert abs(correlation(keep[..., distance:], keep[..., :-distance])) < 4.5
    diagonal = correlation(keep[:, :, distance:, distance:], keep[:, :, :-distance, :-distance])
    assert abs(diagonal) < 4.5


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_heads_and_sequences_are_independent(distance):
    keep = dropout.keep_mask(tensor(SEED), 8, 8, 64, 64, 0.5)
    assert abs(correlation(keep[distance:], keep[:-distance])) < 4.5
    assert abs(correlation(keep[:, distance:], keep[:, :-distance])) < 4.5


@pytest.mark.parametrize("other", [SEED + 1, SEED ^ 1 << 32, SEED ^ 1 << 62, 0])
def test_seeds_are_independent(other):
    first, second = (dropout.keep_mask(tensor(s), 4, 4, 128, 128, 0.5) for s in (SEED, other))
    assert abs(correlation(first, second)) < 4.5


def test_draw_seed_follows_manual_seed():
    torch.manual_seed(3)
    first, second = (dropout.draw_seed(torch.device("cpu")) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(dropout.draw_seed(torch.device("cpu")), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.int64 and first.shape == ()


def test_draw_seed_takes_a_generator_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    first, second = (
        dropout.draw_seed(torch.device("cpu"), torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def random_qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 9, 2, 8, dtype=dtype) for _ in range(3)]


def test_attention_follows_manual_seed(backend):
    q, k, v = random_qkv()
    runs = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        runs.append(fastattn.attention(q, k, v, dropout_p=0.5, backend=backend))
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[1])


def test_attention_takes_a_generator(backend):
    q, k, v = random_qkv()
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first, second = (
        fastattn.attention(q, k, v, dropout_p=0.5, generator=generator, backend=backend)
        for _ in range(2)
    )
    generator.manual_seed(1)
    again = fastattn.attention(q, k, v, dropout_p=0.5, generator=generator, backend=backend)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_without_dropout_draws_no_seed(backend):
    q, k, v = random_qkv()
    state = torch.get_rng_state()
    fastattn.attention(q, k, v, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)


def test_mean_over_seeds_is_attention_without_dropout(backend):
    """Dropout keeps the expectation: the mean of 400 runs is within 5 standard errors."""
    q, k, v = random_qkv(torch.float64)
    runs = torch.stack(
        [fastattn.attention(q, k, v, dropout_p=0.3, backend=backend) for _ in range(400)]
    )
    standard_error = runs.std(dim=0) / math.sqrt(len(runs))
    distance = (runs.mean(dim=0) - fastattn.attention(q, k, v, backend=backend)).abs()
    assert (distance / standard_error).max() < 5.0
