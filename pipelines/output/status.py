"""`_status.json`: what a job does now, for whoever asks while it runs and after it has ended.

It holds counts, times and names of machines: no text of a row, and no credential. Needs neither
Ray nor torch.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.storage import Folder, redact

STATUS = "_status.json"
WRITTEN_EVERY_S = 10.0
STALE_S = 60.0
"""A job whose status is older than this may be dead."""
WATCHED_S = 25.0
"""How long a status that looks so old is watched: a job that lives writes it twice."""
_LOOKS_S = 1.0
RUNNING_STATES = ("preparing", "running", "finishing")
OTHER_REASONS = "other"
_MOST_REASONS = 16
_LONGEST_REASON = 100
_LONGEST_ERROR = 300
_QUOTED = re.compile(r"""(?<!\w)['"`«].*['"`»](?!\w)""")
"""From the first quotation mark to the last: what stands between may hold such marks itself."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a run has done so far. Its counts are those of this run alone."""

    state: str
    """preparing (files are staged and cut), running or finishing; in the end complete, failed,
    stopped, interrupted or error.
    """
    run: str
    """The identity of the run, as in `_run.json`."""
    task: str
    node: str
    """The host of the driver, and its process there."""
    process: int
    started: str
    """As ISO 8601 in UTC, by the driver's clock."""
    written: str
    seconds: float
    shards: int | None = None
    """Those to do, and their rows; None while the job is preparing."""
    rows_todo: int | None = None
    commits: int = 0
    """The shards that were committed, and what is in them."""
    rows: int = 0
    tokens: int = 0
    rejected: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    """The rejected rows by the class of their reason (`ReasonClasses`)."""
    last_commit: str | None = None
    failures: int = 0
    """The files and shards that have failed for good."""
    rows_per_s: float | None = None
    """The rates since the first commit, and the seconds that are left at this rate."""
    tokens_per_s: float | None = None
    left_s: float | None = None
    actors: int | None = None
    """The actors whose model is loaded; None where it is not known."""
    actors_wanted: tuple[int, int] | None = None
    """The fewest and the most."""
    last_error: str | None = None
    drift: float | None = None
    """The largest change of a label's share since the run before, once the run has ended
    (RunRecord.largest_change); None where no run labelled before it, or it has labelled nothing.
    """
    gpu_s: float | None = None
    """What the run has used, as in `_run.json`, once it has ended."""
    cpu_s: float | None = None
    cost: float | None = None

    def write(self, folder: Folder) -> None:
        """Replace the status in `folder`: others see the old one or this one."""
        folder.write_atomic(STATUS, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def age_s(self) -> float:
        """Return the seconds since it was written, by this machine's clock: below 0 where that
        of the driver is ahead.
        """
        return (datetime.now(UTC) - datetime.fromisoformat(self.written)).total_seconds()


def read_status(folder: Folder) -> Status:
    """Read the status in an output; UserError where there is none, or none that can be read."""
    try:
        content: Json = json.loads(folder.read(STATUS))
        known = {each.name for each in fields(Status)}
        return Status(**{name: value for name, value in content.items() if name in known})
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"'{folder}' holds no {STATUS}: name the --output of a job that has begun (versions "
            "before 0.3 write none)"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{folder}/{STATUS}' is no status of a job: {error}") from error


def watched(folder: Folder, status: Status) -> tuple[Status, bool]:
    """Return the status that is there now, and whether its job may be dead.

    One that looks dead by its time is watched for up to WATCHED_S, since the clock of the driver
    and that of this machine may differ: a job that writes another status lives.
    """
    if status.state not in RUNNING_STATES or 0 <= status.age_s() <= STALE_S:
        return status, False
    until = time.monotonic() + WATCHED_S
    while time.monotonic() < until:
        time.sleep(_LOOKS_S)
        now = read_status(folder)
        if now.written != status.written:
            return now, False
    return status, True


class ReasonClasses:
    """Names for reasons of rejected rows, of which there are few, whatever the reasons are.

    A reason's class is the reason without what is quoted in it, which may be of a row's text, and
    without its numbers. Beyond the first sixteen they are one, `other`.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def name(self, reason: str) -> str:
        """Return the class of a reason."""
        name = without_numbers(without_texts(reason))[:_LONGEST_REASON]
        if name not in self._known:
            if len(self._known) >= _MOST_REASONS:
                return OTHER_REASONS
            self._known.add(name)
        return name


def without_texts(message: str) -> str:
    """Return the first line of a message without credentials and what may be quoted of a row."""
    lines = redact(message).splitlines() or [""]
    return _QUOTED.sub("'…'", lines[0])[:_LONGEST_ERROR]


def without_numbers(message: str) -> str:
    """Return a message with N in place of each number."""
    return re.sub(r"\d[\d,.]*\d|\d", "N", message)


def timestamp() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
