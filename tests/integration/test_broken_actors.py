"""A model that raises or does not load, a device that breaks: no row is rejected for what a machine does."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path

import broken_workers
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
from commands import run_job
from conftest import SOAK, joined_ray

from modernbert.text.tokenizer import Tokenizer
from pipelines.corpus import execute, retries
from pipelines.errors import JobError

ROWS = 10
in_the_soak = pytest.mark.skipif(not SOAK, reason="alike to another case: .ci/soak runs it")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ray_head) -> Iterator[Path]:
    """The head with workers that have the faults of broken_workers.py, and the folder whose file `fault` names one."""
    folder = tmp_path_factory.mktemp("faults")
    hook = {
        "worker_process_setup_hook": broken_workers.install,
        "env_vars": {broken_workers.FAULT: str(folder)},
    }
    with joined_ray(ray_head, runtime_env=hook):
        yield folder


@pytest.fixture
def run(folder, checkpoint, tmp_path, monkeypatch):
    """run(fault): the exit code of a job over in.parquet, whose row 4 holds token 277, into out/."""
    texts = [f"the cat c{i % 7}" for i in range(ROWS)]
    texts[4] = "a cat too"
    ids = [Tokenizer.from_folder(checkpoint).encode([text]).input_ids.tolist() for text in texts]
    assert [i for i, tokens in enumerate(ids) if 277 in tokens] == [4]
    assert min(map(len, ids)) > broken_workers.PROBE_TOKENS
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), tmp_path / "in.parquet")
    monkeypatch.setattr(retries, "MAX_ATTEMPTS", 1)  # each round starts actors, which takes seconds
    monkeypatch.setattr(retries, "MAX_ATTEMPTS_PER_ROW", 1)

    def run(fault: str) -> int:
        (folder / "fault").write_text(fault)
        return run_job(
            "classify",
            input=tmp_path / "in.parquet",
            output=tmp_path / "out",
            model=checkpoint,
            actors="1",
        )

    return run


def nothing_is_committed(out: Path) -> bool:
    return not list(out.glob("data/*.parquet")) and not list(out.glob("_rejected/*"))


def failed(out: Path) -> dict[str, str]:
    return json.loads((out / "_run.json").read_text())["failed"]


def every_row_is_in_one_part(out: Path) -> bool:
    (part,) = out.glob("data/*.parquet")  # nobody was blamed: the shard is whole
    rows = pq.read_table(part)["id"].to_pylist()
    return rows == list(range(ROWS)) and not (out / "_rejected").exists()


@pytest.mark.slow
def test_loads_that_fail_at_first_cost_no_row(run, folder, tmp_path):
    assert run("the first two loads fail") == 0
    assert every_row_is_in_one_part(tmp_path / "out")
    assert (folder / "load 2").exists()


@pytest.mark.slow
def test_a_device_that_breaks_costs_no_row_and_its_place_is_free_at_once(
    run, folder, tmp_path, monkeypatch
):
    """Whenever Python collects its garbage, in which Ray Data leaves the handles of actors."""
    through_stages, free = execute.through_stages, []

    def begin(*arguments):
        for _ in range(
            120
        ):  # nothing else asks for the place meanwhile, so that a handle left over holds it to the end
            if ray.available_resources().get("CPU") == 2:
                break
            time.sleep(0.5)
        free.append(ray.available_resources().get("CPU"))
        return through_stages(*arguments)

    monkeypatch.setattr(execute, "through_stages", begin)
    gc.disable()
    try:
        assert run("the device of one process breaks") == 0
    finally:
        gc.enable()
    assert free == [2, 2]
    assert every_row_is_in_one_part(tmp_path / "out")
    assert (folder / "broken").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("no load succeeds", "429 Client Error: Too Many Requests", marks=in_the_soak),
        (
            "a load ends the process",
            "RuntimeError: its process ended 2 times in a row while it started",
        ),
        ("every text raises", "RuntimeError: Failed to find C++ compiler"),
    ],
)
def test_a_job_whose_actors_do_not_start_ends_with_one_line(fault, reason, run, tmp_path):
    with pytest.raises(JobError) as caught:
        run(fault)
    message, _, log = str(caught.value).partition(" (details in ")
    assert message == f"no actor starts: {reason}"
    assert f"{reason}\n" in Path(log.removesuffix(")")).read_text()
    assert nothing_is_committed(tmp_path / "out")
    assert list(failed(tmp_path / "out").values()) == [message]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(
            "every text but the probe raises",
            "cannot be predicted: RuntimeError: Failed to find C++ compiler",
            marks=in_the_soak,
        ),
        ("no answer but the probe's is finite", "the model's answer is not a finite number"),
    ],
)
def test_where_no_row_is_answered_the_shards_fail_and_the_next_run_does_them(
    fault, reason, run, tmp_path
):
    assert run(fault) == 1
    assert nothing_is_committed(tmp_path / "out")
    assert set(failed(tmp_path / "out").values()) == {reason}


@pytest.mark.slow
def test_a_row_that_raises_where_the_probe_is_answered_is_rejected_alone(run, tmp_path):
    assert run("one text raises") == 0
    rejected = pq.read_table(tmp_path / "out" / "_rejected")
    assert rejected.select(["id", "_row", "_stage", "_reason"]).to_pylist() == [
        {
            "id": 4,
            "_row": 4,
            "_stage": "predict",
            "_reason": "cannot be predicted: IndexError: index 99 is out of bounds",
        }
    ]
    assert ds.dataset(tmp_path / "out").to_table()["id"].to_pylist() == [
        i for i in range(ROWS) if i != 4
    ]
