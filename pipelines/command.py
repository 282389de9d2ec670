"""What the commands in jobs/ share. Whatever takes time to import waits until signals are
handled.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from pipelines import signals

_ADVICE = "; the same command goes on where this one stopped"


def run_command(task: str, defaults: dict[str, str] | None = None) -> int:
    """Parse sys.argv, run the corpus job of a task, and return the exit code; signals end the
    process from here on.

    `defaults`: the sample input, model and output of a call that names neither input nor model.

    Example: `end_process(run_command("classify"))`
    """
    signals.take_over(_ADVICE)
    try:
        return _run(task, defaults or {})
    except (KeyboardInterrupt, signals.Stopped) as error:
        return signals.say_stopped(error)
    except Exception as error:
        if signals.how_stopped():  # a library has caught the signal's exception, and raised its own
            return signals.say_stopped(error)
        return _say_error(error, task)


def _run(task: str, defaults: dict[str, str]) -> int:
    from pipelines.arguments import parse
    from pipelines.input.files import look_up
    from pipelines.job_options import corpus_command_options
    from pipelines.report.text import log_in_lines, printable_lines, say
    from pipelines.storage import Location

    log_in_lines()
    options_class: Any = corpus_command_options(task)
    options = parse(options_class, sys.argv[1:], defaults)
    source = options.required()[0]
    look_up(
        Location(source if "://" in source else os.path.expanduser(source))
    )  # named as the user names it
    from pipelines.corpus.run import (
        dry_run,
        run_job,
    )  # torch and Ray take seconds, which a mistake should not

    if options.dry_run:
        say(printable_lines(dry_run(options)))
        return 0
    outcome = run_job(options)
    say(str(outcome))
    return 1 if outcome.failed else 0


def _say_error(error: Exception, task: str) -> int:
    """Say what is wrong in one line, without credentials, and return the exit code; raise what is a
    bug.
    """
    from pipelines.arguments import prefix_flag
    from pipelines.errors import JobError
    from pipelines.job_options import corpus_command_options
    from pipelines.report.text import printable_lines, say
    from pipelines.storage import redact

    if isinstance(error, ValueError):
        message, code = prefix_flag(str(error), corpus_command_options(task)), 2
    elif isinstance(
        error, JobError | OSError
    ):  # an OSError: a folder that cannot be written, a full disk
        message, code = f"{error}; what is done stays, and the same command goes on from there", 1
    else:
        raise error
    say(f"error: {printable_lines(redact(message))}", sys.stderr)
    return code
