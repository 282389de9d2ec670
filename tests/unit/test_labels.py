"""Labels of zero_shot: each is what it was given as, in every face, whatever characters it holds, and is there once."""

from __future__ import annotations

import asyncio
import pickle
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from checkpoints import write_gliclass, write_task
from commands import run_job

from pipelines import pipeline, processor
from pipelines.dataset import stages
from pipelines.input.documents import cut, longest, valid_documents
from pipelines.labels import LabelList, split_labels
from pipelines.options import TASKS
from pipelines.raydata.actor import Predict
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import PredictRequest, ServeError

ODD = [
    *",\n\r\t\x00\x0b\x0c\x1c\x85\u2028\u2029\ufeff\u00a0[]{}\"'\\ é中👍\U0010ffff",
    "\r\n",
    "a",
    "b",
    '["a"]',
]
"""Parts of labels that have ended, joined or split one somewhere."""


def random_labels(dice: random.Random) -> list[str]:
    """One to five labels that differ, of odd parts and of any characters that are no surrogates."""
    labels: dict[str, None] = {}
    for _ in range(dice.randint(1, 5)):
        parts = [
            dice.choice(ODD)
            if dice.random() < 0.8
            else chr(dice.choice([dice.randrange(0xD800), dice.randrange(0xE000, 0x110000)]))
            for _ in range(dice.randint(1, 4))
        ]
        labels["".join(parts)] = None
    return list(labels)


@pytest.fixture(scope="module", params=["entailment", "GLiClass"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "GLiClass":
        return str(write_gliclass(folder))
    head = "ModernBertForSequenceClassification"
    labels = ["contradiction", "neutral", "entailment"]
    return str(write_task(folder, head, labels=labels))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Texts, each with a list of labels."""
    dice = random.Random(5)
    labels = [random_labels(dice) for _ in range(60)]
    return pa.table({"id": range(60), "text": ["the cat sat"] * 60, "own": labels})


def test_a_text_of_labels_is_split_by_nothing_but_its_own_rule() -> None:
    dice = random.Random(3)
    for _ in range(2000):
        labels = random_labels(dice)
        text = LabelList.of(labels)
        assert split_labels(text) == split_labels(pickle.loads(pickle.dumps(text))) == labels
        clean = [label.strip() for label in labels]
        lines = [label for label in clean if label and not set(label) & {"\n", "\r"}]
        assert split_labels("".join(f"{label}\n" for label in lines)) == lines
        assert split_labels("".join(f"{label}\r\n" for label in lines)) == lines
        assert split_labels(str(text)) == [
            part.strip() for part in str(text).split(",") if part.strip()
        ]


@pytest.mark.parametrize(
    "values",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
def test_a_column_of_lists(table: pa.Table, lists: Any, values: pa.DataType) -> None:
    own = table["own"].to_pylist()
    rows = [None, [], ["a", None], *own]
    encoded = rows
    if pa.types.is_binary(values):
        encoded = [
            None if row is None else [None if each is None else each.encode() for each in row]
            for row in rows
        ]
    array = pa.array(encoded, lists(values))
    column = pa.chunked_array([array.slice(0, 9), array.slice(9)])
    texts = pa.chunked_array([pa.array(["a"] * len(rows))])
    documents, kept, rejects = valid_documents([texts, column], ("text", "labels"))
    assert rejects == [(0, "labels is null"), (1, "labels is empty"), (2, "labels holds a null")]
    assert kept == list(range(3, len(rows)))
    assert [split_labels(document[1]) for document in documents] == own


def test_a_list_that_is_not_utf_8_is_a_reject() -> None:
    column = pa.chunked_array([pa.array([[b"a", b"\xff"], [b"a"]], pa.list_(pa.binary()))])
    texts = pa.chunked_array([pa.array(["a", "b"])])
    documents, kept, rejects = valid_documents([texts, column], ("text", "labels"))
    assert (documents, kept) == ([("b", '["a"]')], [1])
    assert rejects == [(0, "labels holds a text that is not valid UTF-8")]


def test_lists_are_for_inputs_that_take_them() -> None:
    column = pa.chunked_array([pa.array([["a"]])])
    with pytest.raises(
        ValueError, match=r"^text is a column of list<item: string>; it must hold texts$"
    ):
        valid_documents([column], ("text",))


def test_labels_are_never_cut() -> None:
    texts, own = (
        pa.chunked_array([pa.array(["the cat"])]),
        pa.chunked_array([pa.array(["politics, sports"])]),
    )
    ((document,), _, _) = valid_documents([texts, own], ("text", "labels"))
    assert split_labels(cut(document, 3)[1]) == ["politics", "sports"]
    assert cut(document, 3)[0] == "the"
    assert longest(document) == 7
    assert cut(("the cat", "sat on"), 3) == ("the", "sat")


def test_memory(model: str, table: pa.Table) -> None:
    pipe = pipeline("zero-shot-classification", model)
    own = table["own"].to_pylist()
    for labels, answer in zip(own, pipe([("the cat sat", labels) for labels in own]), strict=True):
        assert sorted(answer["labels"]) == sorted(labels)
        assert answer == pipe("the cat sat", labels)


def test_a_job_and_a_step_of_a_dataset(
    model: str, table: pa.Table, tmp_path: Path, in_process: None
) -> None:
    want = pipeline("zero-shot-classification", model)
    pq.write_table(table, tmp_path / "in.parquet")
    options = {
        "input": tmp_path / "in.parquet",
        "model": model,
        "output": tmp_path / "out",
        "labels_column": "own",
    }
    assert run_job("zero_shot", **options) == 0
    rows = ds.dataset(tmp_path / "out").to_table().sort_by("id").to_pylist()
    assert [sorted(row["labels"]) for row in rows] == [
        sorted(labels) for labels in table["own"].to_pylist()
    ]
    assert [row["label"] for row in rows] == [row["labels"][0] for row in rows]
    assert [row["labels"] for row in rows] == [
        want("the cat sat", row["own"])["labels"] for row in rows
    ]
    step = processor("zero_shot", model, "text", "own").step
    answered = stages.answer(step, Predict(step.run)(stages.tokenise(step, table)))
    assert answered["error"].null_count == len(table)
    assert answered["labels"].to_pylist() == [row["labels"] for row in rows]


def test_online(model: str, table: pa.Table) -> None:
    (served,) = served_models([{"name": "nli", "task": "zero_shot", "model": model}])
    models = LocalModelClient([served])

    async def ask() -> list[Any]:
        requests = [
            PredictRequest(["the cat sat"], {"labels": labels})
            for labels in table["own"].to_pylist()
        ]
        return [await models.predict("nli", request) for request in requests]

    answers = asyncio.run(ask())
    models.close()
    got = [sorted(each["label"] for each in answer.results[0]) for answer in answers]
    assert got == [sorted(labels) for labels in table["own"].to_pylist()]


TWICE = r"must name each label once; 'cat' is there 2 times"


def test_a_label_that_is_there_twice_is_refused_wherever_labels_come_from(
    model: str, tmp_path: Path, in_process: None
) -> None:
    """transformers scores it as two labels, which share a probability."""
    twice = ["cat", "mat", "cat"]
    pipe = pipeline("zero-shot-classification", model)
    for labels in (twice, "cat, mat,cat"):
        with pytest.raises(ValueError, match=TWICE):
            pipe("a", labels)
        with pytest.raises(ValueError, match=f"input 0: its labels {TWICE}"):
            pipe([("a", labels)])
    with pytest.raises(ValueError, match=TWICE):
        processor("zero_shot", model, labels=twice)
    file = tmp_path / "labels"
    file.write_text("cat\nmat\n cat\n")
    options = {"input": tmp_path / "in.parquet", "model": model, "output": tmp_path / "out"}
    pq.write_table(
        pa.table({"text": ["a", "b", "c"], "own": [twice, ["cat"], ["", "b"]]}), options["input"]
    )
    with pytest.raises(ValueError, match=f"labels_file '.*labels' {TWICE}"):
        run_job("zero_shot", labels_file=str(file), **options)
    with pytest.raises(ValueError, match=TWICE):
        run_job("zero_shot", labels=twice, **options)
    assert run_job("zero_shot", labels_column="own", **options) == 0
    rejected = pq.read_table(tmp_path / "out" / "_rejected").to_pylist()
    reasons = [row["_reason"] for row in rejected]
    assert reasons == [
        "its labels must name each label once; 'cat' is there 2 times",
        "its labels must not hold an empty label",
    ]
    (served,) = served_models([{"name": "nli", "task": "zero_shot", "model": model}])
    models = LocalModelClient([served])
    with pytest.raises(ServeError, match=TWICE) as refused:
        asyncio.run(models.predict("nli", PredictRequest(["a"], {"labels": twice})))
    models.close()
    assert refused.value.error_type == "invalid"


def test_labels_in_a_file(model: str, tmp_path: Path) -> None:
    """Lines end as in files of any system; a byte order mark is no character of the first label."""
    for content in (
        b"\xef\xbb\xbfcat\nmat, red\n",
        b"cat\r\nmat, red\r\n\r\n",
        b"cat\rmat, red",
        b"cat\n mat, red ",
    ):
        (tmp_path / "labels").write_bytes(content)
        task = pipeline(
            "zero-shot-classification", model, labels_file=str(tmp_path / "labels")
        ).task({})
        assert task.labels == ("cat", "mat, red"), content
    (tmp_path / "labels").write_bytes("New\u2028York\x0bCity\n".encode())
    assert pipeline("zero-shot-classification", model, labels_file=str(tmp_path / "labels")).task(
        {}
    ).labels == ("New\u2028York\x0bCity",)


def test_a_file_of_labels_is_read_once(model: str, tmp_path: Path) -> None:
    """In memory and online; a call may name another file, which comes before the labels of the pipeline."""
    file, other = tmp_path / "labels", tmp_path / "other"
    file.write_text("cat\nmat\n")
    call = pipeline("zero-shot-classification", model, labels_file=str(file))
    entry = {"name": "nli", "task": "zero_shot", "model": model, "labels_file": str(file)}
    models = LocalModelClient(served_models([entry]))
    other.write_text("red\ngreen\n")
    for number, content in enumerate((b"dog\nfrog\n", b"dog\ndog\n", b"", None)):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        assert sorted(call("a", multi_label=bool(content))["labels"]) == ["cat", "mat"], content
        assert sorted(call("a", labels_file=str(other))["labels"]) == ["green", "red"]
        assert sorted(call("a", ["x", "y"])["labels"]) == ["x", "y"]
        # A task is made anew for options that no call had before.
        options = {"top_k": 1 + bool(content), "threshold": number / 1000}
        answer = asyncio.run(models.predict("nli", PredictRequest(["a"], options)))
        assert {each["label"] for each in answer.results[0]} <= {"cat", "mat"}, content
    models.close()


def test_a_text_of_labels_in_an_option_is_comma_separated() -> None:
    """As in transformers, and on the command line: a line end is a character as any other."""
    assert TASKS["zero_shot"].parse({"labels": "New\nYork, a\u2028b ,"}).labels == [
        "New\nYork",
        "a\u2028b",
    ]
