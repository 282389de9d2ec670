"""SIGINT, SIGTERM and SIGHUP at random moments of a job's whole life, from its first line to its end.

A moment is some time after something that is seen of the job, however long that takes it. Two runs; the environment
variable SIGNALS sets another number (100 in .ci/soak). The seed is printed.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_job, stages_here
from conftest import REPOSITORY, runs

from pipelines.output.lease import LEASE

JOB = REPOSITORY / "jobs" / "classify_corpus.py"
SIGNALS = runs("SIGNALS", few=2, many=100)
ROWS = 2000
SHARDS = 32
"""Of 64 rows each, and fewer."""
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped", signal.SIGHUP: "stopped"}


@pytest.fixture
def dice() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return random.Random(seed)


def folders(folder: Path, checkpoint: Path) -> dict[str, Path]:
    return {"input": folder / "in.parquet", "output": folder / "out", "model": checkpoint}


def start(folder: Path, checkpoint: Path, *options: str, **settings) -> subprocess.Popen:
    named = [(f"--{name}", path) for name, path in folders(folder, checkpoint).items()]
    command = [sys.executable, JOB, *chain.from_iterable(named), "--actors", "1", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes | settings)


def handles_signals(process: subprocess.Popen) -> bool:
    """Tell whether a process handles SIGTERM: its own first line does that."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"SigCgt:\s*(\w+)", status)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def has_come_to(event: int, out: Path, started_ns: int) -> bool:
    """Tell whether a job has its lease (event 0), or has committed so many parts."""
    if event == 0:
        return (out / LEASE).exists()
    new = 0
    for part in out.glob("data/*.parquet"):
        with suppress(FileNotFoundError):  # it is an earlier run's, and is removed now
            new += part.stat().st_mtime_ns > started_ns
    return new >= event


def of_session(session: int) -> list[psutil.Process]:
    """The processes of a job that still run: Ray's are in its session, too."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def without_progress(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not re.match(r" *\d+% ", line)]


@pytest.mark.slow
def test_a_signal_at_any_time_is_one_line_and_its_exit_code(tmp_path, checkpoint, dice):
    """To the driver alone, as a scheduler sends it, or to all processes, as a terminal does; once or several times."""
    texts = [f"the cat {row} sat" * (row % 7 + 1) for row in range(ROWS)]
    pq.write_table(
        pa.table({"id": range(ROWS), "text": texts}), tmp_path / "in.parquet", row_group_size=64
    )
    environment = os.environ | {"RAY_ADDRESS": "local"}
    outcomes: dict[str, int] = {}
    for run in range(SIGNALS):
        sent, to_all = dice.choice(list(WORDS)), dice.random() < 0.5
        # Each second run has begun to commit; of the others, some have only begun (None) to import.
        event = dice.choice([None, 0]) if run % 2 else dice.randint(1, SHARDS - 2)
        moment = dice.uniform(0, 0.3 if event else 4)
        more = [dice.uniform(0, 2) for _ in range(dice.choice([0, 0, 1, 3]))]
        started_ns = time.time_ns()
        job = start(tmp_path, checkpoint, "--overwrite", env=environment)
        while job.poll() is None and not handles_signals(job):
            time.sleep(0.002)
        while job.poll() is None and event is not None:
            if has_come_to(event, tmp_path / "out", started_ns):
                break
            time.sleep(0.01)
        time.sleep(moment)
        for pause in [0.0, *more]:
            time.sleep(pause)
            if job.poll() is None:
                (os.killpg if to_all else os.kill)(job.pid, sent)
        stdout, stderr = job.communicate(timeout=120)
        case = f"run {run}: {sent.name} {moment:.2f} s after {event}, to all {to_all}, again {more}"
        case += f"\n{stdout}\n{stderr}"
        lines = without_progress(stderr)
        if job.returncode == 0:  # it had ended before
            assert "report     " in stdout, case
            assert lines == [], case
        else:
            assert job.returncode == 128 + sent, case
            assert lines == [f"{WORDS[sent]}; the same command goes on where this one stopped"], (
                case
            )
        assert not (tmp_path / "out" / LEASE).exists(), case
        for _ in range(1000):
            if not of_session(job.pid):
                break
            time.sleep(0.1)
        assert not of_session(job.pid), case
        record = tmp_path / "out" / "_run.json"
        attempts = json.loads(record.read_text())["attempts"] if record.exists() else []
        key = f"{job.returncode} {attempts[-1]['outcome'] if attempts else 'before any attempt'}"
        outcomes[key] = outcomes.get(key, 0) + 1
    print(outcomes)
    with stages_here():
        assert run_job("classify", **folders(tmp_path, checkpoint)) == 0
    rows = ds.dataset(tmp_path / "out" / "data").to_table()
    assert sorted(rows["id"].to_pylist()) == list(range(ROWS))
