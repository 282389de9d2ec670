"""The files of an input that must be staged, each by a task of Ray's."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.exceptions import RayError

from pipelines.corpus.execute import unwritable
from pipelines.corpus.nodes import check_nodes
from pipelines.corpus.plan import Job
from pipelines.errors import JobError
from pipelines.input.inspection import Inspection, one_line
from pipelines.input.staging import STAGED, StagedFile, StageTask, StagingFailed, read_staged, stage
from pipelines.input.text import TextOptions
from pipelines.report.text import printable, say
from pipelines.storage import Folder, Location, redact

_CHECK_S = 1.0


def stage_files(job: Job, found: Inspection, paths: list[str], check: Callable[[], None]) -> None:
    """Stage files whose staged form is not there from an earlier run, and add what is in them to
    `found`.

    Args:
        job: the job, whose output takes the staged files.
        found: the input; files that cannot be read become broken.
        paths: the files.
        check: called about once a second; may raise.

    Raises:
        JobError: where the output cannot be written.
    """
    if not paths:
        return
    tasks = {path: found.stage_tasks(path) for path in paths}
    present = set(job.folder.files(STAGED))
    results: dict[str, StagedFile | str] = {}
    for task in (task for each in tasks.values() for task in each):
        if staged := read_staged(job.folder, task, present):
            results[task.name] = staged
    todo = [task for each in tasks.values() for task in each if task.name not in results]
    if todo:
        check_nodes(job)
        say(printable(f"reading {len(todo):,} {found.format} file(s) into {job.folder}/{STAGED}"))
        results |= _run(job, found, todo, check)
    for path in paths:
        _add(found, path, [results[task.name] for task in tasks[path]])


def _run(
    job: Job, found: Inspection, tasks: list[StageTask], check: Callable[[], None]
) -> dict[str, StagedFile | str]:
    running = {
        _stage.remote(found.source, job.folder, task, found.options): task.name for task in tasks
    }
    results: dict[str, StagedFile | str] = {}
    while running:
        done, _ = ray.wait(list(running), timeout=_CHECK_S)
        check()
        for reference in done:
            try:
                result, stops = ray.get(reference)
            except RayError as error:
                raise JobError(f"Ray: {one_line(error)}") from error
            if stops:
                raise unwritable(job, result)
            results[running.pop(reference)] = (
                result if result[:1] != "{" else StagedFile.from_json(result)
            )
    return results


@ray.remote(num_cpus=1)
def _stage(
    source: Location, folder: Folder, task: StageTask, options: TextOptions
) -> tuple[str, bool]:
    """Return what was staged as JSON, or the reason why the file is not read; and whether the
    output is at fault.
    """
    try:
        return stage(source, folder, task, options).to_json(), False
    except StagingFailed as error:
        return redact(error.strerror or str(error)), True
    except Exception as error:  # whatever it is, it is this file's alone
        return one_line(error), False


def _add(found: Inspection, path: str, results: list[StagedFile | str]) -> None:
    staged = StagedFile()
    for result in results:
        if isinstance(result, str):
            found.broken[path] = result
            return
        staged.add(result)
    found.add_staged(path, staged)
