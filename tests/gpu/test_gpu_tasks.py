"""Tasks that do more on the device than one head: in float32 as on the CPU, within 1e-4 on hot random weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from checkpoints import write_gliclass, write_multi_vector, write_task

for name in (
    "transformers",
    "sentence_transformers",
    "pydantic",
    "pydantic_settings",
    "pyarrow",
):  # a machine with a GPU may lack them
    pytest.importorskip(name)

from pipelines import pipeline  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXTS = ["the cat", "é 中文 the mat", "the cat sat there. " * 60, "a"]


def both(task, folder):
    return [
        pipeline(task, str(folder), device=device, dtype="float32") for device in ("cpu", "cuda")
    ]


def test_sparse(tmp_path):
    cpu, cuda = both("sparse-embedding", write_task(tmp_path, "ModernBertForMaskedLM"))
    for want, got in zip(cpu(TEXTS), cuda(TEXTS), strict=True):
        weights = {each["token_id"]: each["weight"] for each in got}
        assert all(abs(weights.get(each["token_id"], 0.0) - each["weight"]) < 1e-4 for each in want)


@pytest.mark.parametrize("as_query", [True, False])
def test_multi_vector(tmp_path, as_query):
    cpu, cuda = both("multi-vector", write_multi_vector(tmp_path))
    for want, got in zip(
        cpu(TEXTS, as_query=as_query), cuda(TEXTS, as_query=as_query), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_maxsim(tmp_path):
    cpu, cuda = both("rerank", write_multi_vector(tmp_path))
    want, got = (
        {each["index"]: each["score"] for each in pipe("the cat?", TEXTS)} for pipe in (cpu, cuda)
    )
    assert got == pytest.approx(want, abs=1e-3)  # sums of 16 products


@pytest.mark.parametrize("task", ["sparse-embedding", "multi-vector", "rerank"])
def test_nothing_waits_for_the_device_while_batches_are_started(tmp_path, task):
    folder = (
        write_task(tmp_path, "ModernBertForMaskedLM")
        if task == "sparse-embedding"
        else write_multi_vector(tmp_path)
    )
    pipe = pipeline(task, str(folder), device="cuda", dtype="bfloat16")
    predictor = pipe.predictor
    texts = [("the cat?", text) for text in TEXTS] if task == "rerank" else TEXTS
    windows = predictor.task.encode(predictor.checkpoint.tokenizer, texts)
    heads = [(predictor.task, predictor.model)]
    started = partial(predictor._launch, heads, windows.input_ids, windows.lengths)
    with torch.inference_mode():
        (fetch,) = started()
        want = fetch()  # compiles the kernels, uploads the tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            (fetch,) = started()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        np.testing.assert_array_equal(fetch(), want)


def write_nli(folder):
    labels = ["contradiction", "neutral", "entailment"]
    return write_task(folder, "ModernBertForSequenceClassification", labels=labels)


def write_pooled_gliclass(folder):
    parts = {"use_segment_embeddings": True, "use_calibrator": True}
    return write_gliclass(folder, pooling_strategy="avg", class_token_pooling="average", **parts)


@pytest.mark.parametrize("write", [write_nli, write_gliclass, write_pooled_gliclass])
def test_zero_shot(tmp_path, write):
    cpu, cuda = both("zero-shot-classification", write(tmp_path))
    for want, got in zip(cpu(TEXTS, ["cat", "mat"]), cuda(TEXTS, ["cat", "mat"]), strict=True):
        assert dict(zip(got["labels"], got["scores"], strict=True)) == pytest.approx(
            dict(zip(want["labels"], want["scores"], strict=True)), abs=1e-4
        )
