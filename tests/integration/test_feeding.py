"""A GPU is fed: as many readers as it takes run beside its actor, and few cores are no reason to wait for ever."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import standin_gpu
from commands import run_job

from pipelines.corpus import execute, placement

pytestmark = pytest.mark.slow
SHARDS, ROWS = 48, 64


def run(folder: Path, checkpoint: Path, monkeypatch, cpus: int, shards: int = SHARDS) -> float:
    """Run a job with a stand-in GPU and return the share of its actor's time that it was idle."""
    import ray

    monkeypatch.setattr("pipelines.input.plan.MAX_SHARD_ROWS", ROWS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    texts = ["the cat sat on the mat and then the other cat"] * (ROWS * shards)
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), folder / "in.parquet", row_group_size=4096)
    hook = {"worker_process_setup_hook": standin_gpu.install}
    ray.init("local", num_cpus=cpus, num_gpus=1, log_to_driver=False, logging_level="ERROR", runtime_env=hook)
    try:
        options = {"input": folder / "in.parquet", "output": folder / "out", "model": checkpoint}
        assert run_job("classify", **options, device="cuda", keep_columns=["id"]) == 0
    finally:
        ray.shutdown()
    with pa.memory_map(str(folder / "out/_shards.arrow")) as file:
        stats = pa.ipc.open_file(file).read_all().sort_by("committed_at")
    assert len(stats) == shards
    assert pq.read_table(folder / "out")["id"].to_pylist() == list(range(len(texts)))
    middle = stats.slice(shards // 4, shards // 2)  # once readers are up, and before they run out of shards
    waited, predicted = (sum(middle[name].to_pylist()) for name in ("waited_s", "predict_s"))
    return waited / (waited + predicted)


def test_readers_keep_a_gpu_busy(checkpoint, tmp_path, monkeypatch):
    assert run(tmp_path, checkpoint, monkeypatch, cpus=8) < 0.6


def test_one_reader_would_starve_it(checkpoint, tmp_path, monkeypatch):
    """The bound above means something: what a single reader feeds is idle three quarters of the time."""
    monkeypatch.setattr(execute, "stage_cpus", lambda _: (5, 1, 0.5))
    assert run(tmp_path, checkpoint, monkeypatch, cpus=8, shards=8) > 0.7


def test_one_core_for_all_is_enough_and_said_to_be_few(checkpoint, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "pipelines.corpus.placement"):
        run(tmp_path, checkpoint, monkeypatch, cpus=1, shards=4)
    (line,) = [record.getMessage() for record in caplog.records if record.name == placement.__name__]
    assert line.startswith("the Ray cluster has 1 CPU for 1 GPU; ")
