"""Many small files beside few large ones with the same rows: whole jobs, in turn.

python benchmarks/small_files.py --out benchmarks/results/small_files.json
python benchmarks/small_files.py --before ../old  # a checkout of an older commit, whose jobs run in turn with ours
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from transformers import ModernBertConfig, ModernBertForSequenceClassification

REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "jobs/demo/intent-classifier"


def write_model(folder: Path) -> None:
    """Write a model so small that what is measured is everything else."""
    stored = json.loads((DEMO / "config.json").read_text())
    kept = ("vocab_size", "pad_token_id", "cls_token_id", "sep_token_id", "id2label", "label2id")
    config = ModernBertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        **{name: stored[name] for name in kept if name in stored},
    )
    ModernBertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())


def write_files(folder: Path, table: pa.Table, files: int) -> None:
    """Write the rows of a table to so many files."""
    folder.mkdir()
    rows = len(table) // files
    for number in range(files):
        pq.write_table(table.slice(number * rows, rows), folder / f"{number:05d}.parquet")


def job(repository: Path, folder: Path, source: Path, model: Path) -> float:
    """Run a job of a repository, and return the seconds that it takes."""
    out = folder / f"out-{time.time_ns()}"
    command = [sys.executable, str(repository / "jobs/classify_corpus.py")]
    command += ["--input", str(source), "--output", str(out), "--model", str(model)]
    started = time.monotonic()
    environment = os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(repository)}
    # Workers of Ray import what is in the folder where the job was started, too.
    subprocess.run(command, check=True, env=environment, cwd=repository, capture_output=True)
    seconds = time.monotonic() - started
    parts = ds.dataset(out / "data")
    print(
        f"{repository.name}, {source.name}: {seconds:.1f} s, {parts.count_rows():,} rows, "
        f"{len(parts.files)} parts",
        flush=True,
    )
    return seconds


def main() -> None:
    """Measure, print the ratio, and write it to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of an older commit")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    texts = pq.read_table(REPOSITORY / "jobs/demo/requests.parquet")["text"].cast("binary")
    decoded = [text.decode(errors="replace") for text in texts.to_pylist() if text]
    good = [text for text in decoded if len(text) < 80]  # about 17 tokens
    chosen = np.random.default_rng(1).integers(0, len(good), options.rows)
    table = pa.table({"id": range(options.rows), "text": [good[i] for i in chosen]})
    trees = {"now": REPOSITORY}
    if options.before:
        trees["before"] = options.before.absolute()
    seconds: dict[str, dict[str, list[float]]] = {tree: {"few": [], "many": []} for tree in trees}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        for kind in ("few", "many"):
            write_files(folder / kind, table, getattr(options, kind))
        for _ in range(options.rounds):
            for tree, repository in trees.items():
                for kind, taken in seconds[tree].items():
                    taken.append(round(job(repository, folder, folder / kind, folder / "model"), 1))
    figures = {
        "rows": options.rows,
        "files": {"few": options.few, "many": options.many},
        "seconds": seconds,
        "ratio": {
            tree: round(min(taken["many"]) / min(taken["few"]), 3)
            for tree, taken in seconds.items()
        },
        "machine": f"{os.cpu_count()} cores of {platform.machine()}",
    }
    print(json.dumps(figures, indent=2))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
