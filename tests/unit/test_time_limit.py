"""The time limit of an actor's batches: one for a process, whatever number of threads is within it.

Python's faulthandler measures the time and ends the process. What is asked of it is asserted here, so that no test
depends on how fast this machine is; one process shows that it does what it is asked.
"""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import threading

import pytest

from pipelines.raydata.actor import TimeLimit

LIMIT_S = 7.0
PROCESS = """
import time
from pipelines.raydata.actor import TimeLimit

with TimeLimit(0.2):
    print("begun", flush=True)
    time.sleep(60)
print("done", flush=True)
"""


@pytest.fixture
def timer(monkeypatch) -> list[str]:
    """What faulthandler was asked to do, in order."""
    calls: list[str] = []

    def start(seconds: float, *, exit: bool) -> None:
        assert (seconds, exit) == (LIMIT_S, True)
        calls.append("start")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", start)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: calls.append("cancel"))
    return calls


def test_nothing_is_late_where_nothing_runs(timer):
    limit = TimeLimit(LIMIT_S)
    limit.restart()
    assert timer == []
    for _ in range(2):
        with limit:
            assert timer.pop() == "start"
        assert timer.pop() == "cancel"
    limit.restart()
    assert timer == []


def test_progress_gives_the_next_batch_all_the_time(timer):
    limit = TimeLimit(LIMIT_S)
    with limit:
        limit.restart()
        limit.restart()
        assert timer == ["start"] * 3
    assert timer == ["start"] * 3 + ["cancel"]


def test_a_call_that_ends_does_not_end_the_limit_of_another(timer):
    """Each in a thread of its own; progress of the one that is left counts for both."""
    limit = TimeLimit(LIMIT_S)

    def short_call() -> None:
        with limit:
            limit.restart()

    with limit:
        other = threading.Thread(target=short_call)
        other.start()
        other.join()
        assert timer == ["start"] * 3
        limit.restart()
        assert timer == ["start"] * 4
    assert timer == ["start"] * 4 + ["cancel"]


def test_an_error_ends_the_limit_as_well(timer):
    with pytest.raises(RuntimeError), TimeLimit(LIMIT_S):
        raise RuntimeError
    assert timer == ["start", "cancel"]


def test_a_process_without_progress_is_ended():
    run = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["begun"]
    assert run.returncode != 0
    assert "Timeout" in run.stderr
