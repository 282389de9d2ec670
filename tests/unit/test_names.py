"""Names of parts: portable, readable by every library, and no two files' alike."""

from __future__ import annotations

import random
import re

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.input.names import (
    LONGEST_NAME,
    first_portable_name,
    portable_name,
    shard_name,
    split_shard_name,
)

PIECES = [
    *"abcXYZ019._-=+~%&()[]{}<>!?*#@$'\"`;:,|\\ \t\n\r\0\x1b",
    *(
        "é",
        "É",
        "e\u0301",
        "ß",
        "ẞ",
        "İ",
        "ı",
        "中",
        "א",
        "\u202e",
        "\u200b",
        "👩‍👩‍👧",
        "\U0010ffff",
        "\udcff",
        "\ud800",
    ),
    *(
        "/",
        "/",
        "..",
        "key=value/",
        "_year=2024/",
        ".hidden/",
        "CON",
        "nul.",
        ".parquet",
        ".csv.gz",
        "part-00000",
    ),
    *("-0123456789abcdef", "a" * 60, "é" * 60),
]


def random_path(dice: random.Random) -> str:
    if dice.random() < 0.3:
        return "".join(
            chr(dice.choice([dice.randrange(0x80), dice.randrange(0x110000)]))
            for _ in range(dice.randint(1, 12))
        )
    return "".join(dice.choices(PIECES, k=dice.randint(1, 12)))


def test_names_of_random_paths_are_portable_and_no_two_alike():
    dice = random.Random(7)
    paths = {random_path(dice) for _ in range(100_000)}
    paths |= {path.swapcase() for path in list(paths)[:2000]}
    names = {path: portable_name(path) for path in paths}
    names |= {
        name: portable_name(name) for name in names.values()
    }  # a file may be called as a part is
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.=-]*", name) for name in names.values())
    assert max(map(len, names.values())) <= LONGEST_NAME
    assert len({name.casefold() for name in names.values()}) == len(names)
    part = shard_name("x" * LONGEST_NAME, "0" * 8, 123_456_789_012, 123_456_789_999) + ".parquet"
    assert len(part) <= 200


def test_plain_names_stay_as_they_are():
    for name in ("requests.parquet", "part-00000-of-00010.csv.gz", "2024-05-06.jsonl"):
        assert portable_name(name) == name
    assert (
        portable_name("élections.jsonl")
        == "f-lections.jsonl-" + portable_name("élections.jsonl")[-16:]
    )


def test_the_name_of_a_shard_says_what_it_was_made_from():
    for file in ("a.parquet", "a-b-00000001-000000003-000000004", portable_name("é/Ä")):
        assert split_shard_name(shard_name(file, "0a1b2c3d", 64, 128)) == (
            file,
            "0a1b2c3d",
            64,
            128,
        )
    for name in (
        "merged",
        "my-labelled-data",
        "a-0a1b2c3d-64-128",
        "a-0A1B2C3D-000000064-000000128",
        "",
    ):
        assert split_shard_name(name) is None


@pytest.mark.parametrize(
    "path", ["élections.jsonl", "_part.csv", ".x.csv", "(copy) x.jsonl", "x" * 300]
)
def test_an_output_that_was_begun_keeps_its_names_where_readers_see_them(path):
    assert (
        first_portable_name("a b.parquet")
        == "a_b.parquet-" + first_portable_name("a b.parquet")[-8:]
    )
    assert first_portable_name(path) == portable_name(path)


def test_parts_of_odd_files_are_read_by_every_library(tmp_path):
    dice = random.Random(11)
    paths = [random_path(dice) for _ in range(300)]
    for row, path in enumerate(paths):
        name = shard_name(portable_name(f"{path}{row}"), "0" * 8, 0, 1)
        pq.write_table(pa.table({"row": [row]}), tmp_path / f"{name}.parquet")
    want = list(range(300))
    found = [
        ds.dataset(tmp_path, format="parquet").to_table()["row"].to_pylist(),
        pd.read_parquet(tmp_path)["row"].tolist(),
        polars.read_parquet(tmp_path)["row"].to_list(),
        [
            row
            for (row,) in duckdb.connect()
            .execute(f"select row from '{tmp_path}/*.parquet'")
            .fetchall()
        ],
    ]
    assert [sorted(rows) for rows in found] == [want] * 4
    spark_hides = re.compile(r"[_.]")  # Spark, Hive and Hadoop pass over names that begin so
    assert not any(spark_hides.match(file.name) for file in tmp_path.iterdir())
