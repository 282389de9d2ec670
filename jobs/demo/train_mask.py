"""Train the demo masked language model, from the demo intent classifier: about a quarter of an hour on one CPU core.

    python jobs/demo/train_mask.py --train clinc150/train.parquet --val clinc150/val.parquet

It learns to fill in 30% of the words of CLINC150's requests and of 5,000 made by make_corpus.py. Words are hidden in
the text, before tokenising, so that training sees just what a user's text with [MASK] gives.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from datetime import datetime

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from make_corpus import LINE_POOLS, document
from tokenizers import Tokenizer
from torch import Tensor
from training import DEMO, MASK, fit, pack, save, settings

from modernbert.heads import ModernBertForMaskedLM

CLASSIFIER = DEMO / "intent-classifier"
Example = tuple[list[int], list[int]]  # token ids, and the ids that its masks hide


def mask_tokenizer() -> Tokenizer:
    """The classifier's tokenizer, in which [MASK] now takes the blank before it, as in ModernBERT's own."""
    settings = json.loads((CLASSIFIER / "tokenizer.json").read_text("utf-8"))
    settings["added_tokens"][MASK]["lstrip"] = True
    return Tokenizer.from_str(json.dumps(settings))


def made_texts(count: int, dice: random.Random) -> list[str]:
    """`count` short requests of make_corpus.py, of intents in turn."""
    intents = sorted(LINE_POOLS)
    when = datetime(2026, 2, 23)
    return [document(dice, when, "line", intents[i % len(intents)], 12)[1] for i in range(count)]


def hide(
    texts: list[str], share: float, tokenizer: Tokenizer, dice: random.Random
) -> list[Example]:
    """Each text with a `share` of its words hidden, at least one: as many masks as the word has tokens."""
    masked, hidden = [], []
    for text in texts:
        words = text.split()
        chosen = {i for i in range(len(words)) if dice.random() < share} or {
            dice.randrange(len(words))
        }
        answers: list[int] = []
        for i in sorted(chosen):
            core = words[i].strip(".,;:!?\"'()") or words[i]
            ids = tokenizer.encode(core, add_special_tokens=False).ids
            words[i] = words[i].replace(core, "[MASK]" * len(ids), 1)
            answers += ids
        masked.append(" ".join(words))
        hidden.append(answers)
    return [
        (encoding.ids, answers)
        for encoding, answers in zip(tokenizer.encode_batch(masked), hidden, strict=True)
    ]


def logits_and_answers(
    model: ModernBertForMaskedLM, examples: list[Example]
) -> tuple[Tensor, Tensor]:
    """The logits (P, V) at the masks of `examples`, and the ids (P,) that they hide."""
    batch = pack([ids for ids, _ in examples])
    places = (batch.input_ids == MASK).nonzero(as_tuple=True)[0]
    return model.forward_packed(batch, places), torch.tensor(
        [i for _, answers in examples for i in answers]
    )


@torch.no_grad()
def accuracy(model: ModernBertForMaskedLM, examples: list[Example]) -> tuple[float, float]:
    """The share of hidden tokens that the model ranks first, and that it has among its first five."""
    first = five = count = 0
    for start in range(0, len(examples), 256):
        logits, answers = logits_and_answers(model, examples[start : start + 256])
        right = logits.topk(5).indices == answers[:, None]
        first, five, count = (
            first + int(right[:, 0].sum()),
            five + int(right.sum()),
            count + len(answers),
        )
    return first / count, five / count


def train(options: argparse.Namespace) -> None:
    """Data, model, training, measurement, folder."""
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    tokenizer = mask_tokenizer()
    texts, val_texts = (
        pq.read_table(path)["text"].to_pylist() for path in (options.train, options.val)
    )
    texts += made_texts(5000, dice)
    held_out = hide(val_texts, 0.15, tokenizer, random.Random(0))
    model = ModernBertForMaskedLM.from_pretrained(CLASSIFIER, num_labels=2, problem_type=None)

    def batches() -> list[list[Example]]:
        examples = hide(dice.sample(texts, len(texts)), 0.3, tokenizer, dice)
        return [examples[i : i + options.batch] for i in range(0, len(examples), options.batch)]

    def loss_of(batch: list[Example]) -> Tensor:
        return F.cross_entropy(*logits_and_answers(model, batch))

    def score(average: ModernBertForMaskedLM) -> str:
        return "hidden tokens ranked first {:.4f}, among the first five {:.4f}".format(
            *accuracy(average, held_out)
        )

    steps = -(-len(texts) // options.batch)
    average = fit(
        model,
        batches,
        loss_of,
        score,
        epochs=options.epochs,
        steps=steps,
        lr=options.lr,
        average_decay=0.995,
    )
    save(average, tokenizer, options.output)


def main() -> None:
    train(settings(__doc__, DEMO / "masked-lm", "train", "val", epochs=10, batch=128, lr=1.5e-3))


if __name__ == "__main__":
    sys.exit(main())
