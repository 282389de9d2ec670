"""Shards by size: every row of every file in one of them, none larger than it may be, small files together."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from pipelines.input.corpus import Shards
from pipelines.input.cutting import (
    ShardSize,
    cuts_of_file,
    former_step,
    name_of_group,
    share_of_each,
    share_shards,
)
from pipelines.input.names import is_shared, split_shard_name
from pipelines.input.shards import DataFile, Piece, Scan, Shard

MIB = 1 << 20


def random_scan(dice: random.Random) -> Scan:
    """A file of any size: in place, with row groups of any size, or in staged parts."""
    rows = dice.choice([0, 1, 63, 64, 65, 999, 4096, 9_999, dice.randrange(1, 20_000)])
    text_bytes = rows * dice.choice([1, 20, 400, 4_000])
    size = text_bytes + rows * dice.choice([0, 8, 5_000])
    if dice.random() < 0.3:
        stops = sorted(dice.sample(range(1, rows), 2)) if rows > 3 else []
        bounds = [0, *stops, rows]
        parts = [(f"part-{i}", b - a) for i, (a, b) in enumerate(pairwise(bounds))]
        return Scan(rows, size, tuple(parts), text_size=text_bytes)
    group_rows = dice.choice([0, 1, 100, 3_000, max(rows, 1), 122_880])
    return Scan(rows, size, group_rows=min(group_rows, rows), text_size=text_bytes)


def random_size(dice: random.Random) -> ShardSize:
    return ShardSize(
        rows=dice.choice([512, 4096, 1 << 20]),
        text_bytes=dice.choice([10_000, MIB, 40 * MIB]),
        bytes=dice.choice([MIB, 128 * MIB]),
        read_bytes=dice.choice([None, 2048]),
        rows_per_file=dice.choice([None, None, 7, 100, 10_000]),
    )


@pytest.mark.parametrize("seed", range(150))
def test_every_row_is_in_one_shard_of_the_right_size(seed):
    dice = random.Random(seed)
    scan, size = random_scan(dice), random_size(dice)
    if size.rows_per_file:
        scan = Scan(scan.rows, scan.size, scan.parts, text_size=scan.text_size)
    step = size.step(scan, share_of_each(size, [scan]))
    file = DataFile("/in/f", "0" * 8, scan, name="f", step=step)
    shards = Shards("parquet", [(file, ())], [], cuts_of_file(0, scan, step, scan.rows))
    pieces = [piece for shard in shards for piece in shard.pieces]
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces)][:-1] or (
        not scan.rows
    )
    assert sum(shard.rows for shard in shards) == shards.rows == scan.rows
    assert all(0 < shard.rows <= step for shard in shards)
    bytes_per_row = scan.size / max(scan.rows, 1)
    assert step == 1 or step * bytes_per_row <= size.bytes
    if size.rows_per_file:
        assert step <= size.rows_per_file
    for shard in shards:
        name = split_shard_name(shard.name)
        assert (name.start, name.stop) == (shard.start, shard.start + shard.rows)
    if scan.parts:
        rows_of_part = dict(scan.parts)
        assert all(p.part_start + p.rows <= rows_of_part[p.part] for p in pieces)
    elif scan.group_rows > step:
        # No row group is decoded for two units.
        for shard in shards:
            groups = {
                shard.start // scan.group_rows,
                (shard.start + shard.rows - 1) // scan.group_rows,
            }
            assert groups == {shard.unit}


def test_shards_are_sequences():
    scan = Scan(1000, 0)
    file = DataFile("/in/f", "0" * 8, scan, name="f", step=64)
    shards = Shards("parquet", [(file, ())], [], cuts_of_file(0, scan, 64, 700))
    assert len(shards) == 11
    assert shards[-1].name == "f-00000000-000000640-000000700"
    assert list(shards[2:4]) == list(shards.take([2, 3])) == [shards[2], shards[3]]
    assert (shards.rows, shards.largest, shards[5:5].largest) == (700, 64, 0)


@pytest.mark.parametrize("seed", range(100))
def test_small_files_that_follow_each_other_share_a_shard(seed):
    dice = random.Random(seed)
    size = random_size(dice)
    scans = [random_scan(dice) for _ in range(dice.choice([5, 32, 33, 200, 700]))]
    share = share_of_each(size, scans)
    files = [
        DataFile(f"/in/{i:05}", f"{i:08x}", scan, name=f"{i:05}", step=size.step(scan, share))
        for i, scan in enumerate(scans)
    ]
    groups = share_shards(size, files, share)
    grouped = [file for group in groups for file in group]
    assert len(set(map(id, grouped))) == len(grouped)
    if len(files) <= 32:
        assert not groups
    with_rows = [file for file in files if file.scan.rows]
    for group in groups:
        first = with_rows.index(group[0])
        assert with_rows[first : first + len(group)] == list(group)
        rows = sum(file.scan.rows for file in group)
        assert rows <= (size.rows_per_file or size.rows)
        assert sum(file.scan.size for file in group) <= size.bytes
        assert all(file.scan.rows <= file.step / 2 for file in group)
        assert is_shared(name_of_group(group))
        assert split_shard_name(name_of_group(group)).stop == rows
    names = [name_of_group(group) for group in groups]
    assert names == sorted(names)


def test_two_small_files_are_one_shard_where_there_are_many():
    """And what 5,000 files of 40 rows become is about what one file of their rows does."""
    size = ShardSize(rows=1 << 20, text_bytes=4 * MIB)
    files = [
        DataFile(f"{i:05}", f"{i:08x}", Scan(40, 2000), name=f"{i:05}", step=size.step(Scan(40, 2000), 1e6))
        for i in range(5000)
    ]  # fmt: skip
    share = share_of_each(size, [file.scan for file in files])
    groups = share_shards(size, files, share)
    assert 32 <= len(groups) <= 36
    assert sum(len(group) for group in groups) == 5000


def test_the_shards_of_earlier_versions_stay():
    assert former_step(Scan(1000, 100 * MIB), 4096) == 320
    assert former_step(Scan(1000, 10_000), 4096) == 4096
    assert former_step(Scan(0, 0), 128) == 64


def test_a_row_of_a_shared_shard_is_found_in_its_file():
    pieces = (Piece("/a", "a", "1" * 8, 0, 3), Piece("/b", "b", "2" * 8, 0, 5))
    shard = Shard("a-and-1-more-00000000-000000000-000000008", "parquet", pieces)
    assert [shard.place(row) for row in (0, 2, 3, 7)] == [
        ("/a", 0),
        ("/a", 2),
        ("/b", 0),
        ("/b", 4),
    ]
    assert [each.name for each in shard.alone] == [
        "a-11111111-000000000-000000003",
        "b-22222222-000000000-000000005",
    ]
    rows = np.concatenate([
        np.arange(first, first + piece.rows)
        for part in shard.subshards
        for piece, first in part.inside()
    ])  # fmt: skip
    assert rows.tolist() == list(range(8))
    assert [part.count for part in shard.subshards] == [1] * 8
