"""Token logits to entities: label schemes, the places of entities in their text, overlapping windows."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from checkpoints import write_tokenizer
from predictions import described, random_texts, said

from modernbert.text.tokenizer import Tokenizer
from pipelines.options import TagOptions
from pipelines.tasks.tag import ENTITY, Tag

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


def task(labels, **options):
    return Tag.from_checkpoint(
        described(id2label=dict(enumerate(labels))), TagOptions.parse(options)
    )


def label_at(characters, count):
    """Answers by the label that stands, as a digit, at the first character of each token; probability about 0.9."""

    def answer(windows):
        logits = np.zeros((len(windows.input_ids), count))
        for t, (start, stop) in enumerate(windows.offsets.tolist()):
            if stop > start:
                logits[t, int(characters[start])] = np.log(9 * (count - 1))
        return logits

    return answer


def found(tokenizer, labels, text, characters, **options):
    outputs = task(labels, **options)
    rows = outputs.decode(said(outputs, tokenizer, [text], label_at(characters, len(labels))))
    return [(entity["label"], entity["text"]) for entity in rows.to_pylist()[0]["entities"]]


SCHEMES = {
    "BIO": (BIO, "22201344012", [("PER", "abc"), ("PER", "e"), ("LOC", "fgh"), ("PER", "jk")]),
    "a new type goes on": (BIO, "12244412000", [("PER", "abc"), ("LOC", "def"), ("PER", "gh")]),
    "two begin": (BIO, "11211100000", [("PER", "a"), ("PER", "bc"), ("PER", "d"), ("PER", "e"), ("PER", "f")]),
    "BIOES": (["O", "B-X", "I-X", "E-X", "S-X"], "12313440221", [
        ("X", "abc"), ("X", "de"), ("X", "f"), ("X", "g"), ("X", "ij"), ("X", "k")]),
    "BILOU": (["O", "B-X", "I-X", "L-X", "U-X"], "12304410013", [("X", "abc"), ("X", "e"), ("X", "f"), ("X", "g"),
        ("X", "jk")]),
    "plain": (["O", "X", "Y"], "11022210000", [("X", "ab"), ("Y", "def"), ("X", "g")]),
    "plain with hyphens": (["O", "e-mail", "S-Bahn"], "11022110000", [
        ("e-mail", "ab"), ("S-Bahn", "de"), ("e-mail", "fg")]),
    "hyphens after a prefix": (["O", "B-e-mail", "I-e-mail"], "12200000000", [("e-mail", "abc")]),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "characters", "want"), SCHEMES.values(), ids=SCHEMES)
def test_label_schemes(tokenizer, labels, characters, want):
    assert found(tokenizer, labels, "abcdefghijk", characters) == want


def test_ignored_labels_are_named_as_entities_are(tokenizer):
    where = ("abcdefghijk", "12034400000")
    assert found(tokenizer, BIO, *where) == [("PER", "ab"), ("LOC", "def")]
    assert found(tokenizer, BIO, *where, ignore_labels=["O", "LOC"]) == [("PER", "ab")]
    assert [label for label, _ in found(tokenizer, BIO, *where, ignore_labels=[])] == [
        "PER",
        "O",
        "LOC",
        "O",
    ]
    tokens = found(tokenizer, BIO, *where, aggregation="none", ignore_labels=["O", "B-LOC"])
    assert tokens == [("B-PER", "a"), ("I-PER", "b"), ("I-LOC", "e"), ("I-LOC", "f")]


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [
        ("simple", [("X", "a", 0.6)]),
        ("first", [("X", "ab", 0.6)]),
        ("average", []),
        ("max", [("X", "ab", 0.6)]),
    ],
)
def test_a_word_has_one_label(tokenizer, aggregation, want):
    """The mean of both tokens' probabilities is highest for O, of the surest token for X."""
    outputs = task(["O", "X", "Y"], aggregation=aggregation)
    probabilities = {"a": [0.3, 0.6, 0.1], "b": [0.55, 0.1, 0.35]}
    answer = said(
        outputs,
        tokenizer,
        ["ab"],
        lambda _: np.log([[1, 1, 1], *probabilities.values(), [1, 1, 1]]),
    )
    got = outputs.decode(answer).to_pylist()[0]["entities"]
    assert [
        (entity["label"], entity["text"], pytest.approx(entity["score"])) for entity in got
    ] == want


ODD = [
    "👩‍👩‍👧‍👦 the e\u0301 cat\r\n\r\nsat 🇫🇷",
    "\u202eאבג the\u200d",
    "",
    *random_texts(1, 8, 20, 150),
]


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("max_length", [32, None])
def test_the_text_of_an_entity_is_where_it_says(tokenizer, aggregation, max_length):
    outputs = task(BIO, aggregation=aggregation, max_length=max_length)
    dice = np.random.default_rng(0)
    answer = said(
        outputs, tokenizer, ODD, lambda windows: dice.normal(size=(len(windows.input_ids), 5))
    )
    rows = outputs.decode(answer)
    assert rows.type == pa.struct([("entities", pa.list_(ENTITY))])
    several = np.bincount(answer.windows.document) > 1
    for text, row, result, cut in zip(
        ODD, rows.to_pylist(), outputs.results(answer), several, strict=True
    ):
        places = [(entity["start"], entity["end"]) for entity in row["entities"]]
        assert [entity["text"] for entity in row["entities"]] == [
            text[start:end] for start, end in places
        ]
        assert all(0 <= start < end <= len(text) for start, end in places)
        assert places == sorted(places)
        assert [(entity["start"], entity["end"]) for entity in result] == places
        assert not cut or all(end <= start for (_, end), (start, _) in pairwise(places))


@pytest.mark.parametrize("stride", [4, 9])
def test_entities_of_overlapping_windows_are_those_of_the_whole_text(tokenizer, stride):
    """They are no longer than what windows share, so each is whole in one window."""
    dice = random.Random(0)
    text = "".join(dice.choices("bdfgijklnp", k=300))  # a token each
    characters = "".join(
        dice.choice(["0", "00", "12", "1", "344", "3", "1220"]) for _ in range(300)
    )[:300]
    want = found(tokenizer, BIO, text, characters)
    assert len(want) > 50
    assert found(tokenizer, BIO, text, characters, max_length=24, stride=stride) == want


def test_of_two_windows_the_longer_then_the_surer_entity_is_kept(tokenizer):
    outputs = task(["O", "X"], max_length=8, stride=3)
    text = "bdfgijkln"  # windows bdfgij and gijkln

    def answer(first, second):
        def logits(windows):
            strength = np.zeros(len(windows.input_ids))
            for w, marks in enumerate((first, second)):
                strength[windows.cu_seqlens[w] + 1 : windows.cu_seqlens[w] + 1 + len(marks)] = marks
            return np.stack((-strength, strength), axis=1) - [[0, 0.01]]

        return said(outputs, tokenizer, [text], logits)

    def entities(made_of):
        return [
            (e["text"], round(e["score"], 2))
            for e in outputs.decode(made_of).to_pylist()[0]["entities"]
        ]

    assert [text for text, _ in entities(answer([0, 0, 0, 0, 2, 2], [0, 1, 1, 1, 0, 0]))] == ["ijk"]
    assert entities(answer([0, 0, 0, 0, 2, 2], [0, 1, 1, 0, 0, 0])) == [("ij", 0.98)]
    assert entities(answer([0, 0, 0, 0, 1, 1], [0, 2, 2, 0, 0, 0])) == [("ij", 0.98)]
    assert [text for text, _ in entities(answer([0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 2]))] == [
        "fg",
        "n",
    ]
