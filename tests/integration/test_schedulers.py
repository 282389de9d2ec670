"""jobs/schedules/: a run on a real head outlives its polls and its submitters; Airflow parses the DAG."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HEAD_ENVIRONMENT, RayHead, kill_tree
from ray.job_submission import JobStatus, JobSubmissionClient
from schedules import AIRFLOW_DAG, SUBMIT_ONCE, airflow_dag, submit_once

PARSE = f"""
import json
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
folder = {str(AIRFLOW_DAG.parent)!r}
bag = BundleDagBag(folder, bundle_path=Path(folder), bundle_name="dags")
found = [
    [name, str(dag.schedule), dag.max_active_runs, dag.catchup, [[task.task_id, task.retries, task.mode] for task in dag.tasks]]
    for name, dag in bag.dags.items()
]
print(json.dumps([{{str(file): str(error) for file, error in bag.import_errors.items()}}, found]))
"""


def airflow(folder: Path) -> str:
    """A Python with Airflow: what AIRFLOW_PYTHON names, else that of a new environment, which takes half a minute."""
    if python := os.environ.get("AIRFLOW_PYTHON"):
        return python
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120
    )
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "-q", "--no-compile", "apache-airflow==3.3.2"]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=400)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Airflow could not be installed: {error}")
    return python


@pytest.mark.slow
def test_airflow_parses_the_dag(tmp_path):
    """Without Ray, which the parser of DAGs need not have."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    call = [airflow(tmp_path / "venv"), "-c", PARSE]
    done = subprocess.run(
        call, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    errors, dags = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    assert dags == [["label_articles", "0 2 * * *", 1, False, [["run_job", 2, "reschedule"]]]]


class Relay:
    """A way to a dashboard that can be cut: it then ends each connection without an answer, and counts it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.is_cut = False
        self.refused = 0
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for each in self._open:
            end(each)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self.is_cut:
                end(client)
                self.refused += 1
                continue
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self.cut()
        self._listener.close()


def end(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def relay(head: RayHead) -> Iterator[Relay]:
    made = Relay(head.dashboard)
    try:
        yield made
    finally:
        made.close()


def submitter(run_id: str, address: str, job: str, *options: str) -> subprocess.Popen[str]:
    """submit_once.py, on its way; its output goes through a pipe."""
    call = [sys.executable, str(SUBMIT_ONCE), "--id", run_id, "--address", address]
    call += ["--poll-s", "0.3", "--retry-after-s", "0.1", *options, "--", "bash", "-c", job]
    return subprocess.Popen(
        call, env=HEAD_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(is_so: Any) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come")


def jobs_of(client: JobSubmissionClient, run_id: str) -> dict[str, JobStatus]:
    return {
        job.submission_id: job.status
        for job in client.list_jobs()
        if (job.submission_id or "").startswith(run_id)
    }


@pytest.fixture
def client(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    monkeypatch.delenv("RAY_ADDRESS")  # would be where jobs go
    return JobSubmissionClient(ray_head.dashboard)


@pytest.mark.slow
def test_a_run_outlives_failed_polls_and_the_death_of_its_submitter(ray_head, client, tmp_path):
    """One job, which is asked after in vain three times, then by another process, and is done once."""
    job = f"echo started; while [ ! -e {tmp_path}/go ]; do sleep 0.2; done; echo 6*7=$((6*7))"
    with relay(ray_head) as way:
        first = submitter("night", way.address, job)
        wait_until(lambda: jobs_of(client, "night") == {"night": JobStatus.RUNNING})
        refused = way.refused
        way.cut()
        wait_until(lambda: way.refused >= refused + 3)
        way.is_cut = False
        assert first.poll() is None
        kill_tree(first)
        output = first.communicate(timeout=60)[0]
        assert output.count("no answer, asked again in 0.3 s: ") >= 2, output
        assert jobs_of(client, "night") == {"night": JobStatus.RUNNING}

        second = submitter("night", way.address, job)
        assert second.stdout
        attached = second.stdout.readline()
        (tmp_path / "go").touch()
        output = second.stdout.read()  # not by communicate(), which misses what is buffered
        second.wait(60)
    assert attached == "following night; `ray job stop night` stops it\n"
    assert second.returncode == 0, output
    # The whole log, each line once, in spite of the connection that was lost.
    assert [output.count(line) for line in ("started\n", "6*7=42\n")] == [1, 1], output
    assert output.endswith("night has succeeded\n")
    again = submitter("night", ray_head.dashboard, job)
    assert again.communicate(timeout=120)[0].endswith("night has succeeded\n")
    assert again.returncode == 0
    assert jobs_of(client, "night") == {"night": JobStatus.SUCCEEDED}


@pytest.mark.slow
def test_a_failed_job_is_tried_again_and_one_that_is_stopped_is_not(ray_head, client, tmp_path):
    job = f"echo job; test -e {tmp_path}/mended || {{ touch {tmp_path}/mended; exit 2; }}"
    mended = submitter("flaky", ray_head.dashboard, job)
    output = mended.communicate(timeout=120)[0]
    assert mended.returncode == 0, output
    assert jobs_of(client, "flaky") == {
        "flaky": JobStatus.FAILED,
        "flaky-try2": JobStatus.SUCCEEDED,
    }

    hopeless = submitter("hopeless", ray_head.dashboard, "exit 2", "--attempts", "1")
    output = hopeless.communicate(timeout=120)[0]
    assert hopeless.returncode == 1, output
    assert (
        "error: hopeless failed, attempt 1 of 1: Job entrypoint command failed with exit code 2"
        in output
    )
    assert output.rstrip().endswith("(--attempts 2 allows for one more)")

    stopped = submitter("long", ray_head.dashboard, "sleep 600", "--stop-after-s", "1")
    output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 1, output
    assert "error: long was stopped; a run of another id begins anew" in output
    assert jobs_of(client, "long") == {"long": JobStatus.STOPPED}
    given = client.get_job_info("long").runtime_env["env_vars"]
    assert given["RAY_JOB_STOP_WAIT_TIME_S"] == "60"


@pytest.mark.slow
def test_a_poll_of_the_dag_finds_the_job_of_the_last_one(ray_head, client, tmp_path, capsys):
    """Each poll is a process of its own in Airflow; those of one DAG run share a job, and a retry has the next."""
    run_job = airflow_dag()["run_job"]
    job = f"while [ ! -e {tmp_path}/end ]; do sleep 0.1; done; exit $(cat {tmp_path}/end)"

    def poll(address: str = ray_head.dashboard, try_number: int = 1) -> bool:
        return run_job(
            run_id="scheduled__2026-11-30T02:00:00+00:00",
            ti=SimpleNamespace(try_number=try_number),
            entrypoint=f"bash -c '{job}'",
            dashboard=address,
        )

    first = "label-articles-scheduled-2026-11-30T02-00-00-00-00"
    wait_until(lambda: poll() or first in jobs_of(client, first))
    with relay(ray_head) as way:
        way.cut()
        assert poll(way.address) is False
    assert "no answer from http://127.0.0.1:" in capsys.readouterr().out
    assert poll() is False
    assert list(jobs_of(client, first)) == [first]
    (tmp_path / "end").write_text("2")
    wait_until(lambda: jobs_of(client, first)[first] == JobStatus.FAILED)
    with pytest.raises(submit_once().RunFailed, match=r"attempt 1 of 1: .*exit code 2"):
        poll()
    assert "Running entrypoint for job" in capsys.readouterr().out  # its log
    (tmp_path / "end").write_text("0")
    wait_until(lambda: poll(try_number=2))
    assert jobs_of(client, first) == {
        first: JobStatus.FAILED,
        f"{first}-try2": JobStatus.SUCCEEDED,
    }
