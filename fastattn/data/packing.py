"""Collators that lay the sequences of a batch one after the other, without padding.

    trainer = Trainer(model, args, train_dataset=dataset, data_collator=PackedCollator())

A batch is what a model patched by :func:`fastattn.patch` takes besides padded ones:

    input_ids        (1, total)     the tokens of all sequences
    token_type_ids   (1, total)     and whatever else the features have for each token
    labels           (batch,) for sequences, (1, total) for tokens
    cu_seq_lens_q    (batch + 1,)   int32, where each sequence begins; cu_seq_lens_k is the same
    max_length_q     int            length of the longest; max_length_k is the same

The names are those of Transformers' ``DataCollatorWithFlattening``. Position ids are left to the
model, whose family decides where they start. Loss and gradients are those of the padded batch; that
of question answering is the mean of what each sequence gives alone, without padding.

``pad_to_multiple_of`` makes batches of few sizes, which compiled graphs want: tokens of no sequence
follow the last one, behind ``cu_seq_lens_q[-1]``, and change neither loss nor gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

IGNORED_LABEL = -100

_IDS = "input_ids"
_LABELS = ("labels", "label", "label_ids")
_MASK = "attention_mask"
_SPECIAL = "special_tokens_mask"
# Tokenizers' and processors' outputs with a value for each token, and the shape of such a value.
_PER_TOKEN: dict[str, tuple[int, ...]] = {
    _IDS: (),
    "token_type_ids": (),
    "position_ids": (),
    _SPECIAL: (),
    "bbox": (4,),
}
_LONGEST = ("max_length_q", "max_length_k")
_SHORTEST_BOUND = 64  # of the longest length: kernels take tiles of about as many rows


class PackedCollator:
    """Packs tokenized features; labels are of whole sequences or of tokens.

    Args:
        labels: "sequence" for a label of each feature: a class, a number for regression, or a list
            of them for several labels at once. "token" for a list with one label for each token.
            Other values of a feature, such as ``start_positions`` and ``end_positions``, belong to
            the sequence and count from its start.
        pad_to_multiple_of: the number of tokens becomes a multiple of this by tokens of no
            sequence behind the last one: copies of the first, which the model takes for sure, with
            label -100. The longest length becomes a power of two, 64 at least and the number of
            tokens at most. Default: no such tokens.
        model: the model to train; checked to be one that takes packed batches, and not kept.

    Raises:
        ValueError: labels or pad_to_multiple_of is something else, or the model is not patched.
    """

    def __init__(
        self,
        labels: Literal["sequence", "token"] = "sequence",
        *,
        pad_to_multiple_of: int | None = None,
        model: nn.Module | None = None,
    ) -> None:
        if labels not in ("sequence", "token"):
            raise ValueError(
                f"PackedCollator: labels must be 'sequence' or 'token'; got {labels!r}. "
                "Say what a label belongs to."
            )
        if pad_to_multiple_of is not None:
            _check_multiple(type(self).__name__, pad_to_multiple_of)
        if model is not None:
            check_takes_packed_batches(type(self).__name__, model)
        self.labels = labels
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Packs features, tokens that their ``attention_mask`` names as padding left out.

        Raises:
            ValueError: a feature has no tokens, or not one value for each token.
        """
        batch, _ = self._pack(features)
        return self._filled(batch)

    def _pack(self, features: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], Tensor | None]:
        """Returns the batch, and (1, total) which tokens are special if the features say so."""
        name = type(self).__name__
        kept = [_tokens(name, index, feature) for index, feature in enumerate(features)]
        lengths = torch.tensor([int(keep.sum()) for keep in kept], dtype=torch.int32)
        batch: dict[str, Any] = {}
        for key in features[0]:
            if key == _MASK:
                continue
            target = "labels" if key in _LABELS else key
            if key in _PER_TOKEN or (target == "labels" and self.labels == "token"):
                rows = [
                    _per_token(name, index, key, feature[key], keep)
                    for index, (feature, keep) in enumerate(zip(features, kept, strict=True))
                ]
                batch[target] = torch.cat(rows)[None]
            else:
                batch[target] = torch.stack([_tensor(feature[key]) for feature in features])
        special = batch.pop(_SPECIAL, None)
        # Trainer weighs the loss of an evaluation batch by the length of its first tensor.
        if "labels" in batch:
            batch = {"labels": batch.pop("labels"), **batch}
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        batch |= {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
        batch |= dict.fromkeys(_LONGEST, int(lengths.max()))
        return batch, special

    def _filled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the batch with tokens of no sequence at its end, if there are to be any."""
        if self.pad_to_multiple_of is None:
            return batch
        missing = -batch[_IDS].shape[1] % self.pad_to_multiple_of
        filled = dict(batch)
        for key, rows in batch.items():
            if key in _PER_TOKEN:
                first = rows[:, :1].expand(1, missing, *rows.shape[2:])
                filled[key] = torch.cat([rows, first], dim=1)
            elif key == "labels" and self.labels == "token":
                filled[key] = torch.nn.functional.pad(rows, (0, missing), value=IGNORED_LABEL)
        power = 1 << (batch[_LONGEST[0]] - 1).bit_length()
        bound = min(max(power, _SHORTEST_BOUND), filled[_IDS].shape[1])
        return filled | dict.fromkeys(_LONGEST, bound)


class PackedMaskedLMCollator(PackedCollator):
    """Packs tokenized features and masks tokens for masked language modelling.

    Which tokens are masked, and by what, is the rule of Transformers'
    ``DataCollatorForLanguageModeling``, whose labels these are: -100 where nothing is predicted.

    Args:
        tokenizer: the model's tokenizer; it has a mask token.
        mlm_probability: the share of tokens that is to be predicted.
        seed: of the choice of tokens. Default: torch's generator decides.
        pad_to_multiple_of: see :class:`PackedCollator`; what is masked does not depend on it.
        model: the model to train; checked to be one that takes packed batches, and not kept.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        mlm_probability: float = 0.15,
        seed: int | None = None,
        pad_to_multiple_of: int | None = None,
        model: nn.Module | None = None,
    ) -> None:
        from transformers import DataCollatorForLanguageModeling

        super().__init__("token", pad_to_multiple_of=pad_to_multiple_of, model=model)
        self.masking = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=mlm_probability, seed=seed
        )

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Packs features, labels of their own left out; see :class:`PackedCollator`."""
        features = [{k: v for k, v in x.items() if k not in _LABELS} for x in features]
        batch, special = self._pack(features)
        if self.masking.seed is not None and self.masking.generator is None:
            self.masking.create_rng()  # here, because each worker of a data loader has its own
        ids, labels = self.masking.torch_mask_tokens(batch[_IDS], special_tokens_mask=special)
        return self._filled({"labels": labels, **batch, _IDS: ids})


def check_takes_packed_batches(name: str, model: nn.Module) -> None:
    """Raises ValueError if no encoder in a model takes batches without padding."""
    from fastattn.patching.packed import takes_packed_batches

    if not takes_packed_batches(model):
        raise ValueError(
            f"{name}: model must be patched, with its padding removed, to take packed batches; got "
            f"a {type(model).__name__} that would let sequences attend to each other. Call "
            "fastattn.patch(model) first, and see its report."
        )


def _check_multiple(name: str, multiple: Any) -> None:
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(
            f"{name}: pad_to_multiple_of must be an integer of at least 1, or None; got "
            f"{multiple!r}. Take an eighth or so of the tokens of a batch, such as 512, or leave "
            "it out."
        )


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _tokens(name: str, index: int, feature: Mapping[str, Any]) -> Tensor:
    """Returns which of a feature's tokens are not padding: (seqlen,) bool."""
    ids = _tensor(feature[_IDS])
    mask = feature.get(_MASK)
    keep = torch.ones(len(ids), dtype=torch.bool) if mask is None else _tensor(mask) != 0
    if keep.shape != ids.shape or not keep.any():
        raise ValueError(
            f"{name}: input_ids must be a list of at least one token, and attention_mask as long; "
            f"got {tuple(ids.shape)} and {int(keep.sum())} tokens in feature {index}. Leave out "
            "empty texts."
        )
    return keep


def _per_token(name: str, index: int, key: str, value: Any, keep: Tensor) -> Tensor:
    """Returns a feature's values for its tokens."""
    values = _tensor(value)
    if values.shape != keep.shape + _PER_TOKEN.get(key, ()):
        raise ValueError(
            f"{name}: {key} must have a value for each of the {len(keep)} tokens; got shape "
            f"{tuple(values.shape)} in feature {index}. Spread labels of words over their "
            'tokens, with -100 for the others; labels of sequences need labels="sequence".'
        )
    return values[keep]
