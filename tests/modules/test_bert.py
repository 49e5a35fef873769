"""The modules that take the place of BERT's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import fastattn
from fastattn.modules.encoder import HAS_ATTENTION_INTERFACE, UnpaddedEncoder


@pytest.fixture
def model() -> Any:
    """A patched BertModel of one layer, in evaluation mode."""
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    made = BertModel(config).eval()
    fastattn.patch(made)
    return made


def test_replicas_run_on_their_own_weights(model):
    """nn.DataParallel copies modules this way, once per device."""
    replica = model.encoder._replicate_for_data_parallel()
    assert isinstance(replica, UnpaddedEncoder)
    assert replica.forward.__self__ is replica


def test_the_encoder_called_alone(model):
    ids = torch.randint(1, 50, (2, 6))
    alone = model.encoder(model.embeddings(ids)).last_hidden_state
    torch.testing.assert_close(alone, model(ids).last_hidden_state)


@pytest.mark.skipif(HAS_ATTENTION_INTERFACE, reason="an attention of Transformers 4.x alone")
@pytest.mark.parametrize(
    ("name", "value"),
    [("head_mask", torch.ones(2)), ("past_key_values", ())],
)
def test_what_the_attention_of_transformers_4_refuses(model, name, value):
    layer = model.encoder.layer[0].attention.self
    with pytest.raises(ValueError, match=f"{name} must be"):
        layer(torch.zeros(1, 3, 16), **{name: value})
