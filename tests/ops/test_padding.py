"""Removing padding and putting it back."""

from __future__ import annotations

import pytest
import torch

from fastattn.ops.padding import (
    dense_layout,
    gather_rows,
    has_gaps,
    packed_layout,
    packed_rows,
    pad_input,
    pad_sequences,
    scatter_rows,
    sequence_slots,
    sequences_layout,
    unpad_input,
)

MASKS = {
    "right": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]],
    "left": [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]],
    "interior": [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]],
    "an empty sequence": [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]],
    "no padding": [[1, 1, 1, 1]] * 3,
    "no token": [[0, 0, 0, 0]] * 3,
}


@pytest.fixture(params=MASKS.values(), ids=list(MASKS))
def mask(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.tensor(request.param)


def test_unpad(mask):
    hidden_states = torch.randn(3, 4, 5)
    packed, indices, cu_seqlens, max_seqlen = unpad_input(hidden_states, mask)
    expected = [row[keep.bool()] for row, keep in zip(hidden_states, mask, strict=True)]
    assert torch.equal(packed, torch.cat(expected))
    assert torch.equal(indices, mask.flatten().nonzero().flatten())
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist()[1:] == mask.sum(dim=1).cumsum(0).tolist()
    assert cu_seqlens[0] == 0
    assert max_seqlen == int(mask.sum(dim=1).max()) and isinstance(max_seqlen, int)


def test_pad_undoes_unpad(mask):
    hidden_states = torch.randn(3, 4, 2, 5, dtype=torch.bfloat16)
    unpadded = unpad_input(hidden_states, mask)
    padded = pad_input(unpadded.hidden_states, unpadded.indices, 3, 4)
    assert torch.equal(padded, hidden_states * mask[:, :, None, None])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_dtypes_of_masks(dtype):
    mask = torch.tensor(MASKS["interior"])
    hidden_states = torch.randn(3, 4, 1)
    expected = unpad_input(hidden_states, mask).hidden_states
    assert torch.equal(unpad_input(hidden_states, mask.to(dtype)).hidden_states, expected)


def test_gradients(mask):
    hidden_states = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        packed, indices, _, _ = unpad_input(x, mask)
        return pad_input(packed.sin(), indices, 3, 4)

    assert torch.autograd.gradcheck(there_and_back, (hidden_states,))
    assert torch.autograd.gradgradcheck(there_and_back, (hidden_states,))


def test_gather_and_scatter():
    rows = torch.arange(8.0).view(4, 2)
    indices = torch.tensor([3, 0])
    assert torch.equal(gather_rows(rows, indices), rows[[3, 0]])
    scattered = scatter_rows(rows[:2], indices, 5)
    assert scattered.tolist() == [[2.0, 3.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_wrong_masks():
    hidden_states = torch.zeros(2, 3, 1)
    with pytest.raises(TypeError, match=r"attention_mask must be a torch.Tensor; got list"):
        unpad_input(hidden_states, [[1, 1, 0]])
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(batch, seqlen\); got"):
        unpad_input(hidden_states, torch.ones(2, 1, 1, 3))
    with pytest.raises(ValueError, match=r"hidden_states must begin with the mask's shape, \(2, 4"):
        unpad_input(hidden_states, torch.ones(2, 4))


def test_wrong_indices():
    with pytest.raises(ValueError, match=r"pad_input: indices must hold one row .* got shape \(3"):
        pad_input(torch.zeros(2, 1), torch.arange(3), 2, 3)


def test_where_tokens_lie_from_their_first_on():
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    layout = packed_layout(mask)
    slots = sequence_slots(layout)
    assert slots.tolist() == [0, 1, 3, 4, 5, 9, 10]
    assert slots.shape == layout.indices.shape


def test_rows_of_no_sequence_lie_nowhere():
    """Behind the last sequence there may be more of them than a sequence has rows."""
    rows = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    layout = sequences_layout(rows[None], torch.tensor([0, 3, 4]), max_seqlen=4)
    assert sequence_slots(layout).tolist() == [0, 1, 2, 4, 8, 8, 8, 8, 8]
    padded = pad_sequences(rows, layout)
    expected = torch.zeros(2, 4, 2, dtype=torch.float64)
    expected[0, :3], expected[1, 0] = rows[:3].detach(), rows[3].detach()
    assert torch.equal(padded, expected)
    (grad,) = torch.autograd.grad(padded, rows, torch.ones_like(padded))
    assert torch.equal(grad, (torch.arange(9) < 4).double()[:, None].expand(9, 2))
    assert torch.autograd.gradcheck(lambda x: pad_sequences(x, layout), (rows,))


def test_gaps():
    for rows, expected in (
        ([[1, 1, 0], [0, 1, 1]], False),
        ([[0, 1, 0], [0, 0, 0]], False),
        ([[1, 0, 1], [1, 1, 1]], True),
        ([[1, 1, 1], [1, 1, 1]], False),
    ):
        assert has_gaps(torch.tensor(rows).bool()) == expected


@pytest.mark.parametrize("rows", [1, 3])
def test_packed_rows(rows):
    """Of one row for all sequences, too; the gradient goes back to where it came from."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    x = torch.randn(rows, 4, 2, dtype=torch.float64, requires_grad=True)
    layout = packed_layout(mask)
    packed = packed_rows(x, layout)
    assert torch.equal(packed[0], x.expand(3, 4, 2)[mask])
    packed.sum().backward()
    counts = mask.sum(0, keepdim=True) if rows == 1 else mask
    assert torch.equal(x.grad, counts[:, :, None].double().expand_as(x))
    whole = dense_layout(torch.zeros(3, 4))
    assert torch.equal(packed_rows(x, whole)[0], x.expand(3, 4, 2).flatten(0, 1))
