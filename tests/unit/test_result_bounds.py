"""How many results a request may have: what is stated before a model runs holds for what it gives, for every task."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import numpy as np
import pytest
from checkpoints import write_multi_vector, write_task
from predictions import random_texts

from modernbert.text.windows import WindowBudgetError
from pipelines.checkpoints import Checkpoint
from pipelines.inference.predictor import Predictor
from pipelines.options import TASKS
from pipelines.serve.batcher import Batcher
from pipelines.serve.config import served_models
from pipelines.serve.encoding import held_bytes
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import PredictRequest, PredictResponse, ServeError
from pipelines.tasks.base import task_class

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("ModernBertForSequenceClassification", {"num_labels": 5}),
    "zero_shot": (
        "ModernBertForSequenceClassification",
        {"labels": ["contradiction", "entailment"]},
    ),
    "tag": ("ModernBertForTokenClassification", {"labels": ["O", "B-A", "I-A", "B-B"]}),
    "answer": ("ModernBertForQuestionAnswering", {}),
    "fill": ("ModernBertForMaskedLM", {}),
    "embed": ("ModernBertModel", {}),
    "sparse": ("ModernBertForMaskedLM", {}),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}),
}
WINDOWS = {"long_documents": "windows", "max_length": 64, "stride": 4}
CHOICES: dict[str, dict[str, list[Any]]] = {
    "classify": {"top_k": [None, 1, 3, 5]},
    "zero_shot": {
        "labels": [["a"], ["cat", "mat", "b"]],
        "top_k": [None, 2],
        "multi_label": [False, True],
    },
    "tag": {
        "aggregation": ["none", "simple", "first", "average", "max"],
        "ignore_labels": [None, []],
    },
    "answer": {
        "top_k": [None, 1, 2, 40],
        "no_answer": [False, True],
        "align_to_words": [False, True],
    },
    "fill": {"top_k": [1, 3, 300], "targets": [None, ["cat", "mat"]]},
    "sparse": {"top_k": [None, 1, 30], "min_weight": [0.0, 0.5]},
    "multi_vector": {"as_query": [False, True]},
}
"""Values of the options that the number of results depends on, by task."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    written = {
        task: write_task(tmp_path_factory.mktemp(task), head, **config)
        for task, (head, config) in HEADS.items()
    }
    written["multi_vector"] = write_multi_vector(tmp_path_factory.mktemp("multi_vector"))
    return {task: str(folder) for task, folder in written.items()}


def results_in(response: Any) -> int:
    """The results in a response, counted one by one: a value, a dictionary, a vector, a weight."""
    if isinstance(response, np.ndarray):
        return len(response)
    if isinstance(response, tuple):  # of sparse: ids of tokens and their weights
        ids, weights = response
        assert len(ids) == len(weights)
        return len(ids)
    return (
        sum(map(results_in, response)) if isinstance(response, list) else int(response is not None)
    )


def characters_in(response: Any) -> int:
    """The characters of all texts in a response."""
    if isinstance(response, dict):
        return sum(map(characters_in, response.values()))
    if isinstance(response, list | tuple):
        return sum(map(characters_in, response))
    return len(response) if isinstance(response, str) else 0


def documents(task: str, dice: random.Random) -> list[Any]:
    texts = [text or "a" for text in random_texts(dice.randrange(1000), 4, 0, 90)]
    if task == "fill":
        return [text + " [MASK]" * dice.randrange(1, 5) for text in texts]
    return (
        [("the cat?", text + " the cat sat") for text in texts]
        if task in ("answer", "rerank")
        else texts
    )


@pytest.mark.parametrize("name", [name for name, options in TASKS.items() if options.online])
def test_an_answer_has_no_more_results_than_are_stated(folders: dict[str, str], name: str) -> None:
    checkpoint, dice = Checkpoint.open(folders[name]), random.Random(name)
    predictor = None
    for _ in range(12):
        options = {option: dice.choice(values) for option, values in CHOICES.get(name, {}).items()}
        if name not in ("multi_vector", "sparse"):
            options |= dice.choice([{}, WINDOWS])
        task = task_class(name).from_checkpoint(checkpoint, TASKS[name].parse(options))
        predictor = predictor or Predictor(checkpoint, task)
        outputs, failed = predictor.answer(documents(name, dice), task)
        assert not failed
        response = task.response(outputs)
        stated = task.most_results(outputs.windows)
        held = task.count_results(response) if stated is None else stated
        assert results_in(response) <= held, options
        if stated is None:
            assert results_in(response) == held
        repeated = characters_in(response) if name in ("answer", "fill") else 0
        assert repeated <= task.most_characters(checkpoint.tokenizer, outputs.windows), options
        assert held_bytes(task, response) >= characters_in(response) + 8 * results_in(response)


def refusal(task: str, folder: str, inputs: list[Any], **options: Any) -> tuple[str, int]:
    """The error of a request to a model, and the batches that have run for it."""
    (served,) = served_models([{"name": "model", "task": task, "model": folder} | options])
    models = LocalModelClient([served])
    server = models.models["model"]
    batches: list[int] = []
    server.batcher._on_batch = lambda windows, *_: batches.append(windows)
    with pytest.raises(ServeError) as refused:
        asyncio.run(models.predict("model", PredictRequest(inputs)))
    models.close()
    assert refused.value.error_type == "too_large"
    return refused.value.message, len(batches)


def test_texts_in_answers_are_counted_before_a_model_runs(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate has the text of its window, however many masks that has; spans may be long."""
    monkeypatch.setattr("pipelines.serve.encoding.MOST_CHARACTERS", 20_000)
    masks = ["the cat sat on the mat " * 40 + "[MASK]" * 10]
    message, batches = refusal("fill", folders["fill"], masks)
    assert re.search(r"the answer may hold [\d,]+ characters; at most 20,000 are given", message)
    assert message.endswith("send fewer or shorter texts at a time, or a lower top_k")
    assert batches == 0
    context = "the cat sat on the mat " * 60
    message, batches = refusal(
        "answer", folders["answer"], [("where?", context)], top_k=100, max_answer_length=200
    )
    assert "characters; at most 20,000 are given" in message
    assert batches == 0


def test_texts_of_ids_are_counted_before_they_are_made(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serve.encoding.MOST_CHARACTERS", 1000)
    (served,) = served_models([{"name": "model", "task": "fill", "model": folders["fill"]}])
    models = LocalModelClient([served])
    tokenizer = models.models["model"].checkpoint.tokenizer
    longest = int(tokenizer.token_lengths.argmax())
    fitting = 1000 // int(tokenizer.token_lengths[longest])
    made: list[int] = []
    decode_ids = type(tokenizer).decode

    def recorded(self: Any, ids: Any, *arguments: Any) -> str:
        made.append(len(ids))
        return decode_ids(self, ids, *arguments)

    monkeypatch.setattr(type(tokenizer), "decode", recorded)
    (text,) = asyncio.run(models.decode("model", [[longest] * fitting], False))
    assert 0 < len(text) <= 1000
    made.clear()
    with pytest.raises(ServeError, match=r"characters; at most 1,000 .*: send fewer ids at a time"):
        asyncio.run(models.decode("model", [[longest] * (fitting + 1)], False))
    models.close()
    assert made == []


async def ask(models: LocalModelClient, texts: list[str]) -> PredictResponse | ServeError:
    try:
        return await models.predict("sparse", PredictRequest(texts))
    except ServeError as error:
        return error


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (
            "encoding.MOST_RESULTS",
            r"the answer holds [\d,]+ results; at most 600 are given in a request: send fewer",
        ),
        (
            "batcher.MOST_NUMBERS",
            "the model gives more than the 600 numbers that a request may have: send fewer",
        ),
    ],
)
def test_weights_of_sparse_vectors_are_counted_as_they_come(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, bound: str, message: str
) -> None:
    """Each text has some 200 weights here, and as many ids."""
    monkeypatch.setattr(f"pipelines.serve.{bound}", 600)
    (served,) = served_models(
        [{"name": "sparse", "task": "sparse", "model": folders["sparse"], "budget_tokens": 64}]
    )
    models = LocalModelClient([served])

    async def in_turn() -> list[PredictResponse | ServeError]:
        return [await ask(models, texts) for texts in (["the cat"], ["the cat"] * 300, ["the cat"])]

    first, refused, last = asyncio.run(in_turn())
    models.close()
    assert isinstance(first, PredictResponse)
    assert isinstance(last, PredictResponse)
    assert results_in(first.results) == results_in(last.results) > 100
    assert isinstance(refused, ServeError)
    assert refused.error_type == "too_large"
    with pytest.raises(ServeError, match=message):
        raise refused


def test_a_request_that_is_too_large_leaves_the_queue(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other windows are not run."""
    monkeypatch.setattr("pipelines.serve.batcher.MOST_NUMBERS", 600)
    checkpoint = Checkpoint.open(folders["sparse"])
    task = task_class("sparse").from_checkpoint(checkpoint, TASKS["sparse"]())
    ran = []
    batcher = Batcher(
        Predictor(checkpoint, task, budget_tokens=64), lambda windows, *_: ran.append(windows)
    )
    windows = task.encode(checkpoint.tokenizer, ["the cat"] * 300)
    with pytest.raises(WindowBudgetError):
        batcher.submit(task, windows.input_ids, windows.cu_seqlens).result(60)
    batcher.close()
    assert sum(ran) < 40
