"""jobs/schedules/submit_once.py: a run is done once, whoever is lost; on a cluster in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from conftest import free_port
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.job_submission import JobDetails, JobStatus, JobType
from schedules import SUBMIT_ONCE, airflow_dag, submit_once

once = submit_once()
RETRY_S = 900.0


class Cluster:
    """A cluster's job server: what it knows of jobs, and a clock."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobDetails] = {}
        self.now_s = 1e9
        self.answers = True
        self.loses_answers = False

    def list_jobs(self) -> list[JobDetails]:
        if not self.answers:
            raise ConnectionError("Failed to connect to Ray at address: http://head:8265.")
        return list(self.jobs.values())

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(
                f"Request failed with status code 500: … {submission_id} already exists."
            )
        self.jobs[submission_id] = JobDetails(
            type=JobType.SUBMISSION,
            submission_id=submission_id,
            entrypoint=entrypoint,
            status=JobStatus.PENDING,
            start_time=int(self.now_s * 1000),
            runtime_env=runtime_env,
        )
        if self.loses_answers:
            raise ConnectionError("the answer is lost")
        return submission_id

    def stop_job(self, job_id: str) -> None:
        self.end(job_id, JobStatus.STOPPED)

    def get_job_logs(self, job_id: str) -> str:
        return f"the log of {job_id}"

    def end(self, job_id: str, status: JobStatus) -> None:
        job = self.jobs[job_id]
        job.status, job.end_time, job.message = status, int(self.now_s * 1000), "exit code 1\nlog …"

    @property
    def alive(self) -> list[str]:
        return [name for name, job in self.jobs.items() if not job.status.is_terminal()]


def run(**options: Any) -> Any:
    return once.Run(id="night", entrypoint="python job.py", retry_after_s=RETRY_S, **options)


def step(cluster: Cluster, **options: Any) -> Any:
    """A poll by a process that knows nothing of earlier ones: what it finds, or the words of its failure."""
    try:
        return once.step(cluster, run(**options))
    except once.RunFailed as error:
        return str(error)
    except (OSError, RuntimeError) as error:
        return error


EVENTS = st.lists(
    st.sampled_from(
        ["poll", "poll", "poll", "job fails", "job succeeds", "an hour", "silence", "answer lost"]
    ),
    max_size=30,
)


@settings(deadline=None)
@given(EVENTS, st.integers(1, 3))
def test_a_run_has_one_job_at_a_time_and_no_more_than_its_attempts(events, attempts):
    """Against a count of what must have been submitted."""
    cluster, ended = Cluster(), []
    for event in events:
        cluster.answers = event != "silence"
        cluster.loses_answers = event == "answer lost"
        if event == "an hour":
            cluster.now_s += 3600
        elif event.startswith("job ") and cluster.alive:
            status = JobStatus.FAILED if event == "job fails" else JobStatus.SUCCEEDED
            ended.append(status)
            cluster.end(cluster.alive[0], status)
        else:
            known, alive = len(cluster.jobs), cluster.alive
            found = step(cluster, attempts=attempts)
            is_submitted = len(cluster.jobs) > known
            assert not (is_submitted and (alive or JobStatus.SUCCEEDED in ended))
            if isinstance(found, str):
                assert ended == [JobStatus.FAILED] * attempts
                assert found.startswith(f"{list(cluster.jobs)[-1]} failed, attempt {attempts} of ")
            elif isinstance(found, Exception):
                assert event in ("silence", "answer lost")
                assert once.is_passing(found)
            else:
                assert found.is_done == (JobStatus.SUCCEEDED in ended)
                assert found.job == (
                    list(cluster.jobs)[-1] if found.is_done or cluster.alive else None
                )
        assert len(cluster.alive) <= 1
        assert list(cluster.jobs) == ["night", "night-try2", "night-try3"][: len(cluster.jobs)]
        assert len(cluster.jobs) <= attempts


def test_a_failed_job_is_submitted_again_after_a_while_and_one_that_was_stopped_is_not():
    cluster = Cluster()
    assert step(cluster) == (False, "night")
    cluster.end("night", JobStatus.FAILED)
    cluster.now_s += RETRY_S - 1
    assert step(cluster) == (False, None)
    cluster.now_s += 1
    assert step(cluster) == (False, "night-try2")
    cluster.stop_job("night-try2")
    cluster.now_s += 10 * RETRY_S
    assert step(cluster) == "night-try2 was stopped; a run of another id begins anew"


def test_the_last_failure_names_the_reason_and_what_allows_for_more():
    cluster = Cluster()
    step(cluster, attempts=1)
    cluster.end("night", JobStatus.FAILED)
    assert step(cluster, attempts=1) == (
        "night failed, attempt 1 of 1: exit code 1 (--attempts 2 allows for one more)"
    )


def test_a_job_that_runs_for_too_long_is_stopped():
    cluster = Cluster()
    step(cluster)
    cluster.now_s += 3600
    assert step(cluster, stop_after_s=3600) == (False, "night")
    assert cluster.alive == ["night"]
    cluster.now_s += 1
    step(cluster, stop_after_s=3600)
    assert step(cluster, stop_after_s=3600).startswith("night was stopped")


def test_a_cluster_that_is_new_gets_the_job_again():
    """One whose head was lost knows of no job: what is committed is not done again."""
    step(Cluster())
    new = Cluster()
    assert step(new) == (False, "night")
    assert new.alive == ["night"]


def test_two_processes_that_submit_at_once_share_the_job(monkeypatch):
    cluster = Cluster()
    seen_before_either = cluster.list_jobs()
    step(cluster)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "list_jobs", lambda: seen_before_either)
        assert "already exists" in str(step(cluster))
    assert step(cluster) == (False, "night")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionError("Failed to connect"), True),
        (TimeoutError(), True),
        (RuntimeError("Request failed with status code 503: …"), True),
        (RuntimeError("Request failed with status code 401: Unauthorized"), False),
        (RuntimeError("Ray version 1.8 is running on the cluster."), False),
    ],
)
def test_what_may_pass_is_asked_again(error, passes):
    assert once.is_passing(error) is passes


@pytest.mark.parametrize(
    ("at", "now", "day"),
    [
        ("02:00 Europe/Berlin", "2026-11-30T01:00:00", "2026-11-30"),  # 02:00 there
        ("02:00 Europe/Berlin", "2026-11-30T00:59:59", "2026-11-29"),
        ("02:00 Europe/Berlin", "2026-12-01T00:30:00", "2026-11-30"),  # started again at night
        ("02:00", "2026-11-30T02:00:00", "2026-11-30"),
        ("02:00 Europe/Berlin", "2026-03-29T01:00:00", "2026-03-29"),  # 03:00: there is no 02:00
        ("02:00 Europe/Berlin", "2026-10-25T00:00:00", "2026-10-25"),  # 02:00 for the first time
        ("02:00 Europe/Berlin", "2026-10-25T01:00:00", "2026-10-25"),  # and for the second
    ],
)
def test_the_date_is_that_of_the_last_begin(at, now, day):
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert once.id_of("night", at, moment) == f"night-{day}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--id night", "the job's command is missing; it comes last, after --"),
        ("-- python job.py", "the id is missing or there twice; it is --id, or --name with --at"),
        ("--id a --name b --at 02:00 -- true", "the id is missing or there twice"),
        ("--name b -- true", "the id is missing or there twice"),
        (
            "--name b --at 2pm -- true",
            "--at is a time and a zone, \"02:00 Europe/Berlin\", not '2pm'",
        ),
        ("--name b --at 02:00+Mars -- true", "--at is a time and a zone"),
        ("--id a/b -- true", "an id has letters, digits, . _ and -, not 'a/b'"),
        ("--id a --working-dir nowhere -- true", "--working-dir is a folder, not 'nowhere'"),
        ("--id a --attempts 0 -- true", "--attempts is above 0, not 0"),
        ("--id a --poll-s nan -- true", "--poll-s is above 0, not nan"),
        ("--id a --pol 3 -- true", "unrecognized arguments: --pol"),
    ],
)
def test_a_mistake_in_the_call_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(SystemExit) as ended:
        once.parsed([word.replace("+", " ") for word in arguments.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("address", [None, "local", "head:6379"])
def test_the_address_is_that_of_a_dashboard(address, capsys, monkeypatch):
    """Not what `ray.init` takes, for which Ray would look for, or start, another cluster."""
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(SystemExit):
        once.parsed(["--id", "a", *(["--address", address] if address else []), "--", "true"])
    message = f"--address is that of a dashboard, http://HEAD:8265, not {address or ''!r}"
    assert message in capsys.readouterr().err


def test_the_jobs_command_is_passed_on_as_it_is():
    job = ["python", "job.py", "--labels", "a, b", "--id=x"]
    parsed, _ = once.parsed(["--id", "a", "--address", "http://head:8265", "--", *job])
    assert parsed.entrypoint == "python job.py --labels 'a, b' --id=x"


def test_a_cluster_that_never_answers_ends_the_command_with_a_code_of_its_own():
    address = f"http://127.0.0.1:{free_port()}"
    options = ["--id", "night", "--address", address, "--poll-s", "0.1", "--lost-after-s", "0.2"]
    call = [sys.executable, str(SUBMIT_ONCE), *options, "--", "true"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == once.NO_ANSWER, done.stderr
    assert (
        f"no answer, asked again in 0.1 s: Failed to connect to Ray at address: {address}"
        in done.stdout
    )
    assert "the same command attaches to it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_poll_of_airflow_shows_the_log_of_a_job_that_has_ended(monkeypatch, capsys):
    """And each of its retries allows for one job more."""
    cluster, run_job = Cluster(), airflow_dag()["run_job"]
    monkeypatch.setitem(run_job.__globals__, "connect", lambda _: cluster)

    def poll(try_number: int) -> bool:
        return run_job(run_id="manual__2026-11-30", ti=SimpleNamespace(try_number=try_number))

    assert poll(1) is False
    name = "label-articles-manual-2026-11-30"
    cluster.end(name, JobStatus.FAILED)
    with pytest.raises(once.RunFailed, match="attempt 1 of 1: exit code 1"):
        poll(1)
    assert f"the log of {name}\n" in capsys.readouterr().out
    assert poll(2) is False
    assert cluster.alive == [f"{name}-try2"]
    cluster.end(f"{name}-try2", JobStatus.SUCCEEDED)
    assert poll(2) is True
    assert f"the log of {name}-try2\n" in capsys.readouterr().out
    cluster.answers = False
    assert poll(2) is False
    assert "no answer from http://modernbert-jobs-head-svc:8265: " in capsys.readouterr().out


@contextmanager
def dashboard(status: int = 200, ahead_s: float = 0.0) -> Iterator[str]:
    """What answers as a dashboard without jobs, `status` to all, by a clock that is ahead; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "c"}
            content = json.dumps([] if "jobs" in self.path else version).encode()
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
def test_what_is_due_is_decided_by_the_clock_of_the_cluster(ahead_s, monkeypatch):
    """A job is neither stopped nor tried again because this machine's clock is wrong."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which `connect` sets
    with dashboard(ahead_s=ahead_s) as address:
        client = once.connect(address)
        before_s = time.time()
        assert client.list_jobs() == []
    assert abs(client.now_s - before_s - ahead_s) < 60


def test_a_cluster_that_wants_a_token_is_told_in_one_line(tmp_path):
    """Where it refuses ours or we give none, and where Ray finds none here."""
    without = {name: value for name, value in os.environ.items() if "RAY_A" not in name}
    environments = [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)},
    ]
    with dashboard(status=401) as address:
        for environment in environments:
            call = [
                sys.executable,
                str(SUBMIT_ONCE),
                "--id",
                "a",
                "--address",
                address,
                "--",
                "true",
            ]
            done = subprocess.run(
                call, capture_output=True, text=True, timeout=120, env=without | environment
            )
            assert done.returncode == once.MISTAKE, done.stderr
            assert done.stderr.startswith(f"error: {once.NO_TOKEN} (")
            assert done.stderr.count("\n") == 1
