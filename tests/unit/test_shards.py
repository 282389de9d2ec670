"""Every format and layout of input: the rows of all shards, in order, are the rows of the input."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.input import text as text_files
from pipelines.input.plan import plan_corpus, read_shard

ROWS = 1000
FRAME = pd.DataFrame({
    "text": [f'row {i}, "quoted"' + ("\nand a second line" if i % 7 == 0 else "") for i in range(ROWS)],
    "number": np.arange(ROWS),
    "share": np.arange(ROWS) / 8,
})  # fmt: skip
TABLE = pa.Table.from_pandas(FRAME, preserve_index=False)


def write(folder, kind):
    file = folder / {"csv.gz": "data.csv.gz", "jsonl.gz": "data.jsonl.gz"}.get(kind, f"data.{kind}")
    if kind == "parquet":
        pq.write_table(TABLE, file, row_group_size=300)
    elif kind == "one-group.parquet":
        pq.write_table(TABLE, file)
    elif kind == "arrow":
        with pa.ipc.new_file(file, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=170)
    elif kind == "feather":
        feather.write_feather(TABLE, file, compression="zstd")
    elif "csv" in kind:
        FRAME.to_csv(file, index=False)
    else:
        FRAME.to_json(file, orient="records", lines=True)
    return file


def read_all(corpus, source):
    parts = [read_shard(str(source), shard, corpus.schema, corpus.schema.names) for shard in corpus.shards]
    assert not [bad for part in parts for bad in part.bad]
    return pa.concat_tables([part.table for part in parts])


@pytest.mark.parametrize(
    "kind", ["parquet", "one-group.parquet", "arrow", "feather", "csv", "csv.gz", "jsonl", "jsonl.gz"]
)
def test_all_rows_in_order(tmp_path, kind):
    file = write(tmp_path, kind)
    corpus = plan_corpus(str(file))
    assert [shard.rows for shard in corpus.shards] == [64] * 15 + [40]
    assert read_all(corpus, file).to_pandas().equals(FRAME)
    assert [shard.name for shard in corpus.shards] == sorted(shard.name for shard in corpus.shards)
    limited = plan_corpus(str(file), limit=100)
    assert read_all(limited, file).to_pandas().equals(FRAME.head(100))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_files_with_blank_lines_and_no_last_newline(tmp_path, newline):
    lines = [json.dumps({"text": f"t{i}"}) for i in range(200)]
    (tmp_path / "a.jsonl").write_bytes((newline + newline).join(lines).encode())
    (tmp_path / "b.csv").write_bytes(newline.join(["text,n", *(f"t{i},{i}" for i in range(200))]).encode())
    for name in ("a.jsonl", "b.csv"):
        corpus = plan_corpus(str(tmp_path / name))
        assert read_all(corpus, tmp_path)["text"].to_pylist() == [f"t{i}" for i in range(200)]


def test_bad_rows_of_text_files_are_set_aside_and_the_others_stay_in_place(tmp_path, monkeypatch):
    good = [json.dumps({"text": f"t{i}", "n": i}) for i in range(100)]
    lines = list(good)
    lines[3], lines[70], lines[71], lines[99] = (
        '{"text": "cut',
        '{"text": 5, "n": 1}',
        "[1]",
        '{"text": "a\\ud800b", "n": 9}',
    )
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = ["text,n", *(f"t{i},{i}" for i in range(100))]
    rows[1 + 3], rows[1 + 70] = "a,b,c", "t70,seventy"
    (tmp_path / "b.csv").write_text("\n".join(rows))
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 400)  # so that types are inferred before the row that has another
    for name, expected in (("a.jsonl", {3, 70, 71, 99}), ("b.csv", {3, 70})):
        corpus = plan_corpus(str(tmp_path / name))
        parts = [(shard, read_shard(str(tmp_path), shard, corpus.schema, ["text", "n"])) for shard in corpus.shards]
        assert {shard.start + row for shard, part in parts for row, _, _ in part.bad} == expected, name
        kept = [(shard.start + int(p), t) for shard, part in parts
                for p, t in zip(part.positions, part.table["text"].to_pylist(), strict=True)]  # fmt: skip
        assert kept == [(i, f"t{i}") for i in range(100) if i not in expected]
    raw = [raw for _, part in parts for _, _, raw in part.bad]
    assert "a,b,c" in raw


def test_folders_globs_and_hive_partitions(tmp_path):
    for year in (2024, 2025):
        for part in ("a", "b"):
            folder = tmp_path / f"year={year}"
            folder.mkdir(exist_ok=True)
            pq.write_table(pa.table({"text": [f"{year}{part}{i}" for i in range(70)]}), folder / f"{part}.parquet")
    (tmp_path / "_metadata.parquet").write_bytes(b"not data")
    (tmp_path / "notes.txt").write_text("not data")
    corpus = plan_corpus(str(tmp_path))
    table = read_all(corpus, tmp_path)
    assert table["text"].to_pylist() == [f"{y}{p}{i}" for y in (2024, 2025) for p in "ab" for i in range(70)]
    assert table["year"].to_pylist() == [2024] * 140 + [2025] * 140
    assert len({shard.name for shard in corpus.shards}) == len(corpus.shards) == 8
    assert plan_corpus(str(tmp_path / "year=2025" / "*.parquet")).rows == 140
    assert plan_corpus(str(tmp_path / "**" / "a.parquet")).rows == 140


def test_files_whose_columns_differ(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"n": pa.array([2], pa.int64()), "text": ["b"], "more": [True]}), tmp_path / "2.parquet")
    corpus = plan_corpus(str(tmp_path))
    table = read_all(corpus, tmp_path)
    assert table.to_pylist() == [{"text": "a", "n": 1, "more": None}, {"text": "b", "n": 2, "more": True}]


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "empty.csv").write_text("text\n")
    (tmp_path / "sub").mkdir()
    with gzip.open(tmp_path / "sub" / "x.csv.gz", "wt") as stream:
        stream.write("text\nhello\n")
    for path, message in (
        ("broken.parquet", "cannot be read"), ("empty.csv", "has no rows"), ("nowhere", "does not exist"),
        ("*.nothing", "holds no data file"), (".", "mixes csv, parquet files"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            plan_corpus(str(tmp_path / path))
