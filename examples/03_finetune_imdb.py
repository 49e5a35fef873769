"""Fine-tune a BERT on movie reviews, then ask it about two new ones.

python examples/03_finetune_imdb.py                          # minutes on two cores
python examples/03_finetune_imdb.py --train-size 64 --test-size 32 --output runs/small
"""

import argparse

from transformers import pipeline

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-imdb")
    parser.add_argument("--model", help="a model folder or Hub id; default: a packaged MiniLM")
    parser.add_argument("--data", help="a file, folder or Hub id; default: packaged IMDB reviews")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    result = finetune(FinetuneConfig(compare_steps=0, **given))
    print(f"accuracy {result.metrics['test_accuracy']:.3f}")

    # The checkpoint is an ordinary one: this is plain Transformers.
    classify = pipeline("text-classification", str(result.output), truncation=True)
    for review in ("A film to remember.", "Two hours I will not get back."):
        print(review, classify(review)[0])


if __name__ == "__main__":
    main()
