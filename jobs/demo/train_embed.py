"""Train the demo sentence encoder, from the demo intent classifier: about ten minutes on one CPU core.

    python jobs/demo/train_embed.py --train clinc150/train.parquet --val clinc150/val.parquet

Supervised contrastive learning (Khosla et al. 2020, arXiv:2004.11362): requests of one intent are drawn together, all
others of the batch pushed away, at 192, 96 and 48 dimensions at once (Kusupati et al. 2022, arXiv:2205.13147). The
result is a folder that sentence-transformers reads.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from training import DEMO, fit, pack, resplit, save, settings, token_splits

from modernbert.head_parts import pool
from modernbert.model import ModernBertModel

CLASSIFIER = DEMO / "intent-classifier"
DIMENSIONS = (192, 96, 48)
TEMPERATURE = 0.05
INTENTS, REQUESTS = 24, 4  # of a batch, and of each intent in it
Example = tuple[list[int], str]


def contrastive_loss(vectors_BD: Tensor, labels_B: Tensor) -> Tensor:
    """The mean over requests of -log p(another of its intent | the batch), summed over `DIMENSIONS`."""
    same_BB = (labels_B[:, None] == labels_B).float().fill_diagonal_(0.0)
    loss = vectors_BD.new_zeros(())
    for width in DIMENSIONS:
        unit_BD = F.normalize(vectors_BD[:, :width], dim=-1)
        scores_BB = (unit_BD @ unit_BD.T / TEMPERATURE).fill_diagonal_(-1e9)
        loss = loss - (same_BB * scores_BB.log_softmax(-1)).sum() / same_BB.sum()
    return loss


@torch.no_grad()
def embed(model: ModernBertModel, examples: list[Example]) -> Tensor:
    """The mean-pooled vectors (B, D) of `examples`."""
    batches = [
        pack([ids for ids, _ in examples[i : i + 256]]) for i in range(0, len(examples), 256)
    ]
    return torch.cat([pool(model.forward_packed(batch), batch, "mean") for batch in batches])


def nearest_accuracy(
    queries: Tensor, asked: list[str], stored: Tensor, known: list[str], width: int
) -> float:
    """The share of `queries` whose nearest in `stored` by cosine has the same label."""
    scores = F.normalize(queries[:, :width], dim=-1) @ F.normalize(stored[:, :width], dim=-1).T
    nearest = scores.argmax(-1).tolist()
    return sum(known[i] == label for i, label in zip(nearest, asked, strict=True)) / len(asked)


def read(path: Path, tokenizer: Tokenizer) -> list[Example]:
    """The in-scope requests of a file, encoded, with their intents."""
    table = pq.read_table(path, columns=["text", "intent"]).to_pydict()
    encoded = tokenizer.encode_batch(table["text"])
    return [
        (e.ids, intent)
        for e, intent in zip(encoded, table["intent"], strict=True)
        if intent != "oos"
    ]


def train(options: argparse.Namespace) -> None:
    """Data, model, training, measurement, folder."""
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    tokenizer = Tokenizer.from_file(str(CLASSIFIER / "tokenizer.json"))
    splits = token_splits(tokenizer)
    examples, held_out = read(options.train, tokenizer), read(options.val, tokenizer)
    model = ModernBertModel.from_pretrained(CLASSIFIER, num_labels=2, problem_type=None)
    by_label: dict[str, list[list[int]]] = {}
    for ids, label in examples:
        by_label.setdefault(label, []).append(ids)
    steps = len(examples) // (INTENTS * REQUESTS)

    def batches() -> list[list[tuple[list[int], int]]]:
        """An epoch: each batch a few requests of a few intents, some tokens dropped and some cut in two."""
        out = []
        for _ in range(steps):
            labels = dice.sample(sorted(by_label), INTENTS)
            chosen = [
                (ids, i)
                for i, label in enumerate(labels)
                for ids in dice.sample(by_label[label], REQUESTS)
            ]
            kept = [
                ([t for t in ids if dice.random() > options.drop] or ids, i) for ids, i in chosen
            ]
            out.append([(resplit(ids, splits, 0.1, dice)[0], i) for ids, i in kept])
        return out

    def loss_of(batch: list[tuple[list[int], int]]) -> Tensor:
        packed = pack([ids for ids, _ in batch])
        return contrastive_loss(
            pool(model.forward_packed(packed), packed, "mean"), torch.tensor([i for _, i in batch])
        )

    def score(average: ModernBertModel) -> str:
        queries, asked = embed(average, held_out), [label for _, label in held_out]
        stored, known = embed(average, examples), [label for _, label in examples]
        shares = {
            width: nearest_accuracy(queries, asked, stored, known, width) for width in DIMENSIONS
        }
        return "nearest neighbour right: " + ", ".join(
            f"{share:.4f} at {width}" for width, share in shares.items()
        )

    with torch.no_grad():
        print("before:", score(model.eval()), flush=True)
    average = fit(model, batches, loss_of, score, epochs=options.epochs, steps=steps, lr=options.lr)
    save(average, tokenizer, options.output)
    write_sentence_transformers_files(options.output, model.config.hidden_size)


def write_sentence_transformers_files(folder: Path, width: int) -> None:
    """What sentence-transformers reads beside the checkpoint: its modules, the pooling, the similarity."""
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    pooling = {
        "word_embedding_dimension": width,
        **{f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes},
    }
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(names.items())
    ]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {**pooling, "include_prompt": True},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    train(
        settings(__doc__, DEMO / "sentence-encoder", "train", "val", epochs=15, lr=5e-4, drop=0.1)
    )


if __name__ == "__main__":
    sys.exit(main())
