"""What each means against overfitting does, on 500 reviews: the table in docs/finetune.md.

    python bench/finetune_table.py            # trains what bench/finetune_table.json lacks
    python bench/finetune_table.py --render   # only writes the table

Three seeds of each variant. A run is kept as soon as it is done, so the script may be killed and
started again. Losses and accuracies do not depend on how busy the machine is; times are not kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "finetune_table.json"
PAGE = ROOT / "docs" / "finetune.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"

SEEDS = (0, 1, 2)
BASE: dict[str, Any] = {
    **{"train_size": 500, "validation_size": 200, "test_size": 600, "max_length": 64},
    # Half an hour in all on two idle cores.
    **{"epochs": 4.0, "batch_size": 16, "learning_rate": 1e-4, "warmup_ratio": 0.1},
    **{"weight_decay": 0.0, "dropout": 0.0, "keep": "last", "compare_steps": 0},
}
VARIANTS: dict[str, dict[str, Any]] = {
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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    options = parser.parse_args()
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []
    done = {(run["variant"], run["seed"]) for run in runs}
    for seed, variant in ((seed, variant) for seed in SEEDS for variant in VARIANTS):
        if options.render or (variant, seed) in done:
            continue
        runs.append(train(variant, seed, options.threads))
        content = {"base": BASE, "variants": VARIANTS, "versions": versions(), "runs": runs}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    tail = rest.partition(END)[2]
    table = "\n".join(lines(runs)) if runs else "(not measured yet)"
    PAGE.write_text(f"{head}{START}\n{table}\n{END}{tail}", encoding="utf-8")


def train(variant: str, seed: int, threads: int | None) -> dict[str, Any]:
    """Trains once; returns accuracy and cross-entropy on each set."""
    from fastattn.finetune import FinetuneConfig, finetune
    from fastattn.finetune.tasks import get_task

    with tempfile.TemporaryDirectory() as output:
        settings = {**BASE, **VARIANTS[variant], "seed": seed, "threads": threads}
        config = FinetuneConfig(output=output, progress=False, tensorboard=False, **settings)
        result = finetune(config, test=False)
        data = get_task(config.task).load_data(config)
        sets = {"train": data.train[:300], "validation": data.validation, "test": data.test}
        figures = {name: score(output, rows) for name, rows in sets.items()}
    print(variant, seed, figures, flush=True)
    return {
        **{"variant": variant, "seed": seed, "kept_step": result.metrics["kept_step"]},
        **{"steps": result.metrics["train_steps"], **figures},
    }


def score(folder: str, rows: Any) -> dict[str, float]:
    """Accuracy and cross-entropy without smoothing, of a saved model on some rows."""
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


def versions() -> dict[str, Any]:
    from fastattn import environment

    found = environment.collect()
    return {"cpu": found["cpu"]["model"], **found["versions"]}


def lines(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The table: means over the seeds, and the standard error of the accuracy."""
    yield (
        f"{BASE['train_size']} reviews, of each the last {BASE['max_length']} tokens, "
        f"{BASE['epochs']:g} epochs in batches of {BASE['batch_size']}, learning rate "
        f"{BASE['learning_rate']:g}, bfloat16; {BASE['test_size']} others to test on. Means over "
        f"{len({run['seed'] for run in runs})} seeds, with the standard error of the accuracy. "
        "Losses are cross-entropies without smoothing and dropout."
    )
    yield ""
    yield "| | test accuracy | test loss | training loss | gap of the losses | step kept |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for variant in VARIANTS:
        of = [run for run in runs if run["variant"] == variant]
        if not of:
            continue
        test = [run["test"]["accuracy"] for run in of]
        error = statistics.stdev(test) / math.sqrt(len(test)) if len(test) > 1 else math.nan
        loss, train_loss = (statistics.mean(x[part]["loss"] for x in of) for part in PARTS)
        kept = statistics.mean(run["kept_step"] for run in of)
        yield (
            f"| {variant} | {statistics.mean(test):.3f} ± {error:.3f} | {loss:.3f} | "
            f"{train_loss:.3f} | {loss - train_loss:.3f} | {kept:.0f} of "
            f"{max(run['steps'] for run in of)} |"
        )


PARTS = ("test", "train")

if __name__ == "__main__":
    main()
