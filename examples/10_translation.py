"""Teach a small encoder-decoder to translate, then let it translate a new sentence.

python examples/10_translation.py                            # minutes on two cores
python examples/10_translation.py --data pairs.tsv --model Helsinki-NLP/opus-mt-en-de
"""

import argparse

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-translation")
    parser.add_argument("--data", help="columns source and target; default: a small grammar's")
    parser.add_argument("--model", help="a Marian folder or Hub id; default: made from scratch")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--validation-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    result = finetune(FinetuneConfig(task="translation", compare_steps=0, **given))
    metrics = result.metrics
    print(f"BLEU {metrics['test_bleu']:.1f}, chrF {metrics['test_chrf']:.1f}; ", end="")
    print(f"{metrics['baseline']}: BLEU {metrics['baseline_bleu']:.1f}")

    # The checkpoint is an ordinary one: this is plain Transformers.
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    model = AutoModelForSeq2SeqLM.from_pretrained(result.output)
    source = "Yesterday the old woman did not see my dogs."
    ids = model.generate(**tokenizer([source], return_tensors="pt"), max_new_tokens=32)
    print(source, "->", tokenizer.decode(ids[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
