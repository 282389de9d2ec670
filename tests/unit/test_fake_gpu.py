"""The GPU path on machines without one: every head on fake cuda tensors reads nothing back and starts few kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer
from fake_cuda import fake_gpu, put_on_gpu
from torch._subclasses.fake_tensor import DataDependentOutputException

from modernbert import float8, heads
from modernbert.attention import length_classes, resolve_backend, varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.encoders.sentence import SentenceEncoder, _pool_on_gpu
from modernbert.gpu import bytes_per_token
from modernbert.heads import (
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from pipelines.checkpoints import Checkpoint
from pipelines.inference.loading import gpu_budget
from pipelines.inference.predictor import Predictor
from pipelines.options import ClassifyOptions, FillOptions, TagOptions
from pipelines.tasks.classify import Classify
from pipelines.tasks.fill import Fill
from pipelines.tasks.tag import Tag

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
        assert [shape for pinned, shape in gpu.uploads if not pinned] == [
            (8192, 32)
        ] * 4  # cos and sin of two thetas
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
    assert (
        sum(counts[4].values()) - 4 * sum(of_a_layer.values()) <= 8
    )  # embeddings, norms, classes of lengths


def test_a_layer_in_float8_starts_at_most_eleven_kernels(monkeypatch):
    counts = {}
    for layers in (4, 7):
        model = build(ModernBertModel, num_hidden_layers=layers)
        with fake_gpu(monkeypatch) as gpu:
            float8.quantise(put_on_gpu(model))
            batch = batch_of()
            gpu.launches.clear()
            assert model.forward_packed(batch).dtype == torch.bfloat16
            counts[layers] = gpu.launches
    of_a_layer = {name: (counts[7][name] - counts[4][name]) / 3 for name in counts[7]}
    assert of_a_layer["_scaled_mm"] == 3
    assert sum(of_a_layer.values()) <= 11, of_a_layer


@pytest.mark.parametrize(
    ("config", "capability", "message"),
    [
        ({}, (8, 0), "compute capability 8.9"),
        ({"hidden_size": 72, "num_attention_heads": 6}, (9, 0), "multiples of 16, not 72"),
        ({"hidden_activation": "silu"}, (9, 0), "activation gelu alone"),
    ],
)
def test_float8_is_refused_where_it_cannot_run(monkeypatch, config, capability, message):
    model = build(ModernBertModel, **config)
    with fake_gpu(monkeypatch, capability), pytest.raises(ValueError, match=message):
        float8.quantise(put_on_gpu(model))


@pytest.mark.parametrize(
    "pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
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
        assert [(each.rows.start, each.rows.stop) for each in classes] == [
            (0, 51200),
            (51200, 54400),
            (54400, 62592),
        ]
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
def test_auto_takes_a_kernel_that_the_gpu_and_the_heads_allow(
    monkeypatch, capability, head_dim, modules, want
):
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
    with (
        fake_gpu(monkeypatch),
        pytest.raises(ValueError, match="flash_attn has no flash_attn_varlen_func"),
    ):
        resolve_backend("flash_attn", CUDA, torch.bfloat16, 64)


def test_sentence_encoders_upload_once(monkeypatch):
    from modernbert.encoders.sentence_config import SentenceConfig

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


BUDGET = 2048
TASKS = {"classify": (Classify, ClassifyOptions(), "ModernBertForSequenceClassification"),
         "tag": (Tag, TagOptions(), "ModernBertForTokenClassification"),
         "fill": (Fill, FillOptions(), "ModernBertForMaskedLM")}  # fmt: skip


@pytest.fixture(params=TASKS)
def predictor_on(request, tmp_path, monkeypatch):
    """A function that puts the predictor of a task on a fake GPU."""
    task_class, options, architecture = TASKS[request.param]
    write_checkpoint(tmp_path, architecture=architecture)
    write_tokenizer(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    task = task_class.from_checkpoint(checkpoint, options)
    with torch.device("meta"):
        model = getattr(heads, architecture)(checkpoint.config)
    monkeypatch.setattr(task_class, "load", lambda *_: put_on_gpu(model))
    return lambda budget=BUDGET: Predictor(checkpoint, task, device="cuda", budget_tokens=budget)


def windows(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(3, 300, count * length).astype(np.int32), np.arange(
        count + 1
    ) * length


def test_the_predictor_keeps_three_batches_in_flight(monkeypatch, predictor_on):
    ids, starts = windows(80, 128)  # five batches of 2,048 tokens
    values_came: list[int] = []
    with fake_gpu(monkeypatch) as gpu:
        predictor = predictor_on()
        predictor.predict(ids[:256], starts[:3])  # with the rotary tables of the process
        gpu.uploads.clear()
        gpu.downloads.clear()
        gpu.waits.clear()
        got = predictor.predict(ids, starts, lambda: values_came.append(len(gpu.waits)))
    assert not got.failed
    assert (
        gpu.uploads == [(True, (2 * BUDGET + 16 + 1,))] * 5
    )  # one copy a batch, pinned, not waited for
    assert gpu.downloads == [True] * 5
    assert gpu.waits == [3, 4, 5, 5, 5]  # a wait is for the oldest of three batches
    assert values_came == [1, 2, 3, 4, 5]  # told once a batch, as soon as its values have come
    assert got.batches == 5


def test_running_out_of_memory_waits_tries_again_and_halves(monkeypatch, predictor_on):
    ids, starts = windows(16, 128)
    with fake_gpu(monkeypatch) as gpu:
        predictor = predictor_on()
        forward, sizes = predictor.task.forward, []

        def forward_with_little_memory(_task, model, batch, batch_ids):
            sizes.append(len(batch_ids))
            if len(batch_ids) > 600:
                raise torch.OutOfMemoryError("no room")
            return forward(model, batch, batch_ids)

        monkeypatch.setattr(type(predictor.task), "forward", forward_with_little_memory)
        got = predictor.predict(ids, starts)
    assert not got.failed
    assert sizes == [
        2048,
        2048,
        1024,
        1024,
        512,
        512,
        1024,
        1024,
        512,
        512,
    ]  # each is tried again once all is done
    assert got.batches == 4
    assert gpu.waits[0] == 1  # for the whole device, between both attempts


@pytest.mark.parametrize(
    "config", [{}, {"hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16}]
)
@pytest.mark.parametrize(
    "head", [ModernBertForSequenceClassification, ModernBertForTokenClassification]
)
def test_memory_follows_the_figure_by_which_the_budget_is_chosen(monkeypatch, head, config):
    model = build(head, **config)
    per_token = bytes_per_token(
        model.config, head is ModernBertForTokenClassification, torch.bfloat16
    )
    with fake_gpu(monkeypatch) as gpu:
        put_on_gpu(model).forward_packed(batch_of())  # makes the rotary tables
        before, lengths = gpu.peak_bytes, (512,) * 64
        weights = sum(
            parameter.numel() * parameter.element_size() for parameter in model.parameters()
        )
        assert before >= weights
        gpu.peak_bytes = 0
        model.forward_packed(batch_of(lengths))
        peak = (gpu.peak_bytes - weights) / sum(lengths)
    assert 0.8 * per_token < peak < 1.2 * per_token, (peak, per_token)


def test_the_default_budget_follows_memory_model_and_task(monkeypatch):
    base, large = (
        ModernBertConfig(),
        ModernBertConfig(hidden_size=1024, intermediate_size=2624, num_attention_heads=16),
    )
    narrow, half = ModernBertConfig(intermediate_size=512), torch.bfloat16
    assert (
        gpu_budget(80 << 30, base, False, half) == gpu_budget(80 << 30, large, True, half) == 65536
    )
    assert (
        gpu_budget(1 << 30, narrow, False, half) > gpu_budget(1 << 30, narrow, True, half) > 20_000
    )
    assert gpu_budget(1 << 30, base, False, half) > 2 * gpu_budget(
        1 << 30, large, False, torch.float32
    )
    assert gpu_budget(1 << 20, large, True, half) == 1024
