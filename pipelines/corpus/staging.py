"""The files of an input that must be staged, each by tasks of Ray's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ray
from ray.exceptions import RayError

from pipelines.corpus.nodes import check_nodes
from pipelines.corpus.plan import JobPlan
from pipelines.errors import JobError
from pipelines.input.staging import STAGED, StagedFile, StageTask, StagingFailed, read_staged, stage
from pipelines.input.text import TextOptions
from pipelines.output.folder import unwritable
from pipelines.raydata.cluster import on_node, this_node
from pipelines.raydata.placement import wait_for_nodes
from pipelines.report.text import printable, say
from pipelines.storage import Folder, Location, one_line, redact

_CHECK_S = 1.0


def stage_files(
    plan: JobPlan, paths: Sequence[str], check: Callable[[], None]
) -> dict[str, StagedFile | str]:
    """Stage files whose staged form is not there from an earlier run.

    Args:
        plan: the job, whose output takes the staged files.
        paths: the files.
        check: called about once a second; may raise.

    Returns:
        What is in each file, or why it cannot be read.

    Raises:
        JobError: where the output cannot be written, or Ray fails.
    """
    if not paths:
        return {}
    inspection = plan.inspection
    tasks = {path: inspection.stage_tasks(path) for path in paths}
    all_tasks = [task for tasks_of_file in tasks.values() for task in tasks_of_file]
    present = set(plan.folder.files(STAGED))
    results: dict[str, StagedFile | str] = {}
    todo: list[StageTask] = []
    for task in all_tasks:
        staged = read_staged(plan.folder, task, present)
        if staged is None:
            todo.append(task)
        else:
            results[task.name] = staged
    if todo:
        wait_for_nodes()
        check_nodes(plan.source, plan.folder, plan.attempt_id)
        staged_folder = f"{plan.folder}/{STAGED}"
        say(printable(f"reading {len(todo):,} {inspection.format} file(s) into {staged_folder}"))
        results |= _run_tasks(plan, todo, check)
    return {path: _join([results[task.name] for task in tasks[path]]) for path in paths}


def _join(results: Sequence[StagedFile | str]) -> StagedFile | str:
    """Put what the tasks of a file have read together; why one of them cannot read it counts."""
    staged = StagedFile()
    for result in results:
        if isinstance(result, str):
            return result
        staged.add(result)
    return staged


def _run_tasks(
    plan: JobPlan, tasks: Sequence[StageTask], check: Callable[[], None]
) -> Mapping[str, StagedFile | str]:
    running = {}
    for task in tasks:
        reference = _stage.remote(plan.source, plan.folder, task, plan.inspection.options)
        running[reference] = task.name
    results: dict[str, StagedFile | str] = {}
    while running:
        done, _ = ray.wait(list(running), timeout=_CHECK_S)
        check()
        for reference in done:
            try:
                staged, reason, output_is_at_fault, node = ray.get(reference)
            except RayError as error:
                raise JobError(f"Ray: {one_line(error)}") from error
            if output_is_at_fault:
                raise unwritable(plan.folder, reason + on_node(node))
            name = running.pop(reference)
            results[name] = StagedFile.from_json(staged) if staged else reason + on_node(node)
    return results


@ray.remote(num_cpus=1)
def _stage(
    source: Location, folder: Folder, task: StageTask, options: TextOptions
) -> tuple[str | None, str, bool, str]:
    """Return what was staged as JSON, or the reason why not, whether the output is at fault, and
    the node.
    """
    node = this_node()
    try:
        return stage(source, folder, task, options).to_json(), "", False, node
    except StagingFailed as error:
        return None, redact(error.strerror or str(error)), True, node
    except Exception as error:  # whatever it is, it is this file's alone
        return None, one_line(error), False, node
