"""Memory stays bounded: with ten times the corpus, and with one huge text among short ones."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, RayHead

from pipelines.input.cutting import ShardSize
from pipelines.input.inspection import inspect_input
from pipelines.input.plan import cut
from pipelines.input.text import TextOptions
from pipelines.storage import Location

JOBS = REPOSITORY / "jobs"
SMALL_SHARDS = Path(__file__).with_name("small_shards.py")


def peaks(command: list, head: RayHead) -> dict[str, int]:
    """Run a job; the most bytes of its own that its driver, its actor, its readers and committers each had at a time.

    Of its own: without pages that processes share, such as those of libraries and of Ray's object store.
    """
    environment = head.environment | {"MODERNBERT_ACTORS": "1"}
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    most: dict[str, int] = {}
    while job.poll() is None:
        for process in [
            psutil.Process(job.pid),
            *psutil.Process(head.process.pid).children(recursive=True),
        ]:
            try:
                name = (
                    "driver" if process.pid == job.pid else process.cmdline()[0].partition("(")[0]
                )
                if name == "driver" or name.startswith("ray::Map"):
                    memory = process.memory_full_info().uss
                    most[name] = max(most.get(name, 0), memory)
            except (psutil.Error, IndexError):
                continue
        time.sleep(0.25)  # reading the pages of a process takes a part of a core
    assert job.returncode == 0, job.communicate()[0]
    return most


def write(folder: Path, files: int) -> Path:
    """Files of 512 short texts in shuffled lengths, a shard each, as large a corpus as there are files."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    for i in range(files):
        texts = ["the cat sat on the mat " * n for n in dice.integers(1, 4, 512)]
        pq.write_table(
            pa.table({"id": range(512 * i, 512 * (i + 1)), "text": texts}),
            folder / f"{i:02}.parquet",
        )
    return folder


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path, checkpoint, ray_head):
    """Of 4 shards and of 40: the peak of each kind of process within 20%.

    What bounds memory is the shard, whatever its size: these have 512 rows in place of 4,096, so that the run is short.
    """
    found = []
    for files in (4, 40):
        source = write(tmp_path / f"in{files}", files)
        command = [sys.executable, SMALL_SHARDS, "--input", source, "--model", checkpoint]
        found.append(peaks([*command, "--output", tmp_path / f"out{files}"], ray_head))
    small, large = found
    print(small, large)
    assert small.keys() == large.keys()
    assert len(small) >= 3
    for name, memory in large.items():
        assert memory < 1.2 * small[name], (name, small, large)


@pytest.mark.slow
def test_one_huge_text_among_short_ones(tmp_path, checkpoint, ray_head):
    """50 MB: set aside by a task that would read it in windows, labelled from its start by one that truncates."""
    texts = ["the cat sat"] * 2000
    texts[700] = "the cat sat on the mat and " * (50 * 2**20 // 27)
    pq.write_table(pa.table({"id": range(2000), "text": texts}), tmp_path / "in.parquet")
    command = [
        sys.executable,
        JOBS / "classify_corpus.py",
        "--input",
        tmp_path / "in.parquet",
        "--model",
        checkpoint,
    ]
    for policy in ("truncate", "windows"):
        out = tmp_path / policy
        for memory in peaks(
            [*command, "--output", out, "--long-documents", policy], ray_head
        ).values():
            assert memory < 2**30  # read whole, it takes 6 GB
        rows = ds.dataset(out).to_table()
        if policy == "truncate":
            assert rows["id"].to_pylist() == list(range(2000))
            assert rows["truncated"].to_pylist() == [i == 700 for i in range(2000)]
            assert rows["n_tokens"][700].as_py() == 8192
        else:
            assert rows["id"].to_pylist() == [i for i in range(2000) if i != 700]
            rejected = pq.read_table(out / "_rejected")
            assert rejected["_reason"].to_pylist() == ["longer than --max-characters 5000000"]
            assert len(rejected["text"][0].as_py()) == len(texts[700])


def test_shards_of_large_rows_have_fewer_of_them(tmp_path):
    for name, size in (("small", 10), ("large", 100_000)):
        texts = [f"{i:05}" * (size // 5) for i in range(1000)]
        pq.write_table(
            pa.table({"text": texts}), tmp_path / f"{name}.parquet", use_dictionary=False
        )
    size = ShardSize(rows=4096, text_bytes=1 << 40, bytes=32 << 20, rows_per_file=4096)
    shards = cut(inspect_input(Location.of_user(str(tmp_path)), TextOptions()), size).shards
    rows = Counter((Path(shard.pieces[0].path).name, shard.rows) for shard in shards)
    assert rows == {
        ("small.parquet", 1000): 1,
        ("large.parquet", 335): 2,
        ("large.parquet", 330): 1,
    }
