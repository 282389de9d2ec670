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
from conftest import REPOSITORY, SOAK, own_ray, readme_block
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.expressions import col

from pipelines import processor
from pipelines.dataset import execution
from pipelines.errors import UserError
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


def classify(prefix: str = "", **options: Any) -> Any:
    return processor("classify", CLASSIFIER, prefix=prefix, batch_size=64, **options)


def embed(prefix: str = "e_", **options: Any) -> Any:
    return processor("embed", ENCODER, prefix=prefix, batch_size=64, **options)


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
        [{"concurrency": (2, 2)}, {}, {"concurrency": 2}, {"concurrency": "auto"}],
        *([[{}, {}], [{"concurrency": (2, 2)}] * 3, [{"concurrency": "auto"}] * 2] if SOAK else []),
    ],
)
def test_steps_of_fixed_and_of_growing_pools_run_in_one_pipeline_on_two_cores(
    options, two_cores, tmp_path
):
    dataset = ray.data.read_parquet(str(messages(tmp_path)))
    context = dataset.context
    steps = [classify, embed, partial(classify, prefix="c_"), partial(embed, prefix="f_")]
    for step, of_step in zip(steps, options, strict=False):
        dataset = step(**of_step)(dataset)
    check(dataset, *["", "e_", "c_", "f_"][: len(options)])
    assert not context.custom_execution_callback_classes  # the caller's dataset is as it was


def test_a_dataset_of_one_block_has_work_for_each_actor(two_cores, tmp_path, monkeypatch):
    class TogetherAlone(Predict):
        """Answers once two actors have work."""

        until = float("inf")

        def __call__(self, table: pa.Table) -> pa.Table:
            assert os.environ["OF_THE_STEP"] == "as given"
            (tmp_path / str(os.getpid())).touch()
            self.until = min(self.until, time.monotonic() + 30)
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < self.until:
                time.sleep(0.05)
            return super().__call__(table)

    monkeypatch.setattr("pipelines.dataset.processor.Predict", TogetherAlone)
    table = pa.table(
        {"id": range(ROWS), "text": [f"text {row}" if row % 50 else None for row in range(ROWS)]}
    )
    environment = {"env_vars": {"OF_THE_STEP": "as given"}}
    step = classify(concurrency=(2, 2), runtime_env=environment)
    check(step(ray.data.from_arrow(table)), "")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_without_an_actor_says_so_and_goes_on(two_cores, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(execution, "_SAID_EVERY_S", 1.0)

    @ray.remote(num_cpus=2)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    ray.get(other.ready.remote())
    timer = threading.Timer(4, ray.kill, [other])
    timer.start()
    with caplog.at_level(logging.WARNING, execution.logger.name):
        check(classify()(ray.data.read_parquet(str(messages(tmp_path)))), "")
    timer.join()
    said = [each.getMessage() for each in caplog.records if each.name == execution.logger.name]
    assert said[0] == (
        "classify has no actor yet: its model still loads, or there is no room, which others may hold; the Ray cluster "
        "has 2 CPUs, 0 of them free"
    )


def test_columns_that_are_not_known_before_are_checked_before_the_first_batch(two_cores):
    """In one line, and not by a worker's traceback."""
    renamed = ray.data.range(3).map_batches(
        lambda _: pa.table({"body": ["a"]}), batch_format="pyarrow"
    )
    message = r"^column 'text' is missing; the dataset has body$"
    with pytest.raises(UserError, match=message):
        classify()(renamed).materialize()
    with pytest.raises(UserError, match=message):
        next(iter(classify()(renamed).iter_batches()))


def test_a_second_step_is_checked_when_it_gets_the_dataset_of_the_first(two_cores, tmp_path):
    """Its columns are known, though nothing has run; they are as declared once it has."""
    labelled = classify()(ray.data.read_parquet(str(messages(tmp_path))))
    declared = labelled.schema(fetch_if_missing=False)
    with pytest.raises(ValueError, match=r"^column 'n_tokens' is in the dataset already; give "):
        processor("embed", ENCODER)(labelled.filter(expr=col("score") > 0.5).limit(3))
    with pytest.raises(ValueError, match=r"^column 'score' holds float, not text; cast it, or "):
        embed(text_column="score")(labelled)
    assert labelled.take_batch(1, batch_format="pyarrow").schema == declared.base_schema


def test_actors_that_never_find_a_place_are_told_before_anything_runs(two_cores):
    class Other:
        def __call__(self, batch: Any) -> Any:
            return batch

    dataset = ray.data.from_items([{"text": "hello"}])
    held = dataset.map_batches(Other, num_cpus=2, compute=ActorPoolStrategy(size=1))
    with pytest.raises(UserError) as raised:
        classify()(held).materialize()
    assert str(raised.value) == (
        "the actors of this pipeline (MapBatches(Other), classify), and tasks between them, need 3.125 CPUs at once; "
        "the Ray cluster has 2 CPUs and 0 GPUs: give a smaller concurrency= or materialize() the dataset between steps"
    )


def test_columns_of_every_type_pass_through_ray(two_cores):
    columns = columns_of_every_type(rows=8)
    table = pa.table({"text": ["hello", None, "", "bye"] * 2, **columns})
    blocks = ray.data.from_arrow([table.slice(0, 3), table.slice(3)])
    step = processor("classify", CLASSIFIER, prefix="p_", batch_size=4)
    got = pa.concat_tables(step(blocks).iter_batches(batch_format="pyarrow", batch_size=None))
    for name, column in columns.items():
        assert got[name].type == column.type, name
        assert got[name].to_pylist() == column.to_pylist(), name


def test_two_steps_share_one_gpu(tmp_path, monkeypatch):
    """On a GPU that Ray believes in, with a stand-in for the model: a program of docs/programs.md."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    DataContext.get_current().enable_progress_bars = False
    hook = {"worker_process_setup_hook": standin_gpu.install_instant}
    there = {"num_cpus": 2, "num_gpus": 1, "resources": {"accelerator_type:L4": 1}}
    with own_ray(**there, include_dashboard=False, runtime_env=hook):
        program = readme_block("fractions-of-a-gpu", "docs/programs.md")
        program = program.replace("jobs/demo/", f"{REPOSITORY}/jobs/demo/")
        exec(program.replace('"enriched/"', f'"{tmp_path}/enriched"'), {})
        got = pq.read_table(tmp_path / "enriched")
        assert (len(got), got["label"].null_count) == (300, 3)
        # A text that is not UTF-8 can be read by what comes after the first step.
        assert got["vector_embedding"].null_count == 2

        dataset = ray.data.from_items([{"text": "hello"}])
        (row,) = classify(accelerator_type="L4")(dataset).take_all()
        assert row["error"] is None
        too_much = classify(num_gpus=1, prefix="c_")(classify(num_gpus=0.5)(dataset))
        needs = r"^the actors of this pipeline \(classify, classify\) need 1\.5 GPUs at once; "
        with pytest.raises(UserError, match=needs):
            too_much.materialize()


def test_two_steps_run_on_one_core(tmp_path):
    with own_ray(num_cpus=1, include_dashboard=False):
        check(embed()(classify()(ray.data.read_parquet(str(messages(tmp_path))))), "", "e_")
