"""Thresholds of labels: one number for all, one for each in a file, or found on gold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator
from pydantic_settings import NoDecode

BEST_F1: Literal["best-f1"] = "best-f1"


def read_thresholds(value: object) -> object:
    """Return the number or the thresholds by label that a text stands for: a file that holds them.

    Other values stay as they are. Raises ValueError for a value that is no threshold.
    """
    if isinstance(value, str) and value != BEST_F1:
        number = _number(value)
        value = _from_file(value) if number is None else number
    if isinstance(value, Mapping):
        for label, threshold in value.items():
            if not isinstance(label, str):
                raise ValueError(f"label {label!r} must be text: put it in quotes")
            if not _is_share(threshold):
                raise ValueError(f"label {label!r} has {threshold!r}: must be from 0 to 1")
    elif value is not None and value != BEST_F1 and not _is_share(value):
        raise ValueError("must be from 0 to 1, a file with a threshold for each label, or best-f1")
    return value


Threshold = Annotated[
    float | dict[str, float] | Literal["best-f1"] | None, BeforeValidator(read_thresholds), NoDecode
]


def thresholds_of(
    value: float | Mapping[str, float] | str | None, labels: Sequence[str] | None, default: float
) -> tuple[float, ...] | None:
    """Return the threshold of each label where they differ, else None.

    Args:
        value: the option.
        labels: those that there are; None where each row has its own.
        default: the threshold of labels that the option does not name.

    Raises:
        ValueError: for a label that there is not.
    """
    if not isinstance(value, Mapping):
        return None
    if labels is None:
        raise ValueError("threshold of each label needs labels or labels_file, for all rows")
    unknown = [label for label in value if label not in labels]
    if unknown:
        raise ValueError(
            f"threshold names {unknown[0]!r}, which is no label; there are {', '.join(labels)}"
        )
    return tuple(value.get(label, default) for label in labels)


def _number(text: str) -> float | None:
    """Return the number that a text is, None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _from_file(path: str) -> object:
    """Return the thresholds by label in a file of JSON or YAML."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError("must hold a threshold for each label, as 'label: value' lines or JSON")
    return values


def _is_share(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= 1
