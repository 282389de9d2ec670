"""How fast text files are staged, on one core, and the memory that it takes: `python benchmarks/staging.py --mb 1000`.

Texts of 20 to 300 words with a whole number, a float and a date, as JSON lines, gzip of these, and CSV with quotes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import platform
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines.input.formats import file_format
from pipelines.input.staging import StageTask, stage
from pipelines.input.text import TextOptions
from pipelines.storage import Folder

FILES = ("x.jsonl", "x.jsonl.gz", "x.csv")


def rows() -> Iterator[dict[str, Any]]:
    """Yield rows without end, the same in each run."""
    dice = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    texts = [
        " ".join(dice.choices(words, k=dice.choice([20, 60, 120, 300]))) + ' "x", y'
        for _ in range(20_000)
    ]
    number = 0
    while True:
        yield {
            "id": number,
            "text": texts[number % len(texts)],
            "score": dice.random(),
            "day": "2024-05-06T10:00:00Z",
        }
        number += 1


def write(path: Path, size: int) -> None:
    """Write a file of `size` bytes, before compression."""
    compressed = path.suffix == ".gz"
    with (
        gzip.open(path, "wt", compresslevel=1) if compressed else path.open("w", newline="") as file
    ):
        writer, written = csv.writer(file), 0
        if path.suffix == ".csv":
            writer.writerow(["id", "text", "score", "day"])
        for row in rows():
            line = json.dumps(row) + "\n"
            written += len(line)
            if path.suffix == ".csv":
                writer.writerow(row.values())
            else:
                file.write(line)
            if written >= size:
                return


def measure(path: Path, size: int) -> dict[str, Any]:
    """Stage a file in this process, which must be a new one, and return what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    task = StageTask(str(path), file_format(path.name) or "", "x")
    staged = stage(str(path), Folder.at(str(path.parent / "output")), task, TextOptions())
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    shutil.rmtree(path.parent / "output")
    return {
        "file": path.name,
        "rows": staged.rows,
        "mb_per_cpu_s": round(size / 1e6 / cpu, 1),
        "peak_mib": peak >> 10,
    }


def main() -> None:
    """Measure each file, print a line each, and write all to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1000, help="size of a file before compression")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            path = Path(folder, name)
            write(path, options.mb * 10**6)
            with get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(measure, (path, options.mb * 10**6)))
            path.unlink()
            print(json.dumps(results[-1]), flush=True)
    if options.out:
        figures = {"machine": platform.machine(), "mb": options.mb, "results": results}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
