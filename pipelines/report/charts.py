"""Charts, tables and the page they stand on as plain HTML: values in, markup out, everything escaped.

Text is HTML and only the drawing is SVG, stretched to its box: letters stay the same size on a phone. Nothing in
a page runs, and nothing comes from elsewhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from pipelines.report.progress import format_duration

MISSING = "–"
_COLUMNS = 240
_LETTERS = 240
_TIME_STEPS = [n * size for size in (1, 60) for n in (1, 2, 5, 10, 15, 30)]
_TIME_STEPS += [n * 3600 for n in (1, 2, 3, 6, 12, 24, 48, 168)]
_UNITS = [(86400, "d"), (3600, "h"), (60, "min")]


class Html(str):
    """Markup, which is not escaped again."""


def text(value: Any) -> Html:
    """Any value as inert text of bounded length; markup as it is."""
    if isinstance(value, Html):
        return value
    plain = MISSING if value is None else str(value)
    plain = plain if len(plain) <= _LETTERS else f"{plain[: _LETTERS * 2 // 3]} … {plain[-_LETTERS // 3 :]}"
    return Html(html.escape(plain.encode("utf-8", "replace").decode("utf-8")))


def count(value: float | None) -> str:
    """12,345"""
    return MISSING if value is None else f"{value:,.0f}"


def compact(value: float) -> str:
    """12,345 → 12.3k; small numbers as they are."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def percent(share: float | None) -> str:
    """12.3%; what is not quite nothing or everything is not shown as that."""
    if share is None:
        return MISSING
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], *, words: Sequence[int] = (), extra: Any = ()
) -> Html:
    """A table whose first column names the row. Columns are numbers but for `words`; a phone leaves out `extra`."""

    def style(column: int) -> str:
        names = ["words" if column in words else "number" if column else "", "extra" if column in extra else ""]
        return f' class="{" ".join(names).strip()}"' if any(names) else ""

    titles = "".join(f'<th scope="col"{style(i)}>{text(title)}</th>' for i, title in enumerate(head))
    lines = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td{style(i)}>{text(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    thead = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return Html(f'<table><caption class="unseen">{text(caption)}</caption>{thead}<tbody>{lines}</tbody></table>')


def bars(caption: str, head: Sequence[str], counts: Sequence[tuple[str, int]], most: int, others: str) -> Html:
    """The first `most` of named counts, each with a bar, with its share of all; the rest in one row of `others`."""
    total, longest = sum(n for _, n in counts), max((n for _, n in counts), default=0)
    rows = []
    for name, n in counts[:most]:
        bar = f'<span class="bar"><i style="width:{100 * n / (longest or 1):.2f}%"></i></span>'
        named = Html(f'<span class="barred"><span>{text(name)}</span>{bar}</span>')
        rows.append([named, count(n), percent(n / (total or 1))])
    if rest := counts[most:]:
        left = sum(n for _, n in rest)
        rows.append([Html(f"<em>{len(rest):,} {text(others)}</em>"), count(left), percent(left / (total or 1))])
    return table(caption, head, rows)


def stacked(title: str, parts: Sequence[tuple[str, str, float, str]]) -> Html:
    """One bar cut into (class, name, size, size in words), with a key that names each part and its share."""
    total = sum(size for *_, size, _ in parts) or 1.0
    pieces = "".join(f'<i class="{kind}" style="width:{100 * size / total:.2f}%"></i>' for kind, _, size, _ in parts)
    rows = [
        [Html(f'<i class="swatch {kind}"></i>{text(name)}'), said, percent(size / total)]
        for kind, name, size, said in parts
    ]
    return Html(f'<div class="stack" aria-hidden="true">{pieces}</div>{table(title, [], rows)}')


def histogram(title: str, unit: str, edges: Sequence[float], counts: Sequence[int]) -> Html:
    """Counts between edges as columns of equal width, with the same numbers as a table to unfold."""
    edges, counts = _fewer(edges, counts, sum)
    ticks = _ticks(max(counts), least=1)
    top = ticks[-1] or 1
    columns, rows = "", []
    for i, n in enumerate(counts):
        high = max(100 * n / top, 1.0) if n else 0.0
        span = f"{_edge(edges[i])} to {_edge(edges[i + 1])}"
        rows.append([span, count(n), percent(n / (sum(counts) or 1))])
        columns += (
            f'<g><title>{span} {text(unit)}: {n:,}</title><rect class="hit" x="{i}" y="0" width="1" height="100"/>'
            f'<rect class="count" x="{i + 0.05:.2f}" y="{100 - high:.2f}" width=".9" height="{high:.2f}"/></g>'
        )
    peak = counts.index(max(counts))
    says = f"{len(counts)} columns; the highest, {rows[peak][0]} {unit}, holds {counts[peak]:,}."
    least = math.ceil(len(counts) / 7)
    every = next((n for n in range(least, 2 * least + 1) if len(counts) % n == 0), least)
    below = [(i / len(counts), _edge(edges[i])) for i in range(0, len(edges), every)]
    numbers = table(title, [unit, "count", "share"], rows)
    return Html(
        _plot(title, says, len(counts), columns, [(tick / top, compact(tick)) for tick in ticks], below)
        + f"<details><summary>The same as a table</summary>{numbers}</details>"
    )


def line(
    title: str,
    unit: str,
    edges: Sequence[float],
    values: Sequence[float],
    mean: float | None,
    marks: Sequence[tuple[float, str]],
) -> Html:
    """Values between seconds as a stepped area; a dashed line at `mean`, a named upright line at each of `marks`."""
    edges, values = _fewer(edges, values, None)
    length, ticks = edges[-1] or 1.0, _ticks(max(max(values), mean or 0))
    top = ticks[-1] or 1.0
    x = [1000 * edge / length for edge in edges]
    y = [100 - 100 * value / top for value in values]
    steps = "".join(f"H{x[i]:.1f}V{y[i]:.1f}" for i in range(len(y))) + f"H{x[-1]:.1f}"
    drawing = f'<path class="area" d="M0 100{steps}V100Z"/><path class="line" d="M0 {y[0]:.1f}{steps}"/>'
    drawing += "".join(f'<path class="mark" d="M{1000 * at / length:.1f} 0V100"/>' for at, _ in marks)
    if mean is not None:
        drawing += f'<path class="mean" d="M0 {100 - 100 * mean / top:.1f}H1000"/>'
    for i, value in enumerate(values):
        drawing += (
            f"<g><title>after {format_duration(edges[i])}: {value:,.0f} {text(unit)}</title>"
            f'<rect class="hit" x="{x[i]:.1f}" y="0" width="{x[i + 1] - x[i]:.1f}" height="100"/></g>'
        )
    step = next((step for step in _TIME_STEPS if length / step <= 6), 86400 * math.ceil(length / 86400 / 5))
    below = [(i * step / length, _time(i * step, step)) for i in range(int(length / step) + 1)]
    says = f"{format_duration(length)} in {len(values)} steps; from {min(values):,.0f} to {max(values):,.0f} {unit}."
    left = [(tick / top, compact(tick)) for tick in ticks]
    return _plot(title, says, 1000, drawing, left, below, [(at / length, name) for at, name in marks])


def _plot(
    title: str,
    says: str,
    width: int,
    drawing: str,
    left: Sequence[tuple[float, str]],
    below: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]] = (),
) -> Html:
    """A drawing `width` wide and 100 high, stretched to its box, with labels at shares of its height and width."""
    grid = "".join(f'<path class="grid" d="M0 {100 - 100 * at:.1f}H{width}"/>' for at, _ in left)
    labels = "".join(f'<span class="left" style="bottom:{100 * at:.1f}%">{text(name)}</span>' for at, name in left)
    labels += "".join(f'<span class="below" style="left:{100 * at:.1f}%">{text(name)}</span>' for at, name in below)
    labels += "".join(f'<span class="named" style="left:{100 * at:.1f}%">{text(name)}</span>' for at, name in marks)
    return Html(
        f'<div class="plot"><svg role="img" viewBox="0 0 {width} 100" preserveAspectRatio="none">'
        f"<title>{text(title)}</title><desc>{text(says)}</desc>{grid}{drawing}</svg>"
        f'<div aria-hidden="true">{labels}</div></div>'
    )


def _fewer(edges: Sequence[float], values: Sequence[Any], combine: Any) -> tuple[list[float], list[Any]]:
    """Neighbouring bins put together until a chart can show them: by `combine`, or by their mean over the width."""
    size = math.ceil(len(values) / _COLUMNS)
    starts = range(0, len(values), size)
    kept = [edges[i] for i in starts] + [edges[-1]]
    if combine:
        return kept, [combine(values[i : i + size]) for i in starts]
    made = []
    for i, start, stop in zip(starts, kept, kept[1:], strict=False):
        bins = range(i, min(i + size, len(values)))
        made.append(sum(values[j] * (edges[j + 1] - edges[j]) for j in bins) / ((stop - start) or 1.0))
    return kept, made


def _ticks(most: float, least: float = 0.0) -> list[float]:
    """0 to at least `most` in three to five round steps of at least `least`."""
    if most <= 0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(most / 4))
    step = max(least, next(size * n for n in (1, 2, 3, 4, 5, 10) if size * n >= most / 4))
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _time(seconds: float, step: float) -> str:
    """Seconds in the unit of `step`."""
    size, unit = next(((size, unit) for size, unit in _UNITS if step >= size), (1, "s"))
    return f"{seconds / size:.3g} {unit}"


def _edge(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def page(title: str, body: str) -> str:
    """A whole document; its policy forbids scripts and anything from elsewhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n"
    )


STYLE = """
:root { --page:#f5f6f8; --card:#fff; --ink:#14171c; --quiet:#596070; --rule:#e2e5ea; --soft:#eef0f4;
  --main:#2a5bd7; --wash:#2a5bd724; --second:#b86a00; --third:#7a8192; --good:#17693a; --warn:#8a4d00;
  --bad:#b3261e; --badwash:#fdf1f0 }
@media screen and (prefers-color-scheme:dark) { :root { --page:#0f1115; --card:#171a20; --ink:#e9ebef; --quiet:#a0a8b6;
  --rule:#2a2f38; --soft:#232831; --main:#7ea6ff; --wash:#7ea6ff2b; --second:#f0a63c; --third:#8b93a3;
  --good:#6fd297; --warn:#f0a63c; --bad:#ff8f85; --badwash:#2a1918 } }
* { box-sizing:border-box; margin:0 }
body { background:var(--page); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
  -webkit-text-size-adjust:100% }
main { max-width:1200px; margin:0 auto; padding:40px 32px 64px; display:grid; grid-template-columns:minmax(0,1fr);
  gap:20px }
header { display:flex; justify-content:space-between; align-items:flex-end; gap:12px 32px; flex-wrap:wrap;
  padding-bottom:4px }
header > div:first-child { flex:1 1 300px } header > div:last-child { text-align:right }
h1 { font-size:34px; line-height:1.15; letter-spacing:-.02em; font-weight:700; overflow-wrap:anywhere }
h2 { font-size:16px; line-height:1.3; font-weight:650; letter-spacing:-.005em }
.kind { font-size:12px; letter-spacing:.08em; text-transform:uppercase; color:var(--quiet); font-weight:600 }
.path, code { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; font-size:.87em;
  overflow-wrap:anywhere }
.path, .quiet, .says { color:var(--quiet) }
.path { margin-top:4px }
.quiet { font-size:13px; line-height:1.4 }
.state { display:inline-block; padding:3px 12px; border:1.5px solid; border-radius:99px; font-weight:600;
  font-size:14px; margin-bottom:6px }
.done { color:var(--good) } .bad { color:var(--bad) } .open { color:var(--warn) }
section, .figures { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:20px 24px;
  min-width:0; break-inside:avoid }
.alert { background:var(--badwash); border-color:var(--bad); border-left-width:5px }
.alert h2 { color:var(--bad); font-size:18px }
.alert tbody th { color:inherit !important } .alert table { margin-top:8px }
.alert tbody tr > * { border-color:color-mix(in srgb,var(--bad) 25%,transparent) }
.says { font-size:14px; margin-top:2px; max-width:84ch; text-wrap:pretty }
.pair { display:flex; flex-wrap:wrap; gap:20px }
.pair > * { flex:1 1 440px; min-width:0 } .column { display:grid; gap:inherit; align-content:start }
time span { white-space:nowrap }
.figures { display:grid; grid-template-columns:repeat(6,minmax(0,1fr)); gap:20px 0; padding:20px 8px }
.figures > div { padding:0 16px; border-left:1px solid var(--rule) }
.figures > div:first-child { border-left:0 }
.figures dt { font-size:13px; color:var(--quiet); font-weight:600 }
.figure { font-size:27px; line-height:1.3; font-weight:650; letter-spacing:-.02em; font-variant-numeric:tabular-nums }
.plot { position:relative; margin:22px 6px 26px 44px }
.plot svg { display:block; width:100%; height:200px; overflow:visible }
.plot span { position:absolute; font-size:12px; line-height:1; color:var(--quiet); font-variant-numeric:tabular-nums;
  white-space:nowrap }
.plot .left { right:100%; margin-right:8px; transform:translateY(50%) }
.plot .below { top:100%; margin-top:8px; transform:translateX(-50%) }
.plot .named { top:-6px; transform:translateX(-50%); background:var(--card); border:1px solid var(--quiet);
  border-radius:99px; padding:2px 6px; font-size:11px }
.plot path { vector-effect:non-scaling-stroke; fill:none }
.plot .grid { stroke:var(--rule) } .plot .area { fill:var(--wash) }
.plot .line { stroke:var(--main); stroke-width:1.75; stroke-linejoin:round }
.plot .mean { stroke:var(--ink); stroke-dasharray:5 4 } .plot .mark { stroke:var(--quiet); stroke-dasharray:1 3 }
.hit { fill:transparent } .count { fill:var(--main) }
g:hover .hit { fill:var(--wash) }
table { width:100%; border-collapse:collapse; font-size:14px; margin-top:12px }
th, td { text-align:left; vertical-align:top; padding:7px 0 7px 20px; font-weight:400; border-top:1px solid var(--rule);
  overflow-wrap:anywhere; font-variant-numeric:tabular-nums }
th:first-child { padding-left:0 }
thead th { color:var(--quiet); font-size:12.5px; font-weight:600; border-top:0; padding-top:0; overflow-wrap:normal }
table:not(:has(thead)) tr:first-child > * { border-top:0 }
tbody th:nth-last-child(2) { color:var(--quiet); width:38% }
.words { min-width:7.5em }
.number { text-align:right; white-space:nowrap; overflow-wrap:normal }
em { color:var(--quiet) }
.barred { display:grid; grid-template-columns:minmax(0,11fr) minmax(0,10fr); gap:4px 16px; align-items:center }
.bar { display:block; height:8px; border-radius:3px; background:var(--soft) }
.bar i { display:block; height:100%; border-radius:3px; background:var(--main); min-width:2px }
.stack { display:flex; height:30px; gap:2px; margin-top:18px; border-radius:6px; overflow:hidden }
.swatch { display:inline-block; width:.8em; height:.8em; border-radius:3px; margin-right:.6em }
.predict { background:var(--main) } .tokenise { background:var(--second) }
.waiting { background:repeating-linear-gradient(135deg,var(--third) 0 2px,var(--soft) 2px 6px) }
.bar, .bar i, .stack i, .swatch { forced-color-adjust:none; print-color-adjust:exact; -webkit-print-color-adjust:exact }
details { font-size:14px } summary { cursor:pointer; color:var(--quiet) }
summary:focus-visible { outline:2px solid var(--main); outline-offset:3px; border-radius:3px }
.unseen { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%); white-space:nowrap }
@media (max-width:1100px) { .figures { grid-template-columns:repeat(3,minmax(0,1fr)) }
  .figures > div:nth-child(4) { border-left:0 } }
@media (max-width:600px) { main { padding:24px 12px 40px; gap:12px } .pair { gap:12px }
  section, .figures { padding:16px } h1 { font-size:28px } header { padding:0 4px 4px }
  header > div:last-child { text-align:left } .pair > * { flex-basis:100% }
  .figures { grid-template-columns:repeat(2,minmax(0,1fr)); padding:16px 4px } .figures > div { padding:0 12px }
  .figures > div:nth-child(odd) { border-left:0 } .figures > div:nth-child(4) { border-left:1px solid var(--rule) }
  .figure { font-size:24px } .extra { display:none } th, td { padding-left:10px } .barred { grid-template-columns:1fr }
  .bar { height:6px } code { font-size:.8em } }
@media (max-width:360px) { .number { white-space:normal } .words { min-width:5.5em } }
@media print { @page { margin:14mm } body { background:#fff; font-size:12px } main { padding:0; max-width:none;
  gap:10px } section, .figures { padding:12px 14px } .plot svg { height:150px } summary { display:none }
  .pair { gap:10px } .pair > * { flex-basis:300px } }
"""
