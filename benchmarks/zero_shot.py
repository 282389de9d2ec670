"""Measure zero-shot classification with ten labels against transformers' pipeline, on the same texts in one process.

transformers has the texts sorted by length, in batches of 1, 8 and 32 pairs; the best of the three counts. Passes are
interleaved and the best pass of each is kept, so that noise favours none.

    python -m benchmarks.zero_shot --save

Prints one JSON object: tokens and documents a second, where tokens are those of all pairs without padding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.serve import base_checkpoint, load_texts
from pipelines import pipeline

RESULTS = Path(__file__).parent / "results"
LABELS = [
    "money",
    "travel",
    "health",
    "music",
    "weather",
    "food",
    "work",
    "sport",
    "the time of day",
    "the news",
]
BATCHES = (1, 8, 32)


def write_nli(folder: Path) -> Path:
    """Write a model of entailment of the size of ModernBERT-base, with random weights."""
    base_checkpoint(folder)
    names = ["entailment", "neutral", "contradiction"]
    config = transformers.ModernBertConfig(
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        pad_token_id=0,
    )
    transformers.ModernBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_nli(Path(folder)))
        ours = pipeline("zero-shot-classification", model)
        theirs = transformers.pipeline("zero-shot-classification", model=model)
        texts = sorted(load_texts("all")[: options.documents], key=len)
        windows = ours.task({"labels": LABELS}).encode(ours.checkpoint.tokenizer, texts)
        compare(options, ours, theirs, texts, len(windows.input_ids))


def compare(
    options: argparse.Namespace, ours: Any, theirs: Any, texts: list[str], tokens: int
) -> None:
    """Measure all passes and print the result; `tokens` are those of all pairs."""
    calls = {"ours": lambda: ours(texts, LABELS)}
    calls |= {
        f"transformers, {n}": lambda n=n: theirs(texts, LABELS, batch_size=n) for n in BATCHES
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(options.rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - started)
    result = {
        "documents": len(texts),
        "labels": len(LABELS),
        "tokens": tokens,
        "threads": options.threads,
        "passes": {
            name: {
                "tokens_per_s": round(tokens / s, 1),
                "documents_per_s": round(len(texts) / s, 3),
            }
            for name, s in best.items()
        },
        "ratio": round(min(s for name, s in best.items() if name != "ours") / best["ours"], 2),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.save:
        (RESULTS / "zero_shot.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
