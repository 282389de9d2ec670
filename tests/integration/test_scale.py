"""What a hundred thousand shards cost the driver, and benchmarks/scale.py at a size for two cores.

The whole sizes, 32 actors and 100,000 shards, are in benchmarks/results; they take minutes and a machine of their own.
That actors of several nodes are at work at once, test_shared_clusters.py counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from conftest import HEAD_ENVIRONMENT, REPOSITORY, SOAK

from pipelines.corpus.execute import MAX_SHARDS, Execution
from pipelines.corpus.pipeline import Pool
from pipelines.input.shards import Piece, Shard
from pipelines.storage import Folder

in_the_soak = pytest.mark.skipif(not SOAK, reason="a minute of a benchmark: .ci/soak runs it")

SHARDS = 100_000
COMMITTED = 2_000
"""Of as many the driver's memory is measured: it grows by the same for each."""


def stats_of(name: str) -> dict:
    """What the commit of a shard of 4,096 rows reports, with 40 labels."""
    return {
        "name": name, "rows": 4096, "labelled": 4090, "tokens": 300_000, "windows": 4090,
        "padded_tokens": 300_000, "truncated": 3, "items": 0, "item_bytes": 0, "replaced": 0,
        "lengths": [0] * 6 + [4090] + [0] * 11, "scores": [204] * 20, "rejects": {"text is null": 6},
        "labels": {f"label-{i}": 102 for i in range(40)}, "batches": 5, "room": 327_680,
        "predict_s": 0.2, "tokenise_s": 0.6, "waited_s": 0.0,
    }  # fmt: skip


def test_a_hundred_thousand_shards_are_rounds_of_few_and_little_memory(tmp_path, monkeypatch):
    """Ray Data keeps figures of the shards of a round, and the driver those of all: under 1 GB.

    What a driver takes in all, the benchmark below measures.
    """
    shards = [
        Shard(f"{i:06}", "parquet", (Piece("in", "in", "0", 4096 * i, 4096),))
        for i in range(SHARDS)
    ]
    job = SimpleNamespace(device="cpu", folder=Folder.at(str(tmp_path)), attempt_id="scale")
    execution = Execution(job, shards, None, lambda: None)
    rounds = []

    def run_round(self, round_, pool, watch):
        rounds.append(list(round_.shards))
        return []

    monkeypatch.setattr(Execution, "_run_round", run_round)
    execution._run_rounds(Pool(32, 32, cores_per_actor=1), None)
    assert max(map(len, rounds)) <= MAX_SHARDS
    assert [shard for each in rounds for shard in each] == shards

    committed = [json.dumps(stats_of(shard.name)) for shard in shards[:COMMITTED]]
    of_arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        for stats in committed:
            execution.add_committed(json.loads(stats))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown += pa.total_allocated_bytes() - of_arrow
    assert execution.tally.rows == 4096 * COMMITTED
    assert grown * (SHARDS / COMMITTED) < 500e6


def benchmark(folder: Path, *arguments: object) -> dict:
    command = [
        sys.executable,
        "benchmarks/scale.py",
        *map(str, arguments),
        "--out",
        str(folder / "out.json"),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
@in_the_soak
def test_the_benchmark_of_busy_actors_runs(tmp_path):
    """How busy they are is a matter of the clock: benchmarks/README.md has it."""
    figures = benchmark(
        tmp_path, "busy", "--nodes", 2, "--gpus", 2, "--seconds", 6, "--shards-each", 6
    )
    assert (figures["actors"], figures["shards"]) == (4, 24)
    assert 0 < figures["busy"] <= 1


@pytest.mark.slow
@in_the_soak
def test_shards_cost_the_driver_little(tmp_path):
    """Memory of the driver at 100,000 shards, from what 2,000 more take than the first 1,000: under 1 GB.

    The first ones are not counted: with them come what Ray Data takes for itself, and its imports.
    """
    most = {}
    for shards in (1000, 3000):
        figures = benchmark(tmp_path, "shards", "--shards", shards)
        assert figures["shards"] == shards
        most[shards] = figures["streaming"]["driver_rss_mb"]
    each = (most[3000] - most[1000]) / 2000
    assert most[3000] + each * (100_000 - 3000) < 1000, most
