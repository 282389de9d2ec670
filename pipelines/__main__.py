"""The command `modernbert-ray`, also `python -m pipelines`: jobs, their status, lines of text, the
service.

    modernbert-ray classify --input articles/ --output labelled/ --model my-org/my-modernbert
    modernbert-ray status labelled/
    modernbert-ray serve my-serve.yaml
    echo "Plants create [MASK] through a process known as photosynthesis." |
        modernbert-ray fill-mask --model answerdotai/ModernBERT-base

A task whose input is named, by --input, in the file of --config or in the environment, is run as
its corpus job. Else each line of standard input is a text, and each line of standard output its
result as JSON; question-answering reads {"question", "context"} as JSON, rerank {"query", "texts"}.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines import signals

if TYPE_CHECKING:
    from pipelines.job_options import CommandOptions

_LINES = 512  # predicted together
_NOTE = (
    "Without an input, the task answers the lines of standard input, with a line of JSON for each."
)


def run() -> NoReturn:
    """Run the command that sys.argv holds, and end the process with its exit code."""
    signals.end_process(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run the task, or the service, that the first argument names.

    Signals end the process from here on, but for the service, which first answers what it has.

    Args:
        arguments: those of the command line, without the program's name.

    Returns:
        The exit code: 0; 1 where lines had no answer or a job has failures; 2 for a mistake. Those
        of `status` are in status_command.py.
    """
    if arguments[:1] == ["serve"]:
        from pipelines.serve.command import run_service

        return run_service(arguments[1:], f"{_program()} serve")
    signals.take_over()
    if arguments[:1] == ["status"]:
        from pipelines.status_command import show_status

        return show_status(f"{_program()} status", arguments[1:])
    from pipelines.options import TASKS
    from pipelines.report.text import log_in_lines, say

    log_in_lines()
    names: list[str] = []
    for task in TASKS.values():
        names += [task.task, *task.aliases]
    names = list(dict.fromkeys(names))  # an alias may be the task's own name
    if arguments and arguments[0] in names:
        return _run_task(arguments[0], arguments[1:])
    say(_usage(names), sys.stderr)
    return 0 if arguments[:1] in (["-h"], ["--help"]) else 2


def _run_task(name: str, arguments: list[str]) -> int:
    """Run a task as its corpus job where an input is named, else on the lines of standard input."""
    from pipelines.arguments import parse, prefix_flag
    from pipelines.job_options import command_options, corpus_command_options
    from pipelines.options import task_named
    from pipelines.report.text import printable_lines, say
    from pipelines.storage import redact

    task = task_named(name).task
    program = f"{_program()} {name}"
    job_options = corpus_command_options(task)
    try:
        # The options of a job are those of lines and more, so that its --help has them all.
        job: Any = parse(job_options, arguments, {}, program, _NOTE)
        if job.input is not None or job.output is not None or job.dry_run:
            from pipelines.command import run_command

            return run_command(task, arguments=arguments)

        # Parsed once more, so that an option of the job alone is not passed over in silence.
        options: Any = parse(command_options(task), arguments, {}, program)
        options.model_named(options.model)  # raises where there is none
        return _predict_lines(name, options)
    except BrokenPipeError:  # the reader, head for one, has enough
        return 0
    except (ValueError, OSError) as error:
        message = prefix_flag(str(error), job_options)
        say(f"error: {printable_lines(redact(message))}", sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _program() -> str:
    """What the user has called this command by."""
    script = os.path.basename(sys.argv[0])
    return "modernbert-ray" if script.startswith("modernbert-ray") else "python -m pipelines"


def _usage(names: list[str]) -> str:
    program = _program()
    return (
        f"usage: {program} TASK --model MODEL [options]\n"
        f"       {program} TASK --model MODEL --input INPUT --output OUTPUT [options]\n"
        f"       {program} status OUTPUT [--json]\n"
        f"       {program} serve [CONFIG] [options of serve run]\n"
        f"TASK: {', '.join(names)}"
    )


def _predict_lines(name: str, options: CommandOptions) -> int:
    # torch takes seconds to import, which a mistake in the options should not cost.
    from pipelines.memory.pipeline import pipeline
    from pipelines.options import task_named
    from pipelines.report.text import json_line

    task_options: dict[str, Any] = {}  # of any type that options have
    for option in task_named(name).model_fields:
        value = getattr(options, option)
        if value is not None:
            task_options[option] = value
    pipe = pipeline(
        name,
        options.model,
        device=None if options.device == "auto" else options.device,
        dtype=options.dtype,
        budget_tokens=options.budget_tokens,
        **task_options,
    )
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    failed = False
    while True:
        lines = [line.rstrip("\r\n") for line in islice(sys.stdin, _LINES)]
        if not lines:
            return int(failed)
        for result in pipe.predict_lines(lines):
            print(json_line(result), flush=True)
            failed |= isinstance(result, dict) and "error" in result


if __name__ == "__main__":
    run()
