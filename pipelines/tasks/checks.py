"""Answers against gold: what is counted of the rows of a shard, and the figures of the sums.

Counts are integers under keys, which shards add up in any order to the same sums: each figure
comes from them alone. A key is a list in JSON; fractions are counted in units of 1e-9.

    rows, no_gold, unknown     rows with gold, without, and with gold that is no label of the
                               model's
    unfit                      rows whose gold does not fit their text
    right                      rows of which all is right
    label, L, right            answers of label L that are gold, too; missed: gold that is not
                               answered; wrong: answers that are not gold. L null: no label of the
                               model's
    pair, G, A                 rows (or spans) where gold is label G and the answer A
    bin, I, answers            answers whose score is in bin I; right, score: of these, sums
    grid, L, K, gold           scores of label L from GRID[K - 1] on, below GRID[K], of gold rows;
                               other: of other rows
    words, right_words         words with a label
    exact, f1                  texts that are equal, and the F1 of their words

Shapes: D rows, C labels.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from modernbert.stored import Json

BINS = 10
"""Of scores between 0 and 1, for calibration."""
GRID = np.arange(1, 100, dtype=np.float64).astype(np.float32) / np.float32(100)
"""The thresholds that are compared for a label."""
DEFAULT = 50
"""The place of 0.5 in GRID, from 1 on: among equally good thresholds, the nearest to it is best."""
_UNIT = 1_000_000_000
_SHOWN_PAIRS = 20
_SHOWN_NAME = 60  # characters of gold that is no label
_ARTICLES = re.compile(r"\b(a|an|the)\b")
Counts = Counter[str]
Key = tuple[str | int | None, ...]
Numbers = Mapping[Key, int]
"""Counts by the parts of their keys."""
Item = tuple[Hashable, str | None]
"""A place and its label; None: a label that the model lacks."""


@dataclass(frozen=True)
class Comparison:
    """Answers of rows against their gold."""

    counts: Counts
    disagreement: np.ndarray
    """(D,): how far each answer is from its gold; NaN where they agree or there is no gold."""


def key(*parts: str | int | None) -> str:
    """Return the key of a count."""
    return json.dumps(parts, ensure_ascii=False)


def count_classes(
    gold: np.ndarray, chosen: np.ndarray, scores: np.ndarray, labels: Sequence[str]
) -> Comparison:
    """Compare a label for each row.

    Args:
        gold: (D,), the number of a label, `len(labels)` for one that the model lacks, -1 for none.
        chosen: (D,), the number of the answered label.
        scores: (D, C); those that are no probabilities are not calibrated.
        labels: their names.
    """
    counts = _count_rows(gold >= 0, gold == len(labels))
    rows = np.flatnonzero(gold >= 0)
    names: list[str | None] = [*labels, None]
    pairs = gold[rows] * len(names) + chosen[rows]
    for pair, number in zip(*np.unique(pairs, return_counts=True), strict=True):
        right, answered = divmod(int(pair), len(names))
        if right == answered:
            counts[key("right")] += int(number)
            counts[key("label", names[right], "right")] += int(number)
            continue
        counts[key("pair", names[right], names[answered])] += int(number)
        counts[key("label", names[right], "missed")] += int(number)
        counts[key("label", names[answered], "wrong")] += int(number)
    confidence = scores[np.arange(len(scores)), chosen].astype(np.float64)
    is_right = gold == chosen
    _calibrate(counts, confidence[rows], is_right[rows])
    # A label that the model lacks has no score.
    scores_of_all = np.column_stack((scores, np.zeros(len(scores))))
    of_gold = scores_of_all[np.arange(len(scores)), gold]
    disagreement = np.where(is_right | (gold < 0), np.nan, confidence - of_gold)
    return Comparison(counts, disagreement)


def count_sets(
    gold: np.ndarray,
    has_gold: np.ndarray,
    has_unknown: np.ndarray,
    chosen: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    with_grid: bool = False,
) -> Comparison:
    """Compare any number of labels for each row.

    Args:
        gold: (D, C) bool.
        has_gold: (D,) bool.
        has_unknown: (D,) bool, whether gold has a label that the model lacks, too.
        chosen: (D, C) bool, the answered labels.
        scores: (D, C) of each label by itself.
        labels: their names.
        with_grid: whether scores are counted for `best_thresholds`.
    """
    counts = _count_rows(has_gold, has_unknown & has_gold)
    differs = gold != chosen
    is_right = ~differs.any(axis=1) & ~has_unknown
    counts[key("right")] = int((is_right & has_gold).sum())
    numbers = {
        "right": (gold & chosen)[has_gold].sum(axis=0),
        "missed": (gold & ~chosen)[has_gold].sum(axis=0),
        "wrong": (chosen & ~gold)[has_gold].sum(axis=0),
    }
    for name, of_labels in numbers.items():
        for label, number in zip(labels, of_labels.tolist(), strict=True):
            counts[key("label", label, name)] = number
    unknown = int((has_unknown & has_gold).sum())
    if unknown:
        counts[key("label", None, "missed")] = unknown
    _calibrate(counts, scores[has_gold].astype(np.float64).ravel(), gold[has_gold].ravel())
    if with_grid:
        _count_grid(counts, scores[has_gold], gold[has_gold], labels)
    # The label that is furthest from its gold; one that the model lacks has no score.
    distance = np.where(differs, np.abs(gold - scores.astype(np.float64)), -1.0)
    furthest = np.maximum(distance.max(axis=1, initial=-1.0), np.where(has_unknown, 0.0, -1.0))
    return Comparison(counts, np.where(has_gold & ~is_right, furthest, np.nan))


def count_items(
    gold: Sequence[Set[Item] | None], answered: Sequence[Mapping[Item, float]]
) -> Comparison:
    """Compare labelled things, such as spans: each is right where its place and its label are.

    Args:
        gold: those of each row; None for a row that has no gold.
        answered: those of each row, with their scores.
    """
    has_gold = np.array([each is not None for each in gold], dtype=bool)
    counts = _count_rows(has_gold, np.zeros(len(gold), dtype=bool))
    disagreement = np.full(len(gold), np.nan)
    scores: list[float] = []
    is_right: list[bool] = []
    for row, (of_gold, of_answer) in enumerate(zip(gold, answered, strict=True)):
        if of_gold is None:
            continue
        scores += of_answer.values()
        is_right += [item in of_gold for item in of_answer]
        wrong = [item for item in of_answer if item not in of_gold]
        label_of_wrong = dict(wrong)
        for item in of_gold:
            name = "right" if item in of_answer else "missed"
            counts[key("label", item[1], name)] += 1
            if name == "missed" and item[0] in label_of_wrong:
                counts[key("pair", item[1], label_of_wrong[item[0]])] += 1
        for _, label in wrong:
            counts[key("label", label, "wrong")] += 1
        different = len(of_gold - of_answer.keys()) + len(wrong)
        counts[key("right")] += not different
        if different:
            disagreement[row] = different
    _calibrate(counts, np.array(scores, dtype=np.float64), np.array(is_right, dtype=bool))
    return Comparison(counts, disagreement)


def count_texts(
    gold: Sequence[Sequence[str] | None], answered: Sequence[str], scores: np.ndarray
) -> Comparison:
    """Compare texts as the script of SQuAD 2.0 does: with the gold text that fits best.

    Args:
        gold: the right texts of each row, none of them where no answer is right; None for a row
            that has no gold.
        answered: the text of each row.
        scores: (D,).
    """
    has_gold = np.array([each is not None for each in gold], dtype=bool)
    counts = _count_rows(has_gold, np.zeros(len(gold), dtype=bool))
    counts[key("exact")] = 0
    disagreement = np.full(len(gold), np.nan)
    is_exact = np.zeros(len(gold), dtype=bool)
    for row, (texts, answer) in enumerate(zip(gold, answered, strict=True)):
        if texts is None:
            continue
        right = [words for words in map(_words, texts) if words] or [[]]
        words = _words(answer)
        is_exact[row] = words in right
        best = max(_overlap(each, words) for each in right)
        counts[key("exact")] += int(is_exact[row])
        counts[key("f1")] += round(best * _UNIT)
        if best < 1:
            disagreement[row] = (1 - best) * scores[row]
    counts[key("right")] = counts[key("exact")]
    _calibrate(counts, scores[has_gold].astype(np.float64), is_exact[has_gold])
    return Comparison(counts, disagreement)


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _overlap(gold: list[str], answer: list[str]) -> float:
    """Return the F1 of the words of an answer."""
    if not gold or not answer:
        return float(gold == answer)
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer))


def add_unknown(counts: Counts, names: Counter[str]) -> None:
    """Count the most frequent name of gold that is no label of the model's: one a shard."""
    for name, number in sorted(names.items(), key=lambda each: (-each[1], each[0]))[:1]:
        counts[key("unknown", name[:_SHOWN_NAME])] = number


def figures(counts: Mapping[str, int]) -> Json:
    """Return the figures of counts that are added up: accuracy, F1, confusion, calibration.

    The F1 of labels, of their mean (macro) and of all answers together (micro) are those of
    scikit-learn, for entities those of seqeval; of a label that is neither gold nor answered, F1
    is 0.
    """
    numbers: dict[Key, int] = {}
    for name, number in counts.items():
        numbers[tuple(json.loads(name))] = number

    def count(*parts: str | int | None) -> int:
        return numbers.get(parts, 0)

    rows = count("rows")
    result: Json = {"rows": rows}
    result |= {name: count(name) for name in ("no_gold", "unknown", "unfit")}
    result["unknown_labels"] = _unknown_labels(numbers)
    if not rows:
        return result
    if ("exact",) not in numbers:
        result["accuracy"] = count("right") / rows
    labels = _label_figures(numbers)
    if labels:
        result["macro_f1"] = sum(each["f1"] for each in labels) / len(labels)
        sums = [sum(each[name] for each in labels) for name in ("right", "missed", "wrong")]
        result["micro_f1"] = f1(*sums)
        result["labels"] = labels
        result["confusion"] = _confusion(numbers)
    if count("words"):
        result["word_accuracy"] = count("right_words") / count("words")
    if ("exact",) in numbers:
        result["exact_match"] = count("exact") / rows
        result["f1"] = count("f1") / _UNIT / rows
    calibration = _calibration(numbers)
    if calibration:
        result["calibration"] = calibration
    return result


def _unknown_labels(numbers: Numbers) -> list[str]:
    """Return the names of gold that are no labels of the model's, the most frequent first."""
    names: list[tuple[int, str]] = []
    for parts, number in numbers.items():
        if parts[0] == "unknown" and len(parts) == 2:
            names.append((-number, str(parts[1])))
    return [name for _, name in sorted(names)[:_SHOWN_PAIRS]]


def _confusion(numbers: Numbers) -> list[list[str | int | None]]:
    """Return gold, answer and count of the pairs that are confused, the most frequent first."""
    pairs = [(parts, number) for parts, number in numbers.items() if parts[0] == "pair"]
    pairs.sort(key=lambda pair: (-pair[1], str(pair[0])))
    return [[*parts[1:], number] for parts, number in pairs[:_SHOWN_PAIRS]]


def f1(right: int, missed: int, wrong: int) -> float:
    """Return the harmonic mean of precision and recall; 0 where there is nothing."""
    return 2 * right / max(2 * right + missed + wrong, 1)


def _label_figures(numbers: Numbers) -> list[Json]:
    """Return the figures of each label, those with the most gold first."""
    by_label: dict[str | int | None, Json] = {}
    for parts, number in numbers.items():
        if parts[0] == "label":
            _, label, name = parts
            of_label = by_label.setdefault(label, {"right": 0, "missed": 0, "wrong": 0})
            of_label[str(name)] += number
    result: list[Json] = []
    for label, of_label in by_label.items():
        right, missed, wrong = of_label["right"], of_label["missed"], of_label["wrong"]
        of_label |= {
            "gold": right + missed,
            "precision": right / max(right + wrong, 1),
            "recall": right / max(right + missed, 1),
            "f1": f1(right, missed, wrong),
        }
        result.append({"label": label, **of_label})
    return sorted(result, key=lambda each: (-each["gold"], str(each["label"])))


def _count_rows(has_gold: np.ndarray, is_unknown: np.ndarray) -> Counts:
    return Counter(
        {
            key("rows"): int(has_gold.sum()),
            key("no_gold"): int((~has_gold).sum()),
            key("unknown"): int(is_unknown.sum()),
        }
    )


def _calibrate(counts: Counts, scores: np.ndarray, is_right: np.ndarray) -> None:
    """Count scores and what of them is right by bin; an edge belongs to the bin below it."""
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], scores)
    units = np.round(scores * _UNIT).astype(np.int64)
    for number in np.unique(bins).tolist():
        is_here = bins == number
        counts[key("bin", number, "answers")] += int(is_here.sum())
        counts[key("bin", number, "right")] += int(is_right[is_here].sum())
        counts[key("bin", number, "score")] += int(units[is_here].sum())


def _calibration(numbers: Numbers) -> Json | None:
    """Return the share of right answers beside the mean score of each bin, and the expected
    calibration error: the mean distance of the two over all answers.
    """
    total = sum(n for parts, n in numbers.items() if parts[0] == "bin" and parts[2] == "answers")
    if not total:
        return None
    bins: list[Json] = []
    error = 0.0
    for number in range(BINS):
        answers = numbers.get(("bin", number, "answers"), 0)
        each: Json = {"low": number / BINS, "high": (number + 1) / BINS, "answers": answers}
        if answers:
            each["score"] = numbers[("bin", number, "score")] / _UNIT / answers
            each["right"] = numbers[("bin", number, "right")] / answers
            error += abs(each["right"] - each["score"]) * answers / total
        bins.append(each)
    return {"expected_error": error, "bins": bins}


def _count_grid(
    counts: Counts, scores: np.ndarray, gold: np.ndarray, labels: Sequence[str]
) -> None:
    """Count scores by the thresholds that they reach."""
    reached = np.searchsorted(GRID, scores, side="right")
    for column, label in enumerate(labels):
        for name, is_gold in (("gold", True), ("other", False)):
            numbers = np.bincount(reached[gold[:, column] == is_gold, column])
            for place in np.flatnonzero(numbers).tolist():
                counts[key("grid", label, place, name)] += int(numbers[place])


def best_thresholds(counts: Mapping[str, int], labels: Sequence[str]) -> dict[str, Json]:
    """Return for each label the threshold of GRID that has the best F1 on gold.

    Of equally good ones it is the nearest to 0.5. Each has `threshold`, its `f1`, `f1_at_half`
    and the number of `gold` rows; a label without any stays at 0.5.
    """
    size = len(GRID) + 1
    scores = {label: np.zeros((2, size), dtype=np.int64) for label in labels}
    for name, number in counts.items():
        parts = json.loads(name)
        if parts[0] == "grid":
            _, label, place, kind = parts
            scores[label][int(kind == "other"), place] += number
    result: dict[str, Json] = {}
    for label, by_place in scores.items():
        gold = int(by_place[0].sum())
        # From a place on: the answers that its threshold gives.
        right, wrong = by_place[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
        f1_of = 2 * right / np.maximum(right + wrong + gold, 1)
        best = np.flatnonzero(f1_of == f1_of.max()) + 1
        place = int(best[np.argmin(np.abs(best - DEFAULT))]) if gold else DEFAULT
        result[label] = {
            "threshold": place / 100,
            "f1": float(f1_of[place - 1]),
            "f1_at_half": float(f1_of[DEFAULT - 1]),
            "gold": gold,
        }
    return result
