"""Adapt a BERT to texts that nobody has labelled, then fine-tune a classifier from it.

python examples/09_adapt_then_classify.py                   # minutes on two cores
python examples/09_adapt_then_classify.py --texts mail.txt --data labelled.csv
"""

import argparse
from pathlib import Path

from transformers import pipeline

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/example-adapt"))
    parser.add_argument("--texts", help="unlabelled texts; default: packaged IMDB reviews")
    parser.add_argument("--data", help="labelled texts; default: packaged IMDB reviews")
    parser.add_argument("--train-size", type=int, help="of both steps")
    parser.add_argument("--test-size", type=int, help="of both steps")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    both = {
        "train_size": given.train_size,
        "test_size": given.test_size,
        "max_length": given.max_length,
        "overwrite": given.overwrite,
        "compare_steps": 0,
    }

    # Step 1: predict masked words. The same as
    #   fastattn finetune --task masked-lm --data mail.txt --output runs/example-adapt/mlm
    adapted = given.output / "mlm"
    config = FinetuneConfig(task="masked-lm", data=given.texts, output=str(adapted), **both)
    metrics = finetune(config).metrics
    print(f"masked tokens {metrics['test_masked_accuracy']:.3f}, ", end="")
    print(f"perplexity {metrics['test_perplexity']:.1f}")
    fill = pipeline("fill-mask", str(adapted))
    print([answer["token_str"] for answer in fill(f"What a {fill.tokenizer.mask_token} film!")])

    # Step 2: fine-tune from what step 1 saved. The same as
    #   fastattn finetune --model runs/example-adapt/mlm --data labelled.csv
    output = str(given.output / "classifier")
    config = FinetuneConfig(model=str(adapted), data=given.data, output=output, **both)
    print(f"accuracy {finetune(config).metrics['test_accuracy']:.3f}")


if __name__ == "__main__":
    main()
