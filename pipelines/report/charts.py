"""The geometry and labels of the report's charts: numbers in, plain data for report.html.j2 out.

Lengths are relative, since a drawing is stretched to its box: y runs from 0 (top) to 100 (bottom),
percentages from 0 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.report.progress import format_duration

Number = TypeVar("Number", int, float)
MISSING = "–"
LINE_WIDTH = 1000
_MAX_BINS = 240
_TIME_STEPS = [n * size for size in (1, 60) for n in (1, 2, 5, 10, 15, 30)]
_TIME_STEPS += [n * 3600 for n in (1, 2, 3, 6, 12, 24, 48, 168)]
_TIME_UNITS = [(86400, "d"), (3600, "h"), (60, "min")]


@dataclass(frozen=True)
class Bar:
    """A named count, drawn as a bar in a row of a table."""

    name: object
    count: str
    share: str
    """The share of the total."""
    width: float
    """Percent of the longest bar."""


@dataclass(frozen=True)
class Part:
    """A part of a bar that shows a total."""

    name: str
    style: str
    """The CSS class of its color."""
    size: str
    share: str
    width: float
    """Percent of the whole bar."""


@dataclass(frozen=True)
class Label:
    """Text beside an axis."""

    position: float
    """Percent of the axis, from the left or from the bottom."""
    text: str


@dataclass(frozen=True)
class Bin:
    """A column of a histogram."""

    range: str
    count: str
    share: str
    """The share of the total."""
    height: float
    """Percent of the y axis."""


@dataclass(frozen=True)
class Histogram:
    """Counts as columns of width 1."""

    unit: str
    summary: str
    """A sentence for those who cannot see the drawing."""
    bins: list[Bin]
    x_labels: list[Label]
    y_labels: list[Label]


@dataclass(frozen=True)
class Step:
    """A value of a stepped line, from `x` to `end`."""

    x: float
    end: float
    y: float
    value: str
    start: str
    """The time at `x`."""


@dataclass(frozen=True)
class Line:
    """Values over time as a stepped line; x runs from 0 to `LINE_WIDTH`."""

    unit: str
    summary: str
    """A sentence for those who cannot see the drawing."""
    steps: list[Step]
    mean_y: float | None
    """None where no mean is drawn."""
    x_labels: list[Label]
    y_labels: list[Label]
    events: list[Label]


def count(value: float | None) -> str:
    """Formats a number in full: 12345 is "12,345", None is "–"."""
    return MISSING if value is None else f"{value:,.0f}"


def compact(value: float) -> str:
    """Formats a number with three digits and a suffix: 12345 is "12.3k"."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def percent(share: float | None) -> str:
    """Formats a share: 0.123 is "12.3%". Only 0 is "0%" and only 1 is "100%"; None is "–"."""
    if share is None:
        return MISSING
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.1%}"


def bars(
    counts: Sequence[tuple[object, int]], limit: int, others: str
) -> tuple[list[Bar], Bar | None]:
    """Computes the bars of the first `limit` of (name, count), and one of all others.

    Args:
        counts: names with their counts, in the order in which they are shown.
        limit: the number of bars.
        others: what those beyond `limit` are called: "others" makes a bar named "3 others".

    Returns:
        The bars, and the one that stands for the others; None where there are no others.
    """
    numbers = [number for _, number in counts]
    total = sum(numbers) or 1
    longest = max(numbers, default=0) or 1

    def bar(name: object, number: int) -> Bar:
        return Bar(
            name=name,
            count=count(number),
            share=percent(number / total),
            width=100 * number / longest,
        )

    first_bars = [bar(name, number) for name, number in counts[:limit]]
    rest = numbers[limit:]
    if not rest:
        return first_bars, None
    return first_bars, bar(f"{len(rest):,} {others}", sum(rest))


def stack(parts: Sequence[tuple[str, str, float, str]]) -> list[Part]:
    """Computes the parts of a bar from (name, CSS class, size, size as text)."""
    total = sum(size for _, _, size, _ in parts) or 1.0
    return [
        Part(name, style, text, percent(size / total), 100 * size / total)
        for name, style, size, text in parts
    ]


def histogram(unit: str, edges: Sequence[float], counts: Sequence[int]) -> Histogram:
    """Computes the columns of a histogram, at most 240: neighbouring bins beyond that are added up.

    Args:
        unit: the unit of the edges.
        edges: the limits of the bins, ascending, one more than there are counts.
        counts: the counts of the bins, of which at least one is not 0.
    """
    edges, counts = _merge_bins(edges, counts, average=False)
    total = sum(counts) or 1
    highest = max(counts)
    ticks = _ticks(highest, min_step=1)
    bins: list[Bin] = []
    for i, number in enumerate(counts):
        height = 0.0
        if number:  # it can be seen, however small
            height = max(100 * number / ticks[-1], 1.0)
        bins.append(
            Bin(
                range=f"{_edge(edges[i])} to {_edge(edges[i + 1])}",
                count=count(number),
                share=percent(number / total),
                height=height,
            )
        )
    peak = bins[counts.index(highest)]

    # At most eight labels, with one at the end of the axis where a spacing near that allows.
    min_spacing = math.ceil(len(bins) / 7)
    spacing = min_spacing
    for wider in range(min_spacing, 2 * min_spacing + 1):
        if len(bins) % wider == 0:
            spacing = wider
            break
    x_labels: list[Label] = []
    for i in range(0, len(edges), spacing):
        x_labels.append(Label(100 * i / len(bins), _edge(edges[i])))
    return Histogram(
        unit=unit,
        summary=f"{len(bins)} columns; the highest, {peak.range} {unit}, holds {peak.count}.",
        bins=bins,
        x_labels=x_labels,
        y_labels=_y_labels(ticks),
    )


def line(
    unit: str,
    edges: Sequence[float],
    values: Sequence[float],
    mean: float | None,
    events: Sequence[tuple[float, str]],
) -> Line:
    """Computes a stepped line of values over time.

    It has at most 240 steps: neighbouring values beyond that are averaged.

    Args:
        unit: the unit of the values.
        edges: the limits of the steps in seconds, ascending from 0, one more than there are values.
        values: the value of each step.
        mean: the value that is drawn as a dashed line; None where it is not known.
        events: (seconds, name) of each upright line.
    """
    edges, values = _merge_bins(edges, values, average=True)
    duration = edges[-1] or 1.0
    ticks = _ticks(max(max(values), mean or 0))

    def y(value: float) -> float:
        return 100 - 100 * value / ticks[-1]

    x = [LINE_WIDTH * edge / duration for edge in edges]
    steps: list[Step] = []
    for i, value in enumerate(values):
        start = format_duration(edges[i])
        steps.append(Step(x[i], x[i + 1], y(value), count(value), start))

    # At most seven labels, at round times.
    spacing = 86400 * math.ceil(duration / 86400 / 5)
    for time_step in _TIME_STEPS:
        if duration / time_step <= 6:
            spacing = time_step
            break
    x_labels: list[Label] = []
    for i in range(int(duration / spacing) + 1):
        seconds = i * spacing
        x_labels.append(Label(100 * seconds / duration, _time(seconds, spacing)))
    lowest = count(min(values))
    highest = count(max(values))
    return Line(
        unit=unit,
        summary=(
            f"{format_duration(duration)} in {len(steps)} steps; from {lowest} to {highest} {unit}."
        ),
        steps=steps,
        mean_y=None if mean is None else y(mean),
        x_labels=x_labels,
        y_labels=_y_labels(ticks),
        events=[Label(100 * seconds / duration, name) for seconds, name in events],
    )


def _merge_bins(
    edges: Sequence[float], values: Sequence[Number], average: bool
) -> tuple[list[float], list[Number]]:
    """Merges neighbouring bins until a chart can show them.

    Their values are summed, or averaged over their widths.
    """
    size = math.ceil(len(values) / _MAX_BINS)
    merged_edges: list[float] = []
    merged: list[Any] = []  # an average of ints is a float
    for start in range(0, len(values), size):
        stop = min(start + size, len(values))
        merged_edges.append(edges[start])
        if not average:
            merged.append(sum(values[start:stop]))
            continue
        area = 0.0
        for i in range(start, stop):
            area += values[i] * (edges[i + 1] - edges[i])
        width = edges[stop] - edges[start]
        merged.append(area / (width or 1.0))
    merged_edges.append(edges[-1])
    return merged_edges, merged


def _ticks(maximum: float, min_step: float = 0.0) -> list[float]:
    """Divides 0 to at least `maximum` into two to five round steps of at least `min_step`."""
    if maximum <= 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** math.floor(math.log10(maximum / 4))
    round_steps = [magnitude * n for n in (1, 2, 3, 4, 5, 10)]
    least_step = next(step for step in round_steps if step >= maximum / 4)
    step = max(min_step, least_step)
    steps = math.ceil(maximum / step - 1e-9)
    return [step * i for i in range(steps + 1)]


def _y_labels(ticks: Sequence[float]) -> list[Label]:
    return [Label(100 * tick / ticks[-1], compact(tick)) for tick in ticks]


def _time(seconds: float, step: float) -> str:
    """Formats seconds in the unit of `step`."""
    for size, unit in _TIME_UNITS:
        if step >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _edge(value: float) -> str:
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"
