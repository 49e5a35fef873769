"""What fine-tuning comes to on IMDB, by experiment: the tables in docs/finetune.md.

    python bench/finetune_tables.py remedies     # what each means against overfitting does
    python bench/finetune_tables.py recipe       # the recipe "imdb" beside stock Transformers
    python bench/finetune_tables.py part         # the same, of fewer reviews more tokens
    python bench/finetune_tables.py --render     # trains nothing, only writes the tables

Each trains what its file in bench/results/finetune/ lacks. A run is kept as soon as it is done, so
the script may be killed and started again; --only VARIANT lets several share the work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "finetune"
PAGE = ROOT / "docs" / "finetune.md"

SEEDS = (0, 1, 2)
Run = dict[str, Any]


class Experiment(NamedTuple):
    """Settings that all runs share, what each variant adds, and what is made of a run."""

    base: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    train: Callable[[Any], Run]  # of a FinetuneConfig
    table: Callable[[Experiment, list[Run]], Iterator[str]]
    remark: str = ""  # what else is not as the table's head says
    timed: bool = True  # whether all runs had the machine alike, so that their times compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", choices=EXPERIMENTS, help="default: all")
    parser.add_argument("--render", action="store_true", help="train nothing")
    parser.add_argument("--only", metavar="VARIANT", help="train this variant alone")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    options = parser.parse_args()
    for name in [options.experiment] if options.experiment else EXPERIMENTS:
        if not options.render:
            train_missing(name, options.only, options.threads)
        render(name)


def train_missing(name: str, only: str | None, threads: int | None) -> None:
    """Trains and keeps the runs that an experiment lacks, seed by seed.

    Raises:
        ValueError: it has no variant of the name ``only``.
    """
    from fastattn.finetune import FinetuneConfig

    experiment = EXPERIMENTS[name]
    if only is not None and only not in experiment.variants:
        raise ValueError(f"only must be one of {', '.join(experiment.variants)}; got {only!r}.")
    done = {(run["variant"], run["seed"]) for run in kept(name)}
    for seed in SEEDS:
        for variant, settings in experiment.variants.items():
            if (variant, seed) in done or only not in (None, variant):
                continue
            with tempfile.TemporaryDirectory() as output:
                common = {"seed": seed, "threads": threads, "progress": False, "compare_steps": 0}
                own = {**experiment.base, **settings, "tensorboard": False, "output": output}
                figures = experiment.train(FinetuneConfig(**common, **own))
            keep(name, {"variant": variant, "seed": seed, **figures, "made_with": made_with()})


def kept(name: str) -> list[Run]:
    """The runs of an experiment so far."""
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []


def keep(name: str, run: Run) -> None:
    """Adds a run to those of its experiment."""
    print(name, run, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")


def render(name: str) -> None:
    """Writes an experiment's table between its markers in the page."""
    runs = kept(name)
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    tail = rest.partition(end)[2]
    experiment = EXPERIMENTS[name]
    lines = experiment.table(experiment, runs) if runs else iter(["(not measured yet)"])
    PAGE.write_text(f"{head}{start}\n" + "\n".join(lines) + f"\n{end}{tail}", encoding="utf-8")


def made_with() -> dict[str, Any]:
    """The machine, the versions and the day of a run."""
    from fastattn import environment

    found = environment.collect()
    day = datetime.date.today().isoformat()
    return {"date": day, "cpu": found["cpu"]["model"], **found["versions"]}


def train_remedy(config: Any) -> Run:
    """Accuracy and cross-entropy on each set, without smoothing: those of the run have it."""
    from fastattn.finetune import finetune
    from fastattn.finetune.tasks import get_task

    result = finetune(config, test=False)
    data = get_task(config.task).load_data(config)
    sets = {"train": data.train[:300], "validation": data.validation, "test": data.test}
    return {
        **{"kept_step": result.metrics["kept_step"], "steps": result.metrics["train_steps"]},
        **{name: score(config.output, rows) for name, rows in sets.items()},
    }


def score(folder: str, rows: Any) -> dict[str, float]:
    """Accuracy and cross-entropy of a saved model on some rows."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import fastattn

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fastattn.patch(model)
    correct, loss = 0, 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(rows), 50):
            batch = rows[start : start + 50]
            labels = torch.tensor([row["label"] for row in batch])
            texts = [row["text"] for row in batch]
            inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
            logits = model(**inputs).logits.float()
            correct += int((logits.argmax(-1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": correct / len(rows), "loss": loss / len(rows)}


def remedies_table(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """Means over the seeds, and the standard error of the accuracy."""
    base = experiment.base
    yield (
        f"{base['train_size']} reviews, of each the last {base['max_length']} tokens, "
        f"{base['epochs']:g} epochs in batches of {base['batch_size']}, learning rate "
        f"{base['learning_rate']:g}, bfloat16; {base['test_size']} others to test on. Means over "
        f"{len({run['seed'] for run in runs})} seeds, with the standard error of the accuracy. "
        "Losses are cross-entropies without smoothing and dropout. " + provenance(runs)
    )
    yield ""
    yield "| | test accuracy | test loss | training loss | gap of the losses | step kept |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for variant, of in by_variant(experiment, runs):
        test, train = (
            statistics.mean(run[part]["loss"] for run in of) for part in ("test", "train")
        )
        yield (
            f"| {variant} | {mean_and_error([run['test']['accuracy'] for run in of])} | "
            f"{test:.3f} | {train:.3f} | {test - train:.3f} | "
            f"{statistics.mean(run['kept_step'] for run in of):.0f} of "
            f"{max(run['steps'] for run in of)} |"
        )


def train_recipe(config: Any) -> Run:
    """Accuracy on both sets, and the time of the training steps."""
    from fastattn.finetune import finetune

    metrics = finetune(config).metrics
    names = ("validation_accuracy", "test_accuracy", "test_loss", "train_steps", "train_seconds")
    return {name: metrics[name] for name in names}


def recipe_table(experiment: Experiment, runs: list[Run]) -> Iterator[str]:
    """A line for each variant, a column for each seed."""
    base = experiment.base
    size = base.get("train_size")
    end = "last" if base.get("truncation_side") == "left" else "first"
    yield (
        f"{f'{size:,} reviews' if size else 'All reviews'}, of each the {end} "
        f"{base['max_length']} tokens, {runs[0]['train_steps']:,} steps, bfloat16, the rest as in "
        f"the recipe{experiment.remark}. Both with the same seeds, on one thread each, beside "
        "other work. " + provenance(runs)
    )
    seeds = sorted({run["seed"] for run in runs})
    time = " training, minutes |" if experiment.timed else ""
    yield ""
    yield f"| | test accuracy, seeds {', '.join(map(str, seeds))} | mean |{time}"
    yield f"| --- | --- | --- |{' --- |' if time else ''}"
    for variant, of in by_variant(experiment, runs):
        of = sorted(of, key=lambda run: run["seed"])
        each = ", ".join(f"{run['test_accuracy']:.3f}" for run in of)
        mean = mean_and_error([run["test_accuracy"] for run in of])
        minutes = statistics.mean(run["train_seconds"] for run in of) / 60
        yield f"| {variant} | {each} | {mean} |{f' {minutes:.1f} |' if time else ''}"


def by_variant(experiment: Experiment, runs: list[Run]) -> Iterator[tuple[str, list[Run]]]:
    for variant in experiment.variants:
        of = [run for run in runs if run["variant"] == variant]
        if of:
            yield variant, of


def mean_and_error(values: list[float]) -> str:
    """The mean, with its standard error where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def provenance(runs: list[Run]) -> str:
    made = runs[-1]["made_with"]
    return (
        f"({made['cpu']}; torch {made['torch']}, transformers {made['transformers']}, fastattn "
        f"{made['fastattn']}; {made['date']}.)"
    )


REMEDIES = Experiment(
    base={
        **{"train_size": 500, "validation_size": 200, "test_size": 600, "max_length": 64},
        **{"epochs": 4.0, "batch_size": 16, "learning_rate": 1e-4, "warmup_ratio": 0.1},
        **{"weight_decay": 0.0, "dropout": 0.0, "keep": "last", "bf16": True},
    },
    variants={
        "none of these": {},
        "best checkpoint, patience 1": {"keep": "best", "patience": 1},
        "dropout 0.1": {"dropout": 0.1},
        "weight decay 0.1": {"weight_decay": 0.1},
        "label smoothing 0.1": {"label_smoothing": 0.1},
        "one altered copy of each text": {"augment": 1},
        "all of them": {
            **{"keep": "best", "patience": 1, "dropout": 0.1, "weight_decay": 0.1},
            **{"label_smoothing": 0.1, "augment": 1},
        },
    },
    train=train_remedy,
    table=remedies_table,
)
WITH_AND_WITHOUT: dict[str, dict[str, Any]] = {
    "fastattn": {},
    "stock Transformers": {"patch": False},
}
# The recipe's 512 tokens would take stock Transformers 19 hours a seed on two cores. A review's end
# holds its verdict, so of a few tokens the last say more than the first, which the recipe takes.
RECIPE = Experiment(
    base={"recipe": "imdb", "max_length": 48, "truncation_side": "left", "bf16": True},
    variants=WITH_AND_WITHOUT,
    train=train_recipe,
    table=recipe_table,
    timed=False,  # hours each: other work came and went
)
PART = Experiment(
    base={
        **{"recipe": "imdb", "train_size": 4000, "validation_size": 500, "test_size": 2000},
        **{"max_length": 128, "epochs": 1.0, "warmup_steps": 50, "bf16": True},
    },
    variants=WITH_AND_WITHOUT,
    train=train_recipe,
    table=recipe_table,
    remark=", but for one epoch and 50 steps of warm-up; 2,000 other reviews to test on",
)
EXPERIMENTS = {"remedies": REMEDIES, "recipe": RECIPE, "part": PART}

if __name__ == "__main__":
    main()
