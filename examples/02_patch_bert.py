"""One line makes an existing BERT faster: patch it, train a step, save it, take the patch back.

python examples/02_patch_bert.py
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification

import fastattn


def main() -> None:
    torch.manual_seed(0)
    # Any checkpoint will do: BertForSequenceClassification.from_pretrained("bert-base-uncased").
    config = BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512
    )
    model = BertForSequenceClassification(config)
    lengths = torch.tensor([64, 20, 9, 41])
    batch = {
        "input_ids": torch.randint(1000, 30000, (4, 64)),
        "attention_mask": (torch.arange(64) < lengths[:, None]).long(),
        "labels": torch.tensor([0, 1, 1, 0]),
    }
    with torch.no_grad():
        stock = model.eval()(**batch).logits

    print(fastattn.patch(model))

    with torch.no_grad():
        patched = model(**batch).logits
    print(f"logits differ by {float((patched - stock).abs().max()):.1e}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for step in range(3):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.4f}")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # an ordinary checkpoint
        BertForSequenceClassification.from_pretrained(folder)
    fastattn.unpatch(model)
    print(f"unpatched: {type(model.bert.encoder).__name__} is Transformers' own again")


if __name__ == "__main__":
    main()
