"""Fine-tune a BERT to answer questions from a passage, then ask it about a new one.

python examples/08_question_answering.py                    # minutes on two cores
python examples/08_question_answering.py --data squad.json  # SQuAD 1.1 or 2.0
"""

import argparse

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-answers")
    parser.add_argument("--data", help="a file, folder or Hub id; default: made-up passages")
    parser.add_argument("--train-size", type=int, help="passages")
    parser.add_argument("--test-size", type=int, help="passages")
    parser.add_argument("--validation-size", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    result = finetune(FinetuneConfig(task="question-answering", compare_steps=0, **given))
    print(f"F1 {result.metrics['test_f1']:.3f}, exact {result.metrics['test_exact_match']:.3f}")

    # The checkpoint is an ordinary one: this is plain Transformers.
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    model = AutoModelForQuestionAnswering.from_pretrained(result.output).eval()
    passage = "Ada Falk was born in Lund. Boris Holm, who taught her, was born in Narvik."
    for question in ("Where was Ada Falk born?", "Who taught Ada Falk?"):
        batch = tokenizer(question, passage, return_tensors="pt")
        with torch.no_grad():
            scores = model(**batch)
        start, end = scores.start_logits.argmax(), scores.end_logits.argmax()
        print(question, tokenizer.decode(batch["input_ids"][0, start : end + 1]))


if __name__ == "__main__":
    main()
