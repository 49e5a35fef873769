"""Fine-tune a BERT to find people, organisations and places, then let it read a new sentence.

python examples/07_named_entities.py                        # a minute or two on two cores
python examples/07_named_entities.py --data mine.conll      # a word and its tag in each line
"""

import argparse

from transformers import pipeline

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-entities")
    parser.add_argument("--data", help="a file, folder or Hub id; default: made-up news")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--validation-size", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    result = finetune(FinetuneConfig(task="token-classification", compare_steps=0, **given))
    print(f"F1 of whole names {result.metrics['test_f1']:.3f}")

    # The checkpoint is an ordinary one: this is plain Transformers. The first piece of a word
    # speaks for it, as in training.
    tag = pipeline("token-classification", str(result.output), aggregation_strategy="first")
    sentence = "Ingrid Marsh , a lawyer from Halifax , has left Zenith Motors ."
    print(sentence, [(span["entity_group"], span["word"]) for span in tag(sentence)])


if __name__ == "__main__":
    main()
