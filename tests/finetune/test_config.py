"""Settings that break their rules, each with its message."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastattn.finetune import FinetuneConfig
from fastattn.finetune.recipes import RECIPES
from fastattn.finetune.search_config import SearchConfig
from fastattn.finetune.tasks import PACKAGED


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
        ("threads", 1_000_000, "a whole number of at least 1, and at most 1,024"),
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
        ("recipe", "squad", "one of imdb"),
        ("augment", -1, "a whole number of at least 0"),
        ("label_smoothing", 1.0, "at least 0 and below 1"),
        ("eval_steps", 0, "a whole number of at least 1"),
        ("patience", 0, "a whole number of at least 1"),
        ("keep", "worst", '"best" or "last"'),
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


def test_columns_of_labels_are_one_text() -> None:
    config = FinetuneConfig(task="multilabel", label_columns=["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'names with commas between them, .*; got \["?.a'):
        config.check()


def test_no_evaluation_to_repeat() -> None:
    with pytest.raises(ValueError, match=r"eval_steps must be given together with a validation"):
        FinetuneConfig(eval_steps=2, validation_size=0).check()


@pytest.mark.parametrize("field", ["data", "text_column", "label_columns", "output"])
def test_an_empty_name(field: str) -> None:
    """As of a shell variable that is not set."""
    with pytest.raises(ValueError, match=rf"{field} must be a name, or left out; got ' '"):
        FinetuneConfig(**{field: " "}).check()


@pytest.mark.parametrize("task", PACKAGED)
def test_packaged_data_needs_no_names_of_columns(task: str) -> None:
    for data in (None, *PACKAGED[task]):
        with pytest.raises(ValueError, match=r"data_config must be left out for the packaged data"):
            FinetuneConfig(task=task, data=data, data_config="x").check()


@pytest.mark.parametrize("task", PACKAGED)
def test_the_name_of_packaged_data_that_is_also_a_folder(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in PACKAGED[task]:
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=rf"data must name one thing; got '{name}', which is"):
            FinetuneConfig(task=task, data=name).check()
        own = FinetuneConfig(task=task, data=f"./{name}")
        own.check()
        assert own.packaged_data() is None
        # A run and the trials of a search write there, and do not read.
        for output in (name, f"{name}/trials/0"):
            FinetuneConfig(task=task, data=name, output=output).check()
    FinetuneConfig(task=task).check()
    FinetuneConfig(recipe="imdb").check()


def test_paths_are_as_good_as_their_names() -> None:
    config = FinetuneConfig(data=Path("a.csv"), model=Path("m"), output=Path("o"))
    assert (config.data, config.model, config.output) == ("a.csv", "m", "o")


def test_overwrite_and_resume_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"overwrite must not be given together with resume"):
        FinetuneConfig(overwrite=True, resume=True).check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overwrite": True}, "overwrite must be given together with output; got none, for which"),
        (
            {"patch": False, "compare_steps": 3},
            "compare_steps must be left out for a model that is not patched.*; got 3. Leave --comp",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"finetune: {message}"):
        FinetuneConfig(**given).check()


def test_how_long_is_trained() -> None:
    assert FinetuneConfig(epochs=2.5).duration() == "2.5 epoch(s)"
    assert FinetuneConfig(epochs=2.5, max_steps=1_000).duration() == "1,000 step(s)"


@pytest.mark.parametrize("change", [{"keep": "last"}, {"validation_size": 0}])
def test_patience_needs_what_it_watches(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"patience must be given together with a validation set"):
        FinetuneConfig(patience=2, **change).check()


def test_a_recipe_replaces_defaults_and_nothing_that_is_given() -> None:
    config = FinetuneConfig(recipe="imdb", epochs=1.0, batch_size=8)
    config.check()
    assert (config.epochs, config.batch_size) == (1.0, 8)  # the second is a default, but given
    assert (config.eval_batch_size, config.warmup_steps, config.weight_decay) == (64, 500, 0.01)
    for again in (replace(config), copy.copy(config), pickle.loads(pickle.dumps(config))):
        assert again == config
    assert replace(config, epochs=2.0).epochs == 2.0
    # The recipe's steps of warm-up would go before a ratio.
    config = FinetuneConfig(recipe="imdb", warmup_ratio=0.2)
    assert config.warmup_steps is None and replace(config) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_the_rules(name: str) -> None:
    FinetuneConfig(recipe=name).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": ()}, "learning_rates must be different numbers above 0"),
        ({"learning_rates": (1e-5, 2.0)}, "learning_rates must be different numbers above 0"),
        ({"learning_rates": (1e-5, 1e-5)}, "learning_rates must be different numbers above 0"),
        ({"learning_rates": 1e-5}, "learning_rates must be different numbers above 0"),
        ({"learning_rates": (True,)}, "learning_rates must be different numbers above 0"),
        ({"study": " "}, "study must be the name of a search in the database; got ' '"),
        ({"study": None}, "study must be the name of a search in the database; got None"),
        ({"sampler": "best"}, "sampler must be one of grid, tpe, random; got 'best'"),
        ({"trials": 3}, "trials must be left out for a grid"),
        ({"sampler": "tpe"}, "trials must be a whole number of at least 1 for the sampler tpe"),
        (
            {"sampler": "tpe", "trials": 2, "learning_rates": (1e-5,)},
            "learning_rates must be a smallest and a largest for the sampler tpe",
        ),
        ({"workers": 0}, "workers must be a whole number of at least 1; got 0"),
        ({"winner": "second"}, "winner must be one of reuse, retrain, none; got 'second'"),
        ({"storage": "search.db"}, "storage must be a URL of a database"),
    ],
)
def test_a_search_setting_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^search: {message}.*Set it with --"):
        SearchConfig(**settings).check(FinetuneConfig())


def test_a_search_needs_a_validation_set() -> None:
    with pytest.raises(ValueError, match=r"search: validation_size must be at least 1"):
        SearchConfig().check(FinetuneConfig(validation_size=0))


def test_a_retrained_winner_cannot_stop_early() -> None:
    with pytest.raises(ValueError, match=r"winner must be reuse or none with --patience"):
        SearchConfig(winner="retrain").check(FinetuneConfig(patience=1))


def test_a_search_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"search: a search must be started as one process; got 2"):
        SearchConfig().check(FinetuneConfig())


def test_the_task_and_the_model_have_settings_of_their_own() -> None:
    usual, masked = FinetuneConfig(), FinetuneConfig(task="masked-lm")
    assert (usual.model, usual.max_length, masked.max_length) == ("minilm-l6", 512, 128)
    fresh = FinetuneConfig(task="translation")
    assert (fresh.model, fresh.learning_rate, fresh.batch_size) == ("marian-tiny", 1e-3, 32)
    # A model that has learned something takes smaller steps.
    other = FinetuneConfig(task="translation", model="some/translator", batch_size=7)
    assert (other.learning_rate, other.batch_size, other.max_length) == (1e-4, 7, 128)
    assert FinetuneConfig(model="esm-tiny", epochs=2.0).epochs == 2.0
