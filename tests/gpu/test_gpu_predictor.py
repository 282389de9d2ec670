"""The predictor on a GPU; needs pydantic, pydantic-settings and pyarrow beside torch, Triton and tokenizers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

for name in ("pydantic", "pydantic_settings", "pyarrow", "tokenizers"):
    pytest.importorskip(name)

from pipelines.checkpoints import Checkpoint
from pipelines.inference.predictor import Predictor
from pipelines.options import ClassifyOptions
from pipelines.tasks.classify import Classify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def predictor_with(checkpoint):
    opened = Checkpoint.open(checkpoint)
    task = Classify.from_checkpoint(opened, ClassifyOptions())
    return lambda **options: Predictor(opened, task, device="cuda", **options)


def windows(lengths):
    ids = np.random.default_rng(0).integers(3, 300, int(np.sum(lengths))).astype(np.int32)
    return ids, np.concatenate(([0], np.cumsum(lengths)))


def test_running_out_of_memory_halves_the_batch(predictor_with):
    ids, starts = windows(np.full(512, 512))
    want = predictor_with(budget_tokens=8192).predict(ids, starts)
    little = predictor_with(budget_tokens=1 << 30)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (128 << 20)) / total)
    try:
        got = little.predict(ids, starts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not got.failed
    assert got.batches > 1
    np.testing.assert_allclose(got.values, want.values, atol=0.1)  # bf16 products of other sizes


def test_two_threads_share_a_device(predictor_with):
    predictor = predictor_with(budget_tokens=2048)
    ids, starts = windows(np.random.default_rng(1).integers(1, 300, 400))
    want, got = predictor.predict(ids, starts), []
    threads = [
        threading.Thread(target=lambda: got.append(predictor.predict(ids, starts)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each.values, want.values) for each in got)


def test_the_default_budget_is_by_memory(predictor_with):
    assert predictor_with().budget_tokens == 65536  # a tiny model on any GPU of a data centre
