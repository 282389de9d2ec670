"""What feeding a GPU costs: CPU seconds a million tokens of each stage around the model, on one thread.

`python -m benchmarks.feeding --out benchmarks/results/feeding.json`. The tokenizer has ModernBERT's rules and size.
It is trained on the prose of the installed packages (docstrings and descriptions), of which short texts of about 70
tokens and articles are made; the demos' corpora are measured, too. Before all that, tokenising is measured by itself on
texts as they are written (`benchmarks/feeding_texts.py`), beside the library's; `--tokenise-only` stops there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import site
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from benchmarks.feeding_texts import kinds_of_texts
from benchmarks.peer_models import machine
from modernbert.text.pieces import DetailCache, PieceCache
from modernbert.text.tokenizer import Tokenizer as OurTokenizer
from pipelines.checkpoints import Checkpoint
from pipelines.corpus import stages
from pipelines.corpus.plan import Job
from pipelines.inference.bucketing import packed_batches
from pipelines.input.cutting import ShardSize
from pipelines.input.inspection import inspect_input
from pipelines.input.plan import cut
from pipelines.input.reading import read_shard
from pipelines.input.text import TextOptions
from pipelines.options import TASKS
from pipelines.output.lease import LEASE
from pipelines.raydata import wire
from pipelines.storage import Folder, Location
from pipelines.tasks.base import task_class
from pipelines.tasks.outputs import Predictions

DEMO = Path(__file__).parents[1] / "jobs/demo"
TASKS_MEASURED = ("classify", "embed", "tag")
GPU_TOKENS_S = {"base": 1.6e6, "large": 0.65e6}
"""What an H100 is to do, sequences of 512 tokens."""
LABELS = ["O", *(f"{prefix}-{name}" for name in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")]
_PROSE = re.compile(r"[A-Za-z][a-z']+$")
_SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]


def paragraphs() -> list[str]:
    """Return the paragraphs of prose in the docstrings and descriptions of the installed packages, shuffled."""
    found: dict[str, None] = {}
    folders = [Path(folder) for folder in site.getsitepackages()]
    for path in sorted(
        path for folder in folders for path in (*folder.rglob("*.py"), *folder.rglob("METADATA"))
    ):
        text = path.read_text(encoding="utf-8", errors="ignore")
        for part in [text] if path.suffix != ".py" else re.findall(r'"""(.*?)"""', text, re.DOTALL):
            for raw in re.split(r"\n\s*\n", part):
                words = raw.split()
                if len(words) >= 12 and sum(map(bool, map(_PROSE.match, words))) >= 0.6 * len(
                    words
                ):
                    found.setdefault(" ".join(words))
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def train(texts: list[str], folder: Path) -> None:
    """Write tokenizer.json: byte-level BPE of 50,368 ids with the added tokens of ModernBERT's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=50_254, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    unused = [f"[unused{i}]" for i in range(50_368 - tokenizer.get_vocab_size() - 5)]
    tokenizer.add_special_tokens([*_SPECIAL, AddedToken("[MASK]", lstrip=True), *unused])
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_corpora(texts: list[str], folder: Path, tokens: int) -> dict[str, Path]:
    """Write a Parquet file of each kind of text, of about `tokens` tokens, and return the paths."""
    long_enough = (text.split() for text in texts if len(text.split()) >= 30)
    short = [" ".join(words[:52]) for words in long_enough][: tokens // 70]
    articles: list[list[str]] = [[]]
    for text in texts[: tokens // 40]:
        if sum(len(part.split()) for part in articles[-1]) > 1000:
            articles.append([])
        articles[-1].append(text)
    kinds = {"short": short, "articles": ["\n\n".join(article) for article in articles]}
    paths = {name: DEMO / f"{name}.parquet" for name in ("requests", "messages")}
    for kind, column in kinds.items():
        paths[kind] = folder / f"{kind}.parquet"
        pq.write_table(pa.table({"id": range(len(column)), "text": column}), paths[kind])
    return paths


def make_job(task: str, source: Path, folder: Path, model: Path) -> tuple[Job, list[Any]]:
    """Plan a job over a file without a model's weights, and return it with its shards."""
    inspection = inspect_input(Location.of_user(str(source)), TextOptions())
    corpus = cut(inspection, ShardSize(rows=4096, text_bytes=1 << 40))
    checkpoint = Checkpoint.open(model)
    job = Job(
        source=Location(str(source)),
        folder=Folder.at(str(folder)),
        parts="data",
        attempt_id="feeding",
        model=checkpoint,
        task=task_class(task).from_checkpoint(checkpoint, TASKS[task]()),
        schema=corpus.schema,
        text_columns=["text"],
        keep_columns=corpus.schema.names,
        prefix="",
        budget_tokens=65_536,
        device="cuda",
        dtype="bfloat16",
        max_characters=1 << 20,
        batch_timeout_s=600,
    )
    # Each commit looks at the lease of its run.
    job.folder.write_atomic(LEASE, json.dumps({"run": job.attempt_id}).encode())
    return job, corpus.shards


def answers(job: Job, windows: Any) -> Predictions:
    """Make up values as a model gives them: of a tagger, two tokens in a hundred are in an entity."""
    dice = np.random.default_rng(0)
    splits = np.concatenate(([0], np.cumsum(job.task.rows(windows.input_ids, windows.cu_seqlens))))
    values = dice.standard_normal((splits[-1], job.task.width), dtype=np.float32)
    if job.task.options_class.task == "tag":
        values[:, 0] += 8 * (dice.random(len(values)) > 0.02)
    return Predictions(values, splits, {}, 1, 0.0)


def measure(job: Job, shards: list[Any]) -> dict[str, float]:
    """Take shards through the stages and return the tokens and the CPU seconds of each part.

    "library" is tokenising without the cache of pieces.
    """
    took: dict[str, float] = defaultdict(float)
    tokenizer = job.model.tokenizer
    # Of texts that were seen in an earlier round, every piece would be known.
    tokenizer._pieces = PieceCache.for_tokenizer(tokenizer._fast)
    tokenizer._details = DetailCache.for_tokenizer(tokenizer._fast)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        took[name] += time.process_time() - started

    for shard in shards:
        with part("read"):
            read = read_shard(job.source, job.folder, shard, job.schema, job.schema.names)
            documents, rows, _ = stages._documents(job, read)
        with part("tokenise"):
            windows = job.task.encode(tokenizer, documents)
        caches = tokenizer._pieces, tokenizer._details
        tokenizer._pieces = tokenizer._details = None
        with part("library"):
            job.task.encode(tokenizer, documents)
        tokenizer._pieces, tokenizer._details = caches
        with part("pack"):
            row = wire.tokenised_row(shard, windows, rows, [], 0.0, stored=read)
            packed_batches(wire.windows_of(row).lengths, job.budget_tokens)
        predicted = wire.predicted_row(row, answers(job, windows), [], 0.0)
        with part("commit"):
            committed = stages.commit(job, predicted).to_pylist()[0]
        assert not committed["error"], committed["error"]
        took["tokens"] += len(windows.input_ids)
    return took


def compare_tokenising(
    folder: Path, texts: list[str], rounds: int, details: bool = False
) -> dict[str, float]:
    """Return the CPU seconds a million tokens of the library and with an empty cache of pieces, the least of each.

    Rounds take turns, and each has all texts in one call; with `details`, with offsets and word ids.
    """
    tokenizer = OurTokenizer.from_folder(folder)
    best: dict[str, float] = {}
    tokens = set()
    for number in range(2 * rounds):
        way = ("library", "cache")[number % 2]
        tokenizer._pieces = tokenizer._details = None
        if way == "cache":
            tokenizer._pieces = PieceCache.for_tokenizer(tokenizer._fast)
            tokenizer._details = DetailCache.for_tokenizer(tokenizer._fast)
        gc.collect()
        started = time.process_time()
        tokens.add(len(tokenizer.encode(texts, details=details).input_ids))
        best[way] = min(best.get(way, float("inf")), time.process_time() - started)
    (count,) = tokens
    costs = {f"{way}_s": round(seconds / count * 1e6, 3) for way, seconds in best.items()}
    return {"tokens": count, **costs, "times_as_fast": round(best["library"] / best["cache"], 2)}


def main() -> None:
    """Measure each task on each kind of text, print a line each, and write all to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokens", type=int, default=3_000_000, help="of short texts, and of articles, about"
    )
    parser.add_argument(
        "--model", type=Path, help="a folder where the tokenizer is, or is to be kept"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often; the least of each part counts"
    )
    parser.add_argument("--tokenise-only", action="store_true", help="measure tokenising alone")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder, "model")
        model.mkdir(exist_ok=True)
        texts = paragraphs()
        if not (model / "tokenizer.json").exists():
            train(texts, model)
        config = json.loads((DEMO / "pii-tagger/config.json").read_text()) | {
            "hidden_size": 768,
            "vocab_size": 50_368,
        }
        config = {
            name: value
            for name, value in config.items()
            if name not in ("architectures", "num_labels")
        }
        config |= {
            "num_attention_heads": 12,
            "id2label": dict(enumerate(LABELS)),
            "max_position_embeddings": 8192,
        }
        (model / "config.json").write_text(
            json.dumps(config | {"label2id": {x: i for i, x in enumerate(LABELS)}})
        )
        tokenising = []
        for name, some in kinds_of_texts(texts).items():
            for details in (False, True):
                costs = compare_tokenising(model, some, options.rounds, details)
                tokenising.append({"texts": name, "details": details} | costs)
                print(json.dumps(tokenising[-1]), flush=True)
        corpora = write_corpora(texts, Path(folder), options.tokens)
        for kind, source in ({} if options.tokenise_only else corpora).items():
            for task in TASKS_MEASURED:
                job, shards = make_job(task, source, Path(folder, f"{kind}-{task}"), model)
                rounds = [measure(job, shards) for _ in range(options.rounds)]
                best = {name: min(each[name] for each in rounds) for name in rounds[0]}
                millions = best.pop("tokens") / 1e6
                cost = {name: round(seconds / millions, 3) for name, seconds in best.items()}
                library = cost.pop("library")
                total = sum(cost.values())
                cores = {size: round(rate * total / 1e6, 1) for size, rate in GPU_TOKENS_S.items()}
                results.append(
                    {
                        "task": task,
                        "texts": kind,
                        "tokens": round(millions * 1e6),
                        "cpu_s_a_million": cost,
                    }
                )
                results[-1]["tokenise_by_library_s"] = library
                results[-1] |= {"tokens_a_core_s": round(1e6 / total), "cores_of_an_h100": cores}
                print(json.dumps(results[-1]), flush=True)
    if options.out:
        content = {"machine": machine(), "tokenising": tokenising, "results": results}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
