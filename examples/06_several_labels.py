"""Fine-tune a BERT to say what a message is about: several things, one, or none.

python examples/06_several_labels.py                        # a minute or two on two cores
python examples/06_several_labels.py --data posts.csv --label-columns rude,insult,threat
"""

import argparse

from transformers import pipeline

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-labels")
    parser.add_argument("--data", help="a file, folder or Hub id; default: made-up messages")
    parser.add_argument("--label-columns", help="columns of 0 and 1, separated by commas")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--validation-size", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    config = FinetuneConfig(task="multilabel", compare_steps=0, **given)
    result = finetune(config)
    print(f"micro F1 {result.metrics['test_micro_f1']:.3f}")

    # The checkpoint is an ordinary one: this is plain Transformers.
    classify = pipeline("text-classification", str(result.output), top_k=None, truncation=True)
    message = "Where is my parcel? If it is lost I want my money back."
    labels = [x["label"] for x in classify([message])[0] if x["score"] > config.threshold]
    print(message, labels)


if __name__ == "__main__":
    main()
