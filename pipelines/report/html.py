"""The report of a corpus job: one HTML file without scripts or anything from elsewhere, small however large the job."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from pipelines.report.charts import (
    MISSING,
    Html,
    bars,
    compact,
    count,
    histogram,
    line,
    page,
    percent,
    stacked,
    table,
    text,
)
from pipelines.report.progress import format_duration

_SHOWN_LABELS, _SHOWN_REASONS, _SHOWN_FAILURES, _SHOWN_SHARDS = 12, 6, 20, 10
_SHOWN_ATTEMPTS, _SHOWN_SETTINGS, _NAMED_ATTEMPTS, _FEW_LABELS = 10, 60, 12, 6
_WAITS, _BUSY, _SHORT_S = 0.25, 0.1, 30


def render(report: dict[str, Any]) -> str:
    """The report as an HTML document.

    `report`: title, output, complete, made, settings, versions, attempts, totals, throughput, lengths, labels, scores,
    rejects, slowest, failed. What is missing, None or empty is left out.
    """
    totals, attempts = report.get("totals") or {}, report.get("attempts") or []
    speed = _speed(attempts)
    labels, scores = _labels(report.get("labels") or []), _scores(report.get("scores") or {})
    rejects = _rejects(report.get("rejects") or [])
    few = len(report.get("labels") or []) <= _FEW_LABELS
    body = [
        _header(report),
        _failures(report),
        _figures(totals, attempts, speed),
        _throughput(report.get("throughput") or [], attempts, speed),
        _pair(_lengths(report.get("lengths") or {}, totals), _time(totals)),
        _pair(_column(labels, rejects), scores) if few else _pair(labels, _column(scores, rejects)),
        _slowest(report.get("slowest") or []),
        _attempts(attempts),
        _pair(_named("Settings", report.get("settings") or {}), _named("Versions", report.get("versions") or {})),
    ]
    return page(f"{report.get('title') or 'corpus job'}: {_state(report)}", "".join(body))


def _state(report: dict[str, Any]) -> str:
    failed = len(report.get("failed") or {})
    if report.get("complete"):
        return "complete"
    return f"not complete, {failed:,} failed" if failed else "not complete"


def _header(report: dict[str, Any]) -> str:
    done = bool(report.get("complete"))
    kind, sign = ("done", "✓") if done else ("bad", "✕") if report.get("failed") else ("open", "…")
    state = f'<p class="state {kind}"><span aria-hidden="true">{sign}</span> {_state(report).capitalize()}</p>'
    state += "" if done or report.get("failed") else '<p class="quiet">The same command goes on from here.</p>'
    made = f'<p class="quiet">Written {_moment(report["made"])}</p>' if report.get("made") else ""
    output = f'<p class="path">{text(report["output"])}</p>' if report.get("output") else ""
    title = text(report.get("title") or "unnamed")
    return f'<header><div><p class="kind">Corpus job</p><h1>{title}</h1>{output}</div><div>{state}{made}</div></header>'


def _failures(report: dict[str, Any]) -> str:
    """What went wrong: an error that ended the last attempt, and the files and shards that failed."""
    failed, attempts = report.get("failed") or {}, report.get("attempts") or [{}]
    error = str(attempts[-1].get("outcome") or "")
    alerts = []
    if error.startswith("error") and not report.get("complete"):
        alerts.append(("The last attempt ended with an error", f"<p>{text(error.removeprefix('error: '))}</p>"))
    if failed:
        shown = list(failed.items())[:_SHOWN_FAILURES]
        rows = [[Html(f"<code>{text(name)}</code>"), reason] for name, reason in shown]
        more = f"<p>… and {len(failed) - len(rows):,} others.</p>" if len(failed) > len(rows) else ""
        what = "1 file or shard" if len(failed) == 1 else f"{len(failed):,} files or shards"
        says = "<p>Their rows are not in the output. The same command tries them again and keeps what is done.</p>"
        alerts.append((f"{what} failed", says + table("Failures", ["name", "reason"], rows, words=[1]) + more))
    sign = '<span aria-hidden="true">✕</span>'
    return "".join(f'<section class="alert"><h2>{sign} {title}</h2>{body}</section>' for title, body in alerts)


def _figures(totals: dict[str, Any], attempts: list[dict[str, Any]], speed: float | None) -> str:
    """The figures that matter, each with what it is made of."""
    rows, labelled, rejected, tokens = (totals.get(name) for name in ("rows", "labelled", "rejected", "tokens"))
    batches, padded = totals.get("batches"), totals.get("padded_tokens")
    saved = None if tokens is None else _share((padded or 0) - tokens, padded)
    ran = sum(attempt.get("seconds") or 0 for attempt in attempts)
    each = _share(tokens, labelled)
    figures = [
        ("Rows labelled", _large(labelled), f"of {_some(rows, 'row')} in {_some(totals.get('shards'), 'shard')}"),
        ("Rejected", percent(_share(rejected, rows)), f"{_some(rejected, 'row')}, kept in _rejected"),
        ("Tokens", _large(tokens), f"{each:,.0f} for each row labelled" if each else ""),
        (
            "Tokens per second",
            _large(speed),
            f"{format_duration(ran)} in {_some(len(attempts), 'attempt')}" if ran else "",
        ),
        ("Padding saved", percent(saved), f"{_large(padded)} tokens in padded batches of 32"),
        ("Batch fill", percent(totals.get("fill")), _some(batches, "batch", "es")),
    ]
    shown = "".join(
        f'<div><dt>{name}</dt><dd class="figure">{text(value)}</dd>'
        f'<dd class="quiet">{text(note) if value != MISSING else "not known"}</dd></div>'
        for name, value, note in figures
    )
    return f'<dl class="figures">{shown}</dl>'


def _throughput(series: list[dict[str, Any]], attempts: list[dict[str, Any]], speed: float | None) -> str:
    """Attempts laid end to end, so that nights without one take no room."""
    edges, marks = [0.0], []
    rates: list[float] = []
    for one in series:
        starts, begin = one.get("seconds") or [], edges[-1]
        if not starts:
            continue
        attempt = one.get("attempt") or 0
        if rates:
            marks.append((begin, str(attempt + 1)))
        if starts[0] > 0:
            starts, one = [0, *starts], one | {"tokens_per_s": [0, *one["tokens_per_s"]]}
        ran = attempts[attempt].get("seconds") if attempt < len(attempts) else None
        usual = starts[-1] - starts[-2] if len(starts) > 1 else ran or 1.0
        stop = starts[-1] + usual
        stop = ran if ran and starts[-1] < ran < stop else stop
        edges += [begin + at for at in [*starts[1:], stop]]
        rates += [rate or 0.0 for rate in one["tokens_per_s"]]
    if len(rates) < 2:
        return ""
    says = f"The dashed line is the mean, {speed:,.0f} tokens/s." if speed else ""
    if marks:
        where = ", each from its numbered line" if len(marks) < _NAMED_ATTEMPTS else ""
        says += f" Attempts are laid end to end{where}."
    marks = marks if len(marks) < _NAMED_ATTEMPTS else []
    return _section("Throughput", says, line("Tokens per second over time", "tokens/s", edges, rates, speed, marks))


def _lengths(lengths: dict[str, Any], totals: dict[str, Any]) -> str:
    edges, counts = lengths.get("edges") or [], lengths.get("windows") or []
    if not sum(counts):
        return ""
    middle = next(i for i, n in enumerate(accumulate(counts)) if n * 2 >= sum(counts))
    says = f"The median window has {edges[middle]:,.0f} to {edges[middle + 1]:,.0f} tokens"
    mean = _share(totals.get("tokens"), totals.get("windows"))
    says += f", the mean one {mean:,.0f}." if mean else "."
    if cut := totals.get("truncated"):
        says += f" {cut:,} documents were truncated."
    return _section("Window lengths", says, histogram("Windows by length", "tokens", edges, counts))


def _time(totals: dict[str, Any]) -> str:
    """Where the time went, and which side holds the other up."""
    tokenise, predict, waited = (totals.get(name) or 0.0 for name in ("tokenise_s", "predict_s", "waited_s"))
    if not tokenise + predict + waited:
        return ""
    waits = _share(waited, predict + waited)
    if waits is None or totals.get("waited_s") is None:
        says = ""
    elif predict < _SHORT_S:
        says = "The job was too short to say which side holds the other up. "
    elif waits >= _WAITS:
        says = f"Tokenising is the bottleneck: the model waited {percent(waits)} of its time for tokenised shards. "
    elif waits <= _BUSY:
        says = f"The model is the bottleneck: it was busy {percent(1 - waits)} of its time, and tokenising kept up. "
    else:
        says = f"Nearly balanced: the model waited {percent(waits)} of its time for tokenised shards. "
    says += "Seconds are those of all processes together, which run side by side."
    stages = [("tokenise", "tokenise", tokenise), ("predict", "predict", predict), ("waiting", "model waiting", waited)]
    parts = [(*stage, _seconds(stage[2]) if stage[2] < 10 else format_duration(stage[2])) for stage in stages]
    return _section("Time", says, stacked("Time by stage", parts))


def _labels(labels: list[Any]) -> str:
    if not labels:
        return ""
    total = sum(n for _, n in labels)
    says = f"{len(labels):,} different, {total:,} in all." if len(labels) > 1 else ""
    return _section("Labels", says, bars("Labels", ["label", "count", "share"], labels, _SHOWN_LABELS, "others"))


def _scores(scores: dict[str, Any]) -> str:
    edges, counts = scores.get("edges") or [], scores.get("counts") or []
    if not sum(counts):
        return ""
    low = sum(n for edge, n in zip(edges[1:], counts, strict=False) if edge <= 0.5 + 1e-9)
    says = f"{percent(low / sum(counts))} of answers ({low:,} of {sum(counts):,}) score below 0.5."
    return _section("Scores", says if edges[-1] <= 1 else "", histogram("Answers by score", "score", edges, counts))


def _rejects(rejects: list[Any]) -> str:
    if not rejects:
        return ""
    says = "They are beside the output in _rejected, each with its reason."
    counted = bars("Rejected rows by reason", ["reason", "rows", "share"], rejects, _SHOWN_REASONS, "other reasons")
    return _section("Rejected rows", says, counted)


def _slowest(shards: list[dict[str, Any]]) -> str:
    if not shards:
        return ""
    rows = []
    for shard in shards[:_SHOWN_SHARDS]:
        tokenise, predict, tokens = (shard.get(name) for name in ("tokenise_s", "predict_s", "tokens"))
        speed = count(_share(tokens, predict))
        name = Html(f"<code>{text(shard.get('name'))}</code>")
        rows.append([name, count(shard.get("rows")), count(tokens), _seconds(tokenise), _seconds(predict), speed])
    head = ["shard", "rows", "tokens", "tokenise", "predict", "tokens/s"]
    return _section("Slowest shards", "By the model's time.", table("Slowest shards", head, rows, extra=[1, 2, 3]))


def _attempts(attempts: list[dict[str, Any]]) -> str:
    """The last attempts, the newest at the top."""
    if not attempts:
        return ""
    rows = []
    for number, one in list(enumerate(attempts, 1))[::-1][:_SHOWN_ATTEMPTS]:
        outcome, seconds = one.get("outcome"), one.get("seconds")
        sign = "✓" if outcome == "complete" else "■" if outcome in ("stopped", "interrupted") else "✕"
        said = Html(f'<span aria-hidden="true">{sign}</span> {text(outcome or "ended without notice")}')
        ran = MISSING if seconds is None else format_duration(seconds)
        figures = [count(one.get("rows")), count(one.get("tokens")), count(_speed([one]))]
        rows.append([f"{number:,}", _moment(one.get("started")), said, one.get("host"), ran, *figures])
    head = ["no.", "started", "outcome", "host", "ran", "rows", "tokens", "tokens/s"]
    says = f"The last {len(rows)} of {len(attempts):,}." if len(attempts) > len(rows) else ""
    return _section("Attempts", says, table("Attempts", head, rows, words=[1, 2, 3], extra=[3, 5, 6, 7]))


def _named(title: str, values: dict[str, Any]) -> str:
    rows = list(values.items())[:_SHOWN_SETTINGS]
    says = f"The first {len(rows)} of {len(values):,}." if len(values) > len(rows) else ""
    return _section(title, says, table(title, [], rows, words=[1])) if rows else ""


def _section(title: str, says: str, body: str) -> str:
    said = f'<p class="says">{text(says.strip())}</p>' if says else ""
    return f"<section><h2>{title}</h2>{said}{body}</section>"


def _pair(*sections: str) -> str:
    """Sections side by side where there is room; one alone takes all of it."""
    return f'<div class="pair">{"".join(sections)}</div>' if any(sections) else ""


def _column(*sections: str) -> str:
    """Sections below each other, in one place of a pair."""
    return f'<div class="column">{"".join(sections)}</div>' if any(sections) else ""


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _speed(attempts: list[dict[str, Any]]) -> float | None:
    """Tokens per second of those attempts of which both are known."""
    known = [one for one in attempts if one.get("tokens") is not None and one.get("seconds")]
    return _share(sum(one["tokens"] for one in known), sum(one["seconds"] for one in known))


def _some(number: int | None, what: str, plural: str = "s") -> str:
    return f"{count(number)} {what}{'' if number == 1 else plural}"


def _large(value: float | None) -> str:
    """In full where it fits a headline."""
    return count(value) if value is None or value < 1e7 else compact(value)


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f} s"


def _moment(stamp: str | None) -> Html:
    """2026-11-24T16:40:00Z → 2026-11-24 16:40 UTC"""
    day, _, clock_time = (stamp or "").partition("T")
    if not clock_time.endswith("Z"):
        return text(stamp)
    said = f"<span>{text(day)}</span> <span>{text(clock_time[:5])} UTC</span>"
    return Html(f'<time datetime="{text(stamp)}">{said}</time>')
