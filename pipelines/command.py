"""What the commands in jobs/ share; what takes time to import waits until signals are handled."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from pipelines import signals

_ADVICE = "; the same command goes on where this one stopped"


def run_command(
    task: str, defaults: dict[str, str] | None = None, arguments: Sequence[str] | None = None
) -> int:
    """Run the corpus job of a task; signals end the process from here on.

    Args:
        task: the name of a task, as in TASKS.
        defaults: the sample input, model and output of a call that names neither input nor model.
        arguments: the options of the command line, by default those in sys.argv.

    Returns:
        The exit code.

    Example: `end_process(run_command("classify"))`
    """
    signals.take_over(_ADVICE)
    try:
        return _run(task, defaults or {}, sys.argv[1:] if arguments is None else arguments)
    except (KeyboardInterrupt, signals.Stopped) as error:
        return signals.say_stopped(error)
    except Exception as error:
        if signals.how_stopped():  # a library has caught the signal's exception, and raised its own
            return signals.say_stopped(error)
        return _say_error(error, task)


def _run(task: str, defaults: dict[str, str], arguments: Sequence[str]) -> int:
    from pipelines.arguments import parse
    from pipelines.input.files import look_up
    from pipelines.job_options import corpus_command_options
    from pipelines.report.text import log_in_lines, printable_lines, say
    from pipelines.storage import Location

    log_in_lines()
    # Any: its fields are the task's, the job's and the command's, put together at run time.
    options_class: Any = corpus_command_options(task)
    options = parse(options_class, arguments, defaults)
    source, _, _ = options.required()
    # A missing input is said under the name that the user gave, before anything is loaded.
    if "://" not in source:
        source = os.path.expanduser(source)
    look_up(Location(source))

    # torch and Ray take seconds to import, which a mistake in the options should not cost.
    from pipelines.corpus.run import dry_run, run_job

    if options.dry_run:
        say(printable_lines(dry_run(options)))
        return 0
    outcome = run_job(options)
    say(str(outcome))
    return 1 if outcome.failed else 0


def _say_error(error: Exception, task: str) -> int:
    """Say what is wrong in one line, without credentials, and return the exit code.

    Raises the error itself if it is a bug.
    """
    from pipelines.arguments import prefix_flag
    from pipelines.errors import JobError
    from pipelines.job_options import corpus_command_options
    from pipelines.report.text import printable_lines, say
    from pipelines.storage import redact

    if isinstance(error, ValueError):
        message = prefix_flag(str(error), corpus_command_options(task))
        code = 2
    elif isinstance(error, JobError | OSError):  # OSError: a closed folder, a full disk
        message = f"{error}; what is done stays, and the same command goes on from there"
        code = 1
    else:
        raise error
    say(f"error: {printable_lines(redact(message))}", sys.stderr)
    return code
