"""Attention with dropout over sentences of different lengths: padded, packed, and what runs it.

python examples/01_attention.py
"""

import torch

import fastattn

BATCH, SEQLEN, HEADS, HEAD_DIM = 3, 100, 4, 64


def main() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(BATCH, SEQLEN, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3))
    lengths = torch.tensor([100, 23, 61])
    mask = torch.arange(SEQLEN) < lengths[:, None]  # (batch, seqlen), True = attend

    print(fastattn.explain(q, k, v, key_padding_mask=mask, dropout_p=0.1))
    torch.manual_seed(1)
    padded = fastattn.attention(q, k, v, key_padding_mask=mask, dropout_p=0.1)
    padded[mask].sum().backward()
    print(f"padded: {tuple(padded.shape)}, gradient of q: {q.grad.norm():.4f}")

    # The same sentences one after the other: no work is spent on padding.
    cu_seqlens = torch.zeros(BATCH + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    torch.manual_seed(1)
    packed = fastattn.attention(
        q[mask], k[mask], v[mask], cu_seqlens_q=cu_seqlens, max_seqlen_q=SEQLEN, dropout_p=0.1
    )
    # Dropout depends on the seed and on the place in the sentence, not on the layout.
    difference = float((packed - padded[mask]).abs().max().detach())
    print(f"packed: {tuple(packed.shape)}, differs from padded by {difference:.1e}")


if __name__ == "__main__":
    main()
