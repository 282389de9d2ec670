"""How answers compare with gold, and the rows to look at first: for the report and the terminal."""

from __future__ import annotations

from modernbert.stored import Json
from pipelines.report.charts import MISSING, count, percent
from pipelines.report.formats import plural
from pipelines.report.text import printable

_SHOWN_LABELS = 12
_SHOWN_PAIRS = 10
_SHOWN_ON_TERMINAL = 3
_NO_LABEL = "(no label of the model)"
_FIGURES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "f1": "F1",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "word_accuracy": "accuracy of words",
}


def describe_checks(checks: Json | None) -> list[str]:
    """Describe how all answers of an output compare with gold, in lines for the terminal."""
    if not checks:
        return []
    lines = [f"gold       {_rows(checks)}"]
    figures = [f"{name} {value}" for name, value in _figures(checks)]
    if figures:
        lines.append(f"check      {', '.join(figures)}")
    thresholds = checks.get("thresholds")
    if thresholds:
        before, after = (_mean(thresholds, name) for name in ("f1_at_half", "f1"))
        lines.append(
            f"thresholds macro F1 {_share(after)} with the best, {_share(before)} with 0.5: "
            "a run with --threshold OUTPUT/_thresholds.json takes them"
        )
    for gold, answer, number in checks.get("confusion", [])[:_SHOWN_ON_TERMINAL]:
        shown = printable(f"{_name(gold)} answered as {_name(answer)}")
        lines.append(f"confused   {number:>9,}  {shown}")
    return lines


def describe_drift(drift: Json | None) -> list[str]:
    """Describe how the shares of labels differ from those of the last run, in a line."""
    if not drift or not drift["changes"]:
        return []
    changes = [
        f"{printable(label)} {percent(before)} to {percent(now)}"
        for label, before, now in drift["changes"]
    ]
    moved = percent(drift["distance"])
    return [f"drift      {moved} of labels differ from the last run: {', '.join(changes)}"]


def checks_section(checks: Json | None) -> Json | None:
    """Return what the report shows of answers against gold."""
    if not checks:
        return None
    labels = checks.get("labels") or []
    thresholds = checks.get("thresholds") or {}
    more = len(labels) - _SHOWN_LABELS
    return {
        "note": f"Over {_rows(checks)}.",
        "figures": [(name[0].upper() + name[1:], value) for name, value in _figures(checks)],
        "labels": [_label_row(each, thresholds) for each in labels[:_SHOWN_LABELS]],
        "has_thresholds": bool(thresholds),
        "more_labels": f"… and {plural(more, 'label')} more: see _run.json." if more > 0 else "",
        "confusion": _confusion(checks.get("confusion") or [], checks["rows"]),
        "calibration": _calibration(checks.get("calibration")),
    }


def examples_section(examples: list[Json], checks: Json | None) -> Json | None:
    """Return what the report shows of the rows to look at first."""
    if not examples:
        return None
    is_checked = checks is not None
    note = "Their answers have the lowest scores."
    if is_checked:
        note = "Their answers are the furthest from gold."
    return {
        "title": "Rows that disagree most" if is_checked else "Least sure rows",
        "note": note,
        "has_gold": is_checked,
        "has_text": any("text" in each for each in examples),
        "rows": [
            {
                "place": f"{each['file']} {each['row']:,}",
                "answer": each["answer"],
                "gold": each.get("gold"),
                "text": each.get("text"),
            }
            for each in examples
        ],
    }


def _rows(checks: Json) -> str:
    """Say how many rows were compared, and which have no gold that counts."""
    text = plural(checks["rows"], "row")
    if checks["no_gold"]:
        text += f"; {checks['no_gold']:,} without gold are left out"
    if checks["unfit"]:
        text += f"; {checks['unfit']:,} whose gold does not fit their text are left out"
    if checks["unknown"]:
        names = ", ".join(printable(repr(name)) for name in checks["unknown_labels"][:3])
        text += f"; the gold of {checks['unknown']:,} is no label of the model, such as {names}, "
        text += "and counts as wrong"
    return text


def _figures(checks: Json) -> list[tuple[str, str]]:
    """Return the names and values of figures."""
    figures = [(title, _share(checks[name])) for name, title in _FIGURES.items() if name in checks]
    calibration = checks.get("calibration")
    if calibration:
        figures.append(("calibration error", _share(calibration["expected_error"])))
    return figures


def _share(value: float) -> str:
    return f"{value:.3f}"


def _mean(thresholds: Json, name: str) -> float:
    return sum(float(each[name]) for each in thresholds.values()) / len(thresholds)


def _name(label: str | None) -> str:
    return _NO_LABEL if label is None else label


def _label_row(label: Json, thresholds: Json) -> Json:
    row = {name: _share(label[name]) for name in ("precision", "recall", "f1")}
    row |= {name: count(label[name]) for name in ("gold", "wrong")}
    best = thresholds.get(label["label"])
    row["threshold"] = MISSING if best is None else f"{best['threshold']:.2f}"
    return row | {"name": _name(label["label"])}


def _confusion(pairs: list[tuple[str | None, str | None, int]], rows: int) -> Json | None:
    if not pairs:
        return None
    return {
        "note": "The most frequent wrong answers.",
        "rows": [
            (_name(gold), _name(answer), count(number), percent(number / rows))
            for gold, answer, number in pairs[:_SHOWN_PAIRS]
        ],
    }


def _calibration(calibration: Json | None) -> Json | None:
    """Return a bar for each bin of scores: the share of answers that are right."""
    if not calibration:
        return None
    error = _share(calibration["expected_error"])
    rows = []
    for each in calibration["bins"]:
        is_empty = not each["answers"]
        rows.append(
            {
                "range": f"{each['low']:.1f} to {each['high']:.1f}",
                "answers": count(each["answers"]),
                "score": MISSING if is_empty else _share(each["score"]),
                "right": MISSING if is_empty else _share(each["right"]),
                "width": 0.0 if is_empty else 100 * each["right"],
                "mark": None if is_empty else 100 * each["score"],
            }
        )
    note = (
        "A bar is the share of answers that are right, the mark their mean score. On average they "
        f"are {error} apart (expected calibration error)."
    )
    return {"note": note, "rows": rows}
