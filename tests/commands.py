"""Commands and jobs run in this process, which saves the seconds that a new process takes for its imports."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import REPOSITORY

from pipelines.corpus import execute, stages
from pipelines.corpus.run import run_corpus
from pipelines.corpus.wire import shard_row


def run_job(task: str, **options: Any) -> int:
    """Run the corpus job of a task with Python values for its options; the exit code."""
    outcome = run_corpus(
        task, **{name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    )
    print(outcome)
    return 1 if outcome.failed else 0


def run_script(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository, such as jobs/classify_corpus.py, as its command line would."""
    return _run(lambda: runpy.run_path(str(REPOSITORY / script), run_name="__main__"), [script, *arguments], cwd)


def run_module(module: str, *arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run `python -m module`."""
    return _run(lambda: runpy.run_module(module, run_name="__main__"), [module, *arguments], cwd)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Run the stages of jobs in this process, without Ray, one shard after the other."""

    def run_all(self: execute.Execution, actors: str, wait_s: float) -> None:
        actor = stages.Predict(self.job) if self.todo else None
        for shard in self.todo:
            table = stages.read_and_tokenise(self.job, pa.Table.from_pylist([shard_row(shard)]))
            committed = stages.commit(self.job, actor(table)).to_pylist()[0]
            assert committed["error"] is None, committed
            self._add(json.loads(committed["stats"]))

    patch.setattr(execute.Execution, "run", run_all)


def _run(call: Callable[[], Any], arguments: list[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    argv, folder, code = sys.argv, os.getcwd(), 0
    sys.argv = [str(argument) for argument in arguments]
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        os.chdir(folder)
    shown = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(sys.argv, code, *shown)
