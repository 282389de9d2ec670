"""The GPU path on machines without one: every head on fake cuda tensors reads nothing back and starts few kernels."""

from __future__ import annotations

import re
import runpy
import sys
import threading
from collections import Counter
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer
from fake_cuda import fake_gpu, put_on_gpu
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.torch_version import TorchVersion

from modernbert import float8, heads
from modernbert.attention import length_classes, packed_attention, varlen_attention
from modernbert.attention_kernels import resolve_backend
from modernbert.config import ModernBertConfig
from modernbert.encoders.multi_vector import MultiVectorEncoder
from modernbert.encoders.sentence import SentenceEncoder, _pool_on_gpu
from modernbert.encoders.sparse import SparseEncoder
from modernbert.encoders.sparse_config import SparseConfig
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
from pipelines.errors import UserError
from pipelines.inference.loading import gpu_budget
from pipelines.inference.predictor import Predictor
from pipelines.options import ClassifyOptions, FillOptions, TagOptions
from pipelines.tasks.classify import Classify
from pipelines.tasks.fill import Fill, _token_ids
from pipelines.tasks.maxsim import SEPARATOR, MaxSim
from pipelines.tasks.multi_vector import MultiVector, Side
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
            starts_B, stops_B = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
            pooled = _pool_on_gpu(x_TD, starts_B, stops_B, (), pooling, 0)
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
    with fake_gpu(monkeypatch) as gpu:
        classes = length_classes(batch_of(lengths), 12, "torch_varlen")
        assert [tuple(each.seqlens) for each in classes] == [(100,) * 512, (400,) * 8, (8192,)]
        assert [(each.rows.start, each.rows.stop) for each in classes] == [
            (0, 51200),
            (51200, 54400),
            (54400, 62592),
        ]
        assert [len(each.cu_seqlens) for each in classes] == [513, 9, 2]
        q, k, v = torch.empty(sum(lengths), 3, 12, 64, dtype=torch.bfloat16, device="cuda").unbind(
            1
        )
        gpu.launches.clear()
        out = packed_attention(q, k, v, classes=classes, window=(64, 64), backend="torch_varlen")
        assert out.stride() == (768, 64, 1)
        assert gpu.launches == {"_varlen_attn_out": 3}  # nothing is put together afterwards
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
        ((10, 0), 64, ["flash_attn.cute", "flash_attn"], "flash_attn_4"),
        ((9, 0), 64, ["flash_attn.cute"], "torch_varlen"),
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
    names = {"flash_attn_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}

    @cache
    def kernel(backend):
        if names.get(backend, backend) not in ("torch_varlen", *modules):
            raise ImportError(backend)
        return lambda q, *_, **__: q

    monkeypatch.setattr("modernbert.attention_kernels._kernel", kernel)
    with fake_gpu(monkeypatch, capability):
        assert resolve_backend("auto", CUDA, torch.bfloat16, head_dim) == want
        assert resolve_backend("auto", CUDA, torch.float32, head_dim) == "sdpa"


WITHOUT_WINDOWS = """
def flash_attn_varlen_func(q, k, v, window_size, **options):
    if window_size != (-1, -1):
        raise RuntimeError("This flash attention build does not support local attention.")
    return q
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (WITHOUT_WINDOWS, "does not run here (This flash attention build does not support local"),
        ("raise KeyError('TORCH_LIB')", "cannot be imported ('TORCH_LIB')"),
        (
            "def flash_attn_varlen_func(q, k, v, **options):\n    assert False",
            "here (AssertionError)",
        ),
        ("def flash_attn_varlen_func(q, k, v, **options):\n    return q", None),
    ],
)
def test_auto_leaves_out_a_package_that_fails_and_the_error_says_how(
    monkeypatch, tmp_path, source, reason
):
    """A build of flash-attn 3 for other models, or another torch, is there and raises."""
    (tmp_path / "flash_attn_interface.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    with fake_gpu(monkeypatch):
        best = resolve_backend("auto", CUDA, torch.bfloat16, 64)
        assert best == ("torch_varlen" if reason else "flash_attn_3")
        if reason:
            with pytest.raises(ValueError, match=re.escape(reason)):
                resolve_backend("flash_attn_3", CUDA, torch.bfloat16, 64)
    sys.modules.pop("flash_attn_interface", None)


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


def work_of(gpu, function) -> Counter[str]:
    """Return the launches of a second call; what it uploads is pinned, and nothing is read back."""
    function()  # with the rotary tables of the process
    gpu.launches.clear()
    gpu.uploads.clear()
    function()
    assert all(pinned for pinned, _ in gpu.uploads)
    assert len(gpu.uploads) <= 4
    assert not gpu.downloads
    assert not gpu.waits
    return Counter(gpu.launches)


def test_chunks_are_pooled_together(monkeypatch):
    counts = []
    for chunks in (2, 50):
        encoder = build(ModernBertModel)
        config = SimpleNamespace(pooling=("mean",), layer_weights=None, token_layers=(), layers=())
        with fake_gpu(monkeypatch) as gpu:
            sentence = SentenceEncoder(put_on_gpu(encoder), config)
            spans = [(i, i + 30) for i in range(chunks)]
            forward = partial(sentence.forward_chunks, batch_of((100,)), spans)
            assert tuple(forward().shape) == (chunks, 768)
            counts.append(work_of(gpu, forward))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("model_class", "config", "shape", "dtype"), HEADS.values(), ids=HEADS)
def test_heads_start_as_many_kernels_for_any_number_of_documents(
    monkeypatch, model_class, config, shape, dtype
):
    counts = []
    for documents in (2, 50):
        model = build(model_class, **config)
        with fake_gpu(monkeypatch) as gpu:
            put_on_gpu(model)
            batch = batch_of((1600 // documents,) * documents)
            counts.append(work_of(gpu, partial(model.forward_packed, batch)))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("targets", [None, (5, 6, 8)])
def test_masks_are_filled_by_as_many_kernels_for_any_number_of_documents(monkeypatch, targets):
    task = Fill(
        max_length=512, stride=None, top_k=2, targets=targets, mask_token_id=7, mask_token="[MASK]"
    )
    counts = []
    for documents in (2, 50):
        model = build(ModernBertForMaskedLM)
        ids = np.full((documents, 1600 // documents), 5, np.int32)
        ids[:, 3] = 7
        with fake_gpu(monkeypatch) as gpu:
            put_on_gpu(model)
            batch = batch_of((1600 // documents,) * documents)
            counts.append(work_of(gpu, partial(task.forward, model, batch, ids.ravel())))
        _token_ids.cache_clear()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_sparse_weights_start_as_many_kernels_for_any_number_of_documents(monkeypatch, strategy):
    """Of 6,400 tokens: four chunks of 2,048 tokens at most, whose decoder, pooling and copy are the same."""
    counts = []
    for documents in (4, 200):
        model = build(ModernBertForMaskedLM)
        with fake_gpu(monkeypatch) as gpu:
            encoder = SparseEncoder(put_on_gpu(model), SparseConfig(Path(), strategy=strategy))
            batch = batch_of((6400 // documents,) * documents)
            counts.append(work_of(gpu, partial(encoder.launch, batch)))
    assert counts[0] == counts[1]


def test_weights_that_are_looked_up_are_not_waited_for(monkeypatch):
    with fake_gpu(monkeypatch) as gpu:
        encoder = SparseEncoder(build(ModernBertForMaskedLM), SparseConfig(Path()))
        work_of(gpu, lambda: encoder.launch(batch_of(), static=True))


SIDE = {"prompt": "", "max_length": 512, "skipped_ids": (), "only_ids": None, "lower_case": False}
QUERY = Side(**SIDE, least_length=32, expansion_id=7, attend=False)
PASSAGE = Side(**SIDE, least_length=0, expansion_id=-1, attend=False)


def multi_vector_on_gpu() -> MultiVectorEncoder:
    encoder = build(ModernBertModel)
    return MultiVectorEncoder(put_on_gpu(encoder), SimpleNamespace(dense=(), normalize=True))


def test_multi_vectors_of_expanded_queries_start_as_many_kernels_for_any_number(monkeypatch):
    task = MultiVector(
        max_length=512, stride=None, side=QUERY, size=768, pool_factor=1.0, precision="float32"
    )
    counts = []
    for queries in (2, 60):
        ids = np.full((queries, 32), 7, np.int32)
        ids[:, :9] = 5
        with fake_gpu(monkeypatch) as gpu:
            model, batch = multi_vector_on_gpu(), batch_of((32,) * queries)
            counts.append(work_of(gpu, partial(task.forward, model, batch, ids.ravel())))
    assert counts[0] == counts[1]


def test_pairs_start_as_many_kernels_for_any_number(monkeypatch):
    """Queries of 9 tokens, expanded to 32, and passages of 40 to 60, which differ from pair to pair."""
    task = MaxSim(max_length=512, stride=None, query=QUERY, passage=PASSAGE, mean=False)
    counts = []
    for pairs in (2, 60):
        ids, lengths = [], []
        for pair in range(pairs):
            query = [5] * 9 + [7] * 23
            passage = [6] * (40 + pair % 20)
            ids += [*query, SEPARATOR, *passage]
            lengths.append(len(query) + 1 + len(passage))
        with fake_gpu(monkeypatch) as gpu:
            model, batch = multi_vector_on_gpu(), batch_of(lengths)
            forward = partial(task.forward, model, batch, np.array(ids, np.int32))
            assert tuple(forward().shape) == (pairs, 1)
            counts.append(work_of(gpu, forward))
    assert counts[0] == counts[1]


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
    return lambda **options: Predictor(
        checkpoint, task, device="cuda", **{"budget_tokens": BUDGET} | options
    )


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


def test_values_that_the_device_counts_are_fetched_when_they_have_come(monkeypatch, predictor_on):
    """Their copies run beside the next batches; a count that has no memory is tried again in halves."""
    ids, starts = windows(80, 128)
    batches_counted: list[int] = []
    with fake_gpu(monkeypatch) as gpu:
        predictor = predictor_on()
        task = predictor.task
        forward = task.forward

        def forward_counting(_task, *arguments):
            values = forward(*arguments)

            def count() -> torch.Tensor:
                batches_counted.append(len(gpu.waits))
                if len(batches_counted) == 2:
                    raise torch.OutOfMemoryError("no room")
                return values

            return count

        monkeypatch.setattr(type(task), "forward", forward_counting)
        got = predictor.predict(ids, starts)
    assert not got.failed
    assert batches_counted == [1, 2, 3, 4, 5, 6, 7]  # each after a wait for its own batch
    assert got.batches == 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    ],
)
def test_running_out_of_memory_waits_tries_again_and_halves(monkeypatch, predictor_on, error):
    ids, starts = windows(16, 128)
    with fake_gpu(monkeypatch) as gpu:
        predictor = predictor_on()
        forward, sizes = predictor.task.forward, []

        def forward_with_little_memory(_task, model, batch, batch_ids):
            sizes.append(len(batch_ids))
            if len(batch_ids) > 600:
                raise error
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


def test_other_errors_are_raised(monkeypatch, predictor_on):
    ids, starts = windows(16, 128)
    with fake_gpu(monkeypatch) as gpu:
        predictor = predictor_on()

        def forward(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(type(predictor.task), "forward", forward)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            predictor.predict(ids, starts)
    assert not gpu.waits


def test_two_models_of_a_process_never_launch_at_once(monkeypatch, predictor_on):
    """A capture of a CUDA graph would take up what the other model launches."""
    both_launch = threading.Barrier(2)
    overlaps: list[bool] = []

    def forward(*_):
        try:
            both_launch.wait(timeout=0.2)
            overlaps.append(True)
        except threading.BrokenBarrierError:
            overlaps.append(False)
            both_launch.reset()
        return torch.zeros(1)

    with fake_gpu(monkeypatch):
        predictors = [predictor_on(), predictor_on()]
    monkeypatch.setattr(type(predictors[0].task), "forward", forward)
    monkeypatch.setattr(Predictor, "_download", lambda *_: lambda: np.zeros(1))
    monkeypatch.setattr(PackedBatch, "from_arrays", lambda *_: None)
    threads = [
        threading.Thread(target=each._launch, args=([(each.task, None)], np.zeros(1), np.ones(1)))
        for each in predictors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [False, False]


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "tf32"), ("float32", "ieee")])
def test_heads_of_half_precision_encoders_run_in_tf32(monkeypatch, predictor_on, dtype, precision):
    ids, starts = windows(2, 16)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen: list[str] = []
    with fake_gpu(monkeypatch):
        predictor = predictor_on(dtype=dtype)
        forward = predictor.task.forward

        def forward_seen(_task, *arguments):
            seen.append(matmul.fp32_precision)
            return forward(*arguments)

        monkeypatch.setattr(type(predictor.task), "forward", forward_seen)
        predictor.predict(ids, starts)
    assert seen == [precision]
    assert matmul.fp32_precision == before  # the setting of the process stays


def test_the_backend_and_missing_kernels_are_told(monkeypatch, predictor_on):
    with fake_gpu(monkeypatch):
        predictor = predictor_on()
        assert predictor.attention == "torch_varlen"
        monkeypatch.setattr("modernbert.gpu.kernels_for", lambda _: None)
        assert (
            predictor.attention == "torch_varlen, without Triton's kernels, at about half the speed"
        )


def test_a_gpu_without_bfloat16_runs_in_float16(monkeypatch, predictor_on):
    with fake_gpu(monkeypatch, capability=(7, 5)):
        assert predictor_on().dtype == "float16"
        message = "bfloat16 is emulated on a GPU of compute capability 7.5, .* use dtype float16"
        with pytest.raises(UserError, match=message):
            predictor_on(dtype="bfloat16")
    with fake_gpu(monkeypatch, capability=(8, 0)):
        assert predictor_on().dtype == "bfloat16"


@pytest.mark.parametrize(
    ("capability", "version", "has_graphs"),
    [((8, 9), "2.11.0", False), ((8, 9), "2.12.0", True), ((9, 0), "2.11.0", True)],
)
def test_float8_has_no_graphs_where_its_products_ignore_the_stream(
    monkeypatch, caplog, predictor_on, capability, version, has_graphs
):
    enabled: list[bool] = []
    monkeypatch.setattr(ModernBertModel, "enable_graphs", lambda _: enabled.append(True))
    monkeypatch.setattr(float8, "quantise", lambda _: None)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with fake_gpu(monkeypatch, capability):
        predictor_on(dtype="float8", graphs=True)
    assert bool(enabled) == has_graphs
    said = [record.getMessage() for record in caplog.records]
    assert any("without CUDA graphs" in each for each in said) != has_graphs


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


@pytest.mark.parametrize("name", ["pydantic", "pydantic_settings", "pyarrow", "transformers"])
def test_tests_of_a_gpu_are_collected_where_a_library_is_missing(monkeypatch, name):
    """Those that need it are skipped; an error in collection would lose all of tests/gpu."""
    monkeypatch.setitem(sys.modules, name, None)
    folder = Path(__file__).parents[1] / "gpu"
    needing = []
    for file in sorted(folder.glob("test_*.py")):
        try:
            runpy.run_path(str(file))
        except pytest.skip.Exception:
            needing.append(file.stem)
    tasks_alone = ["test_gpu_tasks"] if name == "transformers" else []
    assert needing == (tasks_alone or ["test_gpu_predictor", "test_gpu_tasks"])
