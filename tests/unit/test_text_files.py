"""Text files: one record counted is one record read, each value as it is written; Python's csv and json are oracles."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import plan, read_all

from pipelines.errors import UserError
from pipelines.input import csv as csv_files
from pipelines.input import json as json_files
from pipelines.input import text

FILES = int(os.environ.get("FUZZ_FILES", "150"))
"""Files of each kind; FUZZ_FILES=10000 for a soak."""


def records(path, output, **reading):
    """The rows of a file by record number, with the malformed ones apart."""
    table, bad = read_all(plan(path, output, **reading), path, output)
    malformed = {row: (reason, raw) for row, reason, raw in bad}
    numbers = [i for i in range(len(table) + len(bad)) if i not in malformed]
    return dict(zip(numbers, table.to_pylist(), strict=True)), malformed


@pytest.fixture
def rows(tmp_path):
    """Write a file and return its rows and malformed records."""

    def rows(name, content, **reading):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        good, malformed = records(path, tmp_path / "out", **reading)
        return list(good.values()), malformed

    return rows


@pytest.fixture(params=[64, 300, 8 << 20])
def block_bytes(request, monkeypatch):
    for module in (text, csv_files, json_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", request.param)
    return request.param


@pytest.fixture
def dice():
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return random.Random(seed)


BITS = [
    "a",
    "b,",
    '"',
    '""',
    "\n",
    "\r",
    "\r\n",
    "é",
    "日本",
    " ",
    'x"y',
    "1",
    "0.5",
    "",
    "😀",
    "\\",
    ",",
    "'",
]


def random_csv(dice):
    columns, newline = dice.choice([1, 2, 3]), dice.choice(["\n", "\r\n", "\r"])
    out = io.StringIO()
    writer = csv.writer(
        out, lineterminator=newline, quoting=dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    )
    writer.writerow([f"c{i}" for i in range(columns)])
    for _ in range(dice.randint(1, 30)):
        if dice.random() < 0.85:
            writer.writerow(
                ["".join(dice.choices(BITS, k=dice.randint(0, 6))) for _ in range(columns)]
            )
        else:
            out.write("".join(dice.choices(BITS, k=dice.randint(0, 8))) + newline)
    return out.getvalue() if dice.random() < 0.7 else out.getvalue().rstrip("\r\n")


def test_random_csv_is_read_as_pythons_csv_reads_it(tmp_path, block_bytes, dice):
    path = tmp_path / "x.csv"
    for _ in range(FILES):
        content = random_csv(dice)
        path.write_bytes(content.encode())
        header, *want = (row for row in csv.reader(io.StringIO(content, newline="")) if row)
        fits = [len(row) == len(header) for row in want]
        try:
            good, malformed = records(path, tmp_path / "out")
        except UserError as error:
            allowed = ("no record of it is a row", "has no rows")
            long = block_bytes < 8 << 20 and "has a record of more than" in str(error)
            assert long or any(reason in str(error) for reason in allowed), content  # noqa: PT017
            continue
        assert len(good) + len(malformed) == len(want), content
        for i, row in enumerate(want):
            unclosed = (
                i == len(want) - 1 and i in malformed and malformed[i][0] == csv_files.UNCLOSED
            )
            assert (i in good) == (fits[i] and not unclosed), content
            assert i in malformed or list(good[i].values()) == row, content


STRINGS = [
    "",
    "a",
    "日本",
    "😀",
    'x"y',
    "2024-01-01T00:00:00Z",
    "\\u00e9",
    "\n",
    "1",
    "true",
    "\u2028",
    "null",
]
VALUES = {
    "string": lambda dice: dice.choice(STRINGS),
    "int": lambda dice: dice.choice([0, 1, -1, 7, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]),
    "ulong": lambda dice: dice.choice([2**64 - 1, 5]),
    "huge": lambda dice: dice.choice([2**70, -(2**64)]),
    "float": lambda dice: dice.choice([0.5, 1.0, 1e300, -2.5, 1e16]),
    "bool": lambda dice: dice.random() < 0.5,
    "null": lambda dice: None,  # noqa: ARG005
    "list": lambda dice: [
        VALUES[dice.choice(["string", "int", "null"])](dice) for _ in range(dice.randint(0, 3))
    ],
    "object": lambda dice: {
        k: VALUES[dice.choice(["string", "int", "null"])](dice) for k in dice.sample("xyz", 2)
    },
}
BROKEN = ["[1, 2]", "5", '"x"', "nul", '{"c0": "\\ud800"}', '{"c0": 1} {"c0": 2}', '{"c0": 1} x']


def random_json(dice):
    """A file, and its rows by record number; the number of records."""
    kinds = {
        f"c{i}": dice.choices(list(VALUES), k=dice.choice([1, 1, 1, 2]))
        for i in range(dice.randint(1, 4))
    }
    lines, want, records = [], {}, 0
    for _ in range(dice.randint(1, 40)):
        row = {
            name: VALUES[dice.choice(each)](dice)
            for name, each in kinds.items()
            if dice.random() < 0.9
        }
        row |= {"late": 1} if dice.random() < 0.02 else {} if lines else {"first": None}
        line = json.dumps(
            row,
            ensure_ascii=dice.random() < 0.5,
            separators=dice.choice([(",", ":"), (", ", ": ")]),
        )
        if lines and dice.random() < 0.08:
            line = dice.choice([*BROKEN, line[: len(line) // 2 or 1]])
        else:
            want[records] = row
        lines.append(line)
        records += 1
        lines += [dice.choice(["", " "])] if dice.random() < 0.1 else []
    newline = dice.choice(["\n", "\r\n"])
    return newline.join(lines) + (newline if dice.random() < 0.8 else ""), want, records


def same(want, got, type_):
    """Whether a value of a column is that of the file: itself, or its JSON where the column is text."""
    if want is None or isinstance(want, str):
        return got == want
    if pa.types.is_string(type_):
        return json.loads(got) == want
    if isinstance(want, dict):
        return all(got[name] == value for name, value in want.items())
    return got == want and isinstance(got, bool) == isinstance(want, bool)


def test_random_json_lines_are_read_as_pythons_json_reads_them(tmp_path, block_bytes, dice):
    path = tmp_path / "x.jsonl"
    for _ in range(FILES):
        content, want, count = random_json(dice)
        path.write_bytes(content.encode())
        corpus = plan(path, tmp_path / "out")
        good, malformed = records(path, tmp_path / "out")
        assert set(good) == set(want), content
        assert len(good) + len(malformed) == count, content
        for i, row in want.items():
            for field in corpus.schema:
                assert same(row.get(field.name), good[i][field.name], field.type), (
                    block_bytes,
                    content,
                    i,
                    field,
                )


def test_an_array_of_objects_is_read_as_lines_are(rows, block_bytes, dice):
    for _ in range(20):
        objects = [{"n": i, "text": dice.choice(STRINGS)} for i in range(dice.randint(1, 60))]
        for indent in (None, 2):
            assert rows("x.json", json.dumps(objects, indent=indent))[0] == objects, block_bytes
        lines = "[\n" + ",\n".join(map(json.dumps, objects)) + "\n]\n"
        assert rows("x.json", lines)[0] == objects
    good, malformed = rows("x.json", '[\n{"text": "a"},\n{"text": "cut,\n{"text": "b"},\n3\n]')
    assert good == [{"text": "a"}, {"text": "b"}]
    assert [(row, raw) for row, (_, raw) in malformed.items()] == [(1, '{"text": "cut'), (3, "3")]
    for broken in ('[{"text": "a"}', '[{"text": "a"}] more', '[{"text": "a"}, {"text": nul}]'):
        with pytest.raises(UserError, match="array"):
            rows("x.json", broken)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("x.jsonl.gz", gzip.compress),
        ("X.JSONL.GZ", gzip.compress),
        ("x.ndjson.bz2", bz2.compress),
        ("x.json.zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        ("x.jsonl.Lz4", lambda data: pa.compress(data, "lz4", asbytes=True)),
    ],
)
def test_compressed_files_are_read_whatever_the_case_of_the_ending(rows, name, compress):
    assert rows(name, compress(b'{"text": "a"}\n{"text": "b"}\n'))[0] == [
        {"text": "a"},
        {"text": "b"},
    ]


def test_values_of_csv_are_as_they_are_written(tmp_path, rows):
    content = "zip,id,flag,day,text\n02139,98765432109876543210,T,2024-05-06,42\n,1.50,,NA,true\n"
    written = list(csv.DictReader(io.StringIO(content)))
    assert rows("x.csv", content)[0] == written
    typed = "n,zip,share,flag,day,text\n1,02139,0.5,true,2024-05-06,a\n-7,10001,1e3,false,2024-05-07,b\n,1,,,,\n"
    (tmp_path / "x.csv").write_text(typed)
    types = {
        field.name: field.type
        for field in plan(tmp_path / "x.csv", tmp_path / "out", csv_types="infer").schema
    }
    assert types == {"n": pa.int64(), "flag": pa.bool_(), "day": pa.date32()} | dict.fromkeys(
        ("zip", "share", "text"), pa.string()
    )


def test_other_delimiters_quotes_and_escapes(rows):
    want = [{"id": "1", "text": 'he said "hello, world" to me'}]
    assert rows("x.tsv", 'id\ttext\n1\t"he said ""hello, world"" to me"\n')[0] == want
    assert (
        rows("x.csv", 'id;text\n1;"he said ""hello, world"" to me"\n', csv_delimiter=";")[0] == want
    )
    assert rows("x.csv", "id,text\n1,'he said \"hello, world\" to me'\n", csv_quote="'")[0] == want
    assert (
        rows("x.csv", 'id,text\n1,"he said \\"hello, world\\" to me"\n', csv_escape="\\")[0] == want
    )


def test_a_backslash_before_a_quote_is_told(tmp_path):
    (tmp_path / "x.csv").write_text('id,text\n1,"he said \\"hello\\" to me"\n')
    (note,) = plan(tmp_path / "x.csv", tmp_path / "out").notes
    assert "give --csv-escape" in note
    assert plan(tmp_path / "x.csv", tmp_path / "out", csv_escape="\\").notes == []


def test_a_quote_that_is_never_closed_costs_its_record_alone(rows):
    good, malformed = rows("x.csv", 'id,text\n1,a\n2,"b\n3,c\n')
    assert good == [{"id": "1", "text": "a"}]
    assert malformed == {1: ("has a quote that is never closed", '2,"b\n3,c\n')}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
def test_another_encoding_is_named_and_read_when_it_is_given(rows, encoding):
    content = "id,texté\n1,déjà\n"
    if encoding != "utf-8-sig":
        with pytest.raises(
            UserError, match=r"x\.csv: .*is not (utf|UTF)-8.*looks like (cp1252|utf-16)"
        ):
            rows("x.csv", content.encode(encoding))
    assert rows("x.csv", content.encode(encoding), encoding=encoding)[0] == [
        {"id": "1", "texté": "déjà"}
    ]


def test_a_zero_byte_is_a_character(rows):
    assert rows("x.csv", "id,text\n1,a\0b and more\n")[0] == [{"id": "1", "text": "a\0b and more"}]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_a_byte_order_mark_is_no_part_of_the_first_value(rows, name):
    content = {"x.csv": "text\na\n", "x.jsonl": '{"text": "a"}\n', "x.json": '[{"text": "a"}]'}[
        name
    ]
    assert rows(name, content.encode("utf-8-sig"))[0] == [{"text": "a"}]


def test_bytes_that_are_no_utf8_stay_as_they_are_and_cost_one_record_of_json(tmp_path, rows):
    (tmp_path / "x.csv").write_bytes(b"id,text\n1,\xe9t\xe9\n2,b,\xe9\n3,\xc3\xa9\n")
    corpus = plan(tmp_path / "x.csv", tmp_path / "out")
    assert corpus.notes == [f"{tmp_path}/x.csv is not UTF-8 in places (see --encoding)"]
    (tmp_path / "y.csv").write_bytes(b"id,text\n1,\xe9t\xe9\n")
    (note,) = plan(tmp_path / "y.csv", tmp_path / "out").notes
    assert "is not UTF-8 in places; it looks like cp1252" in note
    table, bad = read_all(corpus, tmp_path / "x.csv", tmp_path / "out")
    assert table["text"].cast(pa.binary()).to_pylist() == [b"\xe9t\xe9", b"\xc3\xa9"]
    assert bad == [(1, "has 3 fields where the header has 2", "2,b,\ufffd")]
    good, malformed = rows("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n{"text": "b"}\n')
    assert good == [{"text": "a"}, {"text": "b"}]
    assert malformed == {1: ("is not valid UTF-8", '{"text": "\ufffd"}')}


def test_numbers_stay_exact_and_mixed_columns_become_text(rows):
    lines = [
        {"big": 2**64 - 1, "huge": 2**70, "mixed": 1.50, "share": 1, "tags": [], "either": [1]},
        {"big": 1, "huge": 1, "mixed": "n/a", "share": 0.5, "tags": ["x"], "either": "a"},
    ]
    good, _ = rows("x.jsonl", "\n".join(map(json.dumps, lines)).replace("1.5,", "1.50,"))
    assert [row["big"] for row in good] == [2**64 - 1, 1]
    assert [row["huge"] for row in good] == [str(2**70), "1"]
    assert [row["mixed"] for row in good] == ["1.50", "n/a"]
    assert [row["share"] for row in good] == [1.0, 0.5]
    assert [row["tags"] for row in good] == [[], ["x"]]
    assert [row["either"] for row in good] == ["[1]", "a"]


def test_a_column_that_drifts_late_in_a_file_keeps_every_value(rows, block_bytes):
    for early, late in (
        (1, "A7"),
        (1, 2.5),
        (None, "x"),
        ("2024-01-01", "word"),
        ([], ["x"]),
        (True, "yes"),
    ):
        lines = [{"text": f"t{i}", "x": early} for i in range(50)] + [
            {"text": "late", "x": late, "new": 1}
        ] * 2
        good, malformed = rows("x.jsonl", "\n".join(map(json.dumps, lines)))
        assert not malformed
        values = [row["x"] for row in good]
        written = (
            json.dumps(early)
            if isinstance(late, str) and not isinstance(early, str | None)
            else early
        )
        assert values == [written] * 50 + [late] * 2, block_bytes
        assert [row["new"] for row in good] == [None] * 50 + [1, 1]


def test_a_large_file_of_lines_is_staged_in_ranges(tmp_path, monkeypatch, dice):
    from pipelines.input import staging

    monkeypatch.setattr(staging, "RANGED_BYTES", 1000)
    monkeypatch.setattr(staging, "RANGE_BYTES", 700)
    lines = [{"n": i, "text": dice.choice(STRINGS)} for i in range(300)]
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    )
    corpus = plan(tmp_path / "x.jsonl", tmp_path / "out", shard_rows=64)
    assert len(corpus.files[0].scan.parts) > 5
    table, bad = read_all(corpus, tmp_path / "x.jsonl", tmp_path / "out")
    assert (table.to_pylist(), bad) == (lines, [])
    starts = [(shard.start, shard.start + shard.rows) for shard in corpus.shards]
    assert [start for start, _ in starts] == [0, *(stop for _, stop in starts[:-1])]


def test_empty_files_are_zero_rows_and_a_file_of_something_else_is_named(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(
            {"a": '{"text": "a"}', "b": "", "c": "hello\nworld\n"}[name[0]]
        )
    (tmp_path / "d.jsonl").write_text("\n \n")
    corpus = plan(tmp_path, tmp_path / "out")
    assert corpus.rows == 1
    assert list(corpus.broken) == [str(tmp_path / "c.jsonl")]
    assert "no record of it is a row of json" in corpus.broken[str(tmp_path / "c.jsonl")]


def test_zero_bytes_stay_where_they_are_wherever_a_block_ends(rows, block_bytes, dice):
    """Arrow's parser takes a zero byte at a block's end for the end of the record."""
    want = []
    for i in range(400):
        texts = [
            "".join(
                dice.choices(["a", "é", "\0", "\0\0", ",", '"', "\n", "\r\n"], k=dice.randint(1, 9))
            )
            for _ in "ab"
        ]
        want.append({"id": str(i), "text": texts[0], "more": texts[1]})
    lines = [
        "id,text,more",
        *(f"{row['id']},{quoted(row['text'])},{quoted(row['more'])}" for row in want),
    ]
    got, bad = rows("x.csv", "\n".join(lines) + "\n")
    assert (got, bad) == (want, {})


def quoted(value):
    return '"' + value.replace('"', '""') + '"'


@pytest.mark.parametrize("depth", [19, 20, 21, 32, 400, 900, 5000])
@pytest.mark.parametrize("kind", ["objects", "lists", "array"])
def test_what_is_nested_deeply_becomes_text_or_its_record_is_malformed(tmp_path, rows, depth, kind):
    opening, closing = ('{"a": ', "}") if kind == "objects" else ("[", "]")
    deep = opening * depth + "1" + closing * depth
    records = ['{"id": 1, "x": null}', f'{{"id": 2, "x": {deep}}}', '{"id": 3, "x": null}']
    content = "[\n" + ",\n".join(records) + "\n]" if kind == "array" else "\n".join(records)
    got, bad = rows("x.json", content)
    if depth == 5000:
        assert [row["id"] for row in got] == [1, 3]
        assert {row: reason for row, (reason, _) in bad.items()} == {
            1: "not readable as JSON: nested too deeply"
        }
        return
    assert ([row["id"] for row in got], bad) == ([1, 2, 3], {})
    is_text = isinstance(got[1]["x"], str)
    assert is_text == (depth > 20)
    assert (got[1]["x"] if is_text else json.dumps(got[1]["x"])) == json.dumps(json.loads(deep))
    path, out = tmp_path / "in" / "x.json", tmp_path / "out"
    table, _ = read_all(plan(path, out), path, out)
    pq.write_table(table, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(table)


def test_objects_with_ids_for_keys_become_text(rows):
    records = [
        {"id": i, "by_id": {f"u{i}_{j}": j for j in range(20)}, "few": {"a": i}}
        for i in range(4000)
    ]
    got, bad = rows("x.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert bad == {}
    assert [row | {"by_id": json.loads(row["by_id"])} for row in got] == records
    nested = [
        {"id": i, "x": {f"k{j}": {f"m{n}": n for n in range(20)} for j in range(20)}}
        for i in range(3)
    ]
    got, _ = rows("y.jsonl", "".join(json.dumps(record) + "\n" for record in nested))
    assert [json.loads(row["x"]) for row in got] == [record["x"] for record in nested]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_half_a_surrogate_pair_costs_its_record_wherever_it_is(rows, name):
    records = [
        '{"id": 0}',
        '{"\\ud83d": 1}',
        '{"id": {"\\udc00": 1}}',
        '{"id": ["\\ud83d"]}',
        '{"id": 4, "\\ud83d\\ude00": 1}',
    ]
    content = "[" + ",\n".join(records) + "]" if name == "x.json" else "\n".join(records)
    got, bad = rows(name, content)
    assert [row["id"] for row in got] == [0, 4]
    why = "holds half a surrogate pair, which is no text"
    assert {row: reason for row, (reason, _) in bad.items()} == dict.fromkeys((1, 2, 3), why)


def test_blank_cells_of_a_header_are_columns(rows):
    got, _ = rows("x.csv", "id,text,,\n1,a,b,\n2,c,,d\n")
    assert got == [
        {"id": "1", "text": "a", "column_3": "b", "column_4": ""},
        {"id": "2", "text": "c", "column_3": "", "column_4": "d"},
    ]
    assert rows("y.csv", ",text\n1,a\n")[0] == [{"": "1", "text": "a"}]  # the index of pandas


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b"text\na\n", mtime=0),
            "is not text, but compressed with gzip: name it .gz",
        ),
        (bz2.compress(b"text\na\n"), "is not text, but compressed with bzip2: name it .bz2"),
        (b"PK\x03\x04" + bytes(100), "is not text, but a zip archive"),
        ("text\na\n".encode("utf-16-le"), "is not utf-8; it looks like utf-16-le"),
        ("text\na\n".encode("utf-16-be"), "is not utf-8; it looks like utf-16-be"),
    ],
    ids=["gzip", "bzip2", "zip", "utf-16-le", "utf-16-be"],
)
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_file_of_something_else_is_named_for_what_it_is(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        plan(tmp_path / name, tmp_path / "out")


def test_zero_bytes_in_a_row_are_no_utf16(rows):
    assert rows("x.csv", "text,more\n" + "\0" * 3001 + ",b\n")[0] == [
        {"text": "\0" * 3001, "more": "b"}
    ]


def test_lines_of_a_text_file_are_rows_blank_ones_too(rows, block_bytes, dice):
    pieces = [
        "",
        "",
        "the cat",
        " ",
        "ä€😀",
        "a\rb",
        "[1,",
        '{"a": 1}',
        "x" * 100,
        "\x0b\x85",
    ]
    for number in range(FILES // 10):
        lines = dice.choices(pieces, k=dice.randrange(12))
        ends = [dice.choice(["\n", "\r\n"]) for _ in lines]
        content = "".join(line + end for line, end in zip(lines, ends, strict=True))
        if dice.random() < 0.5:
            content = content.removesuffix("\n").removesuffix("\r")
            if lines and not lines[-1]:
                lines.pop()  # what ends with a line end has no line behind it
        if not lines:
            continue
        name, packed = dice.choice(
            [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.TXT.bz2", bz2.compress)]
        )
        good, malformed = rows(f"{number}-{name}", packed(content.encode()))
        assert [row["text"] for row in good] == lines
        assert not malformed


def test_lines_that_are_not_utf8_are_malformed_and_spoil_no_other(rows):
    good, malformed = rows("a.txt", b"one\r\nth\xe9\n\nth\xc3\xa9\n")
    assert [row["text"] for row in good] == ["one", "", "thé"]
    assert malformed == {1: ("is not valid UTF-8", "th\ufffd")}
    good, malformed = rows("b.txt", "th\xe9\nthe".encode("latin-1"), encoding="latin-1")
    assert ([row["text"] for row in good], malformed) == (["thé", "the"], {})


def test_a_large_text_file_is_staged_in_ranges(rows, tmp_path, monkeypatch):
    from pipelines.input import staging

    monkeypatch.setattr(staging, "RANGED_BYTES", 100)
    monkeypatch.setattr(staging, "RANGE_BYTES", 50)
    lines = [f"line {number}" if number % 5 else "" for number in range(100)]
    good, _ = rows("a.txt", "\n".join(lines) + "\n")
    assert [row["text"] for row in good] == lines
    assert len(list((tmp_path / "out" / "_staged").glob("*.parquet"))) > 5
