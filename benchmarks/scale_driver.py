"""What a run of millions of shards costs its driver beside Ray: memory and CPU time of its beginning and its end.

    python benchmarks/scale_driver.py 10000 100000 2400000 --out benchmarks/results/scale_driver.json

No model and no Ray: names stand in for the parts, so that the reading of a folder is not in the figures. What would be
reported of each shard is made here for the first 100,000; the segments of the others are written at once. A first run
does all shards; a second one has nothing to do. Each number of shards is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from pipelines.corpus.execute import MAX_SHARDS
from pipelines.corpus.figures import ShardFigures
from pipelines.input.corpus import CUT, Corpus, Shards
from pipelines.input.shards import DataFile, Scan, Shard
from pipelines.output import folder as output
from pipelines.output import shard_stats
from pipelines.output.parts import Listing, list_parts
from pipelines.output.record import PARTS, Attempt, RunRecord
from pipelines.output.shard_stats import count_windows
from pipelines.output.shards_file import SEGMENTS, SegmentWriter, packed, write_shard_stats
from pipelines.report.html import render
from pipelines.storage import Folder

REPORTED = 100_000
WINDOWS = count_windows(np.full(4090, 73))


def stats_of(name: str) -> dict[str, Any]:
    """Return the stats of a shard of 4,096 rows."""
    stats = {"name": name, "rows": 4096, "labelled": 4090, "tokens": 300_000, "truncated": 3}
    stats |= {"scores": [204] * 20, "rejects": {"text is null": 6}} | WINDOWS
    stats |= {
        "labels": {f"label-{i}": 102 for i in range(40)},
        "batches": 5,
        "room": 327_680,
        "committed_at": time.time(),
    }
    return stats | {"predict_s": 0.2, "tokenise_s": 0.6, "waited_s": 0.0}


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """Yield figures of this process, which are there when the block ends: its CPU time and its largest memory."""
    figures = dict[str, float]()
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # from now on, the largest memory is that of the block
    started, cpu = time.monotonic(), time.process_time()
    yield figures
    figures["seconds"] = time.monotonic() - started
    figures["cpu_s"] = time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    figures["peak_rss_mb"] = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def driver(shards: int) -> dict[str, Any]:
    """Return what a run of so many shards costs its driver beside Ray, and then a run that has nothing to do."""
    folder = Folder(tempfile.mkdtemp(prefix="scale"))
    each = 1000
    files = [
        (DataFile(f"in/{n:05}.parquet", "0123abcd", Scan(4096 * each, 1), f"{n:05}.parquet"), ())
        for n in range(-(-shards // each))
    ]
    figures: dict[str, Any] = {"shards": shards}
    record = RunRecord({}, parts=PARTS)
    try:
        with peak() as figures["plan"]:
            cuts = np.zeros(shards, CUT)
            cuts["file"], cuts["start"] = np.divmod(np.arange(shards), each)
            cuts["start"] *= 4096
            cuts["rows"] = 4096
            cuts["part"] = -1
            every = Shards("parquet", files, [], cuts)
            corpus = Corpus([file for file, _ in files], "parquet", pa.schema([]), every)
        names: Any = Folder.names
        for run in ("first", "second"):
            at = datetime.now(UTC).isoformat()
            record.attempts.append(Attempt(at, None, None, None, None, "", "", None, {}, run=run))
            with peak() as figures[f"{run}: begin"]:
                with mock.patch.object(Folder, "names", names):
                    there = output.shards_there(folder, PARTS, False)
                places, there_still = output.begin_run(folder, record, corpus, there, False)
                todo = corpus.shards.take(places)
            del places
            with peak() as figures[f"{run}: stats while it runs"]:
                stats = SegmentWriter(folder, run)
                for first in range(0, min(len(todo), REPORTED), MAX_SHARDS):
                    for shard in in_order_of_commits(todo[first : first + MAX_SHARDS]):
                        stats.add(stats_of(shard.name) | {"run": run, "committed_at": time.time()})
            done = stats.totals()["shards"]
            write_segments(folder, run, todo[done:])
            names = partial(names_there, corpus)
            with (
                peak() as figures[f"{run}: end"],
                mock.patch.object(Folder, "names", names),
            ):
                finish(folder, record, stats, None if todo else there_still)
        assert record.totals["shards"] == shards
        figures["_shards.arrow_mb"] = (Path(folder.uri) / "_shards.arrow").stat().st_size / 1e6
        return figures
    finally:
        shutil.rmtree(folder.uri, ignore_errors=True)


def write_segments(folder: Folder, run: str, shards: Shards) -> None:
    """Write segments of many shards in little time: the stats of 1,024 under the names of others."""
    same = [stats_of("") | {"run": run, "committed_at": time.time()}] * 1024
    table = shard_stats.table(same)
    for first in range(0, len(shards), 1024):
        names = pa.array([shard.name for shard in shards[first : first + 1024]])
        segment = table.slice(0, len(names)).set_column(0, "name", names)
        folder.write_atomic(f"{SEGMENTS}/{run}-1{first:09d}.arrow", packed(segment))


def names_there(corpus: Corpus, below: str) -> Iterator[str]:
    """Yield the names of the parts, as the folder of so many files would."""
    if below == PARTS:
        for shard in corpus.shards:
            yield f"{shard.name}.parquet"


def in_order_of_commits(shards: Shards) -> Iterator[Shard]:
    """Yield the shards of a round as if each of 500 actors had begun with a stretch of its own."""
    stretch = -(-len(shards) // 500)
    for start in range(stretch):
        yield from shards[start::stretch]


def finish(folder: Folder, record: RunRecord, stats: SegmentWriter, there: Listing | None) -> None:
    """Do what ends a run, but for texts of the report that do not depend on shards."""
    stats.totals()
    stats.flush()
    there = list_parts(folder, PARTS) if there is None else there
    seen = ShardFigures(record.attempts)
    run = str(record.attempts[-1].run)
    missing = write_shard_stats(folder, PARTS, there, run, lambda *_: None, seen.add)
    assert not missing
    record.totals = seen.totals.result()
    record.write(folder)
    values = {"attempts": [asdict(attempt) for attempt in record.attempts]}
    page = render(values | {"throughput": seen.throughput(), "by_attempt": seen.by_attempt()})
    folder.write_atomic("_report.html", page.encode())


def main() -> None:
    """Measure each number of shards, print the figures, and write them to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=int, nargs="+")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if len(options.shards) == 1 and not options.out:
        print(json.dumps(driver(options.shards[0])))
        return
    runs = []
    for shards in options.shards:
        command = [sys.executable, __file__, str(shards)]
        runs.append(json.loads(subprocess.check_output(command)))
    figures = {"machine": f"{os.cpu_count()} cores of {platform.machine()}", "runs": runs}
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    print(json.dumps(rounded, indent=2))
    if options.out:
        options.out.write_text(json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()
