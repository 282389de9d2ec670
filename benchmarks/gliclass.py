"""Measure ten labels of texts of some 300 tokens: a GLiClass here and in the package gliclass, and a model of entailment.

All are of the size of ModernBERT-base, with random weights. gliclass has one text at a time: it pools padding, too.
Passes are interleaved in one process, and the least CPU time of each is kept.

    python -m benchmarks.gliclass --save

Prints one JSON object: for each the tokens of a text that are read, and the CPU seconds of a text.
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

from benchmarks.zero_shot import LABELS, RESULTS, load_texts, write_nli
from pipelines import pipeline

MARKERS = ["<<LABEL>>", "<<SEP>>"]
TASK = "zero-shot-classification"


def write_gliclass(folder: Path) -> Path:
    """Write a GLiClass with the package that defines it: labels before the text, [CLS] as the text's vector."""
    from gliclass import GLiClassModel, GLiClassModelConfig

    folder.mkdir()
    write_nli(folder)  # for its tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(MARKERS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    label, sep = tokenizer.convert_tokens_to_ids(MARKERS)
    config = GLiClassModelConfig(
        encoder_config=transformers.ModernBertConfig(pad_token_id=0),
        encoder_model="answerdotai/ModernBERT-base",
        class_token_index=label,
        text_token_index=sep,
        prompt_first=True,
    )
    GLiClassModel(config).save_pretrained(folder)
    return folder


def their_pipeline(folder: Path) -> Any:
    """The pipeline of the package gliclass."""
    from gliclass import GLiClassModel, ZeroShotClassificationPipeline

    model = GLiClassModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return ZeroShotClassificationPipeline(model, tokenizer, device="cpu", progress_bar=False)


def long_texts(count: int, tokens: int, ours: Any) -> list[str]:
    """Texts of the sample corpus, put together to some `tokens` each."""
    texts: list[str] = []
    parts: list[str] = []
    length = 0
    for part in load_texts("all"):
        parts.append(part)
        length += len(ours.checkpoint.tokenizer.encode([part]).input_ids) - 2
        if length < tokens:
            continue
        texts.append(" ".join(parts))
        parts = []
        length = 0
        if len(texts) == count:
            break
    return texts


def tokens_of(ours: Any, texts: list[str]) -> float:
    """The tokens that are read for a text."""
    windows = ours.task({"labels": LABELS}).encode(ours.checkpoint.tokenizer, texts)
    return len(windows.input_ids) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        gliclass = write_gliclass(Path(folder, "gliclass"))
        entailing = Path(folder, "entailing")
        entailing.mkdir()
        write_nli(entailing)
        ours = pipeline(TASK, str(gliclass))
        nli = pipeline(TASK, str(entailing))
        theirs = their_pipeline(gliclass)
        texts = long_texts(options.documents, options.tokens, ours)
        calls = {
            "ours": lambda: ours(texts, LABELS, multi_label=True),
            "gliclass": lambda: theirs(texts, LABELS, batch_size=1),
            "entailment, ours": lambda: nli(texts, LABELS, multi_label=True),
        }
        read = {"ours": tokens_of(ours, texts), "entailment, ours": tokens_of(nli, texts)}
        read["gliclass"] = read["ours"]
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(options.rounds):
            for name, call in calls.items():
                started = time.process_time()
                call()
                best[name] = min(best[name], time.process_time() - started)
    result = {
        "documents": len(texts),
        "labels": len(LABELS),
        "passes": {
            name: {
                "tokens_per_document": round(read[name], 1),
                "cpu_s_per_document": round(seconds / len(texts), 3),
            }
            for name, seconds in best.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.save:
        (RESULTS / "gliclass.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
