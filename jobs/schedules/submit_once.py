"""Submit a job to a Ray cluster once: the same command, run again, attaches to the job.

    python submit_once.py --id label-articles-2026-11-30 -- python /app/jobs/classify_corpus.py …
    python submit_once.py --name label-articles --at "02:00 Europe/Berlin" -- python …

A run has an id that its schedule gives: the second form makes it of the name and of the date on
which that time last came. What the cluster knows of the id is all there is to know: a job that
runs is followed, one that has succeeded is not run again, one that has failed is submitted once
more, as ID-try2 and ID-try3. So this process may die, and a cluster that does not answer is asked
again: neither ends the job. `ray job stop ID` does.

Where: on a machine with `pip install 'ray[default]==2.60.0'`, the version of the cluster; this
file alone is needed. A cluster with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.

Exit codes: 0, the run has succeeded; 1, it has failed or was stopped; 2, a mistake in the call; 75,
the cluster did not answer for --lost-after-s, and the same command may try again; 130 and 143, this
process was stopped, and the job goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    class Client(JobSubmissionClient):
        """What `connect` returns."""

        now_s: float


DONE, FAILED, MISTAKE, NO_ANSWER = 0, 1, 2, 75
RUNTIME_ENV = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
"""A job that is stopped has so many seconds, not 3, for its last report."""
REQUEST_TIMEOUT_S = 60
NO_TOKEN = (
    "the cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
    "to that of its head (`ray get-auth-token` prints it there)"
)


class RunFailed(Exception):
    """A run that nothing is submitted for any more; `job` is its last one."""

    def __init__(self, job: str, reason: str) -> None:
        super().__init__(f"{job} {reason}")
        self.job = job


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job that is to succeed once."""

    id: str
    """The submission id of its first attempt."""
    entrypoint: str
    """The command line, as the cluster's shell reads it."""
    working_dir: str | None = None
    """A folder that is uploaded; without it the image of the cluster has the code."""
    attempts: int = 3
    """How many jobs may fail."""
    retry_after_s: float = 900
    """Seconds between a job that has failed and the next."""
    stop_after_s: float | None = None
    """Seconds after which a job is stopped."""


class Step(NamedTuple):
    """What is known of a run."""

    is_done: bool
    job: str | None
    """The submission id of the job that runs or has succeeded; None between two attempts."""


def step(client: Client, run: Run) -> Step:
    """Take a run one step further: look for its newest job, and submit one where one is due.

    What is due is decided by the clock of the cluster, which the times of jobs are from.

    Raises:
        RunFailed: the run has no attempt left, or was stopped.
        OSError, RuntimeError: as Ray's client does; `is_passing` tells which may pass.
    """
    number, job = newest_attempt(run, client.list_jobs())
    now_s = client.now_s
    if job is None:
        return submit(client, run, number + 1)
    name = attempt_id(run, number)
    if job.status == "SUCCEEDED":
        return Step(True, name)
    if job.status == "STOPPED":
        raise RunFailed(name, "was stopped; a run of another id begins anew")
    if job.status == "FAILED":
        if number >= run.attempts:
            raise RunFailed(
                name,
                f"failed, attempt {number} of {run.attempts}: {first_line(job.message)} "
                f"(--attempts {number + 1} allows for one more)",
            )
        if now_s < seconds(job.end_time) + run.retry_after_s:
            return Step(False, None)
        return submit(client, run, number + 1)
    if run.stop_after_s and job.start_time and now_s > seconds(job.start_time) + run.stop_after_s:
        print(f"{name} has run for more than {run.stop_after_s:.0f} s, and is stopped", flush=True)
        client.stop_job(name)
    return Step(False, name)


def newest_attempt(run: Run, jobs: list[JobDetails]) -> tuple[int, JobDetails | None]:
    """The last of a run's jobs that a cluster knows, with its number; 0 where it knows none."""
    known = {job.submission_id: job for job in jobs if job.submission_id}
    number = 0
    while attempt_id(run, number + 1) in known:
        number += 1
    return number, known[attempt_id(run, number)] if number else None


def attempt_id(run: Run, number: int) -> str:
    """The submission id of a run's job."""
    return run.id if number == 1 else f"{run.id}-try{number}"


def submit(client: JobSubmissionClient, run: Run, number: int) -> Step:
    """Submit a run's next job. Where another process was faster, Ray refuses the id."""
    name = attempt_id(run, number)
    folder = {"working_dir": run.working_dir} if run.working_dir else {}
    client.submit_job(
        entrypoint=run.entrypoint, submission_id=name, runtime_env=RUNTIME_ENV | folder
    )
    print(f"{name} is submitted", flush=True)
    return Step(False, name)


def seconds(milliseconds: int | None) -> float:
    """A time of Ray's in seconds."""
    return (milliseconds or 0) / 1000


def is_passing(error: Exception) -> bool:
    """Whether what Ray's client raised may pass: no answer, or an error of the server.

    An id that is refused as taken is one of those: the next step finds the job that has it.
    """
    return isinstance(error, OSError) or bool(
        re.match(r"Request failed with status code 5\d\d", str(error))
    )


def one_line(error: Exception) -> str:
    """The last line of an error, which in a traceback that a server sends is what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if lines else type(error).__name__


def first_line(message: str | None) -> str:
    """What Ray says of a job, without the end of its log, or of a token, without its advice."""
    return (message or "no reason is known").splitlines()[0].partition(". ")[0]


@contextmanager
def tokens_explained() -> Iterator[None]:
    """Raise RuntimeError, which does not pass, for a token that is missing or wrong."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise RuntimeError(f"{NO_TOKEN} ({first_line(str(error))})") from None


def connect(address: str) -> Client:
    """Ray's client of a dashboard, whose requests end where there is no answer.

    Its `now_s` is the time at the cluster when it last answered.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS would come before `address`
    from ray.job_submission import JobSubmissionClient  # seconds, which parsing a DAG must not take

    class DashboardClient(JobSubmissionClient):
        now_s = time.time()

        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            with tokens_explained():
                response = super()._do_request(*arguments, timeout=REQUEST_TIMEOUT_S, **options)
            with suppress(KeyError, ValueError):  # what is between may leave the time out
                self.now_s = parsedate_to_datetime(response.headers["Date"]).timestamp()
            return response

    with tokens_explained():
        return DashboardClient(address)  # it looks for a token, and asks for the version of Ray


# ---- the command


def follow(run: Run, *, address: str, poll_s: float, lost_after_s: float) -> int:
    """Take a run to its end, printing its log, and return the exit code."""
    client: Client | None = None
    followed: str | None = None
    log: threading.Thread | None = None
    silent_since_s: float | None = None
    while True:
        try:
            client = client or connect(address)
            is_done, job = step(client, run)
        except RunFailed as error:
            end_log(log)
            print(f"error: {error}", file=sys.stderr)
            return FAILED
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            if not is_passing(error):
                print(f"error: {one_line(error)}", file=sys.stderr)
                return MISTAKE
            silent_since_s = silent_since_s or time.monotonic()
            silent_s = time.monotonic() - silent_since_s
            if silent_s > lost_after_s:
                print(
                    f"error: no answer for {silent_s:.0f} s; a job that runs goes on, and the same "
                    f"command attaches to it: {one_line(error)}",
                    file=sys.stderr,
                )
                return NO_ANSWER
            print(f"no answer, asked again in {poll_s:g} s: {one_line(error)}", flush=True)
            time.sleep(poll_s)
            continue
        silent_since_s = None
        if followed and not job:
            print(
                f"{followed} has failed; the next attempt is after {run.retry_after_s:g} s",
                flush=True,
            )
            followed = None
        elif job and job != followed:
            followed = job
            print(f"following {job}; `ray job stop {job}` stops it", flush=True)
            log = threading.Thread(target=print_log, args=(client, job), daemon=True)
            log.start()
        if is_done:
            end_log(log)
            print(f"{job} has succeeded", flush=True)
            return DONE
        time.sleep(poll_s)


def print_log(client: JobSubmissionClient, job: str) -> None:
    """Print a job's log as it grows; a lost connection is opened again."""
    printed = 0

    async def tail() -> None:
        nonlocal printed
        read = 0
        async for lines in client.tail_job_logs(job):
            print(lines[max(printed - read, 0) :], end="", flush=True)
            read += len(lines)
            printed = max(printed, read)

    while True:
        try:
            asyncio.run(tail())
            return
        except Exception:  # of any kind: the state of the job is asked for elsewhere
            time.sleep(5)


def end_log(log: threading.Thread | None) -> None:
    """Wait for the last lines of a job that has ended, which follow within seconds."""
    if log:
        log.join(timeout=20)


def id_of(name: str, at: str, now: datetime) -> str:
    """The id of a run that begins every day at a time: the name, and the date of its last begin.

    So a process that is started again after midnight, or late, finds the run of its night.
    """
    return f"{name}-{day_of(at, now)}"


def day_of(at: str, now: datetime) -> date:
    """The date on which a time of day last came."""
    clock, _, zone = at.partition(" ")
    local = now.astimezone(ZoneInfo(zone.strip() or "UTC"))
    has_come = local.time() >= clock_time.fromisoformat(clock)
    return local.date() if has_come else local.date() - timedelta(days=1)


def parsed(arguments: list[str]) -> tuple[Run, argparse.Namespace]:
    """The run that the command line describes, and the other options."""
    parser = argparse.ArgumentParser(
        description="Submit a job to a Ray cluster once; the same command attaches to it.",
        usage="%(prog)s (--id ID | --name NAME --at TIME) [options] -- COMMAND…",
        allow_abbrev=False,
    )
    parser.add_argument("--id", help="the run's submission id")
    parser.add_argument("--name", help="in place of --id, with --at: NAME-DATE is the id")
    parser.add_argument("--at", help='when the run begins every day: "02:00 Europe/Berlin"')
    parser.add_argument("--address", help="of the dashboard, http://HEAD:8265; else RAY_ADDRESS")
    parser.add_argument("--working-dir", help="a folder that is uploaded for the job")
    parser.add_argument("--attempts", type=int, default=3, help="jobs that may fail (%(default)s)")
    parser.add_argument(
        "--retry-after-s", type=float, default=900, help="between two attempts (%(default)s)"
    )
    parser.add_argument("--stop-after-s", type=float, help="stop a job that runs for longer")
    parser.add_argument("--poll-s", type=float, default=15, help="between polls (%(default)s)")
    parser.add_argument(
        "--lost-after-s", type=float, default=1800, help="without an answer (%(default)s)"
    )
    parser.add_argument("command", nargs="*", help="the job's command, after --")
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("the job's command is missing; it comes last, after --")
    if bool(options.id) == bool(options.name) or bool(options.name) != bool(options.at):
        parser.error("the id is missing or there twice; it is --id, or --name with --at")
    try:
        run_id = options.id or id_of(options.name, options.at, datetime.now(UTC))
    except (
        ValueError,
        LookupError,
        OSError,
    ) as error:  # of a clock; of a zone; of a folder of zones
        parser.error(
            f'--at is a time and a zone, "02:00 Europe/Berlin", not {options.at!r}: {error}'
        )
    if not re.fullmatch(r"[\w.-]+", run_id, re.ASCII):
        parser.error(f"an id has letters, digits, . _ and -, not {run_id!r}")
    options.address = options.address or os.environ.get("RAY_ADDRESS", "")
    if "://" not in options.address:
        parser.error(f"--address is that of a dashboard, http://HEAD:8265, not {options.address!r}")
    if options.working_dir and not os.path.isdir(options.working_dir):
        parser.error(f"--working-dir is a folder, not {options.working_dir!r}")
    for name in ("attempts", "retry_after_s", "stop_after_s", "poll_s", "lost_after_s"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} is above 0, not {value:g}")
    run = Run(
        id=run_id,
        entrypoint=shlex.join(options.command),
        working_dir=options.working_dir,
        attempts=options.attempts,
        retry_after_s=options.retry_after_s,
        stop_after_s=options.stop_after_s,
    )
    return run, options


def main(arguments: list[str]) -> int:
    run, options = parsed(arguments)
    # The first process of a container has no default action for SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return follow(
            run,
            address=options.address,
            poll_s=options.poll_s,
            lost_after_s=options.lost_after_s,
        )
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
