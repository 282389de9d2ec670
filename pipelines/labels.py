"""Labels to choose from: several in one text, and what may be wrong with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pipelines.option_types import split_at_commas
from pipelines.text_lists import TextList


class LabelList(TextList):
    """The labels of a document in one text."""


def split_labels(text: str) -> list[str]:
    """Return the labels in a text: those of a LabelList; else one per line, or in a single line
    comma-separated.
    """
    if isinstance(text, LabelList):
        return text.texts
    # str.splitlines would split at characters, too, that end no line of a file.
    lines = re.split(r"\r\n|\r|\n", text)
    if len(lines) == 1:
        return split_at_commas(text)
    return [line.strip() for line in lines if line.strip()]


def label_mistake(labels: Sequence[str]) -> str | None:
    """Return what is wrong with labels to choose from, the end of a sentence on them, or None.

    transformers scores a label that is there twice as two, which share its probability.
    """
    if not labels:
        return "must name at least one label"
    counts = Counter(labels)
    if "" in counts:
        return "must not hold an empty label"
    label, count = counts.most_common(1)[0]
    if count > 1:
        return f"must name each label once; {label[:40]!r} is there {count} times"
    return None
