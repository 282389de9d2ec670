"""Measure what further heads on one encoder cost: the task several beside one model, and beside each model by itself.

    python benchmarks/several.py --layers 6 --texts 200 --save several.json

Four heads of ModernBERT-base's width (two classifiers, a token classifier, mean pooling) have one encoder with random
weights. Texts are tokenised, run and decoded in this process, on one thread. Rounds are interleaved, and the best of each is
kept. Times are CPU seconds, so that what others take of a shared machine does not count.

Prints one JSON object; --save writes it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from encoder import log_normal_lengths
from peer_models import CLASSIFIER, FLAGS, random_documents

from modernbert.config import ModernBertConfig
from modernbert.cpu import processor
from modernbert.heads import ModernBertForSequenceClassification, ModernBertForTokenClassification
from modernbert.model import ModernBertModel
from pipelines import pipeline

RESULTS = Path(__file__).parent / "results"
MODELS: dict[str, tuple[Any, str, int]] = {
    "topic": (ModernBertForSequenceClassification, "classify", 20),
    "mood": (ModernBertForSequenceClassification, "classify", 3),
    "entities": (ModernBertForTokenClassification, "tag", 9),
    "vector": (ModernBertModel, "embed", 2),
}


def write_models(root: Path, layers: int) -> list[dict[str, object]]:
    """Write the models, all with the encoder of the first; their entries for the task several."""
    entries: list[dict[str, object]] = []
    first: ModernBertModel | None = None
    for name, (model_class, task, labels) in MODELS.items():
        torch.manual_seed(0)
        config = ModernBertConfig(num_hidden_layers=layers, num_labels=labels, pad_token_id=0)
        model = model_class(config)
        encoder = model if isinstance(model, ModernBertModel) else model.model
        if first is None:
            first = encoder
        encoder.load_state_dict(first.state_dict())
        model.save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(CLASSIFIER / file, root / name)
        entry: dict[str, object] = {"model": str(root / name), "task": task}
        entries.append(entry | {"long_documents": "truncate"})
    return entries


def measure(entries: list[dict[str, object]], texts: list[str], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of each model by itself, and of all together."""
    pipes = {"several": pipeline("several", models=entries, device="cpu")}
    for entry in entries:
        options = dict(entry)
        name = Path(str(options.pop("model"))).name
        pipes[name] = pipeline(
            str(options.pop("task")), str(entry["model"]), device="cpu", **options
        )
    assert len(pipes["several"].predictor.encoders) == 1
    seconds = dict.fromkeys(pipes, float("inf"))
    for _ in range(rounds):
        for name, pipe in pipes.items():
            task = pipe.task({})
            started = time.process_time()
            outputs, failed = pipe.predictor.answer(texts)
            task.answers(outputs)
            seconds[name] = min(seconds[name], time.process_time() - started)
            assert not failed
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", help="name of a file under benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths = log_normal_lengths(options.texts * 110, median=80, sigma=0.8, longest=1024, seed=0)
    documents = random_documents(lengths[: options.texts], seed=0)
    with TemporaryDirectory() as folder:
        entries = write_models(Path(folder), options.layers)
        seconds = measure(entries, documents.texts, options.rounds)
    one = seconds["topic"]
    each = sum(value for name, value in seconds.items() if name != "several")
    flags = Path("/proc/cpuinfo").read_text().split()
    result = {
        "processor": processor(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "layers": options.layers,
        "texts": len(documents.texts),
        "tokens": sum(lengths[: options.texts]),
        "cpu_s": {name: round(value, 2) for name, value in seconds.items()},
        "several_of_one": round(seconds["several"] / one, 3),
        "each_by_itself_of_one": round(each / one, 2),
    }
    print(json.dumps(result, indent=2))
    if options.save:
        (RESULTS / options.save).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
