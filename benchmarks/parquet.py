"""What reading shards in place costs beside pyarrow's own reading: `python benchmarks/parquet.py --mb 2000`.

One Parquet file of one row group, of which two columns of four are read, each way in a process of its own, in turn;
then 60 rows of wide files, and shards of Arrow files of many record batches.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.formats import FORMATS
from pipelines.input.shards import BLOCK_ROWS

Figures: TypeAlias = dict[str, float]

COLUMNS = ["id", "text"]
WIDE = (500, 2_000, 3_000)


def batches() -> Iterator[pa.RecordBatch]:
    """Yield rows without end: an id, a text of 20 to 300 words, another, and a number."""
    dice = random.Random(0)
    words = [f"w{dice.getrandbits(40):x}" for _ in range(5000)]
    texts = [" ".join(dice.choices(words, k=dice.choice([20, 60, 120, 300]))) for _ in range(5000)]
    start = 0
    while True:
        ids = range(start, start + BLOCK_ROWS)
        own = [f"{i} {texts[i * 7 % len(texts)]}" for i in ids]
        columns = {
            "id": pa.array(ids),
            "text": pa.array(own),
            "other": pa.array([text[::-1] for text in own]),
            "score": pa.array(np.random.default_rng(start).random(len(own))),
        }
        yield pa.record_batch(columns)
        start += BLOCK_ROWS


def write_one_group(path: Path, size: int) -> None:
    """Write a Parquet file of one row group, of about `size` bytes in memory."""
    written: list[pa.RecordBatch] = []
    written_bytes = 0
    for batch in batches():
        written.append(batch)
        written_bytes += batch.nbytes
        if written_bytes >= size:
            break
    table = pa.Table.from_batches(written)
    pq.write_table(table, path, row_group_size=len(table))


def ours(path: str) -> int:
    """Read all shards of a file, as a task does, one after the other."""
    filesystem = fs.LocalFileSystem()
    format_ = FORMATS["ipc" if path.endswith(".arrow") else "parquet"]
    assert format_.inspect is not None
    assert format_.read is not None
    found = format_.inspect(filesystem, path, frozenset(COLUMNS), frozenset(["text"]))
    assert found is not None
    scan, _ = found
    starts = range(0, scan.rows, BLOCK_ROWS)
    ranges = [(start, min(BLOCK_ROWS, scan.rows - start)) for start in starts]
    return sum(len(table) for table in format_.read(filesystem, path, ranges, COLUMNS))


def read_table(path: str) -> int:
    """Read the columns with pyarrow, all rows at once."""
    return len(pq.read_table(path, columns=COLUMNS, use_threads=False))


def iter_batches(path: str) -> int:
    """Read the columns with pyarrow, as it streams them by default."""
    file = pq.ParquetFile(path)
    return sum(len(batch) for batch in file.iter_batches(columns=COLUMNS, use_threads=False))


def peak_kib() -> int:
    """Return the most memory that this process has had; `getrusage` counts its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure(way: Callable[[str], int], path: str) -> Figures:
    """Read a file in this process, which must be a new one, and return what it took."""
    before = peak_kib()
    cpu, started = time.process_time(), time.perf_counter()
    rows = way(path)
    return {
        "rows": rows,
        "cpu_s": time.process_time() - cpu,
        "seconds": time.perf_counter() - started,
        "peak_mib": (peak_kib() - before) >> 10,
    }


def measure_in_new_process(way: Callable[[str], int], path: Path) -> Figures:
    """Measure one way to read a file, without what other ways have left in memory."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (way, str(path)))


def one_group(folder: Path, size: int, rounds: int) -> dict[str, object]:
    """Compare the ways on a file of one row group, in turn."""
    path = folder / "one_group.parquet"
    with get_context("spawn").Pool(1) as pool:
        pool.apply(write_one_group, (path, size))
    ways = {"ours": ours, "read_table": read_table, "iter_batches": iter_batches}
    taken: dict[str, list[Figures]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(measure_in_new_process(way, path))
    metadata = pq.read_metadata(path)
    result: dict[str, object] = {
        "file_mb": path.stat().st_size // 10**6,
        "row_groups": metadata.num_row_groups,
        "rows": metadata.num_rows,
    }
    for name, figures in taken.items():
        result[name] = {
            "cpu_s": [round(each["cpu_s"], 2) for each in figures],
            "seconds": [round(each["seconds"], 2) for each in figures],
            "peak_mib": max(each["peak_mib"] for each in figures),
        }
    for name in ("read_table", "iter_batches"):
        ratios = [
            own["cpu_s"] / other["cpu_s"]
            for own, other in zip(taken["ours"], taken[name], strict=True)
        ]
        result[f"cpu_ratio_to_{name}"] = round(statistics.median(ratios), 2)
    path.unlink()
    return result


def best_s(read: Callable[[], object]) -> float:
    """Return the shortest of five times that reading takes, in seconds."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - started)
    return round(min(seconds), 4)


def wide(folder: Path, columns: int) -> dict[str, object]:
    """Read 60 rows of a file of many columns: two of them, and all."""
    path = str(folder / "wide.parquet")
    numbers = {f"c{i}": np.zeros(6000, np.float32) for i in range(columns - 2)}
    rows = {"id": range(6000), "text": [f"t{i}" for i in range(6000)], **numbers}
    pq.write_table(pa.table(rows), path, row_group_size=1000)
    read = FORMATS["parquet"].read
    assert read is not None
    result: dict[str, object] = {"columns": columns}
    for what, names in (("two", COLUMNS), ("all", list(rows))):
        result[f"{what}_s"] = best_s(
            lambda names=names: list(read(fs.LocalFileSystem(), path, [(2000, 60)], names))
        )
        result[f"{what}_pyarrow_s"] = best_s(
            lambda names=names: pq.ParquetFile(path).read_row_group(2, names).slice(0, 60)
        )
    return result


def many_batches(folder: Path, count: int) -> dict[str, object]:
    """Read all shards of an Arrow file of many record batches of 50 rows."""
    path = folder / "many.arrow"
    batch = pa.record_batch({"id": range(50), "text": [f"t{i} " * 50 for i in range(50)]})
    with pa.ipc.new_file(path, batch.schema) as writer:
        for _ in range(count):
            writer.write_batch(batch)
    return {
        "batches": count,
        "all_shards_s": best_s(lambda: ours(str(path))),
        "pyarrow_s": best_s(lambda: pa.ipc.open_file(pa.OSFile(str(path))).read_all()),
    }


def main() -> None:
    """Measure, print a line for each file, and write all to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=2000, help="size of the row group in memory")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way reads it")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    results: dict[str, object] = {"machine": platform.machine(), "mb": options.mb}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results["one_group"] = one_group(folder, options.mb * 10**6, options.rounds)
        print(json.dumps(results["one_group"]), flush=True)
        results["wide"] = [wide(folder, columns) for columns in WIDE]
        print(json.dumps(results["wide"]), flush=True)
        results["arrow"] = [many_batches(folder, count) for count in (1_000, 10_000)]
        print(json.dumps(results["arrow"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
