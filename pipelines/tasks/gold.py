"""The gold column of a job: what it may hold, and its values as what answers are compared with.

Shapes: D rows, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modernbert.stored import Json
from pipelines.labels import split_labels
from pipelines.tasks.base import GoldTypes
from pipelines.tasks.checks import (
    Comparison,
    Item,
    add_unknown,
    count_classes,
    count_items,
    count_sets,
    count_texts,
    key,
)

LABEL, LABELS = "labels (text) or their ids (integers)", "lists of labels (text) or of their ids"
SPANS = "lists of spans: {start, end, label}"
ANSWERS = "answers: text, lists of it, or {text, answer_start}"
GRADES = "grades (integers, of which 0 is not relevant), or true and false"
SPAN_LABELS = ("label", "entity_group", "entity")
"""What the label of a gold span may be called."""
RELEVANCE = ("not relevant", "relevant")
_PREFIXES = ("B", "I", "E", "L", "S", "U")


def holds_labels(type_: pa.DataType) -> bool:
    """Whether values are labels or their ids."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_null,
    )
    return any(is_kind(type_) for is_kind in kinds)


def holds_label_lists(type_: pa.DataType) -> bool:
    """Whether values are lists of labels, or texts that hold them."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return holds_labels(type_.value_type)
    return not pa.types.is_integer(type_) and holds_labels(type_)


def compare_label(
    gold: pa.Array, answers: pa.StructArray, scores: np.ndarray, labels: Sequence[str]
) -> Comparison:
    """Compare the column `label` of answers with a label for each row.

    `scores`: (D, C). A null, and an empty text unless it is a label, is no gold.
    """
    numbers, names = _numbers(gold, labels)
    if "" not in labels:
        numbers[[name is not None and not name.strip() for name in names]] = -1
    chosen, _ = _numbers(answers.field("label"), labels)
    comparison = count_classes(numbers, chosen, scores, labels)
    unknown = [name for name, number in zip(names, numbers, strict=True) if number == len(labels)]
    add_unknown(comparison.counts, Counter(map(str, unknown)))
    return comparison


def compare_labels(
    gold: pa.Array,
    answers: pa.StructArray,
    scores: np.ndarray,
    labels: Sequence[str],
    with_grid: bool,
) -> Comparison:
    """Compare the column `labels` of answers with any number of labels for each row.

    `scores`: (D, C). A null is no gold; a text holds labels as `split_labels` reads them.
    """
    has_gold = ~_is_null(gold)
    gold = _as_lists(gold)
    is_gold, numbers, names = _memberships(gold, labels)
    rows = _rows_of(gold)
    is_unknown = numbers == len(labels)
    has_unknown = np.zeros(len(gold), dtype=bool)
    has_unknown[rows[is_unknown]] = True
    chosen, _, _ = _memberships(answers.field("labels"), labels)
    comparison = count_sets(is_gold, has_gold, has_unknown, chosen, scores, labels, with_grid)
    unknown = [str(names[place]) for place in np.flatnonzero(is_unknown).tolist()]
    add_unknown(comparison.counts, Counter(unknown))
    return comparison


def compare_spans(
    gold: pa.Array, entities: pa.Array, types: Sequence[str], ignored: Sequence[str]
) -> Comparison:
    """Compare lists of entities with lists of gold spans: start, end and label must be equal.

    `types`: what entities are called; gold of the names `ignored` is left out.
    """
    (name,) = (name for name in SPAN_LABELS if name in gold.type.value_type.names)
    values: list[set[Item] | None] = []
    unknown: Counter[str] = Counter()
    unknown_rows, unfit = 0, 0
    for spans in gold.to_pylist():
        if spans is not None and not all(_is_whole(span, name) for span in spans):
            spans = None
            unfit += 1
        if spans is None:
            values.append(None)
            continue
        kept = [span for span in spans if span[name] not in ignored]
        strange = [span[name] for span in kept if span[name] not in types]
        unknown.update(strange)
        unknown_rows += bool(strange)
        items: set[Item] = set()
        for span in kept:
            label = span[name] if span[name] in types else None
            items.add(((span["start"], span["end"]), label))
        values.append(items)
    answered: list[dict[Item, float]] = []
    for found in entities.to_pylist():
        answered.append({((e["start"], e["end"]), e["label"]): e["score"] for e in found})
    comparison = count_items(values, answered)
    _add_rows(comparison, unknown, unknown_rows, unfit)
    return comparison


def compare_words(gold: pa.Array, answers: pa.StructArray, labels: Sequence[str]) -> Comparison:
    """Compare the labels of words, and the entities that these make.

    A word that the model has not read has no label; where gold has another number of words, the
    row does not fit.
    """
    values: list[set[Item] | None] = []
    answered: list[dict[Item, float]] = []
    types = {tag_parts(label)[1] for label in labels}
    unknown: Counter[str] = Counter()
    unknown_rows, unfit, words, right_words = 0, 0, 0, 0
    for of_gold, of_answer, scores in zip(
        _label_names(gold, labels),
        answers.field("labels").to_pylist(),
        answers.field("scores").to_pylist(),
        strict=True,
    ):
        found = entities_of(of_answer)
        answered.append({((a, b), kind): min(scores[a:b]) for a, b, kind in found})
        if of_gold is None or len(of_gold) != len(of_answer):
            unfit += of_gold is not None
            values.append(None)
            continue
        words += len(of_gold)
        pairs = zip(of_gold, of_answer, strict=True)
        right_words += sum((gold or "O") == (label or "O") for gold, label in pairs)
        items: set[Item] = set()
        strange = [kind for _, _, kind in entities_of(of_gold) if kind not in types]
        unknown.update(strange)
        unknown_rows += bool(strange)
        for a, b, kind in entities_of(of_gold):
            items.add(((a, b), kind if kind in types else None))
        values.append(items)
    comparison = count_items(values, answered)
    _add_rows(comparison, unknown, unknown_rows, unfit)
    comparison.counts[key("words")] = words
    comparison.counts[key("right_words")] = right_words
    return comparison


def entities_of(tags: Sequence[str | None]) -> list[tuple[int, int, str]]:
    """Return the first word of each entity, the one after its last, and its type, as seqeval does.

    A tag that goes on with an entity (I-, E-, L-) begins one where there is none of its type.
    """
    entities: list[tuple[int, int, str]] = []
    is_open = False
    for place, tag in enumerate(tags):
        if tag is None or tag == "O":
            is_open = False
            continue
        prefix, kind = tag_parts(tag)
        if is_open and prefix not in ("B", "S", "U") and entities[-1][2] == kind:
            entities[-1] = (entities[-1][0], place + 1, kind)
        else:
            entities.append((place, place + 1, kind))
        is_open = prefix not in ("E", "L", "S", "U")
    return entities


def tag_parts(tag: str) -> tuple[str, str]:
    """Return the prefix of a tag, such as B, and the type in it."""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in _PREFIXES else ("", tag)


def compare_answers(gold: pa.Array, answers: pa.StructArray) -> Comparison:
    """Compare the column `answer` with a text, a list of texts, or SQuAD's {text, answer_start}."""
    scores = answers.field("score").to_numpy(zero_copy_only=False)
    texts = [_texts(value) for value in gold.to_pylist()]
    return count_texts(texts, answers.field("answer").to_pylist(), scores)


def compare_relevance(gold: pa.Array, scores: np.ndarray) -> Comparison:
    """Compare scores, of which 0.5 is relevant, with grades: 0 is not relevant, more is."""
    grades = pc.fill_null(gold.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    is_null = _is_null(gold)
    numbers = np.where(is_null, -1, np.where(grades > 0, 1, 0))
    both = np.stack((1 - scores, scores), axis=1)
    return count_classes(numbers, (scores >= 0.5).astype(np.int64), both, RELEVANCE)


def holds_spans(type_: pa.DataType) -> bool:
    """Whether values are lists of spans with a label."""
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return bool(pa.types.is_null(type_))
    span = type_.value_type
    if pa.types.is_null(span):
        return True
    if not pa.types.is_struct(span) or not {"start", "end"} <= set(span.names):
        return False
    labels = [name for name in SPAN_LABELS if name in span.names]
    places = [span.field(name).type for name in ("start", "end")]
    return len(labels) == 1 and all(pa.types.is_integer(place) for place in places)


def holds_word_labels(type_: pa.DataType) -> bool:
    """Whether values are lists of labels or of their ids."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return holds_labels(type_.value_type)
    return bool(pa.types.is_null(type_))


def holds_answers(type_: pa.DataType) -> bool:
    """Whether values are texts, lists of them, or structs that hold them as `text`."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return holds_answers(type_.value_type)
    if pa.types.is_struct(type_):
        return "text" in type_.names and holds_answers(type_.field("text").type)
    return not pa.types.is_integer(type_) and holds_labels(type_)


def holds_grades(type_: pa.DataType) -> bool:
    """Whether values are integers, or true and false."""
    kinds = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(is_kind(type_) for is_kind in kinds)


def least_by_row(scores: pa.Array) -> np.ndarray:
    """Return what the least of the scores in each list leaves to one; NaN for an empty list."""
    values = scores.flatten()
    doubts = np.full(len(scores), np.nan)
    np.fmax.at(doubts, _rows_of(scores), 1 - values.to_numpy(zero_copy_only=False))
    return doubts


def _texts(value: object) -> list[str] | None:
    """Return the texts of a gold answer, whatever holds them."""
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    if isinstance(value, dict):
        return _texts(value["text"])
    assert isinstance(value, list)
    texts: list[str] = []
    for each in value:
        texts += _texts(each) or []
    return texts


def _label_names(lists: pa.Array, labels: Sequence[str]) -> list[list[str | None] | None]:
    """Return the names of labels in lists, which may be their ids."""
    if pa.types.is_null(lists.type):
        return [None] * len(lists)
    numbers, names = _numbers(lists.flatten(), labels)
    if pa.types.is_integer(lists.type.value_type):
        names = [
            labels[number] if 0 <= number < len(labels) else name
            for number, name in zip(numbers.tolist(), names, strict=True)
        ]
    items = iter(names)
    lengths = pc.list_value_length(lists).to_pylist()
    return [None if length is None else [next(items) for _ in range(length)] for length in lengths]


def _is_whole(span: Json | None, name: str) -> bool:
    return span is not None and all(span[each] is not None for each in ("start", "end", name))


def _add_rows(comparison: Comparison, unknown: Counter[str], rows: int, unfit: int) -> None:
    """Count rows with gold that the model lacks, and move those that do not fit from `no_gold`."""
    counts = comparison.counts
    counts[key("unknown")] = rows
    counts[key("unfit")] = unfit
    counts[key("no_gold")] -= unfit
    add_unknown(counts, unknown)


def types_of_labels(labels: Sequence[str], *, several: bool) -> GoldTypes:
    """Return what a column of gold holds for a model with these labels, of which each row has one
    or `several`.
    """
    if several:
        return GoldTypes(LABELS, holds_label_lists, describe_ids(labels))
    return GoldTypes(LABEL, holds_labels, describe_ids(labels))


def describe_ids(labels: Sequence[str]) -> str:
    """Say what integers of gold mean."""
    if _are_numerals(labels):
        return "integers of gold are labels"
    return f"integers of gold are ids of labels: 0 is {labels[0]!r}"


def _are_numerals(labels: Sequence[str]) -> bool:
    """Whether all labels are integers, so that integers are labels and no ids of them."""
    return all(label.lstrip("-").isdecimal() for label in labels)


def _numbers(values: pa.Array, labels: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
    """Return the number of each value among `labels`, and its name.

    The number is -1 for a null, and `len(labels)` for a value that is no label.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    names = values.cast(pa.string())
    if pa.types.is_integer(values.type) and not _are_numerals(labels):
        known = pa.array([str(number) for number in range(len(labels))], pa.string())
    else:
        known = pa.array(labels, pa.string())
    places = pc.fill_null(pc.index_in(names, known), len(labels))
    numbers = places.to_numpy(zero_copy_only=False).astype(np.int64)
    numbers[_is_null(names)] = -1
    return numbers, names.to_pylist()


def _memberships(
    lists: pa.Array, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Return which labels each list has, (D, C), and the numbers and names of all its items."""
    numbers, names = _numbers(lists.flatten(), labels)
    is_member = np.zeros((len(lists), len(labels)), dtype=bool)
    is_known = (numbers >= 0) & (numbers < len(labels))
    is_member[_rows_of(lists)[is_known], numbers[is_known]] = True
    return is_member, numbers, names


def _rows_of(lists: pa.Array) -> np.ndarray:
    """Return the row of each item of lists."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths)


def _as_lists(values: pa.Array) -> pa.Array:
    """Return lists, where texts hold them."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return values
    texts = values.cast(pa.string()).to_pylist()
    lists = [None if text is None else list(split_labels(text)) for text in texts]
    return pa.array(lists, pa.list_(pa.string()))


def _is_null(values: pa.Array) -> np.ndarray:
    nulls: np.ndarray = values.is_null().to_numpy(zero_copy_only=False)
    return nulls
