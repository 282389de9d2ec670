"""What CONTRIBUTING.md says of extending this project: each step is tried with a toy of tests/toys.py."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from checkpoints import write_task
from corpora import plan, read_all
from online_service import serving
from toys import LINES, TOY, LengthOptions, add_length

from pipelines import options, pipeline
from pipelines.corpus.run import run_corpus
from pipelines.input import formats
from pipelines.serve.config import served_models
from pipelines.serve.http import app
from pipelines.serve.http.dialects import huggingface
from pipelines.serve.local import LocalModelClient


def test_a_format_is_one_file_and_a_line_of_formats(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "lines", LINES)
    for name in "ab":
        (tmp_path / f"{name}.lines").write_text("".join(f"{name} {i}\n" for i in range(100)))
    corpus = plan(tmp_path, tmp_path / "out", shard_rows=64)
    assert (corpus.format, corpus.rows, len(corpus.shards)) == ("lines", 200, 4)
    table, _ = read_all(corpus, tmp_path, tmp_path / "out")
    assert table["text"].to_pylist() == [f"{name} {i}" for name in "ab" for i in range(100)]


TEXTS = ["the cat", "the cat sat on the mat", "a"]


@pytest.fixture
def length_task(monkeypatch):
    monkeypatch.setitem(options.TASKS, "length", LengthOptions)
    monkeypatch.setitem(huggingface.TASK_ROUTES, "length", add_length)


@pytest.fixture
def folder(tmp_path):
    small = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    return str(
        write_task(tmp_path / "model", "ModernBertForSequenceClassification", num_labels=3, **small)
    )


def test_a_task_is_four_files_in_memory_as_a_job_and_over_http(
    length_task, folder, tmp_path, local_ray
):
    """Options, Task, wire shape and job: a toy of each answers alike in all three."""
    expected = pipeline("text-length", folder)(TEXTS, factor=2)
    assert [answer["length"] for answer in expected] == [2 * n for n in (4, 8, 3)]
    with pytest.raises(ValueError, match="factor 0 must be at least 1"):
        pipeline("length", folder, factor=0)

    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    named = {
        "input": str(tmp_path / "in.parquet"),
        "output": str(tmp_path / "out"),
        "model": folder,
        "factor": "2",
    }
    assert run_corpus("length", **named).outcome == "complete"
    rows = ds.dataset(tmp_path / "out").to_table(columns=["length", "logit"]).to_pylist()
    assert rows == expected

    models = LocalModelClient(
        served_models([{"name": "measure", "task": "length", "model": folder, "factor": 2}])
    )
    with serving(models) as url:
        assert (
            httpx.post(f"{url}/models/measure", json={"inputs": TEXTS}, timeout=60).json()
            == expected
        )
        assert httpx.get(f"{url}/info", timeout=60).json()["model_type"] == {"length": {}}
        assert (
            httpx.post(f"{url}/models/measure", json={"inputs": 1}, timeout=60).status_code == 422
        )
    models.close()


class Nothing:
    """A client of a model that is never asked."""

    tasks: ClassVar[Any] = {"one": "classify"}
    aliases: ClassVar[Any] = {}


def test_a_dialect_is_one_file_and_a_line_of_dialects(monkeypatch):
    monkeypatch.setattr(app, "DIALECTS", [*app.DIALECTS, TOY])
    monkeypatch.setenv("MODERNBERT_API_KEY", "key")
    with (
        serving(Nothing()) as url,
        httpx.Client(base_url=url, timeout=60, headers={"authorization": "Bearer key"}) as client,
    ):
        assert client.post("/toy/count", json={"inputs": ["a", "b"]}).json() == {"count": 2}
        wrong = client.post("/toy/count", json={"inputs": 1})
        assert (wrong.status_code, wrong.json()) == (418, {"oops": "inputs must be a valid list"})
        unknown = client.get("/toy/nothing")
        assert (unknown.status_code, unknown.json().keys()) == (404, {"oops"})
        closed = httpx.post(f"{url}/toy/count", json={"inputs": []}, timeout=60)
        assert (closed.status_code, closed.json().keys()) == (401, {"oops"})
        described = client.get("/openapi.json").json()
        assert "ToyError" in json.dumps(
            described["paths"]["/toy/count"]["post"]["responses"]["418"]
        )
        assert client.get("/nothing").json().keys() == {"error", "error_type"}


def test_the_docs_have_a_field_for_the_key_where_there_is_one(monkeypatch):
    assert "securitySchemes" not in app.create_app(Nothing()).openapi()["components"]
    monkeypatch.setenv("MODERNBERT_API_KEY", "key")
    described = app.create_app(Nothing()).openapi()
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, operations in described["paths"].items():
        secured = [bool(operation.get("security")) for operation in operations.values()]
        assert secured == [path not in ("/ping", "/health", "/metrics")] * len(secured), path
