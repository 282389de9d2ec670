"""Which attempt a shard counts for, whatever the clocks of workers, storage and driver say."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import without_ray

from pipelines.corpus import execute, stages
from pipelines.corpus.figures import ShardFigures
from pipelines.corpus.run import run_corpus
from pipelines.output.record import Attempt, RunRecord
from pipelines.output.shard_stats import table
from pipelines.raydata.actor import Predict
from pipelines.raydata.wire import unit_row
from pipelines.report.html import render
from pipelines.signals import Stopped

T0 = 1_790_000_000.0
SEEDS = range(200)


def attempt(
    started: float, run: str | None, outcome: str | None = "complete", seconds: float | None = 60.0
) -> Attempt:
    at = (
        datetime.fromtimestamp(started, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
    return Attempt(at, seconds, outcome, 0, 0, "host", "cpu", 4096, {}, run)


def shard(number: int, run: str | None, committed_at: float | None) -> dict:
    return {
        "name": f"s-{number}",
        "rows": 10 + number,
        "labelled": 10,
        "tokens": 100,
        "run": run,
    } | {"committed_at": committed_at}


def figures_of(stats: list[dict], attempts: list[Attempt]) -> ShardFigures:
    """The figures of stats that come in several tables, as those of many shards do."""
    figures = ShardFigures(attempts)
    for start in range(0, len(stats), 7):
        figures.add(table(stats[start : start + 7]))
    return figures


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_count_for_their_run_whatever_the_clocks_say(seed):
    """Clocks that are hours off, or set back between two nights; some shards have no time at all."""
    dice = random.Random(seed)
    nights = dice.randrange(1, 6)
    attempts = [
        attempt(T0 + dice.uniform(-1, 1) * 86_400, f"run-{n}", seconds=dice.choice([None, 60.0]))
        for n in range(nights)
    ]
    stats, rows = [], Counter()
    for number in range(dice.randrange(1, 40)):
        night = dice.randrange(nights)
        stats.append(
            shard(number, f"run-{night}", dice.choice([None, T0 + dice.uniform(-1, 1) * 1e5]))
        )
        rows[night] += stats[-1]["rows"]
    known = [asdict(each) for each in attempts]
    figures = figures_of(stats, attempts)
    assert {each["attempt"]: each["rows"] for each in figures.by_attempt()} == rows
    assert figures.own_rows == rows[nights - 1]
    series = figures.throughput()
    assert [each["attempt"] for each in series] == sorted(rows)
    assert all(max(each["tokens_per_s"]) > 0 for each in series)
    assert "Attempts" in render(
        {"attempts": known, "throughput": series, "by_attempt": figures.by_attempt()}
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_of_earlier_versions_count_for_an_attempt_by_their_time(seed):
    dice = random.Random(seed)
    starts = sorted(T0 + dice.uniform(0, 1) * 86_400 for _ in range(dice.randrange(1, 6)))
    attempts = [attempt(start, None) for start in starts]
    skew = dice.choice([0.0, 0.0, -1e6, 1e6, -30.0])
    stats, rows = [], Counter()
    for number in range(20):
        night = dice.randrange(len(starts))
        time = starts[night] + 1e-3 + skew
        stats.append(shard(number, None, time))
        rows[max(sum(start <= time for start in starts) - 1, 0)] += stats[-1]["rows"]
    figures = figures_of(stats, attempts)
    assert {each["attempt"]: each["rows"] for each in figures.by_attempt()} == rows
    assert sum(rows.values()) == sum(each["rows"] for each in stats)
    assert len(figures.throughput()) == len(rows)


def test_a_part_that_no_run_knows_is_of_one_since_the_last_that_ended():
    record = RunRecord({}, 4096)
    record.attempts = [
        attempt(T0, "a"),
        attempt(T0 + 100, "b"),
        attempt(T0 + 200, "c", None),
        attempt(T0 + 300, "d", None),
    ]
    record.attempts.append(attempt(T0 + 400, "e", None))  # under way
    times = {
        T0 - 9e9: "b",
        T0 + 150: "b",
        T0 + 250: "c",
        T0 + 350: "d",
        T0 + 450: "e",
        T0 + 9e9: "e",
    }
    assert {time: record.run_at(time) for time in times} == times
    record.attempts = [attempt(T0, None, None)]  # of an earlier version
    assert record.run_at(T0) is None


def test_a_stopped_attempt_counts_the_parts_of_which_the_driver_has_not_heard(
    tmp_path, checkpoint, monkeypatch
):
    """A commit may be written while its receipt is still under way; the next attempt counts its own rows alone."""
    texts = pa.table({"id": range(640), "text": ["the cat"] * 640})
    pq.write_table(texts, tmp_path / "in.parquet", row_group_size=64)
    call = {
        "input": str(tmp_path / "in.parquet"),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
    }

    written = []

    def stop_before_the_last(self, *_):
        actor = Predict(self.job)
        for each in self.todo[:-1]:
            unit = pa.Table.from_pylist([unit_row([each])])
            [table] = stages.read_and_tokenise(self.job, unit)
            committed = stages.commit(self.job, actor(table)).to_pylist()[0]
            if not written:
                self.add_committed(json.loads(committed["stats"]))
            written.append(each.count)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(execute.Execution, "run", stop_before_the_last)
        with pytest.raises(Stopped):
            run_corpus("classify", **call)
    without_ray(monkeypatch)
    run_corpus("classify", **call)
    attempts = json.loads((tmp_path / "out" / "_run.json").read_text())["attempts"]
    assert len(written) > 1
    rows = sum(written)
    assert [(each["outcome"], each["rows"]) for each in attempts] == [
        ("stopped", rows),
        ("complete", 640 - rows),
    ]
    stats = pa.ipc.open_file(tmp_path / "out" / "_shards.arrow").read_all()
    assert Counter(stats["run"].to_pylist()) == {
        attempts[0]["run"]: len(written),
        attempts[1]["run"]: 1,
    }
