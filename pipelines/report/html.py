"""The report of a corpus job as one HTML page: what it shows; report.html.j2 has how it looks."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modernbert.stored import Json
from pipelines.report import charts
from pipelines.report.attempts import (
    attempts_compared,
    attempts_table,
    throughput_chart,
    tokens_per_second,
)
from pipelines.report.charts import MISSING, count, percent
from pipelines.report.checks import checks_section, describe_drift, examples_section
from pipelines.report.formats import in_seconds, large, plural, ratio, timestamp
from pipelines.report.progress import format_duration
from pipelines.report.text import kind_of, printable

_SHOWN_LABELS = 12
_SHOWN_REASONS = 6
_SHOWN_FAILURES = 20
_SHOWN_SHARDS = 10
_SHOWN_SETTINGS = 60
_SHOWN_CHARACTERS = 240
_FEW_LABELS = 6
# The part of its time that the model waits, from which and up to which it is named.
_MODEL_WAITS = 0.25
_MODEL_BUSY = 0.1
_SHORT_S = 30  # a job of less says nothing of it


def render(report: Json) -> str:
    """Renders the report of a corpus job as one HTML page, without scripts or other files.

    It stays small however large the job: tables are cut, bins merged and long texts shortened.

    Args:
        report: title, output, complete, created_at, settings, versions, attempts, totals,
            throughput, lengths, labels, items, scores, checks, examples, drift, rejects,
            slowest, failed
            (pipelines.corpus.summary.report). What is missing, None or empty is left out of the
            page.

    Returns:
        The HTML document; UTF-8 can encode it whatever the report contains.
    """
    totals = report.get("totals") or {}
    attempts = report.get("attempts") or []
    labels = report.get("labels") or []
    title = report.get("title")
    speed = tokens_per_second(attempts)
    state = _state(report)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        page_title=f"{title or 'corpus job'}: {state['text'].lower()}",
        title=title or "unnamed",
        output=report.get("output"),
        state=state,
        created_at=timestamp(report.get("created_at")),
        error=_error(report),
        failures=_failures(report.get("failed") or {}),
        figures=_figures(totals, attempts, speed, report.get("items")),
        throughput=throughput_chart(report.get("throughput") or [], attempts, speed),
        line_width=charts.LINE_WIDTH,
        lengths=_lengths(report.get("lengths") or {}, totals),
        time=_time(totals),
        labels=_labels(labels),
        few_labels=len(labels) <= _FEW_LABELS,
        scores=_scores(report.get("scores") or {}),
        checks=checks_section(report.get("checks")),
        examples=examples_section(report.get("examples") or [], report.get("checks")),
        rejects=_rejects(report.get("rejects") or []),
        slowest=_slowest(report.get("slowest") or []),
        attempts=attempts_table(attempts),
        by_attempt=attempts_compared(
            report.get("by_attempt") or [], labels, describe_drift(report.get("drift"))
        ),
        settings=_values(report.get("settings") or {}),
        versions=_values(report.get("versions") or {}),
    )


def _finalize(value: object) -> str:
    """Converts each value that a template prints to a short text without control characters."""
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


def _state(report: Json) -> dict[str, str]:
    failed = len(report.get("failed") or {})
    if report.get("complete"):
        return {"text": "Complete", "style": "done", "sign": "✓"}
    if failed:
        return {"text": f"Not complete, {failed:,} failed", "style": "bad", "sign": "✕"}
    return {"text": "Not complete", "style": "open", "sign": "…"}


def _error(report: Json) -> str | None:
    """Returns the error that ended the last attempt."""
    attempts = report.get("attempts") or [{}]
    outcome = str(attempts[-1].get("outcome") or "")
    if report.get("complete") or not outcome.startswith("error"):
        return None
    return outcome.removeprefix("error: ")


def group_failures(failed: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Group the names of what failed by the reason, the most frequent first.

    Reasons that differ in numbers, quoted names or nodes alone are one, shown as the first was.
    """
    groups: dict[str, tuple[str, list[str]]] = {}
    for name, reason in failed.items():
        groups.setdefault(kind_of(reason), (reason, []))[1].append(name)
    return sorted(groups.values(), key=lambda group: -len(group[1]))


def _failures(failed: dict[str, str]) -> Json | None:
    """Lists the files and shards that failed, those with the same reason in a row."""
    if not failed:
        return None
    groups = group_failures(failed)
    rows = []
    for reason, names in groups[:_SHOWN_FAILURES]:
        more = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
        rows.append((f"{names[0]}{more}", reason))
    others = sum(len(names) for _, names in groups[_SHOWN_FAILURES:])
    title = "1 file or shard failed"
    if len(failed) > 1:
        title = f"{len(failed):,} files or shards failed"
    return {
        "title": title,
        "rows": rows,
        "others": f"… and {others:,} others." if others else "",
    }


def _figures(
    totals: Json, attempts: list[Json], speed: float | None, items: str | None
) -> list[tuple[str, str, str]]:
    """Returns (name, value, note) of the figures that matter most."""
    rows = totals.get("rows")
    labelled = totals.get("labelled")
    rejected = totals.get("rejected")
    tokens = totals.get("tokens")
    padded = totals.get("padded_tokens")
    saved = None
    if tokens is not None:
        saved = ratio((padded or 0) - tokens, padded)
    each_row = ""
    tokens_per_row = ratio(tokens, labelled)
    if tokens_per_row:
        each_row = f"{tokens_per_row:,.0f} for each row labelled"
    time_taken = ""
    duration = sum(attempt.get("seconds") or 0 for attempt in attempts)
    if duration:
        time_taken = f"{format_duration(duration)} in {plural(len(attempts), 'attempt')}"
    of_rows = f"of {plural(rows, 'row')} in {plural(totals.get('shards'), 'shard')}"
    kept = f"{plural(rejected, 'row')}, kept in _rejected"
    when_padded = f"{large(padded)} tokens in padded batches of 32"
    batches = plural(totals.get("batches"), "batch", "es")
    figures = [
        ("Rows labelled", large(labelled), of_rows),
        ("Rejected", percent(ratio(rejected, rows)), kept),
        ("Tokens", large(tokens), each_row),
        ("Tokens per second", large(speed), time_taken),
        ("Padding saved", percent(saved), when_padded),
        ("Batch fill", percent(totals.get("fill")), batches),
    ]
    if items:
        per_row = ratio(totals.get("items"), labelled) or 0
        bytes_per_row = ratio(totals.get("item_bytes"), labelled) or 0
        note = f"{per_row:,.1f} for each row labelled, in {bytes_per_row:,.0f} bytes"
        figures.append((items.capitalize(), large(totals.get("items")), note))
    return [
        (name, value, note if value != MISSING else "not known") for name, value, note in figures
    ]


def _lengths(lengths: Json, totals: Json) -> Json | None:
    edges = lengths.get("edges") or []
    counts = lengths.get("windows") or []
    total = sum(counts)
    if not total:
        return None
    numbers_so_far = accumulate(counts)
    median = next(i for i, number in enumerate(numbers_so_far) if number * 2 >= total)
    note = f"The median window has {edges[median]:,.0f} to {edges[median + 1]:,.0f} tokens"
    mean = ratio(totals.get("tokens"), totals.get("windows"))
    note += f", the mean one {mean:,.0f}." if mean else "."
    truncated = totals.get("truncated")
    if truncated:
        note += f" {truncated:,} documents were truncated."
    return {"note": note, "chart": charts.histogram("tokens", edges, counts)}


def _time(totals: Json) -> Json | None:
    """Shows where the time went, and names the bottleneck."""
    tokenise_s = totals.get("tokenise_s") or 0.0
    predict_s = totals.get("predict_s") or 0.0
    waited_s = totals.get("waited_s") or 0.0
    if not tokenise_s + predict_s + waited_s:
        return None
    waited = ratio(waited_s, predict_s + waited_s)
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
    parts: list[tuple[str, str, float, str]] = []
    for name, style, seconds in stages:
        text = in_seconds(seconds) if seconds < 10 else format_duration(seconds)
        parts.append((name, style, seconds, text))
    return {"note": note, "stages": charts.stack(parts)}


def _labels(labels: list[Any]) -> Json | None:
    if not labels:
        return None
    bars, others = charts.bars(labels, _SHOWN_LABELS, "others")
    total = sum(number for _, number in labels)
    note = f"{len(labels):,} different, {total:,} in all." if len(labels) > 1 else ""
    return {"note": note, "bars": bars, "others": others}


def _scores(scores: Json) -> Json | None:
    edges = scores.get("edges") or []
    counts = scores.get("counts") or []
    total = sum(counts)
    if not total:
        return None
    note = ""
    if edges[-1] <= 1:  # they are probabilities
        low = 0
        for upper_edge, number in zip(edges[1:], counts, strict=False):
            if upper_edge <= 0.5 + 1e-9:
                low += number
        note = f"{percent(low / total)} of answers ({low:,} of {total:,}) score below 0.5."
    return {"note": note, "chart": charts.histogram("score", edges, counts)}


def _rejects(rejects: list[Any]) -> Json | None:
    if not rejects:
        return None
    bars, others = charts.bars(rejects, _SHOWN_REASONS, "other reasons")
    note = "They are beside the output in _rejected, each with its reason."
    return {"note": note, "bars": bars, "others": others}


def _slowest(shards: list[Json]) -> Json | None:
    if not shards:
        return None
    rows = [
        {
            "name": shard.get("name"),
            "rows": count(shard.get("rows")),
            "tokens": count(shard.get("tokens")),
            "tokenise": in_seconds(shard.get("tokenise_s")),
            "predict": in_seconds(shard.get("predict_s")),
            "speed": count(ratio(shard.get("tokens"), shard.get("predict_s"))),
        }
        for shard in shards[:_SHOWN_SHARDS]
    ]
    return {"note": "By the model's time.", "shards": rows}


def _values(values: Json) -> Json | None:
    if not values:
        return None
    rows = list(values.items())[:_SHOWN_SETTINGS]
    note = f"The first {len(rows)} of {len(values):,}." if len(values) > len(rows) else ""
    return {"note": note, "rows": rows}
