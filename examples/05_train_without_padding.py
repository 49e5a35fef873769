"""Train a patched BERT on batches without padding, each of about as many tokens.

python examples/05_train_without_padding.py
"""

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

import fastattn
from fastattn.data.packing import PackedCollator
from fastattn.data.sampling import TokenBudgetSampler


def make_texts(count: int) -> list[dict]:
    """Token ids of random lengths; the label says which of two tokens a text begins with."""
    generator = torch.Generator().manual_seed(0)
    texts = []
    for index in range(count):
        length = int(torch.randint(4, 120, (), generator=generator))
        ids = torch.randint(10, 1000, (length,), generator=generator).tolist()
        texts.append({"input_ids": [2, 5 + index % 2, *ids, 3], "label": index % 2})
    return texts


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    )
    model = BertForSequenceClassification(config)
    print(fastattn.patch(model))
    texts = make_texts(200)
    lengths = [len(text["input_ids"]) for text in texts]
    sampler = TokenBudgetSampler(lengths, tokens_per_batch=1024)
    collator = PackedCollator(model=model)
    loader = DataLoader(texts, batch_sampler=sampler, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for batch in loader:
            outputs = model(**batch)  # logits of (sequences, labels), as of a padded batch
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens, sequences = batch["input_ids"].numel(), len(outputs.logits)
            print(f"{sequences:3} texts, {tokens} tokens: loss {outputs.loss.item():.3f}")


if __name__ == "__main__":
    main()
