"""The Predictor: order, halving when memory runs out, answers that are no numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from modernbert import cpu
from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.inference.loading import resolve_dtype, resolve_run
from pipelines.inference.predictor import Predictor
from pipelines.model_options import ModelOptions
from pipelines.options import ClassifyOptions
from pipelines.tasks.classify import Classify


@pytest.fixture
def predictor(checkpoint):
    model = Checkpoint.open(checkpoint)
    return Predictor(model, Classify.from_checkpoint(model, ClassifyOptions()), budget_tokens=512)


@pytest.fixture(scope="module")
def windows():
    lengths = np.random.default_rng(0).integers(1, 200, 50)
    return np.random.default_rng(1).integers(3, 300, lengths.sum()).astype(np.int32), np.cumsum(
        [0, *lengths]
    )


def test_input_order_and_any_budget(checkpoint, predictor, windows):
    ids, starts = windows
    got = predictor.predict(ids, starts)
    alone = np.concatenate(
        [predictor.predict(ids[a:b], np.array([0, b - a])).values for a, b in pairwise(starts)]
    )
    assert np.array_equal(got.values, alone)
    assert got.batches > 5
    other = Predictor(predictor.checkpoint, predictor.task, budget_tokens=100_000).predict(
        ids, starts
    )
    assert other.batches == 1
    assert np.array_equal(other.values, got.values)


def test_out_of_memory_halves_the_batch_and_rejects_only_what_fails_alone(
    predictor, windows, monkeypatch
):
    ids, starts = windows
    want = predictor.predict(ids, starts).values
    longest = int(np.diff(starts).argmax())
    forward, room = predictor.model.forward_packed, np.diff(starts).max() - 1

    def forward_with_little_memory(batch):
        if len(batch.input_ids) > room:
            raise torch.OutOfMemoryError("no room")
        return forward(batch)

    monkeypatch.setattr(predictor.model, "forward_packed", forward_with_little_memory)
    got = predictor.predict(ids, starts)
    assert got.failed == {longest: "out of memory on cpu: no room"}
    kept = np.arange(50) != longest
    assert np.array_equal(got.values[kept], want[kept])


def test_an_answer_that_is_no_number_is_a_failure(predictor, windows):
    ids, starts = windows
    with torch.no_grad():
        predictor.model.model.embeddings.tok_embeddings.weight[7] = float("nan")
    got = predictor.predict(ids, starts)
    hit = {i for i in range(50) if 7 in ids[starts[i] : starts[i + 1]]}
    assert set(got.failed) == hit
    assert hit
    assert all("not a finite number" in reason for reason in got.failed.values())


def test_nothing_to_predict(predictor):
    assert predictor.predict(np.empty(0, np.int32), np.array([0])).values.shape == (0, 5)


@pytest.mark.parametrize(
    ("slowdown", "dtype", "warned"),
    [(1.7, "bfloat16", True), (0.5, "bfloat16", False), (1.7, "float32", False)],
)
def test_bfloat16_on_a_cpu_that_is_slower_in_it_is_warned_of(
    monkeypatch, caplog, slowdown, dtype, warned
):
    monkeypatch.setattr(cpu, "bfloat16_slowdown", lambda: slowdown)
    resolve_dtype(dtype, "cpu")
    resolve_dtype("bfloat16", "cuda")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned
    assert all("takes 1.7 times as long as in float32" in message for message in messages)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("cuda", "int8", "dtype int8 is for CPUs; on GPUs use bfloat16 or float8"),
        ("cpu", "float8", "dtype float8 is for GPUs; on CPUs use float32, bfloat16 or int8"),
    ],
)
def test_a_dtype_of_another_device_is_refused(predictor, device, dtype, message):
    with pytest.raises(UserError, match=message):
        resolve_run(ModelOptions(dtype=dtype), predictor.checkpoint, predictor.task, device, 60.0)
