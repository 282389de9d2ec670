"""Commands and jobs run in this process, which saves the seconds that a new process takes for its imports."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from conftest import REPOSITORY
from ray.data import DataContext, Dataset

from pipelines import signals
from pipelines.corpus import execute, pipeline, stages, staging
from pipelines.corpus.plan import JobPlan
from pipelines.corpus.run import run_corpus
from pipelines.input.staging import StagedFile, StageTask
from pipelines.output import lease
from pipelines.raydata.actor import Predict
from pipelines.raydata.wire import unit_row


def here(command: str) -> str:
    """A command of a README for this interpreter and another working directory."""
    command = command.replace(".venv/bin/python", sys.executable)
    command = command.replace(" jobs/", f" {REPOSITORY}/jobs/")
    return command.split("  #")[0]


def run_job(task: str, **options: Any) -> int:
    """Run the corpus job of a task with Python values for its options; the exit code."""
    for name, value in options.items():
        if isinstance(value, Path):
            options[name] = str(value)
    outcome = run_corpus(task, **options)
    print(outcome)
    return 1 if outcome.failed else 0


def run_script(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository, such as jobs/classify_corpus.py, as its command line would."""
    return _run(
        lambda: runpy.run_path(str(REPOSITORY / script), run_name="__main__"),
        [script, *arguments],
        cwd,
    )


def run_module(
    module: str, *arguments: object, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module`."""
    return _run(lambda: runpy.run_module(module, run_name="__main__"), [module, *arguments], cwd)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Run the stages of jobs in this process, without Ray: one file, then one shard after the other.

    No other run writes where they do, which a lease waits to see.
    """

    def stage_all(
        plan: JobPlan, tasks: Sequence[StageTask], check: Callable[[], None]
    ) -> dict[str, StagedFile | str]:
        results: dict[str, StagedFile | str] = {}
        for task in tasks:
            check()
            run_here = staging._stage._function  # what Ray would run elsewhere
            staged, reason, output_is_at_fault, _ = run_here(
                plan.source, plan.folder, task, plan.inspection.options
            )
            assert not output_is_at_fault, reason
            results[task.name] = StagedFile.from_json(staged) if staged else reason
        return results

    def run_all(self: execute.Execution, actors: str, wait_s: float) -> None:
        actor = Predict(self.job) if self.todo else None
        for unit in pipeline.units_of(self.todo, readers=1):
            row = pa.Table.from_pylist([unit_row(unit)])
            for table in stages.read_and_tokenise(self.job, row):
                committed = stages.commit(self.job, actor(table)).to_pylist()[0]
                assert committed["error"] is None, committed
                self.add_committed(json.loads(committed["stats"]))

    patch.setattr(lease, "_SETTLED_S", {True: 0.0, False: 0.0})
    patch.setattr(staging, "check_nodes", lambda *_: None)  # there is this one
    patch.setattr(staging, "wait_for_nodes", lambda: None)
    patch.setattr(staging, "_run_tasks", stage_all)
    patch.setattr(execute.Execution, "run", run_all)


@contextmanager
def stages_here() -> Iterator[None]:
    """Jobs in the block run without Ray: those that a run on Ray is compared with, or that end what one has begun."""
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        yield


class LocalDataset:
    """A table where a step of a Ray Dataset takes one: its stages run at once, in this process."""

    __class__ = Dataset  # what isinstance looks at
    context = DataContext()

    def __init__(self, table: pa.Table):
        self.table = table
        self._logical_plan = SimpleNamespace(dag=SimpleNamespace())  # what says a schema ahead

    @staticmethod
    def copy(dataset: LocalDataset, **_: Any) -> LocalDataset:
        return dataset

    def repartition(self, *, target_num_rows_per_block: int) -> LocalDataset:  # noqa: ARG002
        return self

    def _meta_count(self) -> int:
        return len(self.table)

    def schema(self, fetch_if_missing: bool) -> pa.Schema:  # noqa: ARG002
        return self.table.schema

    def map_batches(
        self, stage: Any, *, batch_size: int, fn_constructor_args: Any = None, **_: Any
    ) -> LocalDataset:
        call = stage if fn_constructor_args is None else stage(*fn_constructor_args)
        starts = range(0, len(self.table), batch_size)
        return LocalDataset(
            pa.concat_tables([call(self.table.slice(start, batch_size)) for start in starts])
        )

    def iter_batches(self, batch_format: str) -> list[pa.Table]:  # noqa: ARG002
        return [self.table]


def _run(
    call: Callable[[], Any], arguments: list[object], cwd: Path
) -> subprocess.CompletedProcess[str]:
    printed = io.BytesIO()
    stdout = io.TextIOWrapper(printed, encoding="utf-8", write_through=True)
    argv = sys.argv
    folder = os.getcwd()
    code = 0
    sys.argv = [str(argument) for argument in arguments]
    os.chdir(cwd)
    # A file, as faulthandler, which actors end by where a model hangs, writes to a descriptor.
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="", buffering=1) as stderr:
        try:
            with (
                redirect_stdout(stdout),
                redirect_stderr(stderr),
                pytest.MonkeyPatch.context() as patch,
            ):
                patch.setattr(signals, "take_over", lambda _="": None)  # of a process of its own
                patch.setattr(signals, "end_process", sys.exit)
                call()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = argv
            os.chdir(folder)
        stderr.seek(0)
        said = stderr.read()
    return subprocess.CompletedProcess(sys.argv, code, printed.getvalue().decode(), said)
