"""Parquet and Arrow files of one input that differ in their columns: each value is kept, or its file is named."""

from __future__ import annotations

import datetime
import decimal
import itertools

import pandas as pd
import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from corpora import plan, read_all

DAY, TIME = datetime.date(2024, 5, 6), datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
COLUMNS = {
    "string": pa.array(["a", None, "é"]),
    "large": pa.array(["a", "b", ""], pa.large_string()),
    "view": pa.array(["a", "b", ""], pa.string_view()),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "binary": pa.array([b"a", b"b", b""]),
    "nulls": pa.nulls(3),
    "int32": pa.array([1, -2, None], pa.int32()),
    "int64": pa.array([2**63 - 1, -2, 0]),
    "uint64": pa.array([2**64 - 1, 0, 1], pa.uint64()),
    "float32": pa.array([0.5, 1.0, None], pa.float32()),
    "float64": pa.array([0.1, 1e300, -0.0]),
    "bool": pa.array([True, False, None]),
    "date": pa.array([DAY, None, DAY]),
    "time": pa.array([TIME, None, TIME], pa.timestamp("us")),
    "zoned": pa.array([TIME, None, TIME], pa.timestamp("ns", "UTC")),
    "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")]),
    "list": pa.array([[1], [], None]),
    "list of strings": pa.array([["a"], [], None]),
    "struct": pa.array([{"x": 1}, {"x": None}, None]),
}


def kept(want: object, got: object) -> bool:
    """Whether a value is still there: itself, or as text."""
    if isinstance(got, str) and not isinstance(want, str | bytes) and want is not None:
        type_ = {bool: lambda text: text == "true", datetime.date: datetime.date.fromisoformat}.get(
            type(want)
        )
        if type_ is None and isinstance(want, datetime.datetime):
            read = datetime.datetime.fromisoformat(got.rstrip("Z")[:26])
            return read == want.replace(tzinfo=None)
        return (type_ or type(want))(got) == want  # type: ignore[operator]
    if isinstance(want, bytes) and isinstance(got, str):
        return want.decode() == got
    if isinstance(want, list) and got is not None:
        return [str(each) for each in want] == [str(each) for each in got]  # type: ignore[attr-defined]
    return bool(got == want)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(COLUMNS, repeat=2)])
def test_two_files_keep_each_value_or_one_is_named(first, second, tmp_path):
    for name, column in (("a", COLUMNS[first]), ("b", COLUMNS[second])):
        pq.write_table(pa.table({"text": ["t"] * 3, "x": column}), tmp_path / f"{name}.parquet")
    corpus = plan(tmp_path, tmp_path / "out")
    table, bad = read_all(corpus, tmp_path, tmp_path)
    want = [*COLUMNS[first].to_pylist(), *([] if corpus.broken else COLUMNS[second].to_pylist())]
    assert bad == []
    assert corpus.broken == {} or "holds" in corpus.broken[str(tmp_path / "b.parquet")]
    got = table["x"].to_pylist()
    assert all(itertools.starmap(kept, zip(want, got, strict=True))), (corpus.schema, want, got)


def test_strings_of_every_kind_meet(tmp_path):
    kinds = ["string", "large", "view", "dictionary", "binary"]
    for name in kinds:
        pq.write_table(pa.table({"text": COLUMNS[name]}), tmp_path / f"{name}.parquet")
    pd.DataFrame({"text": pd.Series([], dtype=float)}).to_parquet(tmp_path / "empty.parquet")
    table, _ = read_all(plan(tmp_path, tmp_path / "out"), tmp_path, tmp_path)
    want = [text for name in sorted(kinds) for text in COLUMNS[name].cast(pa.binary()).to_pylist()]
    assert table["text"].cast(pa.binary()).to_pylist() == want
    assert table.schema.field("text").type == pa.large_string()


def test_a_later_file_that_does_not_meet_the_output_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "x": [1]}), tmp_path / "a.parquet")
    earlier = plan(tmp_path, tmp_path / "out")
    pq.write_table(pa.table({"text": ["b"], "x": ["word"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["c"], "x": [3], "new": [True]}), tmp_path / "c.parquet")
    corpus = plan(tmp_path, tmp_path / "out", earlier=earlier)
    assert corpus.broken == {
        str(tmp_path / "b.parquet"): "column 'x' holds string, where the output has int64"
    }
    assert read_all(corpus, tmp_path, tmp_path)[0].to_pylist() == [
        {"text": "a", "x": 1, "new": None},
        {"text": "c", "x": 3, "new": True},
    ]


def test_arrow_streams_are_read_and_what_datasets_writes_beside_them_is_left_out(tmp_path):
    rows = pa.table({"text": [f"t{i}" for i in range(300)]})
    with pa.ipc.new_stream(tmp_path / "data-00000-of-00001.arrow", rows.schema) as writer:
        writer.write_table(rows, max_chunksize=70)
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    corpus = plan(tmp_path, tmp_path / "out")
    assert (corpus.notes, corpus.broken) == ([], {})
    assert read_all(corpus, tmp_path, tmp_path / "out")[0].equals(rows)


def test_orc_files_are_read_as_arrow_reads_them(tmp_path):
    names = [
        "string",
        "binary",
        "int32",
        "int64",
        "float64",
        "bool",
        "date",
        "zoned",
        "decimal",
        "list",
        "struct",
    ]
    table = pa.table({name: COLUMNS[name] for name in names})
    (tmp_path / "in").mkdir()
    many = pa.concat_tables([table] * 5000).combine_chunks()
    orc.write_table(many, tmp_path / "in" / "a.orc", stripe_size=1 << 16)
    orc.write_table(table.slice(0, 0), tmp_path / "in" / "b.orc")
    assert orc.ORCFile(tmp_path / "in" / "a.orc").nstripes > 1
    got, bad = read_all(plan(tmp_path / "in", tmp_path / "out"), tmp_path / "in", tmp_path / "out")
    assert not bad
    assert got.combine_chunks() == orc.read_table(tmp_path / "in" / "a.orc").combine_chunks()
