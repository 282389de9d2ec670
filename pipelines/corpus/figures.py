"""What the report shows of shards, from tables of their stats, one after the other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modernbert.stored import Json
from pipelines.output.record import Attempt
from pipelines.output.shard_stats import EXAMPLES, SHARD_STATS, Totals, by_frequency

_SHOWN_ATTEMPTS = 20
_SLOWEST = 10
_DEVIATIONS = 3
_SHOWN_CHANGES = 5
_SLOWEST_COLUMNS = ["name", "rows", "tokens", "tokenise_s", "predict_s"]
_BINS = 120
_BIN_S = 5  # the least seconds of throughput in a bin
_SUMMED = ("rows", "labelled")


class ShardFigures:
    """Sums of stats over all shards and by attempt, the slowest shards, and throughput.

    Of a shard it keeps its attempt's number, its time and its tokens: 24 bytes.
    """

    def __init__(self, attempts: Sequence[Attempt]):
        """`attempts`: those of the output's record, in order."""
        self._attempts = attempts
        started = [datetime.fromisoformat(attempt.started).timestamp() for attempt in attempts]
        # An attempt never begins before an earlier one, though a clock may have been set back.
        self._starts = np.maximum.accumulate(started)
        self._number_of: dict[str | None, int] = {
            attempt.run: number for number, attempt in enumerate(attempts) if attempt.run
        }
        self._sums = {name: np.zeros(len(attempts), np.int64) for name in _SUMMED}
        self._shards_of = np.zeros(len(attempts), np.int64)
        self._labels: Counter[tuple[int, str]] = Counter()
        self._shards = [np.empty((3, 0))]  # attempt, time and tokens of each
        self.totals = Totals()
        """Sums over all shards."""
        self.slowest = SHARD_STATS.empty_table().select(_SLOWEST_COLUMNS)
        """The shards that took the model longest."""
        self.examples: list[Json] = []
        """The rows to look at first, of all shards (corpus/checking.py)."""
        self.own_rows = 0
        """The rows that the last attempt has committed."""
        self.own_tokens = 0

    def add(self, stats: pa.Table) -> None:
        """Add the stats of shards."""
        self.totals.add(stats)
        self._keep_slowest(stats)
        self._keep_examples(stats)
        self._add_own(stats)
        times: np.ndarray = pc.fill_null(stats["committed_at"], 0.0).to_numpy()
        attempt_of = self._attempt_of(stats["run"].to_pylist(), times)
        for name, sums in self._sums.items():
            np.add.at(sums, attempt_of, _filled(stats[name]))
        self._shards_of += np.bincount(attempt_of, minlength=len(self._attempts))
        self._labels.update(_count_labels(stats["labels"].combine_chunks(), attempt_of))
        self._shards.append(np.stack([attempt_of, times, _filled(stats["tokens"])]))

    def _keep_slowest(self, stats: pa.Table) -> None:
        is_timed = pc.is_valid(stats["predict_s"])
        timed = stats.select(_SLOWEST_COLUMNS).filter(is_timed)
        candidates = pa.concat_tables([self.slowest, timed])
        slowest_first = candidates.sort_by([("predict_s", "descending")])
        self.slowest = slowest_first.slice(0, _SLOWEST)

    def _keep_examples(self, stats: pa.Table) -> None:
        texts = stats["examples"].combine_chunks().flatten().to_pylist()
        candidates = self.examples + [json.loads(text) for text in texts]
        candidates.sort(key=lambda each: (-each["doubt"], each["file"], each["row"]))
        self.examples = candidates[:EXAMPLES]

    def _add_own(self, stats: pa.Table) -> None:
        """Add what the last attempt has committed."""
        last_run = pa.scalar(self._attempts[-1].run, pa.string())
        own = stats.select(["rows", "tokens"]).filter(pc.equal(stats["run"], last_run))
        self.own_rows += pc.sum(own["rows"]).as_py() or 0
        self.own_tokens += pc.sum(own["tokens"]).as_py() or 0

    def _attempt_of(self, runs: list[str | None], times: np.ndarray) -> np.ndarray:
        """Return for each shard the number of the attempt that committed it.

        A shard of an earlier version has no run: it counts for the last attempt that had begun when
        it was committed.
        """
        by_time = np.searchsorted(self._starts, times, side="right") - 1
        numbers = [
            self._number_of.get(run, number)
            for run, number in zip(runs, by_time.tolist(), strict=True)
        ]
        return np.array(numbers, dtype=int).clip(0, len(self._attempts) - 1)

    def by_attempt(self) -> list[Json]:
        """Return what each of the last attempts that committed something added to the output."""
        numbers = np.flatnonzero(self._shards_of)[-_SHOWN_ATTEMPTS:].tolist()
        labels: dict[int, dict[str, int]] = {number: {} for number in numbers}
        for (number, label), count in self._labels.items():
            if number in labels:
                labels[number][label] = count
        return [
            {
                "attempt": number,
                "started": self._attempts[number].started,
                "rows": int(self._sums["rows"][number]),
                "rejected": int(self._sums["rows"][number] - self._sums["labelled"][number]),
                "labels": dict(sorted(labels[number].items(), key=by_frequency)),
            }
            for number in numbers
        ]

    def drift(self) -> Json | None:
        """Return how the shares of labels of the last attempt differ from those of the attempt
        before it that labelled rows; None without two such attempts.

        `distance` is the share of answers that would have to be others. Of `changes`, only those
        are named that chance makes in one of 370 runs, the largest first.
        """
        labelled = [each for each in self.by_attempt() if each["labels"]]
        if len(labelled) < 2 or labelled[-1]["attempt"] != len(self._attempts) - 1:
            return None
        before, now = labelled[-2]["labels"], labelled[-1]["labels"]
        totals = sum(before.values()), sum(now.values())
        changes: list[tuple[str, float, float]] = []
        distance = 0.0
        for label in sorted({*before, *now}):
            counts = before.get(label, 0), now.get(label, 0)
            shares = counts[0] / totals[0], counts[1] / totals[1]
            distance += abs(shares[1] - shares[0]) / 2
            of_both = sum(counts) / sum(totals)
            deviation = math.sqrt(of_both * (1 - of_both) * (1 / totals[0] + 1 / totals[1]))
            if abs(shares[1] - shares[0]) > _DEVIATIONS * deviation:
                changes.append((label, *shares))
        changes.sort(key=lambda change: -abs(change[2] - change[1]))
        return {
            "attempt": labelled[-2]["attempt"],
            "distance": distance,
            "changes": changes[:_SHOWN_CHANGES],
        }

    def throughput(self) -> list[Json]:
        """Return tokens a second over the time of each attempt that committed something.

        Times outside of their attempt, which another clock has given, count for its first or last
        moment.
        """
        attempt_of, times, tokens = np.concatenate(self._shards, axis=1)
        series: list[Json] = []
        for number, start in enumerate(self._starts):
            is_of_attempt = attempt_of == number
            if not is_of_attempt.any():
                continue
            # One whose process died has no length: it lasted at least until its last commit.
            seconds = self._attempts[number].seconds or times[is_of_attempt].max() - start
            bins = min(_BINS, max(int(seconds / _BIN_S), 1))
            edges = np.linspace(0, max(seconds, 1e-3), bins + 1)
            since_start = (times[is_of_attempt] - start).clip(0, edges[-1])
            sums, _ = np.histogram(since_start, edges, weights=tokens[is_of_attempt])
            rates = sums / np.diff(edges)
            series.append(
                {
                    "attempt": number,
                    "seconds": edges[:-1].round(1).tolist(),
                    "tokens_per_s": rates.round(1).tolist(),
                }
            )
        return series


def _filled(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = pc.fill_null(column, 0).to_numpy()
    return values


def _count_labels(maps: pa.MapArray, attempt_of: np.ndarray) -> dict[tuple[int, str], int]:
    """Add up counts by attempt and label; `attempt_of`: the attempt of each map."""
    each = np.diff(maps.offsets.to_numpy())
    entries = pa.table(
        {"attempt": np.repeat(attempt_of, each), "label": maps.keys, "n": maps.items}
    )
    sums = entries.group_by(["attempt", "label"]).aggregate([("n", "sum")])
    keys = zip(sums["attempt"].to_pylist(), sums["label"].to_pylist(), strict=True)
    return dict(zip(keys, sums["n_sum"].to_pylist(), strict=True))
