"""The report of a corpus job as one HTML page. What it shows is computed here; how it looks is in
report.html.j2.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.report import charts
from pipelines.report.charts import MISSING, compact, count, percent
from pipelines.report.progress import format_duration
from pipelines.report.text import printable

_SHOWN_LABELS, _SHOWN_REASONS, _SHOWN_FAILURES, _SHOWN_SHARDS = 12, 6, 20, 10
_SHOWN_ATTEMPTS, _SHOWN_SETTINGS, _NAMED_ATTEMPTS, _FEW_LABELS = 10, 60, 12, 6
_SHOWN_CHARACTERS, _COMPARED_LABELS = 240, 5
_MODEL_WAITS, _MODEL_BUSY, _SHORT_S = 0.25, 0.1, 30


def render(report: dict[str, Any]) -> str:
    """Renders the report of a corpus job as one HTML page without scripts or anything from
    elsewhere.

    The page stays small however large the job: tables are cut, bins merged and long texts
    shortened.

    Args:
        report: title, output, complete, created_at, settings, versions, attempts, totals,
            throughput, lengths, labels, items, scores, rejects, slowest, failed
            (pipelines.corpus.summary.report). What is missing, None or empty is left out of the
            page.

    Returns:
        The HTML document; UTF-8 can encode it whatever the report contains.
    """
    totals, attempts = report.get("totals") or {}, report.get("attempts") or []
    labels = report.get("labels") or []
    speed = _speed(attempts)
    state = _state(report)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        page_title=f"{report.get('title') or 'corpus job'}: {state['text'].lower()}",
        title=report.get("title") or "unnamed",
        output=report.get("output"),
        state=state,
        created_at=_timestamp(report.get("created_at")),
        error=_error(report),
        failures=_failures(report.get("failed") or {}),
        figures=_figures(totals, attempts, speed, report.get("items")),
        throughput=_throughput(report.get("throughput") or [], attempts, speed),
        line_width=charts.LINE_WIDTH,
        lengths=_lengths(report.get("lengths") or {}, totals),
        time=_time(totals),
        labels=_labels(labels),
        few_labels=len(labels) <= _FEW_LABELS,
        scores=_scores(report.get("scores") or {}),
        rejects=_rejects(report.get("rejects") or []),
        slowest=_slowest(report.get("slowest") or []),
        attempts=_attempts(attempts),
        by_attempt=_by_attempt(report.get("by_attempt") or [], labels),
        settings=_values(report.get("settings") or {}),
        versions=_values(report.get("versions") or {}),
    )


def _finalize(value: Any) -> Any:
    """Converts each value that a template prints to text of bounded length, without control
    characters.
    """
    if isinstance(value, Markup):  # what a macro returned; values of a report never are
        return value
    text = MISSING if value is None else str(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[: _SHOWN_CHARACTERS * 2 // 3]} … {text[-_SHOWN_CHARACTERS // 3 :]}"
    return printable(text)


_ENVIRONMENT = Environment(
    loader=PackageLoader("pipelines.report", "."),
    autoescape=True,
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _state(report: dict[str, Any]) -> dict[str, str]:
    failed = len(report.get("failed") or {})
    if report.get("complete"):
        return {"text": "Complete", "style": "done", "sign": "✓"}
    if failed:
        return {"text": f"Not complete, {failed:,} failed", "style": "bad", "sign": "✕"}
    return {"text": "Not complete", "style": "open", "sign": "…"}


def _error(report: dict[str, Any]) -> str | None:
    """Returns the error that ended the last attempt."""
    attempts = report.get("attempts") or [{}]
    outcome = str(attempts[-1].get("outcome") or "")
    if report.get("complete") or not outcome.startswith("error"):
        return None
    return outcome.removeprefix("error: ")


def group_failures(failed: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Group the names of what failed by the reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for name, reason in failed.items():
        groups.setdefault(reason, []).append(name)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _failures(failed: dict[str, str]) -> dict[str, Any] | None:
    """Lists the files and shards that failed, those with the same reason in a row."""
    if not failed:
        return None
    groups = group_failures(failed)
    rows = []
    for reason, names in groups[:_SHOWN_FAILURES]:
        more = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
        rows.append((f"{names[0]}{more}", reason))
    others = sum(len(names) for _, names in groups[_SHOWN_FAILURES:])
    return {
        "title": "1 file or shard failed"
        if len(failed) == 1
        else f"{len(failed):,} files or shards failed",
        "rows": rows,
        "others": f"… and {others:,} others." if others else "",
    }


def _figures(
    totals: dict[str, Any], attempts: list[dict[str, Any]], speed: float | None, items: str | None
) -> list[tuple[str, str, str]]:
    """Returns (name, value, note) of the figures that matter most."""
    rows, labelled, rejected, tokens = (
        totals.get(name) for name in ("rows", "labelled", "rejected", "tokens")
    )
    padded = totals.get("padded_tokens")
    saved = None if tokens is None else _ratio((padded or 0) - tokens, padded)
    duration = sum(attempt.get("seconds") or 0 for attempt in attempts)
    tokens_per_row = _ratio(tokens, labelled)
    figures = [
        (
            "Rows labelled",
            _large(labelled),
            f"of {_plural(rows, 'row')} in {_plural(totals.get('shards'), 'shard')}",
        ),
        (
            "Rejected",
            percent(_ratio(rejected, rows)),
            f"{_plural(rejected, 'row')}, kept in _rejected",
        ),
        (
            "Tokens",
            _large(tokens),
            f"{tokens_per_row:,.0f} for each row labelled" if tokens_per_row else "",
        ),
        (
            "Tokens per second",
            _large(speed),
            f"{format_duration(duration)} in {_plural(len(attempts), 'attempt')}"
            if duration
            else "",
        ),
        ("Padding saved", percent(saved), f"{_large(padded)} tokens in padded batches of 32"),
        ("Batch fill", percent(totals.get("fill")), _plural(totals.get("batches"), "batch", "es")),
    ]
    if items:
        each, bytes_each = (
            _ratio(totals.get(name), labelled) or 0 for name in ("items", "item_bytes")
        )
        note = f"{each:,.1f} for each row labelled, in {bytes_each:,.0f} bytes"
        figures.append((items.capitalize(), _large(totals.get("items")), note))
    return [
        (name, value, note if value != MISSING else "not known") for name, value, note in figures
    ]


def _throughput(
    series: list[dict[str, Any]], attempts: list[dict[str, Any]], speed: float | None
) -> dict[str, Any] | None:
    """Lays the attempts end to end, so that the time between them takes no room."""
    edges: list[float] = [0.0]
    rates: list[float] = []
    attempt_starts: list[tuple[float, str]] = []
    for entry in series:
        starts, values = entry.get("seconds") or [], entry.get("tokens_per_s") or []
        if not starts:
            continue
        offset, attempt = edges[-1], entry.get("attempt") or 0
        if rates:
            attempt_starts.append((offset, str(attempt + 1)))
        if starts[0] > 0:
            starts, values = [0, *starts], [0, *values]
        duration = attempts[attempt].get("seconds") if attempt < len(attempts) else None
        bin_s = starts[-1] - starts[-2] if len(starts) > 1 else duration or 1.0
        end = starts[-1] + bin_s
        if duration and starts[-1] < duration < end:
            end = duration
        edges += [offset + start for start in [*starts[1:], end]]
        rates += [rate or 0.0 for rate in values]
    if len(rates) < 2:
        return None
    note = f"The dashed line is the mean, {speed:,.0f} tokens/s." if speed else ""
    named = len(attempt_starts) < _NAMED_ATTEMPTS
    if attempt_starts:
        note += f" Attempts are laid end to end{', each from its numbered line' if named else ''}."
    chart = charts.line("tokens/s", edges, rates, speed, attempt_starts if named else [])
    return {"note": note.strip(), "chart": chart}


def _lengths(lengths: dict[str, Any], totals: dict[str, Any]) -> dict[str, Any] | None:
    edges, counts = lengths.get("edges") or [], lengths.get("windows") or []
    if not sum(counts):
        return None
    median = next(i for i, number in enumerate(accumulate(counts)) if number * 2 >= sum(counts))
    note = f"The median window has {edges[median]:,.0f} to {edges[median + 1]:,.0f} tokens"
    mean = _ratio(totals.get("tokens"), totals.get("windows"))
    note += f", the mean one {mean:,.0f}." if mean else "."
    if truncated := totals.get("truncated"):
        note += f" {truncated:,} documents were truncated."
    return {"note": note, "chart": charts.histogram("tokens", edges, counts)}


def _time(totals: dict[str, Any]) -> dict[str, Any] | None:
    """Shows where the time went, and names the bottleneck."""
    tokenise_s, predict_s, waited_s = (
        totals.get(name) or 0.0 for name in ("tokenise_s", "predict_s", "waited_s")
    )
    if not tokenise_s + predict_s + waited_s:
        return None
    waited = _ratio(waited_s, predict_s + waited_s)
    if waited is None or totals.get("waited_s") is None:
        note = ""
    elif predict_s < _SHORT_S:
        note = "The job was too short to say which side holds the other up. "
    elif waited >= _MODEL_WAITS:
        note = (
            f"Tokenising is the bottleneck: the model waited {percent(waited)} of its time for "
            "tokenised shards. "
        )
    elif waited <= _MODEL_BUSY:
        note = (
            f"The model is the bottleneck: it was busy {percent(1 - waited)} of its time, and "
            "tokenising kept up. "
        )
    else:
        note = (
            f"Nearly balanced: the model waited {percent(waited)} of its time for tokenised "
            "shards. "
        )
    note += "Seconds are those of all processes together, which run side by side."
    stages = [
        ("tokenise", "tokenise", tokenise_s),
        ("predict", "predict", predict_s),
        ("model waiting", "waiting", waited_s),
    ]
    parts = [
        (*stage, _seconds(stage[2]) if stage[2] < 10 else format_duration(stage[2]))
        for stage in stages
    ]
    return {"note": note, "stages": charts.stack(parts)}


def _labels(labels: list[Any]) -> dict[str, Any] | None:
    if not labels:
        return None
    bars, others = charts.bars(labels, _SHOWN_LABELS, "others")
    total = sum(number for _, number in labels)
    note = f"{len(labels):,} different, {total:,} in all." if len(labels) > 1 else ""
    return {"note": note, "bars": bars, "others": others}


def _scores(scores: dict[str, Any]) -> dict[str, Any] | None:
    edges, counts = scores.get("edges") or [], scores.get("counts") or []
    total = sum(counts)
    if not total:
        return None
    low = sum(number for edge, number in zip(edges[1:], counts, strict=False) if edge <= 0.5 + 1e-9)
    note = (
        f"{percent(low / total)} of answers ({low:,} of {total:,}) score below 0.5."
        if edges[-1] <= 1
        else ""
    )
    return {"note": note, "chart": charts.histogram("score", edges, counts)}


def _rejects(rejects: list[Any]) -> dict[str, Any] | None:
    if not rejects:
        return None
    bars, others = charts.bars(rejects, _SHOWN_REASONS, "other reasons")
    note = "They are beside the output in _rejected, each with its reason."
    return {"note": note, "bars": bars, "others": others}


def _slowest(shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not shards:
        return None
    rows = [
        {
            "name": shard.get("name"),
            "rows": count(shard.get("rows")),
            "tokens": count(shard.get("tokens")),
            "tokenise": _seconds(shard.get("tokenise_s")),
            "predict": _seconds(shard.get("predict_s")),
            "speed": count(_ratio(shard.get("tokens"), shard.get("predict_s"))),
        }
        for shard in shards[:_SHOWN_SHARDS]
    ]
    return {"note": "By the model's time.", "shards": rows}


def _attempts(attempts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Lists the last attempts, the newest first."""
    if not attempts:
        return None
    rows = []
    for number, attempt in list(enumerate(attempts, 1))[::-1][:_SHOWN_ATTEMPTS]:
        outcome, seconds = attempt.get("outcome"), attempt.get("seconds")
        row = {
            "number": f"{number:,}",
            "started": _timestamp(attempt.get("started")),
            "sign": "✓"
            if outcome == "complete"
            else "■"
            if outcome in ("stopped", "interrupted")
            else "✕",
            "outcome": outcome or "ended without notice",
            "host": attempt.get("host"),
            "duration": MISSING if seconds is None else format_duration(seconds),
            "rows": count(attempt.get("rows")),
            "tokens": count(attempt.get("tokens")),
            "speed": count(_speed([attempt])),
        }
        rows.append(row)
    note = f"The last {len(rows)} of {len(attempts):,}." if len(attempts) > len(rows) else ""
    return {"note": note, "attempts": rows}


def _by_attempt(sums: list[dict[str, Any]], labels: list[Any]) -> dict[str, Any] | None:
    """Lists what attempts added, the newest first, with shares of labels beside those of the whole
    output.
    """
    if len(sums) < 2:
        return None
    shown = [label for label, _ in labels[:_COMPARED_LABELS]]
    total = sum(number for _, number in labels)
    shares = {label: number / total for label, number in labels[:_COMPARED_LABELS]} if total else {}
    rows = []
    for each in sums[::-1]:
        found = dict(each["labels"])
        here = sum(found.values())
        rows.append(
            {
                "number": f"{each['attempt'] + 1:,}",
                "started": _timestamp(each["started"]),
                "cells": [
                    count(each["rows"]),
                    MISSING if not each["rows"] else percent(each["rejected"] / each["rows"]),
                    *(
                        _share(found.get(label, 0) / here, shares[label]) if here else MISSING
                        for label in shown
                    ),
                ],
            }
        )
    columns = [(name, "number") for name in ("rows", "rejected", *shown)]
    note = (
        "What each attempt added: labels in per cent of its labels, and in points from their share "
        "in the output."
    )
    return {"note": note, "columns": columns, "rows": rows}


def _share(here: float, in_all: float) -> str:
    return f"{percent(here)} ({(here - in_all) * 100:+.1f})"


def _values(values: dict[str, Any]) -> dict[str, Any] | None:
    if not values:
        return None
    rows = list(values.items())[:_SHOWN_SETTINGS]
    note = f"The first {len(rows)} of {len(values):,}." if len(values) > len(rows) else ""
    return {"note": note, "rows": rows}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _speed(attempts: list[dict[str, Any]]) -> float | None:
    """Computes the tokens per second of the attempts whose tokens and seconds are both known."""
    known = [
        attempt
        for attempt in attempts
        if attempt.get("tokens") is not None and attempt.get("seconds")
    ]
    return _ratio(
        sum(attempt["tokens"] for attempt in known), sum(attempt["seconds"] for attempt in known)
    )


def _plural(number: int | None, noun: str, ending: str = "s") -> str:
    return f"{count(number)} {noun}{'' if number == 1 else ending}"


def _large(value: float | None) -> str:
    """Formats a number in full where it fits a headline."""
    return count(value) if value is None or value < 1e7 else compact(value)


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f} s"


def _timestamp(value: str | None) -> dict[str, str] | str | None:
    """Splits 2026-11-24T16:40:00Z into date and time; returns any other text as it is."""
    date, _, time = (value or "").partition("T")
    return {"iso": f"{value}", "date": date, "time": time[:5]} if time.endswith("Z") else value
