"""How the report writes numbers and times."""

from __future__ import annotations

from pipelines.report.charts import MISSING, compact, count


def ratio(part: float | None, whole: float | None) -> float | None:
    """Return `part / whole`, or None where that is not known."""
    if part is None or not whole:
        return None
    return part / whole


def plural(number: int | None, noun: str, ending: str = "s") -> str:
    """Format a number of what `noun` names, to which `ending` is added unless it is one."""
    return f"{count(number)} {noun}{'' if number == 1 else ending}"


def large(value: float | None) -> str:
    """Formats a number in full where it fits a headline."""
    if value is None or value < 1e7:
        return count(value)
    return compact(value)


def in_seconds(value: float | None) -> str:
    """Format seconds to a tenth."""
    return MISSING if value is None else f"{value:,.1f} s"


def timestamp(value: str | None) -> dict[str, str] | str | None:
    """Splits 2026-11-24T16:40:00Z into date and time; returns any other text as it is."""
    date, _, time = (value or "").partition("T")
    if not time.endswith("Z"):
        return value
    return {"iso": f"{value}", "date": date, "time": time[:5]}
