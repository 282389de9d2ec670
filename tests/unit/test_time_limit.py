"""The time limit of an actor's batches: one for a process, whatever number of threads is within it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROCESS = """
import sys, threading, time
from pipelines.raydata.actor import TimeLimit

limit = TimeLimit(2)

def progress():
    for _ in range(30):
        time.sleep(0.1)
        limit.restart()

with limit:
    pass
time.sleep(2.5)  # nothing runs: nothing is late
print("idle", flush=True)
threads = [threading.Thread(target=progress) for _ in range(2 if "progress" in sys.argv else 0)]
with limit:
    with limit:
        pass  # a call that ends does not end the limit of the other
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not threads:
        time.sleep(60)
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("argument", "printed"), [("progress", ["idle", "done"]), ("none", ["idle"])]
)
def test_a_process_without_progress_is_ended(argument, printed):
    run = subprocess.run(
        [sys.executable, "-c", PROCESS, argument], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == printed
    assert (run.returncode == 0) == ("done" in printed)
    assert ("Timeout" in run.stderr) == ("done" not in printed)
