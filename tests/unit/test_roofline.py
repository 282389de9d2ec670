"""benchmarks/roofline.py counts the operations that a model starts, and benchmarks/README.md has its tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import fake_gpu, put_on_gpu

from benchmarks import roofline
from modernbert.config import ModernBertConfig
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2624,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
# What a launch on fake tensors is called; torch's varlen kernel is two, of which one sets 16 bytes.
NAMES = {
    "product": ("mm", "addmm_", "linear"), "LayerNorm": ("native_layer_norm", "layer_norm"), "RoPE": ("rotate",),
    "GeGLU": ("geglu",), "embeddings": ("embedding",), "attention": ("_varlen_attn",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "config"), [(roofline.BASE, {}), (roofline.LARGE, LARGE)], ids=["base", "large"]
)
def test_the_operations_are_those_that_a_model_starts(monkeypatch, model, config):
    with torch.device("meta"):
        encoder = ModernBertModel(ModernBertConfig(**config))
    with fake_gpu(monkeypatch) as gpu:
        put_on_gpu(encoder)
        batch = PackedBatch.from_arrays(np.zeros(1024, np.int32), (512, 512), torch.device("cuda"))
        encoder.forward_packed(batch)  # tries the backend of attention
        gpu.launches.clear()
        encoder.forward_packed(batch)
        started = gpu.launches
    counted: Counter[str] = Counter()
    for each in roofline.operations(model, 512, roofline.Plan()):
        counted[each.kind if each.kind in NAMES else each.name] += each.times
    counted["attention"] *= 2
    assert counted == {kind: sum(started[name] for name in names) for kind, names in NAMES.items()}
    assert sum(counted.values()) == sum(started.values())


@pytest.mark.parametrize(
    ("length", "queries", "keys", "window", "pairs"),
    [
        (128, 128, 128, None, 128 * 128), (129, 128, 128, None, 4 * 128 * 128), (512, 128, 128, 64, 10 * 128 * 128),
        (512, 64, 64, 64, (2 + 6 * 3 + 2) * 64 * 64),
    ],
)  # fmt: skip
def test_tiles_of_attention_are_counted_with_what_is_empty_in_them(
    length, queries, keys, window, pairs
):
    assert roofline.tile_pairs(length, queries, keys, window) == pairs


def test_the_readme_has_the_tables():
    readme = (Path(__file__).parents[2] / "benchmarks/README.md").read_text().splitlines()
    tables = (
        roofline.budget(roofline.BASE),
        roofline.ideas(roofline.BASE),
        roofline.limits(roofline.BASE),
        roofline.predictions(),
    )
    missing = [line for table in tables for line in table if line not in readme]
    assert not missing, "run python benchmarks/roofline.py"
