"""Train the demo intent classifier with this project's own modules: about a quarter of an hour on one CPU core.

    python jobs/demo/train_classify.py --train clinc150/train.parquet --val clinc150/val.parquet

The data are CLINC150 (Larson et al. 2019, CC BY 3.0) as Parquet with the columns `text` and `intent`. The result is a
checkpoint folder like any other: config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import math
import random
import sys

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor
from training import DEMO, fit, model_config, pack, save, settings, train_tokenizer

from modernbert.heads import ModernBertForSequenceClassification

Example = tuple[list[int], int]


def augmented(
    examples: list[Example], by_label: dict[int, list[list[int]]], dice: random.Random
) -> list[Example]:
    """An epoch's examples: some tokens dropped, and one in ten grown by other requests of its label.

    The longer ones teach the mean over tokens to hold for messages of several sentences.
    """
    out = []
    for ids, label in examples:
        body = ids[1:-1]
        if dice.random() < 0.1:
            for _ in range(dice.choice((1, 1, 2, 3, 5, 10))):
                body = body + dice.choice(by_label[label])[1:-1]
        body = [i for i in body if dice.random() > 0.1] or body
        out.append(([ids[0], *body, ids[-1]], label))
    return out


def logits_and_labels(
    model: ModernBertForSequenceClassification, examples: list[Example]
) -> tuple[Tensor, Tensor]:
    """What the model answers for `examples` (B, C), and their labels (B,)."""
    return model.forward_packed(pack([ids for ids, _ in examples])), torch.tensor(
        [label for _, label in examples]
    )


@torch.no_grad()
def accuracy(model: ModernBertForSequenceClassification, examples: list[Example]) -> float:
    """The share of `examples` that the model labels rightly."""
    right = 0
    for start in range(0, len(examples), 256):
        logits, labels = logits_and_labels(model, examples[start : start + 256])
        right += int((logits.argmax(-1) == labels).sum())
    return right / len(examples)


def train(options: argparse.Namespace) -> None:
    """Tokenizer, model, training loop, checkpoint."""
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    tables = [
        pq.read_table(path, columns=["text", "intent"]).to_pydict()
        for path in (options.train, options.val)
    ]
    labels = sorted(set(tables[0]["intent"]))
    lower_case = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    into_bytes = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = train_tokenizer(tables[0]["text"], options.vocab_size, lower_case, into_bytes)
    examples, held_out = (
        [
            (e.ids, labels.index(i))
            for e, i in zip(tokenizer.encode_batch(t["text"]), t["intent"], strict=True)
        ]
        for t in tables
    )
    held_out = [example for example in held_out if labels[example[1]] != "oos"]
    by_label: dict[int, list[list[int]]] = {}
    for ids, label in examples:
        by_label.setdefault(label, []).append(ids)
    config = model_config(
        tokenizer.get_vocab_size(),
        classifier_pooling="mean",
        classifier_dropout=0.4,
        embedding_dropout=0.15,
        mlp_dropout=0.15,
        problem_type="single_label_classification",
        id2label=dict(enumerate(labels)),
    )
    model = ModernBertForSequenceClassification(config)

    def batches() -> list[list[Example]]:
        tokenizer.model.dropout = (
            0.1  # words split at random: the strongest augmentation for so little data
        )
        encoded = tokenizer.encode_batch(tables[0]["text"])
        split = [(e.ids, label) for e, (_, label) in zip(encoded, examples, strict=True)]
        tokenizer.model.dropout = None
        shuffled = augmented(dice.sample(split, len(split)), by_label, dice)
        return [shuffled[i : i + options.batch] for i in range(0, len(shuffled), options.batch)]

    def loss_of(batch: list[Example]) -> Tensor:
        return F.cross_entropy(*logits_and_labels(model, batch), label_smoothing=0.1)

    def score(average: ModernBertForSequenceClassification) -> str:
        return f"in-scope validation accuracy {accuracy(average, held_out):.4f}"

    steps = math.ceil(len(examples) / options.batch)
    average = fit(model, batches, loss_of, score, epochs=options.epochs, steps=steps, lr=options.lr)
    save(average, tokenizer, options.output)


def main() -> None:
    train(
        settings(
            __doc__,
            DEMO / "intent-classifier",
            "train",
            "val",
            vocab_size=4096,
            epochs=30,
            batch=64,
            lr=1.5e-3,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
