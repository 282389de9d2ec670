"""Answers against gold: the figures of scikit-learn and seqeval, whatever shards the rows are in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities as seqeval_entities
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from pipelines.tasks.checks import GRID, best_thresholds, figures
from pipelines.tasks.gold import (
    compare_answers,
    compare_label,
    compare_labels,
    compare_relevance,
    compare_spans,
    compare_words,
    holds_answers,
)

SEEDS = range(6)


def sums(parts):
    """The counts of shards, added up in another order."""
    total = Counter()
    for part in reversed(parts):
        for name, number in part.items():
            total[name] += number
    return total


def scores_of(dice, rows, labels):
    logits = dice.normal(0, 2, (rows, labels)).astype(np.float32)
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True)


def in_shards(dice, rows):
    """Cuts of rows into shards, some without any."""
    return np.split(np.arange(rows), np.sort(dice.integers(0, rows + 1, 4)))


def ece(is_right, scores):
    """The expected calibration error from scikit-learn's curve."""
    right, mean = calibration_curve(is_right, scores, n_bins=10)
    bins = np.searchsorted(np.linspace(0, 1, 11)[1:-1], scores)
    sizes = np.bincount(bins, minlength=10)
    sizes = sizes[sizes > 0]
    return float((sizes * np.abs(right - mean)).sum() / len(scores))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_label_for_each_row(seed):
    dice = np.random.default_rng(seed)
    labels = [f"label {i}" for i in range(dice.integers(2, 8))]
    rows = int(dice.integers(1, 300))
    scores = scores_of(dice, rows, len(labels))
    answers = [labels[i] for i in scores.argmax(axis=1)]
    pool = [*labels, "unheard of"] if seed % 2 else labels
    gold = [answer if dice.random() < 0.5 else str(dice.choice(pool)) for answer in answers]
    values = [None if dice.random() < 0.1 else label for label in gold]
    if not any(values):
        values[0] = labels[0]
    type_ = pa.string()
    if seed % 3 == 0:  # as ids, of which one is out of range
        ids = [*labels, "unheard of"]
        values = [None if value is None else ids.index(value) for value in values]
        type_ = pa.int16()
    elif seed % 3 == 1:
        type_ = pa.dictionary(pa.int32(), pa.string())
    parts, furthest = [], []
    for places in in_shards(dice, rows):
        answered = pa.StructArray.from_arrays(
            [pa.array([answers[i] for i in places], pa.string())], names=["label"]
        )
        of_shard = pa.array([values[i] for i in places], type_)
        compared = compare_label(of_shard, answered, scores[places], labels)
        parts.append(compared.counts)
        furthest.append(compared.disagreement)
    result = figures(sums(parts))

    kept = [i for i, value in enumerate(values) if value is not None]
    gold_kept = [gold[i] for i in kept]
    answers_kept = [answers[i] for i in kept]
    assert (result["rows"], result["no_gold"]) == (len(kept), rows - len(kept))
    assert result["unknown"] == gold_kept.count("unheard of")
    assert result["accuracy"] == pytest.approx(accuracy_score(gold_kept, answers_kept), abs=1e-12)
    for average in ("macro", "micro"):
        want = f1_score(gold_kept, answers_kept, average=average, zero_division=0)
        assert result[f"{average}_f1"] == pytest.approx(want, abs=1e-12)
    names = sorted({*gold_kept, *answers_kept})
    want = precision_recall_fscore_support(gold_kept, answers_kept, labels=names, zero_division=0)
    ours = {each["label"] or "unheard of": each for each in result["labels"]}
    for name, precision, recall, of_f1, support in zip(names, *want, strict=True):
        each = ours[name]
        assert [each[key] for key in ("precision", "recall", "f1", "gold")] == pytest.approx(
            [precision, recall, of_f1, support], abs=1e-12
        )
    wrong = Counter(
        (right, answer)
        for right, answer in zip(gold_kept, answers_kept, strict=True)
        if right != answer
    )
    shown = {(right or "unheard of", answer): n for right, answer, n in result["confusion"]}
    assert shown.items() <= wrong.items()
    assert sorted(shown.values()) == sorted(wrong.values())[-20:]

    is_right = np.array(gold_kept) == np.array(answers_kept)
    best = scores.max(axis=1).astype(np.float64)[kept]
    assert result["calibration"]["expected_error"] == pytest.approx(ece(is_right, best), abs=1e-8)
    disagreement = np.concatenate(furthest)
    assert list(np.flatnonzero(~np.isnan(disagreement))) == [
        i for i in kept if gold[i] != answers[i]
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_for_each_row(seed):
    dice = np.random.default_rng(seed)
    labels = [f"label {i}" for i in range(dice.integers(1, 8))]
    rows = int(dice.integers(2, 200))
    scores = dice.random((rows, len(labels))).astype(np.float32)
    chosen = scores >= np.float32(0.5)
    gold = (scores + dice.normal(0, 0.3, scores.shape)) >= 0.6
    has_gold = dice.random(rows) < 0.9
    has_gold[0] = True

    def listed(row):
        return [label for label, is_here in zip(labels, row, strict=True) if is_here]

    parts = []
    for places in in_shards(dice, rows):
        lists = pa.array([listed(chosen[i]) for i in places], pa.list_(pa.string()))
        answered = pa.StructArray.from_arrays([lists], names=["labels"])
        values = [listed(gold[i]) if has_gold[i] else None for i in places]
        of_shard = pa.array(values, pa.list_(pa.string()))
        if seed % 3 == 0:
            ids = [
                None if each is None else [labels.index(name) for name in each] for each in values
            ]
            of_shard = pa.array(ids, pa.large_list(pa.uint8()))
        elif seed % 3 == 1:
            of_shard = pa.array(
                [None if each is None else ", ".join(each) for each in values], pa.string()
            )
        compared = compare_labels(of_shard, answered, scores[places], labels, with_grid=True)
        parts.append(compared.counts)
    counts = sums(parts)
    result = figures(counts)
    assert result["rows"] == has_gold.sum()
    truth, answers = gold[has_gold], chosen[has_gold]
    assert result["accuracy"] == pytest.approx((truth == answers).all(axis=1).mean())
    for average in ("macro", "micro"):
        want = (
            f1_score(truth, answers, average=average, zero_division=0)
            if len(labels) > 1
            else (f1_score(truth[:, 0], answers[:, 0], zero_division=0))
        )
        assert result[f"{average}_f1"] == pytest.approx(want, abs=1e-12)
    flat = scores[has_gold].astype(np.float64).ravel()
    assert result["calibration"]["expected_error"] == pytest.approx(
        ece(truth.ravel(), flat), abs=1e-8
    )

    best = best_thresholds(counts, labels)
    for column, label in enumerate(labels):
        of_gold = truth[:, column]
        reached = scores[has_gold, column, None] >= GRID
        f1_of = f1_score(
            np.repeat(of_gold[:, None], len(GRID), axis=1), reached, average=None, zero_division=0
        )
        found = best[label]
        assert found["gold"] == of_gold.sum()
        assert found["f1_at_half"] == pytest.approx(f1_of[49], abs=1e-12)
        if of_gold.any():
            assert found["f1"] == pytest.approx(max(f1_of), abs=1e-12)
            place = round(found["threshold"] * 100) - 1
            assert f1_of[place] == pytest.approx(max(f1_of), abs=1e-12)
        else:
            assert found["threshold"] == 0.5


KINDS = ("PER", "LOC", "new-ORG")


def random_tags(dice, rows, extra=()):
    """Lists of BIO tags, with I- wherever it falls."""
    tags = ["O", *(f"{prefix}-{kind}" for kind in (*KINDS, *extra) for prefix in "BI")]
    weights = np.array([len(tags)] + [1.0] * (len(tags) - 1))
    return [
        dice.choice(tags, size=dice.integers(1, 12), p=weights / weights.sum()).tolist()
        for _ in range(rows)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_of_words(seed):
    dice = np.random.default_rng(seed)
    labels = ["O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI")]
    answers = random_tags(dice, 60)
    other = random_tags(dice, 60)
    gold = []
    for mine, theirs in zip(answers, other, strict=True):
        mixed = [
            theirs[i] if i < len(theirs) and dice.random() < 0.3 else tag
            for i, tag in enumerate(mine)
        ]
        gold.append(mixed)
    values = [None if i == 3 else [*tags, "O"] if i == 4 else tags for i, tags in enumerate(gold)]
    column = pa.array(values, pa.list_(pa.string()))
    if seed % 2:  # ids, as data sets of the hub have them
        ids = [None if tags is None else [labels.index(tag) for tag in tags] for tags in values]
        column = pa.array(ids, pa.list_(pa.int64()))
    scores = [dice.random(len(tags)) for tags in answers]
    parts = []
    for places in in_shards(dice, 60):
        answered = pa.StructArray.from_arrays(
            [
                pa.array([answers[i] for i in places], pa.list_(pa.string())),
                pa.array([scores[i] for i in places], pa.list_(pa.float32())),
            ],
            names=["labels", "scores"],
        )
        parts.append(compare_words(column.take(pa.array(places)), answered, labels).counts)
    result = figures(sums(parts))
    kept = [i for i in range(60) if i not in (3, 4)]
    gold_kept, answers_kept = [gold[i] for i in kept], [answers[i] for i in kept]
    assert [result[name] for name in ("rows", "no_gold", "unfit", "unknown")] == [58, 1, 1, 0]
    assert result["word_accuracy"] == pytest.approx(seqeval.accuracy_score(gold_kept, answers_kept))
    for average in ("macro", "micro"):
        want = seqeval.f1_score(gold_kept, answers_kept, average=average, zero_division=0)
        assert result[f"{average}_f1"] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_spans(seed):
    """Entities of words a character wide have the F1 of seqeval; what does not fit is counted apart."""
    dice = np.random.default_rng(seed)
    gold, answers = random_tags(dice, 60), random_tags(dice, 60)
    answers = [
        mine[: len(theirs)] + ["O"] * (len(theirs) - len(mine))
        for mine, theirs in zip(answers, gold, strict=True)
    ]

    def spans(tags, name, **more):
        found = seqeval_entities(tags)
        return [{name: kind, "start": first, "end": last + 1} | more for kind, first, last in found]

    name = ("label", "entity_group", "entity")[seed % 3]
    values = [spans(tags, name) for tags in gold]
    values[0] = None
    values[1] = [{name: "PER", "start": None, "end": 2}]
    values[2] = [{name: "O", "start": 0, "end": 1}, *values[2]]  # an ignored label
    entities = pa.array([spans(tags, "label", score=float(dice.random())) for tags in answers])
    result = figures(compare_spans(pa.array(values), entities, [*KINDS, "O"], ["O"]).counts)
    assert [result[name] for name in ("rows", "no_gold", "unfit", "unknown")] == [58, 1, 1, 0]
    for average in ("macro", "micro"):
        want = seqeval.f1_score(gold[2:], answers[2:], average=average, zero_division=0)
        assert result[f"{average}_f1"] == pytest.approx(want, abs=1e-12)
    equal = [
        seqeval_entities(a) == seqeval_entities(b)
        for a, b in zip(gold[2:], answers[2:], strict=True)
    ]
    assert result["accuracy"] == pytest.approx(np.mean(equal))


ANSWERS = [  # gold texts, answer, exact match and F1 by the script of SQuAD 2.0
    (["the cat"], "Cat.", 1, 1.0),
    (["cat sat", "cat"], "a cat", 1, 1.0),
    (["on the mat"], "the old mat", 0, 0.5),
    (["U.S."], "us", 1, 1.0),
    (["one two three"], "two two three", 0, 2 / 3),
    (["mat"], "", 0, 0.0),
    ([], "", 1, 1.0),
    ([], "mat", 0, 0.0),
    (["the"], "", 1, 1.0),
    (["the", "mat"], "", 0, 0.0),
    (["sat—on"], "sat on", 0, 0.0),
]


@pytest.mark.parametrize("form", ["squad", "squad v1 json", "list", "text"])
def test_answers(form):
    rows = [row for row in ANSWERS if form != "text" or len(row[0]) == 1]
    texts = [gold for gold, *_ in rows]
    column = {
        "squad": lambda: pa.array(
            [{"text": each, "answer_start": [0] * len(each)} for each in texts] + [None]
        ),
        "squad v1 json": lambda: pa.array(
            [[{"text": text, "answer_start": 0} for text in each] for each in texts] + [None]
        ),
        "list": lambda: pa.array([*texts, None]),
        "text": lambda: pa.array([*(each[0] for each in texts), None]),
    }[form]()
    assert holds_answers(column.type)
    answered = pa.StructArray.from_arrays(
        [
            pa.array([answer for _, answer, *_ in rows] + ["x"]),
            pa.array(np.linspace(0, 1, len(rows) + 1), pa.float32()),
        ],
        names=["answer", "score"],
    )
    result = figures(compare_answers(column, answered).counts)
    assert (result["rows"], result["no_gold"]) == (len(rows), 1)
    assert result["exact_match"] == pytest.approx(np.mean([exact for *_, exact, _ in rows]))
    assert result["f1"] == pytest.approx(np.mean([of_f1 for *_, of_f1 in rows]), abs=1e-8)


@pytest.mark.parametrize("type_", [pa.bool_(), pa.int8(), pa.uint32()])
def test_relevance(type_):
    dice = np.random.default_rng(0)
    scores = dice.random(200).astype(np.float32)
    grades = dice.integers(0, 2 if type_ == pa.bool_() else 4, 200)
    gold = pa.array([None if i == 5 else int(g) for i, g in enumerate(grades)], pa.int64()).cast(
        type_
    )
    result = figures(compare_relevance(gold, scores).counts)
    keep = np.arange(200) != 5
    truth, answers = grades[keep] > 0, scores[keep] >= 0.5
    assert (result["rows"], result["no_gold"]) == (199, 1)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, answers))
    assert result["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))
