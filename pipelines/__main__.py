"""A task on the command line: a text a line on standard input, a result as JSON a line on standard output.

    echo "Plants create [MASK] through a process known as photosynthesis." |
        python -m pipelines fill-mask --model answerdotai/ModernBERT-base

question-answering reads {"question", "context"} as JSON, rerank {"query", "texts"}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from itertools import islice

from pipelines.command import parse, prefix_flag
from pipelines.errors import UserError
from pipelines.options import TASKS, command_options, task_named

_TASKS = [alias for task in TASKS.values() for alias in task.aliases]
_LINES = 512  # predicted together


def main(arguments: list[str]) -> int:
    """Run the task that the first argument names; the exit code: 0, 1 where lines had no answer, 2 for a mistake."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not arguments or arguments[0] not in _TASKS:
        print(f"usage: python -m pipelines TASK --model MODEL [options]\nTASK: {', '.join(_TASKS)}", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    task = task_named(arguments[0])
    options_class = command_options(task.task)
    try:
        options = parse(options_class, arguments[1:], {})
        if options.model is None:
            raise UserError("--model is missing")
        from pipelines.inmemory import pipeline  # torch takes seconds, which a wrong option should not

        values = {name: getattr(options, name) for name in task.model_fields}
        pipe = pipeline(
            arguments[0], options.model, device=None if options.device == "auto" else options.device,
            dtype=options.dtype, budget_tokens=options.budget_tokens,
            **{name: value for name, value in values.items() if value is not None},
        )  # fmt: skip
        sys.stdin.reconfigure(encoding="utf-8", errors="replace", newline="\n")  # type: ignore[union-attr]
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        failed = False
        while lines := [line.rstrip("\r\n") for line in islice(sys.stdin, _LINES)]:
            for result in pipe.predict_lines(lines):
                print(json.dumps(result, ensure_ascii=False), flush=True)
                failed |= isinstance(result, dict) and "error" in result
        return int(failed)
    except BrokenPipeError:  # the reader, head for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"error: {prefix_flag(str(error), options_class)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
