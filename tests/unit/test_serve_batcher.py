"""The batcher and the model before it: what shares a batch, who waits for whom, and what goes wrong."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from checkpoints import write_task
from predictions import random_texts

from pipelines import pipeline
from pipelines.checkpoints import Checkpoint
from pipelines.inference.predictor import Predictor
from pipelines.options import TASKS
from pipelines.serve import batcher
from pipelines.serve.batcher import Batcher
from pipelines.serve.config import served_models
from pipelines.serve.fair import OverloadedError
from pipelines.serve.local import LocalModelClient
from pipelines.serve.protocol import PredictRequest, ServeError
from pipelines.tasks.base import task_class

BUDGET = 512
BAD = 299  # a token whose embedding is no number
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def make_task(name, checkpoint, **options):
    return task_class(name).from_checkpoint(checkpoint, TASKS[name].parse(options))


@pytest.fixture
def predictor(checkpoint):
    model = Checkpoint.open(checkpoint)
    return Predictor(model, make_task("classify", model), budget_tokens=BUDGET)


class Recorded:
    """A batcher whose batches are written down, and can be held back while the queue fills."""

    def __init__(self, predictor):
        self.predict, self.batches, self.allowed = predictor.predict, [], threading.Event()
        self.allowed.set()
        self.entered = threading.Event()
        predictor.predict = self.run
        self.task = predictor.task
        self.batcher = Batcher(predictor)

    def run(self, ids, cu_seqlens, **named):
        self.batches.append(np.diff(cu_seqlens).tolist())
        self.entered.set()
        assert self.allowed.wait(60)
        return self.predict(ids, cu_seqlens, **named)

    @contextmanager
    def busy(self):
        """Within the block one batch, of one window of three tokens, is running."""
        self.allowed.clear()
        self.entered.clear()
        first = self.submit([3])
        assert self.entered.wait(60)
        yield
        self.batches.clear()
        self.allowed.set()
        first.result(60)

    def submit(self, lengths, **named):
        ids = np.random.default_rng(sum(lengths)).integers(5, 290, sum(lengths)).astype(np.int32)
        return self.batcher.submit(
            named.pop("task", self.task), ids, np.cumsum([0, *lengths]), **named
        )


@pytest.fixture
def recorded(predictor):
    predictions = Recorded(predictor)
    yield predictions
    predictions.allowed.set()
    predictions.batcher.close()


def test_an_idle_model_runs_at_once_and_a_busy_one_takes_what_is_there(recorded):
    with recorded.busy():
        waiting = [recorded.submit([20]) for _ in range(10)]
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches == [[20] * 10]


@pytest.mark.parametrize(
    "again", [[20] * 6, [100] * 4 + [BUDGET - 400]], ids=["as many", "a full batch"]
)
def test_after_a_batch_those_that_ask_again_share_the_next_one(recorded, monkeypatch, again):
    monkeypatch.setattr(batcher, "LINGER", 1e6)
    with recorded.busy():
        answered = [recorded.submit([20]) for _ in range(6)]
    assert all(not predictions.result(60).failed for predictions in answered)
    waiting = [recorded.submit([length]) for length in again[:-1]]
    assert recorded.batches == [[20] * 6]
    waiting.append(recorded.submit(again[-1:]))
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches == [[20] * 6, again]


def test_a_batch_that_answered_nobody_is_followed_at_once(recorded, monkeypatch):
    monkeypatch.setattr(batcher, "LINGER", 1e6)
    assert not recorded.submit([BUDGET, BUDGET, 3]).result(60).failed
    assert recorded.batches == [[BUDGET], [BUDGET], [3]]


def test_a_request_larger_than_a_batch_is_split(recorded, predictor):
    lengths = np.random.default_rng(0).integers(3, 200, 60)
    ids = np.random.default_rng(1).integers(5, 290, lengths.sum()).astype(np.int32)
    got = recorded.batcher.submit(recorded.task, ids, np.cumsum([0, *lengths])).result(60)
    assert max(map(sum, recorded.batches)) <= BUDGET
    assert [length for batch in recorded.batches for length in batch] == lengths.tolist()
    want = recorded.predict(ids, np.cumsum([0, *lengths]))
    assert np.array_equal(got.values, want.values)
    assert np.array_equal(got.splits, want.splits)


def test_a_window_longer_than_the_budget_runs_alone(recorded):
    with recorded.busy():
        waiting = [recorded.submit([20]), recorded.submit([BUDGET + 100]), recorded.submit([30])]
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches == [[20, 30], [BUDGET + 100]]


def test_a_large_request_does_not_keep_a_small_one_waiting(recorded):
    with recorded.busy():
        large, small = recorded.submit([100] * 50), recorded.submit([20])
    small.result(60)
    large.result(60)
    assert 20 in recorded.batches[0]
    assert sum(map(len, recorded.batches)) == 51


def test_of_a_clients_requests_short_ones_come_first(recorded):
    with recorded.busy():
        waiting = [recorded.submit([100]) for _ in range(12)]
        waiting += [recorded.submit([BUDGET]), recorded.submit([60] * 20)]
        waiting += [recorded.submit([100]) for _ in range(12)]
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches.index([BUDGET]) == 5
    assert recorded.batches[:4] == [[100] * 5] * 4
    # What there is no room for leaves it to what comes after it.
    assert recorded.batches[4] == [100] * 4 + [60]


def test_of_two_large_requests_one_is_done_first(recorded):
    """If both were done at a time, both would be late where there is no time for both."""
    with recorded.busy():
        waiting = [recorded.submit([60] * 20), recorded.submit([50] * 20)]
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches[0] == [50] * 10


def test_another_clients_short_request_waits_for_two_batches_at_most(recorded):
    """Whatever the windows of 100 requests of one client are, and however full its batches."""
    for lengths in ([BUDGET], [BUDGET * 3] * 4, [20] * 5, [BUDGET // 2 + 1] * 3, [7] * 300):
        with recorded.busy():
            flood = [recorded.submit(lengths, client="one") for _ in range(100)]
            short = recorded.submit([11], client="another")
        short.result(60)
        before = [batch for batch in recorded.batches if 11 not in batch]
        first = next(i for i, batch in enumerate(recorded.batches) if 11 in batch)
        # One batch ran when it came.
        assert first <= 1, before[:3]
        for request in flood:
            request.cancel()
        assert recorded.batcher.queued == 0


def test_what_cannot_be_answered_in_time_is_refused(recorded):
    """At once, by the speed of late and what each client has waiting."""
    now = time.perf_counter()
    with recorded.busy():
        waiting = [
            recorded.submit([100] * 50, client="one"),
            recorded.submit([512] * 3, client="two"),
        ]
        recorded.batcher._speed.record(1000, now, now + 10)  # 100 tokens a second
        with pytest.raises(OverloadedError) as error:
            recorded.submit([100] * 50, client="one", deadline=now + 100)
        assert error.value.wait_s == pytest.approx(50 + 50 + 15.36)
        # 80 of the 100 s are promised.
        assert error.value.retry_after_s == pytest.approx(error.value.wait_s - 80, abs=5)
        waiting.append(recorded.submit([20], client="one", deadline=now + 100))
        waiting.append(recorded.submit([100] * 19, client="three", deadline=now + 100))
    assert all(not each.result(60).failed for each in waiting)


def test_what_has_become_late_is_refused_before_it_is_begun(recorded):
    with recorded.busy():
        late = recorded.submit([100] * 9, client="one", deadline=time.perf_counter() + 1)
        now = time.perf_counter()
        recorded.batcher._speed.record(100, now, now + 10)
        kept = recorded.submit([50], client="one")
    kept.result(60)
    with pytest.raises(OverloadedError):
        late.result(60)
    assert recorded.batches == [[50]]


def test_what_nobody_waits_for_leaves_the_queue(recorded):
    with recorded.busy():
        gone, kept = recorded.submit([100] * 50), recorded.submit([20])
        assert gone.cancel()
    kept.result(60)
    assert recorded.batches == [[20]]


def test_what_nobody_waits_for_leaves_the_queue_between_two_of_its_batches(recorded, predictor):
    predictions = None

    def cancel(windows, tokens, seconds):
        if windows == 4:
            predictions.cancel()

    recorded.batcher._on_batch = cancel
    with recorded.busy():
        predictions = recorded.submit([128] * 40)
    recorded.submit([30]).result(60)
    assert recorded.batches == [[128] * 4, [30]]


def test_an_exception_fails_its_batch_alone(recorded):
    predict = recorded.predict

    def broken(ids, cu_seqlens, **named):
        if len(ids) == 400:
            raise RuntimeError("no such kernel\nand more")
        return predict(ids, cu_seqlens, **named)

    recorded.predict = broken
    with recorded.busy():
        hit, other = recorded.submit([400]), recorded.submit([300, 300])
    assert hit.result(60).failed == {0: "the model failed: RuntimeError: no such kernel"}
    assert not hit.result(60).values.any()
    assert other.result(60).failed == {}
    assert recorded.submit([7]).result(60).failed == {}


def test_an_answer_that_is_no_number_fails_alone(recorded, predictor):
    with torch.no_grad():
        predictor.model.model.embeddings.tok_embeddings.weight[BAD] = float("nan")
    with recorded.busy():
        neighbour = recorded.submit([40])
        ids = np.array([7, 8, 9, 10, BAD, 11, 12, 13], np.int32)
        predictions = recorded.batcher.submit(recorded.task, ids, np.array([0, 3, 6, 8]))
    assert predictions.result(60).failed == {1: "the model's answer is not a finite number"}
    assert not predictions.result(60).values[1].any()
    assert neighbour.result(60).failed == {}
    assert recorded.batches == [[3, 3, 2, 40]]


def test_options_that_the_forward_pass_does_not_read_share_a_batch(recorded, predictor):
    other = make_task("classify", predictor.checkpoint, top_k=2, function="none")
    with recorded.busy():
        waiting = [recorded.submit([20]), recorded.submit([20], task=other)]
    assert all(not predictions.result(60).failed for predictions in waiting)
    assert recorded.batches == [[20, 20]]


def test_options_that_the_forward_pass_reads_do_not(tmp_path):
    folder = write_task(tmp_path, "ModernBertForMaskedLM", **SMALL)
    model = Checkpoint.open(folder)
    tasks = [
        make_task("fill", model, **options) for options in ({}, {"top_k": 2}, {"targets": ["t"]})
    ]
    recorded = Recorded(Predictor(model, tasks[0], budget_tokens=BUDGET))
    with recorded.busy():
        waiting = [recorded.submit([length], task=task) for length in (20, 30) for task in tasks]
    assert [predictions.result(60).values.shape[1] for predictions in waiting] == [10, 4, 2] * 2
    assert recorded.batches == [[20, 30]] * 3
    recorded.batcher.close()


def test_a_probe_goes_first(recorded):
    with recorded.busy():
        large, probe = recorded.submit([100] * 9), recorded.submit([7], first=True)
    probe.result(60)
    large.result(60)
    assert recorded.batches[0][0] == 7


def test_closing_answers_what_is_in_the_queue(recorded):
    with recorded.busy():
        waiting = recorded.submit([100] * 20)
        closing = threading.Thread(target=recorded.batcher.close)
        closing.start()
    closing.join(60)
    assert waiting.done()
    assert not waiting.result().failed
    with pytest.raises(RuntimeError, match="closed"):
        recorded.submit([3])


def test_no_windows_no_wait(recorded):
    with recorded.busy():
        predictions = recorded.batcher.submit(recorded.task, np.empty(0, np.int32), np.array([0]))
        assert predictions.result(0).values.shape == (0, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    predictions = {}
    for task, architecture, config in (
        ("classify", "ModernBertForSequenceClassification", {"labels": [*"abcde"]}),
        ("tag", "ModernBertForTokenClassification", {"labels": ["O", "B-X", "I-X"]}),
        ("answer", "ModernBertForQuestionAnswering", {}),
        ("fill", "ModernBertForMaskedLM", {}),
        ("embed", "ModernBertModel", {}),
        ("rerank", "ModernBertForSequenceClassification", {"num_labels": 1}),
    ):
        predictions[task] = write_task(
            tmp_path_factory.mktemp(task), architecture, **SMALL, **config
        )
    return predictions


@pytest.fixture
def serving(folders):
    """Serve a task with options; closed after the test."""
    open_models = []

    def serve(task, **options):
        (served,) = served_models(
            [{"name": task, "task": task, "model": str(folders[task]), **options}]
        )
        open_models.append(LocalModelClient([served]))
        return open_models[-1]

    yield serve
    for models in open_models:
        models.close()


def ask(models, task, *asks):
    """The answers to `asks` at the same time, errors as values."""

    async def together():
        return await asyncio.gather(
            *(models.predict(task, one) for one in asks), return_exceptions=True
        )

    return asyncio.run(together())


def documents(task):
    texts = ["", "the cat", "the cat sat " * 60, *random_texts(4, 12, 1, 80)]
    if task in ("answer", "rerank"):
        return [("the cat", text) for text in texts if text]
    return [text + "[MASK]" for text in texts] if task == "fill" else texts


WINDOWS = {"long_documents": "windows", "max_length": 24, "stride": 4}
ONLINE = [
    ("classify", {"top_k": 2}, WINDOWS),
    ("tag", {"aggregation": "simple"}, WINDOWS),
    ("answer", {"top_k": 3}, WINDOWS),
    ("fill", {}, WINDOWS),
    ("embed", {"normalize": True}, WINDOWS),
    ("embed", {"precision": "binary"}, {"max_length": 16}),
    ("rerank", {"raw_scores": True}, WINDOWS),
]


@pytest.mark.parametrize(("task", "options", "own"), ONLINE, ids=str)
def test_online_is_offline_to_the_last_bit(serving, folders, task, options, own):
    """Each document alone, all at the same time, against the pipeline in memory."""
    texts = documents(task)
    pipe = pipeline(task, str(folders[task]), budget_tokens=100_000, **own, **options)
    want, failed = pipe.run(texts, {})
    assert not failed
    got = ask(
        serving(task, budget_tokens=64, **own),
        task,
        *(PredictRequest([text], options) for text in texts),
        PredictRequest(texts, options),
    )
    together = got.pop()
    assert [
        list(predictions.results[0]) if task == "embed" else predictions.results[0]
        for predictions in got
    ] == want
    assert (together.results.tolist() if task == "embed" else together.results) == want
    assert not together.failed
    assert together.truncated == [bool(predictions.truncated[0]) for predictions in got]


def test_token_vectors_are_those_of_the_feature_pipeline(serving, folders):
    texts = documents("embed")
    want = pipeline("feature-extraction", str(folders["embed"]), max_length=24)(texts)
    (predictions,) = ask(
        serving("embed", **WINDOWS), "embed", PredictRequest(texts, token_vectors=True)
    )
    assert [vectors.tolist() for vectors in predictions.results] == [vectors for (vectors,) in want]


def test_documents_without_an_answer_are_named_beside_the_others(serving, folders):
    models = serving("fill", max_length=16, long_documents="truncate")
    texts = ["the [MASK]", "the", "[MASK] " + "the cat sat " * 60, "a [MASK]"]
    (predictions,) = ask(models, "fill", PredictRequest(texts, truncate=False))
    assert predictions.failed == {
        1: "text has no [MASK]",
        2: "text has more than the 16 tokens that the model reads",
    }
    assert predictions.invalid == {1, 2}
    assert predictions.results[1] is predictions.results[2] is None
    want = pipeline("fill-mask", str(folders["fill"]), max_length=16)(["the [MASK]", "a [MASK]"])
    assert [predictions.results[0], predictions.results[3]] == want
    assert predictions.n_tokens[0] > 0
    assert predictions.n_tokens[2] == 0
    (cut,) = ask(models, "fill", PredictRequest(["[MASK] " + "the cat sat " * 60]))
    assert cut.truncated == [True]


def test_texts_and_pairs_in_one_request(serving):
    models = serving("classify")
    mixed = ["the cat", ("the cat", "sat"), ("on", "the mat"), "and then", ("a", "b")]
    together, *alone = ask(
        models, "classify", PredictRequest(mixed), *(PredictRequest([one]) for one in mixed)
    )
    assert together.results == [one.results[0] for one in alone]
    assert together.n_tokens == [one.n_tokens[0] for one in alone]


def test_a_failure_of_the_model_is_not_the_texts_fault(serving):
    models = serving("embed")
    model = models.models["embed"]
    bad = int(model.checkpoint.tokenizer.encode(["the"]).input_ids[1])
    with torch.no_grad():
        model.predictor.model.encoder.embeddings.tok_embeddings.weight[bad] = float("nan")
    predictions, other = ask(models, "embed", PredictRequest(["a", "the"]), PredictRequest(["a"]))
    assert predictions.failed == {1: "the model's answer is not a finite number"}
    assert predictions.invalid == frozenset()
    assert not predictions.results[1].any()
    assert np.array_equal(predictions.results[0], other.results[0])


MISTAKES = [
    (
        "classify",
        PredictRequest(["a"], {"top_k": 99}),
        "top_k 99 must be from 1 to the model's 5 labels",
    ),
    ("classify", PredictRequest(["a"], {"top": 1}), "top is not an option of classify"),
    ("classify", PredictRequest(["a", ("a", "b"), 7]), r"input 2 holds '7' \(int\), not text"),
    ("classify", PredictRequest([7]), r"input 0 holds '7' \(int\), not text"),
    (
        "classify",
        PredictRequest(["a"], {"max_length": 40}),
        "max_length 40 is above the 32 that this service reads",
    ),
    ("classify", PredictRequest(["a"], token_vectors=True), "token vectors come from embed models"),
    ("embed", PredictRequest([("a", "b")]), "input 0 is a pair"),
    (
        "answer",
        PredictRequest(["a"]),
        "input 0 is a single text; answer takes question and context",
    ),
    ("answer", PredictRequest([("a", "")]), "input 0: context is empty"),
]


@pytest.mark.parametrize(("task", "wrong", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_in_a_request(serving, task, wrong, message):
    models = serving(task, max_length=32)
    fine = PredictRequest([("the", "cat")] if task == "answer" else ["the"])
    error, predictions = ask(models, task, wrong, fine)
    assert isinstance(error, ServeError)
    assert error.error_type == "invalid"
    with pytest.raises(ServeError, match=message):
        raise error
    assert not predictions.failed


@contextmanager
def held(models, task):
    """The model stands still in its first batch; `go()` lets it run."""
    predictor = models.models[task].predictor
    predict, going, entered = predictor.predict, threading.Event(), threading.Event()

    def wait(*arguments, **named):
        entered.set()
        assert going.wait(60)
        return predict(*arguments, **named)

    predictor.predict = wait
    yield going.set, entered
    going.set()


def test_a_full_queue_refuses_and_says_when_to_come_back(serving):
    models = serving("classify", max_queued_documents=4)
    too_large, *_ = ask(models, "classify", PredictRequest(["a"] * 5))
    assert too_large.error_type == "too_large"
    assert "5 documents in a request; at most 4" in str(too_large)

    async def fill():
        first = asyncio.create_task(models.predict("classify", PredictRequest(["a"] * 3)))
        await asyncio.sleep(0)
        with pytest.raises(ServeError, match="3 documents are being answered; at most 4") as full:
            await models.predict("classify", PredictRequest(["a"] * 2))
        assert full.value.error_type == "overloaded"
        assert full.value.retry_after_s >= 1
        go()
        assert not (await first).failed
        assert not (await models.predict("classify", PredictRequest(["a"] * 4))).failed

    with held(models, "classify") as (go, _):
        asyncio.run(fill())


def test_a_deadline_passes_and_a_client_leaves(serving):
    """Neither blocks the queue, and what they asked for is not run."""
    models = serving("classify", timeout_s=0.2, budget_tokens=16)
    model = models.models["classify"]

    async def late():
        first = asyncio.create_task(models.predict("classify", PredictRequest(["the cat sat"])))
        await asyncio.to_thread(entered.wait, 60)
        second = asyncio.create_task(
            models.predict("classify", PredictRequest(["the cat sat"] * 20))
        )
        third = asyncio.create_task(
            models.predict("classify", PredictRequest(["the cat sat"] * 20))
        )
        await asyncio.sleep(0.05)
        third.cancel()
        error, other, left = await asyncio.gather(first, second, third, return_exceptions=True)
        assert (error.error_type, other.error_type) == ("timeout", "timeout")
        assert "no answer within 0.2 s" in str(error)
        assert isinstance(left, asyncio.CancelledError)
        assert model.documents_under_way == 0
        ran = []
        model.batcher._on_batch = lambda windows, *_: ran.append(windows)
        go()
        assert not (await models.predict("classify", PredictRequest(["a"], timeout_s=60))).failed
        assert sum(ran) == 2

    with held(models, "classify") as (go, entered):
        asyncio.run(late())


def test_a_client_holds_half_of_a_queue_and_small_requests_come_in(serving):
    models = serving("classify", max_queued_documents=64)
    many = ["a"] * 32

    async def fill():
        first, second = (
            asyncio.create_task(models.predict("classify", PredictRequest(many, client=client)))
            for client in "ab"
        )
        await asyncio.sleep(0)
        for client in "abc":
            with pytest.raises(
                ServeError, match=r"64 documents .* at most half of them of one client"
            ) as full:
                await models.predict("classify", PredictRequest(["a"] * 17, client=client))
            assert full.value.error_type == "overloaded"
        small = [
            asyncio.create_task(models.predict("classify", PredictRequest(["a"] * 8, client=c)))
            for c in "ac"
        ]
        await asyncio.sleep(0)
        models.models["classify"]._window_s = 1e6
        with pytest.raises(ServeError, match="are being answered") as full:
            await models.predict("classify", PredictRequest(["a"], client="a"))
        assert 1 <= full.value.retry_after_s <= 5
        go()
        assert not any(each.failed for each in await asyncio.gather(first, second, *small))
        with pytest.raises(ServeError, match="33 documents in a request; at most 32"):
            await models.predict("classify", PredictRequest(["a"] * 33, client="a"))

    with held(models, "classify") as (go, _):
        asyncio.run(fill())
    assert models.models["classify"].documents_under_way == 0


@pytest.mark.parametrize("what", ["predict", "tokenize", "decode"])
def test_documents_count_until_their_thread_is_done(serving, monkeypatch, what):
    models = serving("classify")
    model = models.models["classify"]
    entered, going = threading.Event(), threading.Event()

    def stuck(*_, **__):
        yield from ()
        entered.set()
        assert going.wait(60)
        raise ValueError("late")

    monkeypatch.setattr(
        f"pipelines.serve.model.{'encode_request' if what == 'predict' else what}", stuck
    )
    calls = {"predict": PredictRequest(["a"] * 3), "tokenize": ["a"] * 3, "decode": [[5]] * 3}

    async def leave():
        asked = asyncio.create_task(getattr(models, what)("classify", calls[what]))
        await asyncio.to_thread(entered.wait, 60)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert model.documents_under_way == 3
        going.set()

    asyncio.run(leave())
    for _ in range(1000):
        if not model.documents_under_way:
            break
        threading.Event().wait(0.01)
    assert model.documents_under_way == 0


def test_options_of_many_characters_are_not_kept(serving):
    models = serving("tag")
    model = models.models["tag"]
    for i in range(5):
        options = {"ignore_labels": [f"label {i} {j}" for j in range(500)]}
        assert ask(models, "tag", PredictRequest(["the cat"], options))[0].results
    assert model._kept_task.cache_info().currsize == 0


def test_a_request_has_a_budget_of_tokens(serving):
    models = serving("classify", max_request_tokens=100)
    fits, over = ask(
        models,
        "classify",
        PredictRequest(["the cat sat"] * 10),
        PredictRequest(["the cat sat"] * 30),
    )
    assert not fits.failed
    assert over.error_type == "too_large"
    assert (
        "hold more than 100 tokens, the most that a request may have (max_request_tokens); send fewer"
        in str(over)
    )


def test_health_is_a_forward_pass(serving):
    models = serving("fill", batch_timeout_s=0.05)
    with held(models, "fill") as (go, _):
        reason = asyncio.run(models.unready())
        assert reason == {"fill": "model fill gave no answer within 0.05 s"}
        go()
    models.models["fill"].options.batch_timeout_s = 60
    assert asyncio.run(models.unready()) == {}
    models.models["fill"].batcher.succeeded = 0
    models.models["fill"].predictor.predict = lambda *_, **__: 1 / 0
    assert "ZeroDivisionError" in asyncio.run(models.unready())["fill"]


def test_what_is_told_of_models(serving):
    async def message(models, name):
        return await models.info(name)

    info = asyncio.run(message(serving("classify", max_length=99), "classify"))
    assert (info.task, info.max_length, info.labels, info.dtype) == (
        "classify",
        99,
        tuple("abcde"),
        "float32",
    )
    assert info.problem_type is None
    info = asyncio.run(message(serving("embed", dimensions=8), "embed"))
    assert (info.dimensions, info.pooling, info.labels) == (8, "mean", ())


def test_tokens_and_back(serving):
    models = serving("embed")
    (whole, inner), back = asyncio.run(_tokens(models, ["the cat", "[SEP]é"]))
    assert whole.tokens[0] == "[CLS]"
    assert whole.offsets[[0, -1]].tolist() == [[-1, -1]] * 2
    assert whole.offsets[1, 0] == 0
    assert whole.offsets[-2, 1] == 7
    assert inner.offsets[1].tolist() == [0, 5]
    assert back == ["the cat", "[SEP]é"]
    with pytest.raises(ServeError, match="ids 0 hold 1000000; they must be from 0 to 283"):
        asyncio.run(models.decode("embed", [[5, 1_000_000]]))


async def _tokens(models, texts):
    bare = await models.tokenize("embed", texts, special=False)
    return await models.tokenize("embed", texts), await models.decode(
        "embed", [t.ids.tolist() for t in bare], False
    )


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ServeError("overloaded", "full", 2.5)))
    assert (error.error_type, error.message, error.retry_after_s, str(error)) == (
        "overloaded",
        "full",
        2.5,
        "full",
    )


def test_an_unknown_model(serving):
    (error,) = ask(serving("embed"), "nix", PredictRequest(["a"]))
    assert error.error_type == "unknown_model"
    assert str(error) == "model 'nix' is unknown; known are embed"
