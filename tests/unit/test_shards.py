"""Every format and layout of input: the rows of all shards, in order, are the rows of the input."""

from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from corpora import plan, read_all
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import UserError

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


@pytest.mark.parametrize(
    "kind",
    ["parquet", "one-group.parquet", "arrow", "feather", "csv", "csv.gz", "jsonl", "jsonl.gz"],
)
def test_all_rows_in_order(tmp_path, kind):
    file = write(tmp_path, kind)
    corpus = plan(file, tmp_path, csv_types="infer")
    assert len(corpus.shards) in range(16, 21)
    assert max(shard.rows for shard in corpus.shards) <= 64
    table, bad = read_all(corpus, file, tmp_path)
    frame = (
        FRAME.assign(share=FRAME.share.astype(str)) if "csv" in kind else FRAME
    )  # "0.0" is not what 0.0 is written
    assert table.to_pandas().equals(frame)
    assert bad == []
    assert [shard.name for shard in corpus.shards] == sorted(shard.name for shard in corpus.shards)
    limited = plan(file, tmp_path, limit=100, csv_types="infer")
    assert read_all(limited, file, tmp_path)[0].to_pandas().equals(frame.head(100))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_files_with_blank_lines_and_no_last_newline(tmp_path, newline):
    lines = [json.dumps({"text": f"t{i}"}) for i in range(200)]
    (tmp_path / "a.jsonl").write_bytes((newline + newline).join(lines).encode())
    (tmp_path / "b.csv").write_bytes(
        newline.join(["text,n", *(f"t{i},{i}" for i in range(200))]).encode()
    )
    for name in ("a.jsonl", "b.csv"):
        corpus = plan(tmp_path / name, tmp_path)
        assert read_all(corpus, tmp_path, tmp_path)[0]["text"].to_pylist() == [
            f"t{i}" for i in range(200)
        ]


def test_bad_rows_of_text_files_are_set_aside_and_the_others_stay_in_place(tmp_path):
    good = [json.dumps({"text": f"t{i}", "n": i}) for i in range(100)]
    lines = list(good)
    lines[3], lines[70], lines[71], lines[99] = (
        '{"text": "cut',
        '{"text": "t70", "n": "seventy"}',
        "[1]",
        '{"text": "a\\ud800b", "n": 9}',
    )
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = ["text,n", *(f"t{i},{i}" for i in range(100))]
    rows[1 + 3], rows[1 + 70] = "a,b,c", "t70,seventy"
    (tmp_path / "b.csv").write_text("\n".join(rows))
    for name, expected in (("a.jsonl", {3, 71, 99}), ("b.csv", {3})):
        table, bad = read_all(plan(tmp_path / name, tmp_path), tmp_path, tmp_path)
        assert {row for row, _, _ in bad} == expected, name
        assert table["text"].to_pylist() == [f"t{i}" for i in range(100) if i not in expected]
        assert table["n"].to_pylist() == [
            "seventy" if i == 70 else str(i) for i in range(100) if i not in expected
        ]  # mixed: text
    assert bad == [(3, "has 3 fields where the header has 2", "a,b,c")]


def test_folders_globs_and_hive_partitions(tmp_path):
    for year in (2024, 2025):
        for part in ("a", "b"):
            folder = tmp_path / f"year={year}"
            folder.mkdir(exist_ok=True)
            pq.write_table(
                pa.table({"text": [f"{year}{part}{i}" for i in range(70)]}),
                folder / f"{part}.parquet",
            )
    (tmp_path / "_metadata.parquet").write_bytes(b"not data")
    (tmp_path / "notes.txt").write_text("not data")
    corpus = plan(tmp_path, tmp_path)
    table, _ = read_all(corpus, tmp_path, tmp_path)
    assert table["text"].to_pylist() == [
        f"{y}{p}{i}" for y in (2024, 2025) for p in "ab" for i in range(70)
    ]
    assert table["year"].to_pylist() == [2024] * 140 + [2025] * 140
    assert len({shard.name for shard in corpus.shards}) == len(corpus.shards) == 8
    assert corpus.notes == ["1 files are left out, whose format is not read: notes.txt"]
    assert plan(tmp_path / "year=2025" / "*.parquet", tmp_path).rows == 140
    assert plan(tmp_path / "**" / "a.parquet", tmp_path).rows == 140


def test_files_whose_columns_differ(tmp_path):
    pq.write_table(
        pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "1.parquet"
    )
    pq.write_table(
        pa.table({"n": pa.array([2], pa.int64()), "text": ["b"], "more": [True]}),
        tmp_path / "2.parquet",
    )
    table, _ = read_all(plan(tmp_path, tmp_path), tmp_path, tmp_path)
    assert table.to_pylist() == [
        {"text": "a", "n": 1, "more": None},
        {"text": "b", "n": 2, "more": True},
    ]


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
            plan(tmp_path / path, tmp_path / "out")


class Hub(DirFileSystem):
    """Stands in for huggingface_hub's file system: paths begin with datasets/, files have digests and no times."""

    def __init__(self, folder):
        super().__init__(path=str(folder), fs=LocalFileSystem())

    def info(self, path, **options):
        info = super().info(path, **options)
        digest = hashlib.sha1(self.cat_file(path)).hexdigest() if info["type"] == "file" else None
        return {name: info[name] for name in ("name", "size", "type")} | {"blob_id": digest}


def test_a_dataset_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: Hub(tmp_path))
    folder = tmp_path / "datasets" / "org" / "name"
    folder.mkdir(parents=True)
    for kind, source in (
        ("parquet", "hf://datasets/org/name/*.parquet"),
        ("jsonl", "hf://datasets/org/name/data.jsonl"),
    ):
        write(folder, kind)
        corpus = plan(source, tmp_path / "out")
        assert read_all(corpus, source, tmp_path / "out")[0].to_pandas().equals(FRAME)
    (folder / "data.jsonl").write_text(
        (folder / "data.jsonl").read_text().replace("row 1", "ROW 1")
    )
    assert plan(source, tmp_path / "out").files[0].version != corpus.files[0].version
