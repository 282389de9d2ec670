"""A GPU is fed: as many readers as it takes run beside its actor, and few cores are no reason to wait forever."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import standin_gpu
from commands import run_job
from conftest import own_ray

from pipelines.corpus import pipeline
from pipelines.raydata import placement

pytestmark = pytest.mark.slow
ROWS = 64


def stand_in(cpus: int, readers: Path) -> AbstractContextManager[None]:
    """A Ray with a stand-in GPU and so many CPUs, whose readers leave word of each other in a folder."""
    hook = {
        "worker_process_setup_hook": standin_gpu.install,
        "env_vars": {standin_gpu.READERS: str(readers)},
    }
    return own_ray(num_cpus=cpus, num_gpus=1, include_dashboard=False, runtime_env=hook)


@pytest.fixture(scope="module")
def eight_cores(tmp_path_factory) -> Iterator[Path]:
    """A Ray of eight CPUs; the folder of its readers."""
    readers = tmp_path_factory.mktemp("readers")
    with stand_in(cpus=8, readers=readers):
        yield readers


@pytest.fixture
def readers(eight_cores) -> Path:
    """The folder of the readers, empty."""
    for path in eight_cores.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return eight_cores


def run(folder: Path, checkpoint: Path, monkeypatch, shards: int) -> None:
    """Run a job of so many shards, and check that each row is there once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    texts = ["the cat sat on the mat and then the other cat"] * (ROWS * shards)
    table = pa.table({"id": range(len(texts)), "text": texts})
    pq.write_table(table, folder / "in.parquet", row_group_size=4096)
    options = {"input": folder / "in.parquet", "output": folder / "out", "model": checkpoint}
    assert (
        run_job("classify", **options, device="cuda", keep_columns=["id"], rows_per_file=ROWS) == 0
    )
    with pa.memory_map(str(folder / "out/_shards.arrow")) as file:
        assert len(pa.ipc.open_file(file).read_all()) == shards
    assert pq.read_table(folder / "out")["id"].to_pylist() == list(range(len(texts)))


def at_once(readers: Path) -> int:
    """The most readers that were at work at one time."""
    return max(int(path.name.removeprefix("at-once-")) for path in readers.glob("at-once-*"))


def test_as_many_readers_as_feed_a_gpu_run_beside_it(readers, checkpoint, tmp_path, monkeypatch):
    """From the first shard to the last, and not only at first: each reader waits until all of its group are there.

    How busy a GPU is then, benchmarks/feeding.py measures.
    """
    (readers / standin_gpu.MEET).touch()
    shards = 4 * standin_gpu.GPU_READERS
    run(tmp_path, checkpoint, monkeypatch, shards)
    assert len(list((readers / "entries").iterdir())) == shards
    assert not list(readers.glob("starved-*"))
    assert at_once(readers) >= standin_gpu.GPU_READERS


def test_a_reader_that_takes_most_cores_is_alone(readers, checkpoint, tmp_path, monkeypatch):
    """What the test above sees is the plan of CPUs for each stage: with another one, a GPU has a single reader."""
    monkeypatch.setattr(pipeline, "stage_cpus", lambda _: (5, 1, 0.5))
    run(tmp_path, checkpoint, monkeypatch, shards=8)
    assert at_once(readers) == 1


def test_one_core_for_all_is_enough_and_said_to_be_few(checkpoint, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "pipelines.raydata.placement"), stand_in(1, tmp_path):
        run(tmp_path, checkpoint, monkeypatch, shards=4)
    (line,) = [
        record.getMessage() for record in caplog.records if record.name == placement.__name__
    ]
    assert line.startswith("the Ray cluster has 1 CPU for 1 GPU; ")
