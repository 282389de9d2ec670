"""`_status.json`: what a job does now, for whoever asks while it runs and after it has ended.

It holds counts, times and names of machines: no text of a row, and no credential. Needs neither
Ray nor torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.storage import Folder, redact

STATUS = "_status.json"
WRITTEN_EVERY_S = 10.0
STALE_S = 60.0
"""A job whose status is older than this may be dead."""
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
    gpu_s: float | None = None
    """What the run has used, as in `_run.json`, once it has ended."""
    cpu_s: float | None = None
    cost: float | None = None

    def write(self, folder: Folder) -> None:
        """Replace the status in `folder`: others see the old one or this one."""
        folder.write_atomic(STATUS, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def age_s(self, now: datetime | None = None) -> float:
        """Return the seconds since it was written, by this machine's clock."""
        now = now or datetime.now(UTC)
        return max((now - datetime.fromisoformat(self.written)).total_seconds(), 0.0)

    def may_be_dead(self, age_s: float) -> bool:
        """Tell whether a job of this status, so old, should have written another one."""
        return self.state in RUNNING_STATES and age_s > STALE_S


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
