"""The GPU path on machines without one: every head on fake cuda tensors reads nothing back and starts few kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_cuda import fake_gpu, put_on_gpu
from torch._subclasses.fake_tensor import DataDependentOutputException

from modernbert.attention import length_classes, resolve_backend, varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.heads import (
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.sentence import SentenceEncoder, _pool_on_gpu

LENGTHS = (1, 2, 63, 64, 65, 130, 300, 1024)
T, B = sum(LENGTHS), len(LENGTHS)
CUDA = torch.device("cuda")
HEADS = {
    "encoder": (ModernBertModel, {}, (T, 768), torch.bfloat16),
    "fill": (ModernBertForMaskedLM, {}, (T, 50368), torch.float32),
    "classify": (ModernBertForSequenceClassification, {}, (B, 2), torch.float32),
    "classify by the mean": (
        ModernBertForSequenceClassification,
        {"classifier_pooling": "mean"},
        (B, 2),
        torch.float32,
    ),
    "tag": (ModernBertForTokenClassification, {"num_labels": 9}, (T, 9), torch.float32),
    "answer": (ModernBertForQuestionAnswering, {}, (T, 2), torch.float32),
}


def build(model_class, **config):
    with torch.device("meta"):
        return model_class(ModernBertConfig(**{"num_hidden_layers": 4} | config))


def batch_of(lengths=LENGTHS) -> PackedBatch:
    return PackedBatch.from_arrays(np.zeros(sum(lengths), np.int32), lengths, CUDA)


@pytest.mark.parametrize(("model_class", "config", "shape", "dtype"), HEADS.values(), ids=HEADS)
def test_a_head_reads_nothing_back_and_copies_once(monkeypatch, model_class, config, shape, dtype):
    """A read of the device raises; the only copies are the batch, in one piece, and the rotary tables of a process."""
    model = build(model_class, **config)
    with fake_gpu(monkeypatch) as gpu:
        put_on_gpu(model)
        model.forward_packed(batch_of())
        assert [shape for pinned, shape in gpu.uploads if not pinned] == [(8192, 32)] * 4  # cos and sin of two thetas
        gpu.uploads.clear()
        out = model.forward_packed(batch_of())
    assert (tuple(out.shape), out.dtype, out.device.type) == (shape, dtype, "cuda")
    assert gpu.uploads == [(True, (2 * T + B + 1,))]
    assert not gpu.downloads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_starts_at_most_eleven_kernels(monkeypatch, dtype):
    counts = {}
    for layers in (4, 7):
        model = build(ModernBertModel, num_hidden_layers=layers)
        with fake_gpu(monkeypatch) as gpu:
            model = put_on_gpu(model, dtype)
            batch = batch_of()
            gpu.launches.clear()
            model.forward_packed(batch)
            counts[layers] = gpu.launches
    of_a_layer = {name: (counts[7][name] - counts[4][name]) / 3 for name in counts[7]}
    assert sum(of_a_layer.values()) <= 11, of_a_layer
    # Four products (two of them with the residual), two norms, RoPE, GeGLU, attention and its 16 bytes of state.
    assert sum(counts[4].values()) - 4 * sum(of_a_layer.values()) <= 8  # embeddings, norms, classes of lengths


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_launches_do_not_grow_with_the_number_of_documents(monkeypatch, pooling):
    counts = []
    for documents in (2, 50):
        with fake_gpu(monkeypatch) as gpu:
            batch = batch_of((32,) * documents)
            x_TD = torch.empty(32 * documents, 768, dtype=torch.bfloat16, device="cuda")
            gpu.launches.clear()
            pooled = _pool_on_gpu(x_TD, batch, pooling, 0)
            counts.append(sum(gpu.launches.values()))
        assert (tuple(pooled.shape), pooled.dtype) == ((documents, 768), torch.float32)
    assert counts[0] == counts[1] <= 4


def test_fp32_reads_nothing_back(monkeypatch):
    """fp32 has no fused attention: sequences of one length are computed together, cut by the lengths on the host."""
    model = build(ModernBertForSequenceClassification)
    with fake_gpu(monkeypatch) as gpu:
        out = put_on_gpu(model, torch.float32).forward_packed(batch_of((3, 3, 200)))
    assert out.device.type == "cuda"
    assert not gpu.downloads


def test_a_read_of_the_device_is_found(monkeypatch):
    with fake_gpu(monkeypatch), pytest.raises(DataDependentOutputException):
        batch_of().cu_seqlens.tolist()


def test_attention_takes_views_of_qkv_and_returns_contiguous_rows(monkeypatch):
    with fake_gpu(monkeypatch):
        q, k, v = torch.empty(T, 3, 12, 64, dtype=torch.bfloat16, device="cuda").unbind(1)
        for window in (None, (64, 64)):
            out = varlen_attention(q, k, v, batch_of().cu_seqlens, LENGTHS, window)
            assert out.stride() == (768, 64, 1)


def test_flash_attn_2_computes_classes_of_lengths(monkeypatch):
    """Its kernel starts as many blocks for each sequence as for the longest: most would be idle in a mixed batch."""
    lengths = (100,) * 512 + (400,) * 8 + (8192,)
    with fake_gpu(monkeypatch):
        classes = length_classes(batch_of(lengths), 12, "torch_varlen")
        assert [tuple(each.seqlens) for each in classes] == [(100,) * 512, (400,) * 8, (8192,)]
        assert [(each.rows.start, each.rows.stop) for each in classes] == [(0, 51200), (51200, 54400), (54400, 62592)]
        assert [len(each.cu_seqlens) for each in classes] == [513, 9, 2]
        for backend, other in (
            ("flash_attn_3", lengths),
            ("torch_varlen", (500,) * 9),
            ("torch_varlen", lengths[::-1]),
        ):
            assert len(length_classes(batch_of(other), 12, backend)) == 1


@pytest.mark.parametrize(
    ("capability", "head_dim", "modules", "want"),
    [
        ((9, 0), 64, ["flash_attn_interface", "flash_attn"], "flash_attn_3"),
        ((10, 0), 64, ["flash_attn_interface", "flash_attn"], "torch_varlen"),
        ((8, 0), 64, [], "torch_varlen"),
        ((7, 5), 64, ["flash_attn"], "sdpa"),
        ((9, 0), 24, [], "torch_varlen"),
        ((9, 0), 12, [], "sdpa"),
        ((9, 0), 512, [], "sdpa"),
    ],
)
def test_auto_takes_a_kernel_that_the_gpu_and_the_heads_allow(monkeypatch, capability, head_dim, modules, want):
    import_kernel = {name: object() for name in ("torch_varlen", *modules)}
    names = {"flash_attn_3": "flash_attn_interface"}

    def kernel(backend):
        if names.get(backend, backend) not in import_kernel:
            raise ImportError(backend)

    monkeypatch.setattr("modernbert.attention._kernel", kernel)
    with fake_gpu(monkeypatch, capability):
        assert resolve_backend("auto", CUDA, torch.bfloat16, head_dim) == want
        assert resolve_backend("auto", CUDA, torch.float32, head_dim) == "sdpa"


def test_a_package_of_the_same_name_is_not_flash_attn(monkeypatch, tmp_path):
    """flash-attn 4 alone leaves a folder flash_attn without the function."""
    (tmp_path / "flash_attn").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with fake_gpu(monkeypatch), pytest.raises(ValueError, match="flash_attn has no flash_attn_varlen_func"):
        resolve_backend("flash_attn", CUDA, torch.bfloat16, 64)


def test_sentence_encoders_upload_once(monkeypatch):
    from modernbert.sentence_config import SentenceConfig

    encoder = build(ModernBertModel)
    config = SentenceConfig.__new__(SentenceConfig)
    object.__setattr__(config, "pooling", ("cls", "mean"))
    object.__setattr__(config, "dense", ())
    with fake_gpu(monkeypatch) as gpu:
        sentence = SentenceEncoder(put_on_gpu(encoder), config)
        sentence.forward_packed(batch_of())
        gpu.uploads.clear()
        assert tuple(sentence.forward_packed(batch_of(), prompt_tokens=1).shape) == (B, 2 * 768)
    assert [pinned for pinned, _ in gpu.uploads] == [True]
