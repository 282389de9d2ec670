"""A Ray that cannot be started or joined is one line, whatever Ray raises."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import ray
from ray.exceptions import RaySystemError

from pipelines.errors import JobError
from pipelines.raydata import cluster

ERRORS = [
    Exception("The current node timed out during startup.\nThe GCS is overloaded."),
    RuntimeError("The current node timed out during startup.\nThe GCS is overloaded."),
    ValueError("The current node timed out during startup.\nThe GCS is overloaded."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_ray_raises_as_it_starts_is_one_line(error, monkeypatch):
    def start(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    with pytest.raises(JobError) as caught:
        cluster.cluster_resources()
    assert str(caught.value) == (
        "Ray cannot be used: The current node timed out during startup. The GCS is overloaded."
    )


def test_an_error_of_ray_is_one_line(monkeypatch):
    def start(**_):
        raise RaySystemError("broken pipe")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    with pytest.raises(JobError, match=r"^Ray cannot be used: .*broken pipe"):
        cluster.cluster_resources()


@pytest.mark.parametrize(("address", "keeps_processes"), [("local", True), ("1.2.3.4:6379", False)])
def test_only_a_ray_that_is_started_here_is_given_settings(monkeypatch, address, keeps_processes):
    """Ray refuses them for one that is joined."""
    passed = {}
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: passed.update(settings))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(cluster, "_answers", lambda *_: True)
    assert cluster.cluster_resources() == {"CPU": 2.0}
    assert ("_system_config" in passed) == keeps_processes


def test_what_waits_for_ray_is_imported_while_it_starts():
    """What a job imports before its plan is checked has neither torch nor Ray Data."""
    code = "import sys, pipelines.corpus.run; print(*({'ray.data', 'pandas', 'torch'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


JOB = """
from pipelines.raydata.cluster import cluster_resources
from pipelines.signals import end_process, take_over
import psutil, ray, sys

take_over()
cluster_resources()
assert "ray.data" in sys.modules
assert ray.get(ray.remote(lambda: 7).remote()) == 7
for process in psutil.Process().children(recursive=True):
    print(process.pid, *process.cmdline())
end_process(3)
"""


def test_a_job_has_few_processes_of_ray_and_ends_them_with_it():
    run = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (3, "")
    for unused in ("monitor.py", "log_monitor.py", "dashboard/dashboard.py"):
        assert unused not in run.stdout
    assert "raylet" in run.stdout
    started = [int(line.split()[0]) for line in run.stdout.splitlines() if line[:1].isdigit()]
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=10
    )
    assert not alive


def test_a_ray_that_a_program_starts_later_has_all_its_processes(monkeypatch):
    seen = []
    usual = ray._private.node.Node.start_monitor
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: seen.append(ray._private.node.Node.start_monitor))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    cluster.cluster_resources()
    assert seen[0] is not usual
    assert ray._private.node.Node.start_monitor is usual


def test_the_end_of_a_command_calls_a_replacement_last():
    code = """
import atexit
from pipelines import signals
def slow(): print("slow", flush=True)
atexit.register(slow)
atexit.register(print, "other", flush=True)
signals.replace_at_end(slow, lambda: print("quick", flush=True))
signals.end_process(4)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()) == (4, ["other", "quick"])
