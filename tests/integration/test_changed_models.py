"""A model's folder changes while a job begins or runs: one line, an exit code, and no answer of another model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from commands import run_script, stages_here
from conftest import REPOSITORY

from pipelines import processor
from pipelines.corpus import execute
from pipelines.corpus.run import run_corpus

pytestmark = pytest.mark.usefixtures("local_ray")


def another_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_weights(folder):
    """The same file with other numbers: no header and no size tells them apart."""
    with (folder / "model.safetensors").open("r+b") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        stream.seek(start)
        count = ((folder / "model.safetensors").stat().st_size - start) // 4
        stream.write(np.random.default_rng(0).normal(size=count).astype("f4").tobytes())


CHANGES = {"tokenizer.json": another_tokenizer, "model.safetensors": other_weights}


@pytest.fixture
def given(tmp_path, checkpoint):
    """An input of eight files, and a copy of the checkpoint that may be changed."""
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "in").mkdir()
    for i in range(8):
        pq.write_table(
            pa.table({"id": [i, i + 8], "text": [f"the cat {i}", "sat on the mat"]}),
            tmp_path / f"in/{i}.parquet",
        )
    return tmp_path


@pytest.mark.parametrize("name", CHANGES)
def test_a_job_stops_where_its_model_changes_before_workers_load_it(given, name, monkeypatch):
    """Readers refuse another tokenizer, actors other weights; with the old files the same command goes on."""
    run = execute.Execution.run

    def changed(self, *arguments):
        shutil.copytree(given / "model", given / "kept")
        CHANGES[name](given / "model")
        return run(self, *arguments)

    arguments = [
        "--input",
        given / "in",
        "--output",
        given / "out",
        "--model",
        given / "model",
        "--actors",
        "1",
    ]
    monkeypatch.setattr(execute.Execution, "run", changed)
    done = run_script("jobs/classify_corpus.py", *arguments, cwd=REPOSITORY)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "has changed since the job began" in line]
    assert len(lines) == 1
    assert name in lines[0]
    assert "Traceback" not in done.stderr
    assert not list(given.glob("out/data/*.parquet"))
    assert not list(given.glob("out/_rejected/*.parquet"))
    monkeypatch.undo()
    shutil.copytree(given / "kept", given / "model", dirs_exist_ok=True)
    with stages_here():
        done = run_script("jobs/classify_corpus.py", *arguments, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_step_of_a_dataset_stops_where_its_model_changes(given):
    step = processor("classify", str(given / "model"), device="cpu")
    dataset = step(ray.data.read_parquet(str(given / "in")))
    assert len(dataset.take_all()) == 16
    other_weights(given / "model")
    with pytest.raises(Exception, match="has changed since the job began"):
        dataset.take_all()


@pytest.mark.slow
def test_a_job_has_the_answers_of_the_model_it_began_with(given, monkeypatch):
    """The folder changes once an actor and a reader have loaded it: all shards have the first model's answers."""
    with stages_here():
        want = run_corpus(
            "classify",
            input=str(given / "in"),
            output=str(given / "want"),
            model=str(given / "model"),
            actors="1",
        )
    receive, changed = execute.Execution._receive, []

    def change_after_the_first(self, *arguments):
        if not changed:
            changed.append(True)
            other_weights(given / "model")
        return receive(self, *arguments)

    monkeypatch.setattr(execute.Execution, "_receive", change_after_the_first)
    done = run_corpus(
        "classify",
        input=str(given / "in"),
        output=str(given / "out"),
        model=str(given / "model"),
        actors="1",
    )
    assert changed
    assert done.outcome == "complete"
    got, expected = (pq.read_table(given / each / "data").sort_by("id") for each in ("out", "want"))
    assert want.outcome == "complete"
    assert got.equals(expected)
