"""Whatever raises in a stage of a corpus job is its shard's own error, in its own words, and never a lost shard."""

from __future__ import annotations

import inspect
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

from pipelines.corpus import stages
from pipelines.corpus.plan import cut_shards, make_job, plan_job
from pipelines.errors import UserError
from pipelines.job_options import corpus_options
from pipelines.raydata import wire
from pipelines.raydata.actor import Predict

MODEL = str(REPOSITORY / "jobs/demo/intent-classifier")
ERRORS = [
    pa.ArrowNotImplementedError,
    pa.ArrowInvalid,
    KeyError,
    RecursionError,
    MemoryError,
    OSError,
    AssertionError,
]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A job with a shard, of which a row is rejected, and the actor that predicts it."""
    folder = tmp_path_factory.mktemp("stages")
    rows = pa.table({"text": ["wake me at six", None, "tell me a joke"], "n": [1, 2, 3]})
    pq.write_table(rows, folder / "in.parquet")
    options = corpus_options("classify")(
        input=str(folder / "in.parquet"), output=str(folder / "out"), model=MODEL, device="cpu"
    )
    job_plan = plan_job(options)
    corpus = cut_shards(job_plan, job_plan.inspection, None)
    job = make_job(job_plan, corpus)
    job.folder.write_atomic("_lease.json", json.dumps({"run": job.attempt_id}).encode())
    return job, pa.Table.from_pylist([wire.unit_row(corpus.shards)]), Predict(job)


def run(planned):
    job, table, actor = planned
    [tokenised] = stages.read_and_tokenise(job, table)
    return stages.commit(job, actor(tokenised)).to_pylist()[0]


OF_STAGES = (
    *("read_unit", "_documents", "encode", "answer_columns", "_rejected", "_answers"),
    *("commit_shard", "check_lease", "count_windows", "count_scores"),
)
OF_WIRE = ("tokenised_row", "predicted_row", "windows_of", "rejects_of", "array_of", "reject")
CALLS = dict.fromkeys(OF_STAGES, stages) | dict.fromkeys(OF_WIRE, wire)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_of_a_stage_raises_is_the_shards_error(planned, monkeypatch, name, error):
    assert run(planned)["error"] is None
    original = getattr(CALLS[name], name)
    calls = 0

    def count(*arguments, **options):
        nonlocal calls
        calls += 1
        return original(*arguments, **options)

    monkeypatch.setattr(CALLS[name], name, count)
    assert run(planned)["error"] is None
    every_call = calls
    assert every_call
    for failing in range(every_call):
        calls = 0

        def fails(*arguments, failing=failing, **options):
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise error("out of luck")
            return original(*arguments, **options)

        monkeypatch.setattr(CALLS[name], name, fails)
        committed = run(planned)
        assert "out of luck" in committed["error"], (failing, inspect.unwrap(original))
        assert committed["stats"] is None


def test_a_plan_says_why_no_file_can_be_used(tmp_path):
    """The only file has a column that Parquet cannot hold."""
    values = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
    )
    feather = tmp_path / "in.arrow"
    table = pa.table({"text": ["wake me", "tell me"], "either": values})
    with pa.OSFile(str(feather), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    options = corpus_options("classify")(
        input=str(feather), output=str(tmp_path / "out"), model=MODEL, device="cpu"
    )
    with pytest.raises(UserError, match=r"column 'either' holds .*, which Parquet cannot hold"):
        plan_job(options)
