"""`modernbert-ray status OUTPUT`: what the job of an output does, or how the last one ended.

It reads one file, `_status.json`, and needs neither Ray nor torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from pipelines.errors import UserError
from pipelines.output.status import RUNNING_STATES, STALE_S, WATCHED_S, read_status, watched
from pipelines.report.status import describe_status
from pipelines.report.text import log_in_lines, printable_lines, say
from pipelines.storage import Folder, one_line, redact

COMPLETE, FAILED, MISTAKE, RUNS, MAY_BE_DEAD = range(5)
"""The exit codes."""
_EXIT_CODES = (
    "exit codes: 0 complete; 1 failed, stopped or interrupted; 2 no status there, or it cannot be "
    f"read; 3 the job runs; 4 it has not ended, and the last status is older than "
    f"{STALE_S:.0f} s, or of a time to come, and was not written again in {WATCHED_S:.0f} s"
)


def show_status(program: str, arguments: Sequence[str]) -> int:
    """Print the status of a job, and return an exit code that tells how it is.

    Args:
        program: what the user has called.
        arguments: OUTPUT, and --json.
    """
    log_in_lines()
    parser = argparse.ArgumentParser(
        prog=program,
        description="Show what the job of an output does, or how the last one ended.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("output", metavar="OUTPUT", help="folder or URI, as in the job's --output")
    parser.add_argument("--json", action="store_true", help="as JSON, for machines")
    options = parser.parse_args(arguments)
    try:
        folder = Folder.at(options.output)
        status, may_be_dead = watched(folder, read_status(folder))
    except UserError as error:
        return _say_mistake(str(error))
    except OSError as error:  # the storage does not answer
        return _say_mistake(one_line(error))
    age_s = max(status.age_s(), 0.0)
    if options.json:
        content = asdict(status) | {"age_s": round(age_s, 1), "may_be_dead": may_be_dead}
        say(json.dumps(content))
    else:
        say(describe_status(asdict(status), age_s, may_be_dead))
    if may_be_dead:
        return MAY_BE_DEAD
    if status.state in RUNNING_STATES:
        return RUNS
    return COMPLETE if status.state == "complete" else FAILED


def _say_mistake(message: str) -> int:
    say(f"error: {printable_lines(redact(message))}", sys.stderr)
    return MISTAKE
