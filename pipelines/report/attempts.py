"""What the report shows of a job's attempts: speed over time, a row for each, what each added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modernbert.stored import Json
from pipelines.report import charts
from pipelines.report.charts import MISSING, count, percent
from pipelines.report.formats import ratio, timestamp
from pipelines.report.progress import format_duration

_SHOWN_ATTEMPTS = 10
_NAMED_ATTEMPTS = 12  # in the chart
_COMPARED_LABELS = 5


def throughput_chart(series: list[Json], attempts: list[Json], speed: float | None) -> Json | None:
    """Lays the attempts end to end, so that the time between them takes no room."""
    edges: list[float] = [0.0]  # of bins, in seconds of all attempts
    rates: list[float] = []
    attempt_starts: list[tuple[float, str]] = []
    for entry in series:
        starts = entry.get("seconds") or []
        values = entry.get("tokens_per_s") or []
        if not starts:
            continue
        attempt = entry.get("attempt") or 0
        offset = edges[-1]
        if rates:
            attempt_starts.append((offset, str(attempt + 1)))
        if starts[0] > 0:  # an attempt begins before its first tokens
            starts = [0, *starts]
            values = [0, *values]
        # The last bin is as wide as the one before it, but ends with its attempt.
        duration = attempts[attempt].get("seconds") if attempt < len(attempts) else None
        bin_s = duration or 1.0
        if len(starts) > 1:
            bin_s = starts[-1] - starts[-2]
        end = starts[-1] + bin_s
        if duration and starts[-1] < duration < end:
            end = duration
        edges += [offset + start for start in starts[1:]]
        edges.append(offset + end)
        rates += [rate or 0.0 for rate in values]
    if len(rates) < 2:
        return None

    notes: list[str] = []
    if speed:
        notes.append(f"The dashed line is the mean, {speed:,.0f} tokens/s.")
    are_named = len(attempt_starts) < _NAMED_ATTEMPTS
    if attempt_starts and are_named:
        notes.append("Attempts are laid end to end, each from its numbered line.")
    elif attempt_starts:
        notes.append("Attempts are laid end to end.")
        attempt_starts = []
    chart = charts.line("tokens/s", edges, rates, speed, attempt_starts)
    return {"note": " ".join(notes), "chart": chart}


def attempts_table(attempts: list[Json]) -> Json | None:
    """Lists the last attempts, the newest first."""
    if not attempts:
        return None
    rows = []
    newest_first = list(enumerate(attempts, 1))[::-1]
    for number, attempt in newest_first[:_SHOWN_ATTEMPTS]:
        outcome = attempt.get("outcome")
        seconds = attempt.get("seconds")
        sign = "✕"
        if outcome == "complete":
            sign = "✓"
        elif outcome in ("stopped", "interrupted"):
            sign = "■"
        row = {
            "number": f"{number:,}",
            "started": timestamp(attempt.get("started")),
            "sign": sign,
            "outcome": outcome or "ended without notice",
            "host": attempt.get("host"),
            "duration": MISSING if seconds is None else format_duration(seconds),
            "rows": count(attempt.get("rows")),
            "tokens": count(attempt.get("tokens")),
            "speed": count(tokens_per_second([attempt])),
        }
        rows.append(row)
    note = f"The last {len(rows)} of {len(attempts):,}." if len(attempts) > len(rows) else ""
    return {"note": note, "attempts": rows}


def attempts_compared(
    sums: list[Json], labels: list[Any], drift: Sequence[str] = ()
) -> Json | None:
    """Lists what attempts added, the newest first, and compares their labels with the output's.

    `drift`: lines on how the labels of the last differ from those of the one before.
    """
    if len(sums) < 2:
        return None
    total = sum(number for _, number in labels)
    compared = labels[:_COMPARED_LABELS]
    rows = []
    for added in sums[::-1]:
        rejected = percent(added["rejected"] / added["rows"]) if added["rows"] else MISSING
        cells = [count(added["rows"]), rejected]
        counts = dict(added["labels"])
        labels_added = sum(counts.values())
        for label, number in compared:
            if labels_added:
                share_here = counts.get(label, 0) / labels_added
                cells.append(_share(share_here, number / total))
            else:
                cells.append(MISSING)
        rows.append(
            {
                "number": f"{added['attempt'] + 1:,}",
                "started": timestamp(added["started"]),
                "cells": cells,
            }
        )
    names = ["rows", "rejected", *(label for label, _ in compared)]
    columns = [(name, "number") for name in names]
    note = (
        "What each attempt added: labels in per cent of its labels, and in points from their share "
        "in the output."
    )
    for line in drift:
        note += f" Drift: {line.partition(' ')[2].strip()}."
    return {"note": note, "columns": columns, "rows": rows}


def _share(here: float, in_all: float) -> str:
    return f"{percent(here)} ({(here - in_all) * 100:+.1f})"


def tokens_per_second(attempts: list[Json]) -> float | None:
    """Computes the tokens per second of the attempts whose tokens and seconds are both known."""
    tokens = 0
    seconds = 0.0
    for attempt in attempts:
        if attempt.get("tokens") is not None and attempt.get("seconds"):
            tokens += attempt["tokens"]
            seconds += attempt["seconds"]
    return ratio(tokens, seconds)
