"""Output folders: every library opens their parts, those of earlier versions go on, and no other file is a part."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY

from pipelines import run_corpus
from pipelines.input.names import first_portable_name, former_name
from pipelines.storage import Folder

MODEL = str(REPOSITORY / "jobs/demo/intent-classifier")
pytestmark = pytest.mark.usefixtures("in_process")


def write(path: Path, *ids: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [None if i == 13 else f"wake me at {i}" for i in ids]
    pq.write_table(pa.table({"id": list(ids), "text": texts}), path)


def run(tmp_path: Path, **options):
    return run_corpus(
        "classify", input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=MODEL, **options
    )


def test_the_parts_open_as_one_table_in_every_library(tmp_path, monkeypatch):
    write(tmp_path / "in" / "élections.parquet", 1, 13, 2)
    write(tmp_path / "in" / "_year=2024" / "(copy) x.parquet", 3)
    write(tmp_path / "in" / "Ä" / "A.parquet", 4)
    write(tmp_path / "in" / "Ä" / "a.parquet", 5)
    done = run(tmp_path)
    assert (done.rows, done.labelled, done.rejected) == (6, 5, 1)
    data = tmp_path / "out" / "data"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = {
        "pyarrow": ds.dataset(data).to_table()["id"].to_pylist(),
        "parquet": pq.read_table(data)["id"].to_pylist(),
        "pandas": pd.read_parquet(data)["id"].tolist(),
        "polars": polars.read_parquet(data)["id"].to_list(),
        "scan": polars.scan_parquet(data).collect()["id"].to_list(),
        "duckdb": [
            row
            for (row,) in duckdb.connect().execute(f"select id from '{data}/*.parquet'").fetchall()
        ],
        "datasets": datasets.load_dataset(str(data), cache_dir=str(tmp_path / "cache"))["train"][
            "id"
        ][:],
        "root": ds.dataset(tmp_path / "out").to_table()["id"].to_pylist(),
    }
    assert {name: sorted(ids) for name, ids in found.items()} == {
        key: [1, 2, 3, 4, 5] for key in found
    }
    assert all(name.endswith(".parquet") for name in os.listdir(data))


def test_an_output_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    write(tmp_path / "in" / "a b.parquet", 1, 13)
    write(tmp_path / "in" / "C.parquet", 2)
    with monkeypatch.context() as earlier:
        earlier.setattr("pipelines.corpus.plan.PARTS", "")
        earlier.setattr("pipelines.corpus.plan.portable_name", first_portable_name)
        run(tmp_path)
    out = tmp_path / "out"
    record = json.loads((out / "_run.json").read_text())
    del record["parts"]
    (out / "_run.json").write_text(json.dumps(record))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(name.partition("parquet")[0] for name in before) == ["C.", "a_b."]
    assert run(tmp_path).rows == 0
    write(tmp_path / "in" / "élections.parquet", 3)
    done = run(tmp_path)
    assert (done.rows, done.parts) == (1, "")
    assert not (out / "data").exists()
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert before.items() <= after.items()
    assert sorted(pq.read_table(path)["id"][0].as_py() for path in out.glob("*.parquet")) == [
        1,
        2,
        3,
    ]
    assert run(tmp_path).rows == 0
    assert run(tmp_path, overwrite=True).parts == "data"
    assert sorted(ds.dataset(out / "data").to_table()["id"].to_pylist()) == [1, 2, 3]
    assert list(out.glob("*.parquet")) == []


@pytest.fixture
def earlier_version(monkeypatch):
    """Jobs as they were before parts had a folder of their own."""

    @contextmanager
    def version():
        with monkeypatch.context() as patched:
            patched.setattr("pipelines.corpus.plan.PARTS", "")
            patched.setattr("pipelines.corpus.plan.portable_name", former_name)
            patched.setattr("pipelines.corpus.plan.first_portable_name", former_name)
            yield

    return version


NAMES = ["a" * 160, "q/" + "b" * 170, "élections", "(a)", "x y", "c"]


def ids_of_parts(out: Path) -> list[int]:
    parts = [part for part in out.glob("*.parquet") if part.name[0] not in "._"]
    return sorted(row for part in parts for row in pq.read_table(part)["id"].to_pylist())


def test_nights_of_an_output_of_an_earlier_version_label_each_row_once(tmp_path, earlier_version):
    for number, name in enumerate(NAMES):
        write(tmp_path / "in" / f"{name}.parquet", 10 * number, 13)
    with earlier_version():
        run(tmp_path)
    out = tmp_path / "out"
    run(tmp_path)
    assert ids_of_parts(out) == [0, 10, 20, 30, 40, 50]
    assert not [part.name for part in out.glob("[._]*.parquet")]
    assert len(list((out / "_rejected").iterdir())) == len(NAMES)
    write(tmp_path / "in" / "(a).parquet", 5, 6)
    assert run(tmp_path).rows == 2
    assert ids_of_parts(out) == [0, 5, 6, 10, 20, 40, 50]
    assert run(tmp_path).rows == 0


@pytest.mark.parametrize("name", ["élections.jsonl", "a" * 160 + ".jsonl"])
def test_staged_files_of_an_earlier_version_are_read_again_under_their_names(
    tmp_path, earlier_version, name
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text('{"id": 1, "text": "wake me"}\n')
    with earlier_version():
        run(tmp_path)
    (tmp_path / "in" / "b.jsonl").write_text('{"id": 2, "text": "wake me"}\n')
    assert run(tmp_path).failed == {}
    assert ids_of_parts(tmp_path / "out") == [1, 2]


def test_a_changed_file_without_rows_leaves_none_in_the_output(tmp_path):
    write(tmp_path / "in" / "a.parquet", 1, 13)
    write(tmp_path / "in" / "b.parquet", 2)
    run(tmp_path)
    write(tmp_path / "in" / "a.parquet")
    run(tmp_path)
    assert ds.dataset(tmp_path / "out" / "data").to_table()["id"].to_pylist() == [2]
    assert list((tmp_path / "out" / "_rejected").iterdir()) == []


def test_values_that_are_not_utf8_are_counted_and_do_not_hide_the_output(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(
        b"text,c\nwake me,na\xefve\nwake me,plain\nna\xefve,x\n"
    )
    done = run(tmp_path)
    assert (done.labelled, done.rejected) == (2, 1)
    assert "replaced           1  values of kept columns that are not UTF-8" in str(done)
    for parts in ("data", "_rejected"):
        assert len(polars.read_parquet(tmp_path / "out" / parts)) == (2 if parts == "data" else 1)
    assert polars.read_parquet(tmp_path / "out" / "data")["c"].to_list() == ["na\ufffdve", "plain"]


def test_the_types_of_an_output_stay_where_the_format_changes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id,text\n1,wake me\n")
    run(tmp_path)
    (tmp_path / "in" / "a.csv").unlink()
    write(tmp_path / "in" / "a.parquet", 7)
    run(tmp_path)
    assert polars.read_parquet(tmp_path / "out" / "data")["id"].to_list() == ["1", "7"]


def test_a_column_without_a_value_keeps_its_type_in_an_output_of_an_earlier_version(
    tmp_path, earlier_version, monkeypatch
):
    table = pa.table(
        {"text": ["wake me"], "c": pa.nulls(1), "l": pa.array([[None]], pa.list_(pa.null()))}
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    with earlier_version(), monkeypatch.context() as patched:
        patched.setattr("pipelines.input.columns.stored_type", lambda type_: type_)
        run(tmp_path)
    pq.write_table(table, tmp_path / "in" / "b.parquet")
    assert run(tmp_path).rows == 1
    types = [pq.read_schema(part).field("c").type for part in (tmp_path / "out").glob("*.parquet")]
    assert types == [pa.null()] * 2
    assert ds.dataset(tmp_path / "out").to_table().num_rows == 2


def test_rejected_rows_that_are_an_input_again_keep_what_they_say(tmp_path):
    table = pa.table({"text": ["wake me", None], "_row": [42, 43], "_File": ["a", "b"]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    run(tmp_path)
    rejects = ds.dataset(tmp_path / "out" / "_rejected").to_table().to_pylist()
    assert [(row["_row_of_input"], row["_File_of_input"], row["_row"]) for row in rejects] == [
        (43, "b", 1)
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.json", "[]", "has no rows"),
        (
            "a.json",
            '{\n  "text": "a"\n}\n',
            "cannot be read: no record of it is a row of json: the first not readable",
        ),
        ("a.csv", "text\n", "has no rows"),
    ],
)
def test_an_input_without_rows_says_so(tmp_path, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        run_corpus(
            "classify",
            input=str(tmp_path / "in.parquet"),
            output=str(tmp_path / "out2"),
            model=MODEL,
        )


def test_what_others_leave_among_the_parts_is_no_part(tmp_path):
    write(tmp_path / "in" / "a.parquet", 1, 2)
    run(tmp_path)
    data = tmp_path / "out" / "data"
    names = ["merged.parquet", "my-labelled-data.parquet", "a.parquet-0-1.parquet"]
    for name in names:
        pq.write_table(pa.table({"id": [7]}), data / name)
    for name in (".a.parquet-00000000-000000000-000000002.parquet.4242", "._SUCCESS.crc"):
        (data / name).write_bytes(b"")
    write(tmp_path / "in" / "b.parquet", 3)
    done = run(tmp_path)
    assert done.rows == 1
    assert (
        f"3 files among the parts are not of this job, and are read with them: {', '.join(sorted(names))}"
        in str(done)
    )
    assert done.dataset is not None
    record = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert (record["totals"]["rows"], record["totals"]["shards"], record["complete"]) == (
        3,
        2,
        True,
    )
    assert sorted(name for name in os.listdir(data) if name.startswith(".")) == ["._SUCCESS.crc"]


@pytest.mark.parametrize("pattern", ["data/**/*.parquet", "data/*/*.parquet", "data/*/*/*.parquet"])
@pytest.mark.parametrize("keep", [None, ["text"]])
def test_nights_of_a_glob_that_matches_the_output_label_each_row_once(tmp_path, pattern, keep):
    write(tmp_path / "data" / "x" / "y" / "a.parquet", *range(20, 50))
    write(tmp_path / "data" / "x" / "b.parquet", *range(50, 90))
    want = None
    for _ in range(3):
        out = tmp_path / "data" / "labelled"
        run_corpus(
            "classify",
            input=str(tmp_path / pattern),
            output=str(out),
            model=MODEL,
            keep_columns=keep,
        )
        texts = sorted(ds.dataset(out / "data").to_table()["text"].to_pylist())
        want = want or texts
        assert texts == want
    assert len(set(want)) == len(want) >= 30


def test_a_column_that_nobody_uses_may_have_any_type(tmp_path):
    union = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
    )
    for name, column in (
        ("a", union),
        ("b", pa.array([b"\xff", b"x"])),
        ("c", pa.array([1, 2])),
        ("d", pa.array(["x", "y"])),
    ):
        table = pa.table({"text": ["wake me at six", None], "x": column})
        (tmp_path / "in").mkdir(exist_ok=True)
        with pa.ipc.new_file(tmp_path / "in" / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    done = run(tmp_path, keep_columns=["text"])
    assert (done.labelled, done.rejected, done.failed) == (4, 4, {})
    rejects = ds.dataset(tmp_path / "out" / "_rejected").to_table()
    assert "x" not in rejects.column_names
    assert rejects["_reason"].to_pylist() == ["text is null"] * 4
    assert Folder.at(str(tmp_path / "out")).files("data")
