"""`_run.json`: what an output depends on, each attempt to make it, and what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from itertools import islice
from typing import TypeVar

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.storage import Folder

RUN = "_run.json"
_LISTED_FAILURES = 1000
PARTS = "data"
"""The folder of the parts; outputs begun before version 0.2 have them beside the record."""


@dataclass
class Attempt:
    """One run into the output. `seconds`, `outcome`, `rows` and `tokens` stay None if its process
    dies.
    """

    started: str
    """When it began, as ISO 8601 in UTC."""
    seconds: float | None
    outcome: str | None
    """complete, failed, stopped, interrupted, or "error: " with the message."""
    rows: int | None
    tokens: int | None
    host: str
    device: str
    budget_tokens: int | None
    """None: by the memory of each actor's GPU."""
    versions: dict[str, str | None]
    run: str | None = None
    """Its identity, which the stats of its shards have, too; None in outputs before 0.2."""
    snapshot: str | None = None
    """For a table, the version or snapshot of it that was read."""
    attention: dict[str, tuple[str, int]] = field(default_factory=dict)
    """How actors on CPUs computed it where there was a choice, by the processor: the product and
    the size of tiles (torch_attention.CpuWay); on GPUs the backend and 0.
    """
    fusions: dict[str, str] = field(default_factory=dict)
    """How actors ran layers, by the GPU (`modernbert.tiles.Fusions`)."""
    gpu_s: float | None = None
    """The seconds of GPUs and of CPU cores that were held (corpus/compute.py); None where that is
    not known.
    """
    cpu_s: float | None = None
    price_per_hour: float | None = None
    cost: float | None = None
    """Of `gpu_s`, on CPUs of `cpu_s`, at this price."""


@dataclass
class RunRecord:
    """The record of all runs into an output."""

    fingerprint: Json
    """What answers depend on: a run that differs in it is refused."""
    shard_rows: int | None = None
    """The most rows in a shard of the files that `_files.arrow` has without a step: those of
    outputs begun up to version 0.2.0.
    """
    attempts: list[Attempt] = field(default_factory=list)
    complete: bool = False
    totals: Json | None = None
    """Sums over all shards (output/shard_stats.py), once a run has ended."""
    failed: dict[str, str] | None = None
    """Files and shards that failed in the last run, with the reason.

    The file has the first thousand, and their number as `failed_count`.
    """
    parts: str = ""
    """The folder of the parts in the output; empty: the output itself."""
    drift: Json | None = None
    """How the shares of labels of the last run differ from those of the run before it that labelled
    rows (corpus/figures.py).
    """
    checks: Json | None = None
    """How the answers of all shards compare with gold (tasks/checks.py), where there is any."""

    @property
    def largest_change(self) -> float | None:
        """How much the share of a label has changed since the run before, of the label that has
        changed most: 0 where chance may have made all changes, None without such a run.
        """
        if self.drift is None:
            return None
        return max((abs(now - before) for _, before, now in self.drift["changes"]), default=0.0)

    def run_at(self, written: float) -> str | None:
        """Return the run that has probably written a part of which no run knows.

        `written`: the time of the part's file, in seconds since 1970.
        """
        # One that ended by itself knew of all parts before it: it is that one, or a later one.
        last_ended = 0
        for number, attempt in enumerate(self.attempts[:-1]):
            if attempt.outcome is not None:
                last_ended = number
        possible = self.attempts[last_ended:]
        # Of these, the last that had begun then.
        likeliest = possible[0]
        for attempt in possible:
            if datetime.fromisoformat(attempt.started).timestamp() <= written:
                likeliest = attempt
        return likeliest.run

    def write(self, folder: Folder) -> None:
        """Replace the record in `folder`."""
        content = {name: value for name, value in asdict(self).items() if value is not None}
        if self.failed:
            content["failed"] = dict(islice(self.failed.items(), _LISTED_FAILURES))
            content["failed_count"] = len(self.failed)
        folder.write_atomic(RUN, (json.dumps(content, indent=2) + "\n").encode())


Record = TypeVar("Record", Attempt, RunRecord)


def read_record(folder: Folder) -> RunRecord | None:
    """Read the record in `folder`, None if there is none; UserError if it cannot be read."""
    try:
        content = json.loads(folder.read(RUN))
        attempts = [_build(Attempt, attempt) for attempt in content["attempts"]]
        content["attempts"] = attempts
        return _build(RunRecord, content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/{RUN} cannot be read: {error}") from error


def _build(cls: type[Record], content: Json) -> Record:
    """Make a record of what JSON holds of it; other versions have fields more or less."""
    names = [each.name for each in fields(cls)]
    return cls(**{name: content[name] for name in names if name in content})
