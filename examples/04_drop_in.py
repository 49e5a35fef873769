"""Code written for torch's attention, or for flash-attn, runs on fastattn as it is.

python examples/04_drop_in.py
"""

import torch
from torch import nn

import fastattn.compat


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 10, 64)

    # A module of torch, which calls torch.nn.functional.scaled_dot_product_attention.
    layer = nn.MultiheadAttention(64, 4, batch_first=True)
    stock, _ = layer(x, x, x, need_weights=False)
    with fastattn.compat.routed_sdpa():
        routed, _ = layer(x, x, x, need_weights=False)
        inside = fastattn.explain_model(
            layer, patch=False, query=x, key=x, value=x, need_weights=False
        )
    difference = (stock - routed).detach().abs().max().item()
    print(f"torch.nn.MultiheadAttention: differs by {difference:.1e}\n{inside}")

    # Somebody's code, which imports flash_attn; here without a GPU, and in float32.
    fastattn.compat.install_as_flash_attn()
    from flash_attn import flash_attn_varlen_qkvpacked_func
    from flash_attn.bert_padding import pad_input, unpad_input

    mask = torch.arange(10) < torch.tensor([[10], [6]])
    qkv = torch.randn(2, 10, 3, 4, 16)
    rows, indices, cu_seqlens, longest, _ = unpad_input(qkv, mask)
    out = flash_attn_varlen_qkvpacked_func(rows, cu_seqlens, longest, causal=True)
    print(f"flash_attn: {tuple(pad_input(out, indices, 2, 10).shape)}, {len(rows)} rows of tokens")
    fastattn.compat.uninstall_as_flash_attn()


if __name__ == "__main__":
    main()
