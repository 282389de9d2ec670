"""The status of a job in lines for people."""

from __future__ import annotations

from modernbert.stored import Json
from pipelines.report.progress import format_duration
from pipelines.report.text import printable


def describe_status(status: Json, age_s: float, may_be_dead: bool) -> str:
    """Describe a status (output/status.py).

    Args:
        status: its fields.
        age_s: the seconds since it was written.
        may_be_dead: whether the job should have written another one since.
    """
    written = f"written {format_duration(age_s)} ago"
    state = f"{status['state']}, {written}"
    if may_be_dead:
        state += ": the job may be dead; the same command goes on where it stopped"
    where = f"process {status['process']} on {status['node']}"
    last_commit = f", the last at {status['last_commit']}" if status["last_commit"] else ""
    lines = [
        f"state      {state}",
        f"job        {status['task']}, run {status['run']}, {where}",
        f"started    {status['started']}, {format_duration(status['seconds'])} of work",
        f"commits    {_of(status['commits'], status['shards'])} shards{last_commit}",
        f"failures   {status['failures']:,} files or shards",
        f"rows       {_of(status['rows'], status['rows_todo'])}, {status['rejected']:,} rejected",
        f"tokens     {status['tokens']:,}",
    ]
    if status["rows_per_s"] is not None:
        rate = f"{status['rows_per_s']:,.1f} rows/s, {status['tokens_per_s']:,.0f} tokens/s"
        if status["left_s"] is not None:
            rate += f", {format_duration(status['left_s'])} left"
        lines.append(f"rate       {rate}")
    if status["actors_wanted"] is not None:
        fewest, most = status["actors_wanted"]
        wanted = f"{most}" if fewest == most else f"{fewest} to {most}"
        ready = "" if status["actors"] is None else f"{status['actors']} ready, "
        lines.append(f"actors     {ready}{wanted} wanted")
    for reason, count in status["rejects"].items():
        lines.append(f"rejected   {count:>9,}  {reason}")
    if status["drift"]:
        lines.append(f"drift      {status['drift']:.1%} is the largest change of a label's share")
    if status["last_error"]:
        lines.append(f"last error {status['last_error']}")
    return "\n".join(printable(line) for line in lines)


def _of(count: int, total: int | None) -> str:
    if total is None:
        return f"{count:,}"
    share = count / total if total else 1.0
    return f"{count:,} of {total:,} ({share:.0%})"
