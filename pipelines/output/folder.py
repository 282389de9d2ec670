"""The output folder: parts committed whole, rejected rows beside them, and the record of the runs.

    OUTPUT/data/<shard>.parquet        labelled rows, in input order
    OUTPUT/_rejected/<shard>.parquet   rows that could not be labelled, with the reason
    OUTPUT/_run.json                   fingerprint, counts, and each attempt (record.py)
    OUTPUT/_report.html                the same, to look at
    OUTPUT/_thresholds.json            thresholds found on gold, for --threshold
    OUTPUT/_review.parquet             the least sure rows (--review)
    OUTPUT/_shards.arrow               what is known of each shard (shard_stats.py)
    OUTPUT/_shards/                    the same of a run that has not ended (shards_file.py)
    OUTPUT/_files.arrow                the input files as planned; only new ones are read again
    OUTPUT/_staged/                    files that cannot be read by row (input/staging.py), until
                                       the run is complete
    OUTPUT/_lease.json                 who is writing now
    OUTPUT/_status.json                what the run that writes does, or how the last one ended
                                       (status.py)

OUTPUT/data reads as one table in every library: nothing else is in it. An output that was begun
before there was such a folder has its parts in OUTPUT itself, and goes on so.
"""

from __future__ import annotations

import re
from pathlib import Path

from modernbert.stored import Json
from pipelines.errors import JobError, UserError
from pipelines.input.corpus import Corpus
from pipelines.input.staging import STAGED
from pipelines.output.committing import REJECTED
from pipelines.output.lease import LEASE
from pipelines.output.parts import Listing, list_parts, part_path
from pipelines.output.planned_files import FILES, write_files
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.output.shards_file import SEGMENTS, SHARDS
from pipelines.output.stale import find_todo, remove_all, remove_stale
from pipelines.output.status import STATUS
from pipelines.storage import Folder, is_temporary

REPORT = "_report.html"
THRESHOLDS = "_thresholds.json"
REVIEW = "_review.parquet"
_SHOWN_VALUE = 200  # characters of a value in a message


def open_output(folder: Folder, fingerprint: Json, overwrite: bool) -> RunRecord | None:
    """Check that `folder` can take this run, and return the record that the run continues, if any.

    Raises UserError if it holds something else, or an output whose fingerprint differs.
    """
    record = read_record(folder)
    if record is None:
        if _holds_something_else(folder):
            raise UserError(
                f"output '{folder}' holds something else than an output of this job; name another "
                "folder"
            )
        return None
    if overwrite:
        return None
    differences: list[str] = []
    for key, value in fingerprint.items():
        earlier = record.fingerprint.get(key)
        if earlier != value:
            differences.append(f"{key} {_short(earlier)}, not {_short(value)}")
    if differences:
        raise UserError(
            f"output '{folder}' was begun with {', '.join(differences)}; name another folder, or "
            "replace it with --overwrite"
        )
    return record


def shards_there(folder: Folder, parts: str, overwrite: bool) -> Listing:
    """Return the shards whose parts are in an output: none where it is replaced."""
    return Listing() if overwrite else list_parts(folder, parts)


def begin_run(
    folder: Folder, record: RunRecord, corpus: Corpus, present: Listing, overwrite: bool
) -> tuple[list[int], Listing | None]:
    """Write the record of this run.

    Returns the places in the plan of the shards to do, and the parts that are there, None where
    these are others now.

    Raises UserError if the output cannot be written.

    Args:
        folder: the output.
        record: that of this run.
        corpus: the plan.
        present: the shards whose parts are in the output (`shards_there`). Those of files that have
            changed since are removed.
        overwrite: whether an earlier output is removed first.
    """
    try:
        _remove_temporary(folder, record.parts, present.temporary)
        if overwrite:
            _remove_output(folder)
        todo, unplanned = find_todo(present, corpus)
        has_changed = remove_stale(folder, record.parts, unplanned, corpus)
        record.write(folder)
        write_files(folder, corpus)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output '{folder}' cannot be written: {reason}") from error
    return todo, None if has_changed else present


def _remove_output(folder: Folder) -> None:
    """Remove an earlier output, whichever folder its parts are in."""
    for parts in ("", PARTS):
        listing = list_parts(folder, parts)
        remove_all(folder, (f"{parts}/{name}".lstrip("/") for name in listing.temporary))
        remove_all(folder, (part_path(parts, name) for name in listing))
    remove_all(folder, (f"{REJECTED}/{name}" for name in folder.names(REJECTED)))
    remove_all(folder, (f"{SEGMENTS}/{name}" for name in folder.names(SEGMENTS)))
    remove_all(folder, [REPORT, SHARDS, THRESHOLDS, REVIEW])


def _remove_temporary(folder: Folder, parts: str, of_parts: list[str]) -> None:
    """Remove what writes have left whose process ended; this run alone may write here now.

    `of_parts`: what they have left in the folder `parts`.
    """
    if not folder.is_local:
        return
    temporary = [f"{parts}/{name}".lstrip("/") for name in of_parts]
    for below in {"", PARTS, REJECTED, STAGED, SEGMENTS} - {parts}:
        names = filter(is_temporary, folder.names(below))
        temporary += [f"{below}/{name}".lstrip("/") for name in names]
    remove_all(folder, temporary)


def _holds_something_else(folder: Folder) -> bool:
    """Tell whether an output without a record is not what a run leaves that has only just begun."""
    if folder.is_local and Path(folder.uri).is_file():
        return True
    for name in folder.files():
        if name not in (FILES, LEASE, STAGED, STATUS) and not name.startswith("."):
            return True
    return False


def _short(value: object) -> str:
    """Return a value for a message; of a digest, the beginning."""
    text = str(value)
    is_digest = re.fullmatch(r"[0-9a-f]{40,}", text)
    if is_digest:
        return text[:12]
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}…"


def unwritable(folder: Folder, reason: str) -> JobError:
    """Make the error of an output that can no longer be written."""
    return JobError(f"output '{folder}' cannot be written: {reason}")
