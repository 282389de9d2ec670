"""Train the demo tagger of personal data on generated messages: about half an hour on one CPU core.

    python jobs/demo/train_tag.py

Every epoch sees new messages from make_messages.py; the measure is exact-span F1 on held_out_messages.jsonl, whose
templates, names and words of addresses never occur in training.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter

import torch
import torch.nn.functional as F
from make_messages import TYPES, Message, message
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from torch import Tensor
from training import (
    DEMO,
    MASK,
    SPECIAL,
    fit,
    model_config,
    pack,
    resplit,
    save,
    settings,
    token_splits,
    train_tokenizer,
)

from modernbert.heads import ModernBertForTokenClassification

LABELS = ["O", *(f"{position}-{kind}" for kind in TYPES for position in "BI")]
Example = tuple[list[int], list[int]]  # token ids and the label of each
Entities = list[tuple[int, int, str]]


def tagger_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A cased tokenizer in which each digit, sign and punctuation mark is a token, so that tokens respect entities."""
    apart = pre_tokenizers.Split(Regex(r"[^\s\p{L}\p{M}]"), "isolated")
    into_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train_tokenizer(
        texts, vocab_size, normalizers.NFC(), pre_tokenizers.Sequence([apart, into_bytes])
    )


def labelled(tokenizer: Tokenizer, sample: Message) -> Example:
    """The ids of a message and the label of each: B for a token in which an entity begins, I for its others."""
    encoding = tokenizer.encode(sample.text)
    labels = [0] * len(encoding.ids)
    entities = iter([*sample.entities, (len(sample.text) + 1, len(sample.text) + 1, "")])
    start, end, kind = next(entities)
    begun = False
    for i, (left, right) in enumerate(encoding.offsets):
        blank = len(sample.text[left:right]) - len(sample.text[left:right].lstrip())
        left += (
            blank if left + blank < right else 0
        )  # a token's own blank before a word is not the word's
        while left >= end:
            (start, end, kind), begun = next(entities), False
        if left < right and right > start:
            labels[i] = LABELS.index(("I-" if begun else "B-") + kind)
            begun = True
    return encoding.ids, labels


def noisy(example: Example, splits: list[list[tuple[int, int]]], dice: random.Random) -> Example:
    """Some tokens cut in two, some masked, some replaced at random."""
    ids, origin = resplit(example[0], splits, 0.12, dice)
    labels, last = [], -1
    for at in origin:
        label = example[1][at]
        labels.append(label + 1 if at == last and label % 2 == 1 else label)  # after B-X comes I-X
        last = at
    body = range(1, len(ids) - 1)
    for i in dice.sample(body, round(0.03 * len(body))):
        ids[i] = MASK if dice.random() < 0.5 else dice.randrange(len(SPECIAL), len(splits))
    return ids, labels


@torch.no_grad()
def tag(
    model: ModernBertForTokenClassification, tokenizer: Tokenizer, texts: list[str]
) -> list[Entities]:
    """The entities of each text: runs of B and I of a kind, blanks at their ends left out."""
    encodings = tokenizer.encode_batch(texts)
    groups = [encodings[i : i + 32] for i in range(0, len(texts), 32)]
    logits = torch.cat([model.forward_packed(pack([e.ids for e in group])) for group in groups])
    found = []
    for text, encoding, labels in zip(
        texts, encodings, logits.argmax(-1).split([len(e.ids) for e in encodings]), strict=True
    ):
        spans: list[list] = []
        before = "O"
        for (left, right), name in zip(
            encoding.offsets, [LABELS[i] for i in labels.tolist()], strict=True
        ):
            if name != "O" and left < right:
                if name[0] == "I" and before[2:] == name[2:]:
                    spans[-1][1] = right
                else:
                    spans.append([left, right, name[2:]])
            before = name if left < right else "O"
        trimmed = [
            (b - len(text[a:b].lstrip()), a + len(text[a:b].rstrip()), kind) for a, b, kind in spans
        ]
        found.append([span for span in trimmed if span[0] < span[1]])
    return found


def f1_by_type(
    found: list[Entities], wanted: list[Entities]
) -> dict[str, tuple[float, float, float, int]]:
    """Precision, recall, F1 and the number of entities wanted, by type and in all ("micro")."""
    right, given, asked = Counter(), Counter(), Counter()
    for predicted, true in zip(found, wanted, strict=True):
        for count, spans in (
            (right, set(predicted) & set(true)),
            (given, predicted),
            (asked, true),
        ):
            count.update(kind for *_, kind in spans)
    for count in (right, given, asked):
        count["micro"] = count.total()
    out = {}
    for kind in [*TYPES, "micro"]:
        precision, recall = right[kind] / max(given[kind], 1), right[kind] / max(asked[kind], 1)
        out[kind] = (
            precision,
            recall,
            2 * right[kind] / max(given[kind] + asked[kind], 1),
            asked[kind],
        )
    return out


def train(options: argparse.Namespace) -> None:
    """Tokenizer, model, training on ever new messages, measurement, folder."""
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    seeds = iter(range(options.seed * 10**9, (options.seed + 1) * 10**9))
    texts = [message(next(seeds), "train").text for _ in range(5000)]
    tokenizer = tagger_tokenizer(texts, options.vocab_size)
    splits = token_splits(tokenizer)
    config = model_config(
        tokenizer.get_vocab_size(),
        id2label=dict(enumerate(LABELS)),
        local_attention=32,
        embedding_dropout=0.1,
        classifier_dropout=0.1,
    )
    model = ModernBertForTokenClassification(config)
    held_out = [
        json.loads(line)
        for line in (DEMO / "held_out_messages.jsonl").read_text("utf-8").splitlines()
    ]
    wanted = [[tuple(entity) for entity in row["entities"]] for row in held_out]

    def batches() -> list[list[Example]]:
        """An epoch of new messages, one in sixty of them a thread of three hundred words."""
        lengths = [300 if dice.random() < 1 / 60 else None for _ in range(options.messages)]
        examples = [
            noisy(labelled(tokenizer, message(next(seeds), "train", n)), splits, dice)
            for n in lengths
        ]
        return [examples[i : i + options.batch] for i in range(0, len(examples), options.batch)]

    def loss_of(batch: list[Example]) -> Tensor:
        logits = model.forward_packed(pack([ids for ids, _ in batch]))
        return F.cross_entropy(
            logits, torch.tensor([label for _, labels in batch for label in labels])
        )

    def score(average: ModernBertForTokenClassification) -> str:
        measured = f1_by_type(tag(average, tokenizer, [row["text"] for row in held_out]), wanted)
        return "F1 " + ", ".join(f"{kind} {f1:.4f}" for kind, (_, _, f1, _) in measured.items())

    steps = -(-options.messages // options.batch)
    schedule = {"epochs": options.epochs, "steps": steps, "lr": options.lr}
    average = fit(model, batches, loss_of, score, **schedule, average_decay=0.995)
    save(average, tokenizer, options.output)


def main() -> None:
    defaults = {"vocab_size": 3072, "epochs": 30, "messages": 1600, "batch": 8, "lr": 1.5e-3}
    train(settings(__doc__, DEMO / "pii-tagger", **defaults))


if __name__ == "__main__":
    sys.exit(main())
