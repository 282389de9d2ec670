"""The stats of shards in an output: each part's once, whatever ended the runs that wrote them."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
import pytest

from pipelines.input.names import shard_name
from pipelines.output import shard_stats, shards_file
from pipelines.output.committing import REJECTED_FIELDS, commit_shard
from pipelines.output.parts import list_parts, part_path
from pipelines.output.shards_file import SEGMENTS, SHARDS, SegmentWriter, write_shard_stats
from pipelines.storage import Folder

PARTS = "data"
SEGMENT = 3
NO_ROWS = REJECTED_FIELDS.empty_table()


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Let a dozen shards be many: several segments of a run, several batches of the file."""
    monkeypatch.setattr(shards_file, "_SEGMENT_SHARDS", SEGMENT)
    monkeypatch.setattr(shards_file, "_BATCH_SHARDS", 4)


def stats_of(number: int) -> dict:
    """What a footer keeps of the stats of a shard."""
    counts = {"labels": {"a": number, f"b{number % 3}": 1}, "rejects": {}, "scores": [number] * 20}
    return {
        "name": shard_name(f"f{number % 4}.parquet", "0123abcd", number * 64, number * 64 + 64),
        "rows": 64,
        "labelled": 60,
        "tokens": 100 + number,
        **counts,
        **shard_stats.count_windows(np.array([number + 1])),
    }


def commit(folder: Folder, number: int) -> None:
    commit_shard(folder, PARTS, stats_of(number), pa.table({"n": [1]}), NO_ROWS)


def tell(writer: SegmentWriter, number: int, run: str) -> None:
    writer.add(stats_of(number) | {"predict_s": number / 8, "run": run, "committed_at": 1e9})


def finish(folder: Folder, run: str, run_of=lambda *_: "recovered") -> tuple[list[dict], set[str]]:
    """End a run: the stats that are stored then, and the shards whose parts are missing."""
    seen: list[pa.Table] = []
    listing = list_parts(folder, PARTS)
    missing = write_shard_stats(folder, PARTS, listing, run, run_of, see=seen.append)
    stored = pa.ipc.open_file(folder.read(SHARDS)).read_all()
    assert stored.schema == shard_stats.SHARD_STATS
    assert stored.to_pylist() == [row for table in seen for row in table.to_pylist()]
    assert not list(folder.names(SEGMENTS))
    return stored.to_pylist(), missing


def check(stored: list[dict], run_of: dict[int, str | None]) -> None:
    """Check stored stats against the run of each shard; None: its footer alone is known."""
    in_order = sorted(run_of, key=lambda number: stats_of(number)["name"])
    kept = [stats_of(number) for number in in_order]
    names = ["name", *shard_stats.KEPT]
    assert [{name: row[name] for name in names} for row in stored] == shard_stats.table(
        kept
    ).select(names).to_pylist()
    runs = [run_of[number] for number in in_order]
    assert [row["run"] for row in stored] == [run or "recovered" for run in runs]
    times = [number / 8 if run_of[number] else None for number in in_order]
    assert [row["predict_s"] for row in stored] == times


@contextmanager
def crash_at(point: int) -> Iterator[None]:
    """End the block before or after a write or a removal, the one of that number."""
    ticks = itertools.count()

    def around(function):
        def called(*arguments):
            if next(ticks) == point:
                raise Crash
            function(*arguments)
            if next(ticks) == point:
                raise Crash

        return called

    with pytest.MonkeyPatch.context() as patch, suppress(Crash):
        patch.setattr(os, "replace", around(os.replace))
        patch.setattr(Folder, "remove_folder", around(Folder.remove_folder))
        yield


@pytest.mark.parametrize("seed", range(80))
def test_each_part_has_its_stats_once_whatever_ended_the_runs(seed, tmp_path):
    """Runs that end, are killed, or crash at any write of their end; parts whose commit nobody heard of, that were
    never written, or that vanish."""
    dice = random.Random(seed)
    folder = Folder(str(tmp_path))
    numbers = list(range(60))
    dice.shuffle(numbers)
    there: dict[int, str | None] = {}
    for night in range(dice.randrange(1, 6)):
        run = f"run{night}"
        writer = SegmentWriter(folder, run)
        told: list[int] = []
        for _ in range(dice.randrange(12)):
            number = numbers.pop()
            is_committed, is_told = dice.choice([(True, True)] * 3 + [(True, False), (False, True)])
            if is_committed:
                commit(folder, number)
                there[number] = None
            if is_told:
                tell(writer, number, run)
                told.append(number)
        for number in dice.sample(sorted(there), dice.randrange(min(len(there), 3) + 1)):
            folder.remove(part_path(PARTS, stats_of(number)["name"]))
            del there[number]
        end = dice.choice(["ends", "ends", "killed", "crashes"])
        if end == "killed":  # what is in no segment yet is known from the footers alone
            told = told[: len(told) // SEGMENT * SEGMENT]
        else:
            writer.flush()
        there |= {number: run for number in told if number in there}
        if end == "ends":
            stored, missing = finish(folder, run)
            check(stored, there)
            assert missing == {stats_of(each)["name"] for each in told if each not in there}
        if end == "crashes":
            with crash_at(dice.randrange(8)):
                finish(folder, run)
    stored, missing = finish(folder, "last")
    check(stored, there)
    assert not missing


def test_what_a_run_says_of_a_shard_replaces_what_others_have_said(tmp_path):
    """A part that has vanished is written again: by a run that is killed, then by one that ends."""
    folder = Folder(str(tmp_path))
    for run in ("first", "second", "third"):
        commit(folder, 7)
        writer = SegmentWriter(folder, run)
        tell(writer, 7, run)
        writer.flush()
        if run != "second":
            stored, _ = finish(folder, run)
            check(stored, {7: run})


def test_stats_of_an_earlier_version_stay(tmp_path):
    """A file in one batch, without the columns that came later."""
    folder = Folder(str(tmp_path))
    for number in range(10):
        commit(folder, number)
    early = [stats_of(number) | {"predict_s": number / 8} for number in range(9)]
    table = shard_stats.table(early).drop_columns(["run", "items", "item_bytes", "replaced"])
    folder.write_atomic(SHARDS, shards_file.packed(table))
    stored, _ = finish(folder, "run", lambda name, written: f"{name[:2]} {written > 1e9}")
    assert [row["run"] for row in stored] == [None] * 5 + ["f1 True"] + [None] * 4
    assert sum(row["predict_s"] or 0 for row in stored) == sum(range(9)) / 8


def test_a_segment_is_written_once_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_file, "_SEGMENT_S", 0.0)
    folder = Folder(str(tmp_path))
    tell(SegmentWriter(folder, "run"), 1, "run")
    assert len(list(folder.names(SEGMENTS))) == 1
