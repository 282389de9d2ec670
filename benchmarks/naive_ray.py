"""Measure the corpus job against what a user would write from Ray's documentation, on the same corpus and two cores.

That is `map_batches` with a pipeline of transformers in a pool of actors, each with one thread, texts in their given
order, in batches of 1, 8 and 32. Both read the same Parquet files and write Parquet, on a Ray that runs already. What
starts cost (actors, imports, the report) is measured on as many files with a few rows, and taken off in rows per second.

    python -m benchmarks.naive_ray --rows 2000 --save
    python -m benchmarks.naive_ray --layers 2 --rows 300 --save   # the width of ModernBERT-base

Prints one JSON object; --save keeps it under its model's name in benchmarks/results/naive_ray.json. CPU seconds are those
of all processes of Ray, and the ratio that holds on a machine which others use.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray

from benchmarks.encoder import log_normal_lengths
from benchmarks.peer_models import CLASSIFIER, machine, random_documents
from benchmarks.serve import base_checkpoint
from pipelines import run_corpus

RESULTS = Path(__file__).parent / "results"
ACTORS = 2
FILES = 16
ROWS_OF_A_START = 16


class Classifier:
    """What Ray's documentation has for inference on text: a pipeline of transformers in an actor."""

    def __init__(self, model: str, batch_size: int):
        import transformers

        self.classify = transformers.pipeline("text-classification", model, device="cpu")
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        texts = batch["text"].tolist()
        answers = self.classify(texts, batch_size=self.batch_size, truncation=True)
        return batch | {
            "label": [answer["label"] for answer in answers],
            "score": [answer["score"] for answer in answers],
        }


def run_naive(source: Path, output: Path, model: Path, batch_size: int) -> Path:
    """Label a corpus with `map_batches`; return the folder of the labels."""
    # By itself Ray puts these small files into one block, which one actor alone would label.
    ray.data.read_parquet(str(source), override_num_blocks=FILES).map_batches(
        Classifier,
        fn_constructor_args=(str(model), batch_size),
        batch_size=batch_size,
        concurrency=ACTORS,
        num_cpus=1,
    ).write_parquet(str(output))
    return output


def run_job(source: Path, output: Path, model: Path) -> Path:
    """Label a corpus with the corpus job; return the folder of the labels."""
    run_corpus(
        "classify", input=str(source), output=str(output), model=str(model), actors=str(ACTORS)
    )
    return output / "data"


def write_corpus(folder: Path, rows: int, longest: int) -> int:
    """Write texts with lengths of the mix of benchmarks/encoder.py to FILES files; return their tokens."""
    folder.mkdir()
    lengths = log_normal_lengths(rows * 1000, median=180, sigma=1.1, longest=longest, seed=0)[:rows]
    texts = random_documents(lengths, seed=0).texts
    for number in range(FILES):
        ids = range(number, rows, FILES)
        table = pa.table({"id": list(ids), "text": [texts[i] for i in ids]})
        pq.write_table(table, folder / f"{number:02d}.parquet")
    return sum(lengths)


class CpuClock(threading.Thread):
    """Adds up the CPU seconds of this process and of all below it; those that end count until they were last seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.2)

    def look(self) -> float:
        """Read all processes and return the seconds until now."""
        here = psutil.Process()
        for process in (here, *here.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self.seconds[process.pid, process.create_time()] = times.user + times.system
        return sum(self.seconds.copy().values())


def measured(clock: CpuClock, run: Callable[[], Path]) -> tuple[dict[str, float], Path]:
    """Return the wall and CPU seconds of a run, and where its labels are."""
    cpu_started, started = clock.look(), time.perf_counter()
    folder = run()
    seconds = {"wall_s": time.perf_counter() - started, "cpu_s": clock.look() - cpu_started}
    return {unit: round(value, 2) for unit, value in seconds.items()}, folder


def labels(folder: Path) -> list[str]:
    """Read the labels of an output in the order of its ids."""
    table = ds.dataset(folder).to_table(columns=["id", "label"]).sort_by("id")
    return [str(label) for label in table["label"].to_pylist()]


def compare(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all ways on a few rows and on the corpus, and return what they took."""
    tokens = write_corpus(folder / "corpus", options.rows, options.longest)
    write_corpus(folder / "few", ROWS_OF_A_START, options.longest)
    ways: dict[str, Callable[[Path, Path, Path], Path]] = {"ours": run_job}
    for n in options.batches:
        ways[f"map_batches, batch {n}"] = partial(run_naive, batch_size=n)
    results: dict[str, dict[str, Any]] = {}
    our_labels: list[str] = []
    clock = CpuClock()
    clock.start()
    for name, way in ways.items():
        start, _ = measured(clock, partial(way, folder / "few", folder / f"{name}, few", model))
        whole, output = measured(clock, partial(way, folder / "corpus", folder / name, model))
        output_labels = labels(output)
        our_labels = our_labels or output_labels
        rows = options.rows - ROWS_OF_A_START
        results[name] = whole | {
            "start": start,
            "rows_per_s": round(rows / (whole["wall_s"] - start["wall_s"]), 2),
            "rows_per_cpu_s": round(rows / (whole["cpu_s"] - start["cpu_s"]), 2),
            "same_labels": round(
                float(np.mean(np.array(output_labels) == np.array(our_labels))), 4
            ),
        }
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    for result in results.values():
        for unit in ("rows_per_s", "rows_per_cpu_s"):
            result[f"ours_over_it_{unit}"] = round(results["ours"][unit] / result[unit], 2)
    return {"rows": options.rows, "tokens": tokens, "longest": options.longest, "ways": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the longest text")
    parser.add_argument("--layers", type=int, help="of a model of base width (default: the demo's)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    # Ray's tasks that read and write need CPUs beside those of the actors: with 2 they wait.
    ray.init("local", num_cpus=ACTORS + 2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), CLASSIFIER
        if options.layers:
            model = base_checkpoint(folder / "model", options.layers)
        result = compare(model, folder, options) | machine()
    ray.shutdown()
    print(json.dumps(result, indent=1))
    if options.save:
        file = RESULTS / "naive_ray.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept[f"base width, {options.layers} layers" if options.layers else "demo"] = result
        file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
