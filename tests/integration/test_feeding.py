"""A GPU is fed: as many readers as it takes run beside its actor, and few cores are no reason to wait for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import standin_gpu
from commands import run_job
from conftest import own_ray

from pipelines.corpus import execute
from pipelines.raydata import placement

pytestmark = pytest.mark.slow
SHARDS, ROWS = 48, 64


def stand_in(cpus: int) -> AbstractContextManager[None]:
    """A Ray with a stand-in GPU and so many CPUs."""
    hook = {"worker_process_setup_hook": standin_gpu.install}
    return own_ray(num_cpus=cpus, num_gpus=1, include_dashboard=False, runtime_env=hook)


@pytest.fixture(scope="module")
def eight_cores() -> Iterator[None]:
    with stand_in(cpus=8):
        yield


def run(folder: Path, checkpoint: Path, monkeypatch, shards: int = SHARDS) -> float:
    """Run a job and return the share of its actor's time that it was idle."""
    monkeypatch.setattr("pipelines.input.plan.MAX_SHARD_ROWS", ROWS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    texts = ["the cat sat on the mat and then the other cat"] * (ROWS * shards)
    pq.write_table(
        pa.table({"id": range(len(texts)), "text": texts}),
        folder / "in.parquet",
        row_group_size=4096,
    )
    options = {"input": folder / "in.parquet", "output": folder / "out", "model": checkpoint}
    assert run_job("classify", **options, device="cuda", keep_columns=["id"]) == 0
    with pa.memory_map(str(folder / "out/_shards.arrow")) as file:
        stats = pa.ipc.open_file(file).read_all().sort_by("committed_at")
    assert len(stats) == shards
    assert pq.read_table(folder / "out")["id"].to_pylist() == list(range(len(texts)))
    middle = stats.slice(
        shards // 4, shards // 2
    )  # once readers are up, and before they run out of shards
    waited, predicted = (sum(middle[name].to_pylist()) for name in ("waited_s", "predict_s"))
    return waited / (waited + predicted)


def test_readers_keep_a_gpu_busy(eight_cores, checkpoint, tmp_path, monkeypatch):
    assert run(tmp_path, checkpoint, monkeypatch) < 0.6


def test_one_reader_would_starve_it(eight_cores, checkpoint, tmp_path, monkeypatch):
    """The bound above means something: what a single reader feeds is idle three quarters of the time."""
    monkeypatch.setattr(execute, "stage_cpus", lambda _: (5, 1, 0.5))
    assert run(tmp_path, checkpoint, monkeypatch, shards=8) > 0.7


def test_one_core_for_all_is_enough_and_said_to_be_few(checkpoint, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "pipelines.raydata.placement"), stand_in(cpus=1):
        run(tmp_path, checkpoint, monkeypatch, shards=4)
    (line,) = [
        record.getMessage() for record in caplog.records if record.name == placement.__name__
    ]
    assert line.startswith("the Ray cluster has 1 CPU for 1 GPU; ")
