"""Train a small ESM to tell antimicrobial peptides from other proteins, then ask it about one.

python examples/11_protein_sequences.py                      # minutes on two cores
python examples/11_protein_sequences.py --model facebook/esm2_t6_8M_UR50D
"""

import argparse

from transformers import pipeline

from fastattn.finetune import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/example-proteins")
    parser.add_argument(
        "--data", default="peptides", help="a file with text and label, or a Hub id"
    )
    parser.add_argument("--model", default="esm-tiny", help="an ESM folder or Hub id")
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--validation-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args())

    result = finetune(FinetuneConfig(compare_steps=0, **given))
    metrics = result.metrics
    print(f"accuracy {metrics['test_accuracy']:.3f}; ", end="")
    print(f"{metrics['baseline']}: {metrics['baseline_accuracy']:.3f}")

    # The checkpoint is an ordinary one: this is plain Transformers.
    classify = pipeline("text-classification", str(result.output), truncation=True)
    magainin = "GIGKFLHSAKKFGKAFVGEIMNS"  # from the skin of a frog; it kills bacteria
    print(magainin, classify(magainin)[0])


if __name__ == "__main__":
    main()
