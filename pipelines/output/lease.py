"""The lease on an output: one run at a time writes there, and a dead run does not block others."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from modernbert.stored import Json
from pipelines.errors import JobError, UserError
from pipelines.signals import released_at_end
from pipelines.storage import Folder

LEASE = "_lease.json"
_RENEWED_S, _EXPIRES_S = 10.0, 60.0
_WATCHED_S = 25.0
"""How long a lease that looks dead by its time is watched: a run that lives writes it twice."""
_LOOKS_S = 1.0
_SETTLED_S = {True: 0.2, False: 2.0}
"""By whether the folder is local: seconds until all runs that begin at once have written theirs."""
logger = logging.getLogger(__name__)


class OutputInUse(UserError):
    """Another run writes to the output."""


class Lease:
    """A lease that this process holds until `lost` is set, when another run has taken it over."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.lost = threading.Event()

    def check(self) -> None:
        """Raise JobError if the lease is lost."""
        if self.lost.is_set():
            raise JobError(
                f"output '{self.folder}' was taken over by another run, since this one had not "
                f"renewed its lease for {_EXPIRES_S:.0f} s"
            )


@contextmanager
def lease(folder: Folder, run: str = "") -> Iterator[Lease]:
    """Hold the output for this process, so that no second run writes to it.

    The lease is a file that is written again every ten seconds. It is a dead run's if its process
    is gone from this machine, or if it is older than a minute by the clock of the storage. A folder
    may have its times from the machines that write there (FUSE), whose clocks differ: there a
    lease is a dead run's once nobody has written it while this process has looked, too.

    Args:
        folder: the output.
        run: the identity of the run, by which its workers know the lease (`holds`).

    Raises:
        OutputInUse: if another run holds it.
        UserError: if the output cannot be written.
    """
    content = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "processes": _processes(),
        "run": run or uuid4().hex,
    }
    own = json.dumps(content).encode()
    try:
        holder = _take(folder, own)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output '{folder}' cannot be written: {reason}") from error
    if holder is not None:
        raise OutputInUse(
            f"output '{folder}' is being written by process {holder.get('process')} on "
            f"{holder.get('host')}; wait for it to end (a dead run's lease expires after "
            f"{_EXPIRES_S:.0f} s), or name another folder"
        )
    held = Lease(folder)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWED_S) and not held.lost.is_set():
            with suppress(OSError):
                if _read(folder) == own:
                    folder.write_atomic(LEASE, own)
                else:
                    held.lost.set()

    def release() -> None:
        with suppress(OSError):
            if _read(folder) == own:
                folder.remove(LEASE)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        with released_at_end(release):
            yield held
    finally:
        stop.set()
        thread.join()
        release()


def _take(folder: Folder, own: bytes) -> Json | None:
    """Write a lease, and return who holds the output, None if it is this process.

    The last of several runs that begin at once has the lease: each looks after a moment whether it
    is still its own, and again whenever it renews it.
    """
    holder = _holder(folder)
    if holder is not None:
        return holder
    folder.write_atomic(LEASE, own)
    time.sleep(_SETTLED_S[folder.is_local])
    content = _read(folder)
    if content == own:
        return None
    other: Json = json.loads(content or "{}")
    return other


def holds(folder: Folder, run: str) -> bool | None:
    """Tell whether a run holds the lease as this process sees the folder; None if it sees none."""
    content = _read(folder)
    if content is None:
        return None
    try:
        lease_content = json.loads(content)
    except json.JSONDecodeError:
        return False
    return bool(lease_content.get("run") == run)


def _read(folder: Folder) -> bytes | None:
    try:
        return folder.read(LEASE)
    except FileNotFoundError:
        return None


def _holder(folder: Folder) -> Json | None:
    """Return who holds the lease, or None if nobody or a dead run does."""
    written = _written_at(folder, LEASE)
    data = _read(folder)
    if written is None or data is None:
        return None
    content: Json = {}  # of a lease that cannot be read, until it expires
    with suppress(json.JSONDecodeError):
        content = json.loads(data)
    is_of_this_machine = content.get("processes") == _processes()
    if is_of_this_machine and not _alive(content["process"]):
        return None
    age_s = _now(folder) - written
    may_live = age_s <= _EXPIRES_S
    if folder.is_local and not 0 <= age_s <= _EXPIRES_S:
        may_live = _is_written_again(folder, written)
    return content if may_live else None


def _is_written_again(folder: Folder, written: float) -> bool:
    """Watch a lease that was last written at `written`; tell whether a run writes it."""
    logger.warning(
        f"output '{folder}' has the lease of another run, which looks dead by the clock; it is "
        f"watched for up to {_WATCHED_S:.0f} s"
    )
    until = time.monotonic() + _WATCHED_S
    while time.monotonic() < until:
        time.sleep(_LOOKS_S)
        if _written_at(folder, LEASE) not in (written, None):
            return True
    return False


def _now(folder: Folder) -> float:
    """Return the time by the clock of the storage, which may be another machine's."""
    probe = f".clock.{uuid4().hex}"
    folder.write_atomic(probe, b"")
    now = _written_at(folder, probe)
    folder.remove(probe)
    return time.time() if now is None else now


def _written_at(folder: Folder, name: str) -> float | None:
    """Return when a file was written, by the clock of the storage; None if it is not there."""
    filesystem, path = folder.filesystem_and_path
    info = filesystem.get_file_info(f"{path}/{name}")
    if info.type == fs.FileType.NotFound:
        return None
    return float(info.mtime_ns / 1e9)


def _processes() -> str:
    """Identify what our process ids are of: this machine since it booted, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux: a dead run's lease has to expire
        return uuid4().hex
    return f"{boot} {container}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
