"""What CONTRIBUTING.md says of extending this project: each step is tried with a toy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.input import formats
from pipelines.input.plan import plan_corpus, read_shard
from pipelines.input.shards import Format, Rows, Scan


def lines_of(filesystem, path):
    with filesystem.open_input_stream(path) as stream:
        return stream.read().decode().splitlines()


def inspect_lines(filesystem, path):
    lines = lines_of(filesystem, path)
    return Scan(len(lines), np.empty(0, np.int64), sum(map(len, lines))), pa.schema([("text", pa.string())])


def read_lines(filesystem, shard, schema, columns):
    lines = lines_of(filesystem, shard.path)[shard.start : shard.start + shard.rows]
    return Rows(pa.table({"text": lines}), np.arange(len(lines)), [])


def test_a_format_is_one_file_and_a_line_of_formats(tmp_path, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "lines", Format("lines", (".lines",), inspect_lines, read_lines))
    for name in "ab":
        (tmp_path / f"{name}.lines").write_text("".join(f"{name} {i}\n" for i in range(100)))
    corpus = plan_corpus(str(tmp_path), shard_rows=64)
    assert (corpus.format, corpus.rows, len(corpus.shards)) == ("lines", 200, 4)
    rows = [read_shard(str(tmp_path), shard, corpus.schema, ["text"]).table["text"] for shard in corpus.shards]
    assert pa.chunked_array([chunk for column in rows for chunk in column.chunks]).to_pylist() == [
        f"{name} {i}" for name in "ab" for i in range(100)
    ]
