"""Steps of a Ray Dataset beside each other on few cores, and what Ray Data makes of their rows."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import standin_gpu
from arrow_types import columns_of_every_type
from conftest import SOAK, own_ray
from ray.data import DataContext, Dataset
from ray.exceptions import RayTaskError

from pipelines import processor
from pipelines.dataset import step_actors
from pipelines.raydata.actor import Predict

pytestmark = pytest.mark.slow
MODELS = Path(__file__).parents[2] / "jobs/demo"
CLASSIFIER, ENCODER = str(MODELS / "intent-classifier"), str(MODELS / "sentence-encoder")
ROWS = 600


def messages(folder: Path) -> Path:
    """Two files, in blocks that are no multiples of each other."""
    texts = [f"wake me up at {row} o'clock" if row % 50 else None for row in range(ROWS)]
    for first, last in ((0, 250), (250, ROWS)):
        pq.write_table(
            pa.table({"id": range(first, last), "text": texts[first:last]}),
            folder / f"{first:03}.parquet",
        )
    return folder


def classify(**options: Any) -> Any:
    return processor("classify", CLASSIFIER, batch_rows=64, **options)


def embed(**options: Any) -> Any:
    return processor("embed", ENCODER, prefix="e_", batch_rows=64, **options)


def check(dataset: Dataset, *prefixes: str) -> None:
    """Check that every row is there, in order, with the reason that each step has for those without an answer."""
    DataContext.get_current().enable_progress_bars = False
    table = pa.concat_tables(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    assert table["id"].to_pylist() == list(range(ROWS))
    for prefix in prefixes:
        assert table[f"{prefix}error"].to_pylist() == [
            None if row % 50 else "text is null" for row in range(ROWS)
        ]


@pytest.fixture(scope="module")
def two_cores():
    """A Ray that serialises columns as it does for users: in tests it refuses those that it has no fast way for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.arrow_serialization.is_in_test", lambda: False)
        patch.delenv("PYTEST_CURRENT_TEST")
        with own_ray(num_cpus=2, include_dashboard=False):
            yield


# What each way to say it stands for is in tests/unit/test_step.py.
@pytest.mark.parametrize(
    "options",
    [
        [{"actors": (2, 2)}, {}, {"actors": (2, 2)}],
        *([[{}, {}], [{"actors": (2, 2)}] * 2, [{"concurrency": 2}] * 2] if SOAK else []),
    ],
)
def test_steps_of_fixed_and_of_growing_pools_run_in_one_pipeline_on_two_cores(
    options, two_cores, tmp_path
):
    dataset = ray.data.read_parquet(str(messages(tmp_path)))
    context = dataset.context
    steps = [classify, embed, partial(classify, prefix="c_")]
    for step, of_step in zip(steps, options, strict=False):
        dataset = step(**of_step)(dataset)
    check(dataset, *["", "e_", "c_"][: len(options)])
    assert not context.custom_execution_callback_classes  # the caller's dataset is as it was


def test_a_dataset_of_one_block_has_work_for_each_actor(two_cores, tmp_path, monkeypatch):
    class TogetherAlone(Predict):
        """Answers once two actors have work."""

        until = float("inf")

        def __call__(self, table: pa.Table) -> pa.Table:
            (tmp_path / str(os.getpid())).touch()
            self.until = min(self.until, time.monotonic() + 30)
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < self.until:
                time.sleep(0.05)
            return super().__call__(table)

    monkeypatch.setattr("pipelines.dataset.processor.Predict", TogetherAlone)
    table = pa.table(
        {"id": range(ROWS), "text": [f"text {row}" if row % 50 else None for row in range(ROWS)]}
    )
    check(classify(actors=(2, 2))(ray.data.from_arrow(table)), "")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_without_an_actor_says_so_and_goes_on(two_cores, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(step_actors, "_SAID_EVERY_S", 1.0)

    @ray.remote(num_cpus=2)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    ray.get(other.ready.remote())
    timer = threading.Timer(4, ray.kill, [other])
    timer.start()
    with caplog.at_level(logging.WARNING, step_actors.logger.name):
        check(classify()(ray.data.read_parquet(str(messages(tmp_path)))), "")
    timer.join()
    assert {
        record.getMessage() for record in caplog.records if record.name == step_actors.logger.name
    } == {
        "MapBatches(Predict) has no actor yet, for want of a place or because its model still loads: the Ray cluster "
        "has 2 CPUs and 0 GPUs"
    }


def test_an_error_in_a_worker_has_one_line_of_ours(two_cores):
    """The columns of what a function gives are not known before it runs; Ray puts lines of its own around."""
    renamed = ray.data.range(3).map_batches(
        lambda _: pa.table({"body": ["a"]}), batch_format="pyarrow"
    )
    with pytest.raises(RayTaskError) as raised:
        classify()(renamed).materialize()
    assert (
        str(raised.value)
        .splitlines()
        .count("ValueError: column 'text' is missing; the dataset has body")
        == 1
    )


def test_columns_of_every_type_pass_through_ray(two_cores):
    columns = columns_of_every_type(rows=8)
    table = pa.table({"text": ["hello", None, "", "bye"] * 2, **columns})
    blocks = ray.data.from_arrow([table.slice(0, 3), table.slice(3)])
    step = processor("classify", CLASSIFIER, prefix="p_", batch_rows=4)
    got = pa.concat_tables(step(blocks).iter_batches(batch_format="pyarrow", batch_size=None))
    for name, column in columns.items():
        assert got[name].type == column.type, name
        assert got[name].to_pylist() == column.to_pylist(), name


def test_two_steps_share_one_gpu(tmp_path, monkeypatch):
    """On a GPU that Ray believes in, with a stand-in for the model."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    hook = {"worker_process_setup_hook": standin_gpu.install_quick}
    with own_ray(num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env=hook):
        dataset = ray.data.read_parquet(str(messages(tmp_path)))
        check(classify(device="cuda", prefix="c_")(classify(device="cuda")(dataset)), "", "c_")


def test_three_steps_run_on_one_core(tmp_path):
    with own_ray(num_cpus=1, include_dashboard=False):
        steps = [classify(), embed(), classify(prefix="c_")]
        dataset = ray.data.read_parquet(str(messages(tmp_path)))
        for step in steps:
            dataset = step(dataset)
        check(dataset, "", "e_", "c_")
