"""The GPU path under the same promises as its CPU twin; skipped where there is no CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import relative_error

from modernbert.attention import BACKENDS, resolve_backend
from modernbert.checkpoint import load
from modernbert.files import load_config
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.packing import PackedBatch
from pipelines.predictor import Predictor
from pipelines.tasks.classify import Classify

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 300, 1024)


@pytest.fixture(params=BACKENDS[:-1])
def backend(request):
    try:
        return resolve_backend(request.param, torch.device("cuda", 0), torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))


@torch.no_grad()
def test_hidden_states_are_close_to_fp32_on_the_cpu(backend, checkpoint):
    ids = torch.randint(3, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    want = load(ModernBertForSequenceClassification, checkpoint).model.forward_packed(
        PackedBatch.from_lengths(ids, LENGTHS)
    )
    model = load(
        ModernBertForSequenceClassification, checkpoint, device="cuda", dtype=torch.bfloat16, attention=backend
    )
    got = model.model.forward_packed(PackedBatch.from_lengths(ids.cuda(), LENGTHS)).float().cpu()
    for ours, reference in zip(got.split(LENGTHS), want.split(LENGTHS), strict=True):
        assert torch.cosine_similarity(ours.mean(0), reference.mean(0), dim=0) > 0.98  # a hot model amplifies bf16


@torch.no_grad()
def test_fp32_on_the_gpu_equals_the_cpu(checkpoint):
    torch.backends.cuda.matmul.allow_tf32 = False
    ids = torch.randint(3, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    want = load(ModernBertForSequenceClassification, checkpoint).forward_packed(PackedBatch.from_lengths(ids, LENGTHS))
    model = load(ModernBertForSequenceClassification, checkpoint, device="cuda")
    got = model.forward_packed(PackedBatch.from_lengths(ids.cuda(), LENGTHS)).cpu()
    assert relative_error(got, want) < 1e-4  # other sums on another device, amplified by a hot model


def test_running_out_of_memory_halves_the_batch(checkpoint):
    task = Classify.from_config(load_config(checkpoint))
    lengths = np.full(512, 512)
    ids = np.random.default_rng(0).integers(3, 300, lengths.sum()).astype(np.int32)
    starts = np.cumsum([0, *lengths])
    want = Predictor(checkpoint, task, device="cuda", budget_tokens=8192).predict(ids, starts)
    little = Predictor(checkpoint, task, device="cuda", budget_tokens=1 << 30)
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
