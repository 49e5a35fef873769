"""Settings that break their rules, each with its message."""

from __future__ import annotations

from typing import Any

import pytest

from fastattn.finetune import FinetuneConfig


def test_the_defaults_are_right() -> None:
    FinetuneConfig().check()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", True, "a whole number of at least 1"),
        ("eval_batch_size", 2.5, "a whole number of at least 1"),
        ("max_steps", 0, "a whole number of at least 1"),
        ("save_steps", -1, "a whole number of at least 1"),
        ("threads", 0, "a whole number of at least 1"),
        ("max_length", 3, "a whole number of at least 4"),
        ("seed", -1, "a whole number of at least 0"),
        ("split_seed", 0.5, "a whole number of at least 0"),
        ("compare_steps", -1, "a whole number of at least 0"),
        ("warmup_steps", -1, "a whole number of at least 0"),
        ("epochs", 0, "a number above 0"),
        ("epochs", float("inf"), "a number above 0"),
        ("learning_rate", 0.0, "above 0 and at most 1"),
        ("learning_rate", float("nan"), "above 0 and at most 1"),
        ("learning_rate", 2.0, "above 0 and at most 1"),
        ("weight_decay", -0.1, "between 0 and 1"),
        ("warmup_ratio", 1.5, "between 0 and 1"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("dropout", -0.1, "at least 0 and below 1"),
        ("mlm_probability", 0.0, "between 0.01 and 0.9"),
        ("mlm_probability", 1.0, "between 0.01 and 0.9"),
        ("num_beams", 0, "a whole number of at least 1"),
        ("device", "tpu", '"auto", "cpu" or "cuda"'),
        ("truncation_side", "middle", '"left" or "right"'),
    ],
)
def test_a_setting_out_of_range(field: str, value: Any, rule: str) -> None:
    config = FinetuneConfig(**{field: value})
    option = field.replace("_", "-")
    message = rf"^finetune: {field} must be {rule}.*; got {value!r}\. Set it with --{option}\.$"
    with pytest.raises(ValueError, match=message):
        config.check()


def test_overwrite_and_resume_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"overwrite must not be given together with resume"):
        FinetuneConfig(overwrite=True, resume=True).check()


def test_the_task_and_the_model_have_settings_of_their_own() -> None:
    usual, masked = FinetuneConfig(), FinetuneConfig(task="masked-lm")
    assert (usual.model, usual.max_length, masked.max_length) == ("minilm-l6", 512, 128)
    fresh = FinetuneConfig(task="translation")
    assert (fresh.model, fresh.learning_rate, fresh.batch_size) == ("marian-tiny", 1e-3, 32)
    # A model that has learned something takes smaller steps.
    other = FinetuneConfig(task="translation", model="some/translator", batch_size=7)
    assert (other.learning_rate, other.batch_size, other.max_length) == (1e-4, 7, 128)
    assert FinetuneConfig(model="esm-tiny", epochs=2.0).epochs == 2.0
