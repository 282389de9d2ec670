"""The model on a GPU; needs torch and Triton alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import make_hot, relative_error

from modernbert import float8, fusions, gpu
from modernbert.attention_kernels import BACKENDS, resolve_backend
from modernbert.config import ModernBertConfig
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.tiles import Fusions, tiles_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 300, 1024)
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
}
IDS = np.random.default_rng(0).integers(3, 300, sum(LENGTHS)).astype(np.int32)
CUDA = torch.device("cuda", 0)


@pytest.fixture(params=BACKENDS[:-1])
def backend(request):
    try:
        return resolve_backend(request.param, CUDA, torch.bfloat16, 64)
    except ValueError as error:
        pytest.skip(str(error))


def hot(model_class, attention="auto", heat=1.5):
    torch.manual_seed(0)
    model = (
        model_class(ModernBertConfig(**SHAPE, num_attention_heads=2), attention)
        .eval()
        .requires_grad_(False)
    )
    make_hot(model, heat)
    return model


def batch(device, lengths=LENGTHS):
    return PackedBatch.from_arrays(IDS[: sum(lengths)], lengths, torch.device(device))


@torch.inference_mode()
def test_hidden_states_are_close_to_fp32_on_the_cpu(backend):
    want = hot(ModernBertModel).forward_packed(batch("cpu"))
    got = (
        hot(ModernBertModel, backend)
        .to(CUDA, torch.bfloat16)
        .forward_packed(batch("cuda"))
        .float()
        .cpu()
    )
    for ours, reference in zip(got.split(LENGTHS), want.split(LENGTHS), strict=True):
        assert torch.cosine_similarity(ours, reference).min() > 0.98  # a hot model amplifies bf16


@torch.inference_mode()
def test_fp32_equals_the_cpu():
    want = hot(ModernBertForSequenceClassification).forward_packed(batch("cpu"))
    got = hot(ModernBertForSequenceClassification).to(CUDA).forward_packed(batch("cuda")).cpu()
    assert (
        relative_error(got, want) < 1e-4
    )  # other sums on another device, amplified by a hot model


@torch.inference_mode()
def test_the_kernels_run_and_nothing_waits_for_the_device():
    model = hot(ModernBertForSequenceClassification).to(CUDA, torch.bfloat16)
    assert gpu.kernels_for(torch.empty(1, device=CUDA)) is not None
    want = model.forward_packed(batch("cuda"))  # compiles the kernels, uploads the tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = model.forward_packed(batch("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, want)


@torch.inference_mode()
@pytest.mark.parametrize(
    "tile", tiles_for(gpu.compute_capability(CUDA)) if torch.cuda.is_available() else []
)
def test_fused_products_answer_as_their_twins_do(tile):
    """Each tile of this GPU, whichever is fastest; not a bit of a document depends on the others' rows."""
    model = hot(ModernBertModel).to(CUDA, torch.bfloat16)
    want = model.forward_packed(batch("cuda")).float()
    fusions.use(model, Fusions(tile, tile))
    got = model.forward_packed(batch("cuda")).float()
    assert not torch.equal(got, want)  # they ran
    assert relative_error(got, want) < 3e-2
    from modernbert import products

    weight = torch.randn(2 * 192, 128, device=CUDA).bfloat16()
    x = torch.randn(1000, 128, device=CUDA).bfloat16()
    few, many = (products.gated_product(x[:rows], weight, tile) for rows in (129, 1000))
    assert torch.equal(few, many[:129])


@torch.inference_mode()
def test_products_are_timed_as_a_model_is_loaded():
    chosen = fusions.fastest(hot(ModernBertModel).to(CUDA, torch.bfloat16))
    assert chosen == fusions.fastest(hot(ModernBertModel).to(CUDA, torch.bfloat16))  # kept


@torch.inference_mode()
def test_graphs_answer_as_launches_do():
    model = hot(ModernBertModel).to(CUDA, torch.bfloat16)
    sizes = [(5,), (3, 60, 2), (130, 7), (1024,), (3, 61)]
    want = [model.forward_packed(batch("cuda", lengths)).float() for lengths in sizes]
    model.enable_graphs()
    for lengths, expected in zip(sizes, want, strict=True):
        got = model.forward_packed(batch("cuda", lengths)).float()
        # Products of other sizes: two orders of summation in bf16 differ by 0.009 on these lengths.
        assert relative_error(got, expected) < 3e-2


@torch.inference_mode()
def test_float8_is_near_bfloat16():
    model = hot(ModernBertModel, heat=1.0).to(CUDA, torch.bfloat16)
    want = model.forward_packed(batch("cuda")).float()
    try:
        float8.quantise(model)
    except ValueError as error:
        pytest.skip(str(error))
    assert 1e-3 < relative_error(model.forward_packed(batch("cuda")).float(), want) < 0.15
