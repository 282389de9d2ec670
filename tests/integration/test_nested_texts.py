"""Jobs whose texts are fields of columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_job
from pyarrow import feather

from pipelines.corpus.run import dry_run
from pipelines.errors import UserError
from pipelines.job_options import corpus_options

DOCS = [
    {"title": "one", "body": {"text": "the cat 1 sat"}},
    None,
    {"title": "three", "body": None},
    {"title": "four", "body": {"text": "the cat 4 sat"}},
]


def write(folder: Path, format_: str) -> None:
    folder.mkdir()
    table = pa.table({"id": range(4), "doc": pa.array(DOCS)})
    if format_ == "parquet":
        pq.write_table(table, folder / "a.parquet")
    elif format_ == "arrow":
        feather.write_feather(table, str(folder / "a.arrow"))
    else:
        lines = [json.dumps(row) for row in table.to_pylist()]
        (folder / "a.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["parquet", "arrow", "jsonl"])
def test_a_text_in_a_struct(format_, tmp_path, checkpoint, in_process, capfd):
    write(tmp_path / "in", format_)
    options = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
        "text_column": "doc.body.text",
    }
    described = dry_run(corpus_options("classify")(**options))
    assert "from a sample of 4 rows (0 of them truncated, 2 rejected)" in described
    assert run_job("classify", **options) == 0
    parts = ds.dataset(tmp_path / "out" / "data").to_table()
    assert parts["id"].to_pylist() == [0, 3]
    assert parts["doc"].to_pylist() == [DOCS[0], DOCS[3]]  # as it was
    rejected = pq.read_table(tmp_path / "out" / "_rejected")
    assert rejected["id"].to_pylist() == [1, 2]
    assert rejected["doc"].to_pylist() == [DOCS[1], DOCS[2]]
    assert set(rejected["_reason"].to_pylist()) == {"text is null"}
    example = [line for line in capfd.readouterr().out.splitlines() if line.startswith("example")]
    assert example[0].endswith("  the cat 1 sat")
    fingerprint = json.loads((tmp_path / "out" / "_run.json").read_text())["fingerprint"]
    assert fingerprint["text_columns"] == ["doc.body.text"]

    # Without the column in the output, and with a field that is not there.
    assert run_job("classify", **options | {"keep_columns": "id", "overwrite": True}) == 0
    assert ds.dataset(tmp_path / "out" / "data").to_table().column_names[0] == "id"
    with pytest.raises(UserError, match=r"column 'doc\.body' has no field 'txt'; it has text"):
        run_job(
            "classify",
            **options | {"text_column": "doc.body.txt", "output": str(tmp_path / "none")},
        )


@pytest.mark.slow
def test_a_column_with_that_very_name_comes_first(tmp_path, checkpoint, in_process):
    (tmp_path / "in").mkdir()
    docs = [{"text": None, "title": "x"}]  # would be rejected
    table = pa.table({"doc": docs, "doc.text": ["the cat"], "title": [{"a": "sat"}]})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    named = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
    }
    columns = {"text_column": "doc.text", "text_pair_column": "title.a", "keep_columns": "doc"}
    assert run_job("classify", **named, **columns) == 0
    assert ds.dataset(tmp_path / "out" / "data").to_table()["doc"].to_pylist() == docs
