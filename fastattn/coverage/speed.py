"""How much faster a patched model trains: one step of a middle-sized model, stock and patched.

Both run in float32, in turns, and the fastest of each counts: on a machine that does other things
as well, the slower ones say more about those.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch

from fastattn.coverage.cases import VOCAB_SIZE, Case
from fastattn.errors import PatchError
from fastattn.patching import patch

BATCH_SIZE, SEQLEN, SHORTEST = 8, 256, 32
NUM_LAYERS, HIDDEN_SIZE = 4, 256
# What the families' configs call the sizes that matter.
_SIZES = {
    HIDDEN_SIZE: ("hidden_size", "dim", "d_model", "n_embd", "word_embed_proj_dim"),
    4 * HIDDEN_SIZE: (
        "intermediate_size",
        "hidden_dim",
        "d_ff",
        "ffn_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    NUM_LAYERS: (
        "num_hidden_layers",
        "n_layers",
        "n_layer",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
    ),
    HIDDEN_SIZE // 4: ("d_kv",),
    HIDDEN_SIZE // 2: ("embedding_size", "sliding_window", "local_attention"),
    2 * SEQLEN: ("max_position_embeddings", "n_positions"),
    224: ("image_size",),
    16: ("patch_size", "encoder_stride"),
}


def speedup(case: Case, num_steps: int = 5) -> float | None:
    """Returns the time of a stock training step over that of a patched one; None if it stays stock.

    The batch has 8 rows of 256 positions, of which right padding leaves 32 to 256; the head is the
    model's own body.
    """
    sizes = {name: size for size, names in _SIZES.items() for name in names}
    settings = {name: sizes.get(name, value) for name, value in case.settings.items()}
    big = replace(case, settings=settings)
    head = next(name for name in big.classes() if name.endswith(("Model", "LMHeadModel")))
    stock = big.with_dropout(0.1).make(head).float()
    ours = copy.deepcopy(stock)
    try:
        patch(ours)
    except PatchError:
        return None
    batch = _batch(case, stock)
    best = [float("inf"), float("inf")]
    for _ in range(num_steps):
        for index, model in enumerate((stock, ours)):
            begin = time.perf_counter()
            model.zero_grad()
            model(**batch)[0].square().mean().backward()
            best[index] = min(best[index], time.perf_counter() - begin)
    return best[0] / best[1]


def _batch(case: Case, model: Any) -> dict[str, Any]:
    """Makes the inputs of a body."""
    if case.name == "ViT":
        return {"pixel_values": torch.randn(BATCH_SIZE, 3, 224, 224)}
    lengths = torch.linspace(SHORTEST, SEQLEN, BATCH_SIZE).long()
    mask = (torch.arange(SEQLEN) < lengths[:, None]).long()
    ids = torch.randint(4, VOCAB_SIZE, (BATCH_SIZE, SEQLEN))
    batch: dict[str, Any] = {
        "input_ids": ids.masked_fill(mask == 0, model.config.pad_token_id),
        "attention_mask": mask,
    }
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    return batch
