"""A task on the command line: a text a line on standard input, a result as JSON a line on standard
output.

    echo "Plants create [MASK] through a process known as photosynthesis." |
        python -m pipelines fill-mask --model answerdotai/ModernBERT-base

question-answering reads {"question", "context"} as JSON, rerank {"query", "texts"}.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

from pipelines import signals

_LINES = 512  # predicted together


def main(arguments: list[str]) -> int:
    """Run the task that the first argument names; the exit code: 0, 1 where lines had no answer, 2
    for a mistake.

    Signals end the process from here on.
    """
    signals.take_over()
    from pipelines.errors import UserError
    from pipelines.options import TASKS, task_named
    from pipelines.report.text import log_in_lines, printable_lines, say
    from pipelines.storage import redact

    log_in_lines()
    names = dict.fromkeys(name for task in TASKS.values() for name in (task.task, *task.aliases))
    if not arguments or arguments[0] not in names:
        say(
            f"usage: python -m pipelines TASK --model MODEL [options]\nTASK: {', '.join(names)}",
            sys.stderr,
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from pipelines.arguments import parse, prefix_flag
    from pipelines.job_options import command_options

    options_class = command_options(task_named(arguments[0]).task)
    try:
        options = parse(options_class, arguments[1:], {})
        if options.model is None:
            raise UserError("--model is missing")
        return _predict_lines(arguments[0], options)
    except BrokenPipeError:  # the reader, head for one, has enough
        return 0
    except (ValueError, OSError) as error:
        say(f"error: {printable_lines(redact(prefix_flag(str(error), options_class)))}", sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _predict_lines(name: str, options: Any) -> int:
    from pipelines.memory.pipeline import (
        pipeline,
    )  # torch takes seconds, which a wrong option should not
    from pipelines.options import task_named
    from pipelines.report.text import json_line

    values = {option: getattr(options, option) for option in task_named(name).model_fields}
    pipe = pipeline(
        name,
        options.model,
        device=None if options.device == "auto" else options.device,
        dtype=options.dtype,
        budget_tokens=options.budget_tokens,
        **{option: value for option, value in values.items() if value is not None},
    )
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline="\n")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    failed = False
    while lines := [line.rstrip("\r\n") for line in islice(sys.stdin, _LINES)]:
        for result in pipe.predict_lines(lines):
            print(json_line(result), flush=True)
            failed |= isinstance(result, dict) and "error" in result
    return int(failed)


if __name__ == "__main__":
    signals.end_process(main(sys.argv[1:]))
