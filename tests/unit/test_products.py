"""Products that go on with GeGLU and RoPE: against fp64 and their twins in Triton's interpreter, and when they are used.

The interpreter has no products of bfloat16: float16 stands in for it.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_hot, relative_error
from fake_cuda import fake_gpu, put_on_gpu

pytest.importorskip(
    "triton", reason="Triton comes with torch's CUDA builds, and with the extra `test`"
)

from modernbert import fusions, gpu, kernels, products
from modernbert.config import ModernBertConfig
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.rope import apply_rope, rope_table
from modernbert.tiles import Fusions, Tile, fusions_named, tiles_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4}
# On a GPU its own tiles; interpreted, few rows at a time, so that there are several.
SMALL = Tile(32, 128, 32, warps=4, stages=2, programs=1, tma=False)
TILES = (
    tiles_for(torch.cuda.get_device_capability())
    if DEVICE == "cuda"
    else (SMALL, SMALL._replace(depth=64, columns=256, tma=True))
)
DTYPES = [torch.float16] if DEVICE == "cuda" else list(TOLERANCE)
# Tokens, hidden, MLP width, heads: sizes that no tile divides, those of base and of large.
SHAPES = [(127, 72, 104, 3), (129, 128, 96, 2), (31, 100, 52, 1)]
OF_MODELS = [(33, 768, 1152, 12), (1, 1024, 2624, 16)]
CASES = [(*shape, dtype, tile) for shape in SHAPES for dtype in DTYPES for tile in TILES]
CASES += [(*shape, torch.float16, TILES[-1]) for shape in OF_MODELS]
cases = pytest.mark.parametrize(("tokens", "hidden", "width", "heads", "dtype", "tile"), CASES)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def operands(tokens, hidden, outputs, dtype):
    return random(tokens, hidden, dtype=dtype), random(
        outputs, hidden, dtype=dtype, seed=1
    ) * hidden**-0.5


@cases
def test_geglu_in_its_product(tokens, hidden, width, heads, dtype, tile):
    x, weight = operands(tokens, hidden, 2 * width, dtype)
    a, b = F.linear(x.double(), weight.double()).chunk(2, -1)
    got = products.gated_product(x, weight, tile)
    assert (tuple(got.shape), got.dtype) == ((tokens, width), dtype)
    error = relative_error(got.double(), F.gelu(a) * b)
    twin = relative_error(kernels.geglu(F.linear(x, weight)).double(), F.gelu(a) * b)
    # It rounds once, where the twin rounds three times.
    assert error < min(TOLERANCE[dtype], max(twin, 5e-7))


@cases
def test_rope_in_its_product(tokens, hidden, width, heads, dtype, tile):
    head_dim = 32 if heads == 3 else 64
    inner = heads * head_dim
    x, weight = operands(tokens, hidden, 3 * inner, dtype)
    cos, sin = rope_table(10_000.0, head_dim, 8192, DEVICE)
    positions = (torch.arange(tokens, dtype=torch.int32) * 97 % 8192).to(DEVICE)
    got = products.rotated_product(x, weight, cos, sin, positions, tile)
    exact = F.linear(x.double(), weight.double()).view(tokens, 3, heads, head_dim)
    turned = apply_rope(exact[:, :2], cos[positions].double(), sin[positions].double())
    want = torch.cat((turned.double(), exact[:, 2:]), 1)
    assert relative_error(got.double().view_as(want), want) < TOLERANCE[dtype]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_bit_of_a_row_depends_on_how_many_there_are(dtype, tile):
    x, gated = operands(200, 96, 2 * 80, dtype)
    rotated = random(3 * 128, 96, dtype=dtype, seed=2)
    tables = rope_table(10_000.0, 64, 256, DEVICE)
    positions = torch.arange(200, dtype=torch.int32, device=DEVICE)
    all_gated = products.gated_product(x, gated, tile)
    all_rotated = products.rotated_product(x, rotated, *tables, positions, tile)
    for rows in (1, 32, 129):
        assert torch.equal(products.gated_product(x[:rows], gated, tile), all_gated[:rows])
        got = products.rotated_product(x[:rows], rotated, *tables, positions[:rows], tile)
        assert torch.equal(got, all_rotated[:rows])


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_gelu_of_every_number_of_bfloat16():
    """Within 4e-7 up to 10, and a relative 9e-7 of positive numbers; what is no number stays none."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    a = (bits - (1 << 15)).to(torch.int16).view(torch.bfloat16).float()
    halves = torch.cat((a.view(256, 256), torch.ones(256, 256)), 1).to(DEVICE)
    got = kernels.geglu(halves).flatten().double().cpu()
    finite = a.isfinite()
    assert got.isfinite().equal(finite)
    a, got = a[finite].double(), got[finite]
    error = (got - F.gelu(a)).abs()
    assert error[a.abs() < 10].max() < 4e-7
    positive = a > 1e-30
    assert (error[positive] / a[positive]).max() < 9e-7
    assert got[a < -14].abs().max() < 1e-30


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
}
LENGTHS = (1, 33, 64, 65, 5)


@torch.inference_mode()
@pytest.mark.skipif(DEVICE == "cuda", reason="in float32, which products are not fused in")
@pytest.mark.parametrize(
    "chosen",
    [Fusions(SMALL, SMALL, True), Fusions(SMALL), Fusions(None, SMALL), Fusions(norm=True)],
)
def test_a_model_with_fused_products_is_its_twin_without(monkeypatch, chosen):
    model = ModernBertModel(ModernBertConfig(vocab_size=300, local_attention=16, **SHAPE)).eval()
    make_hot(model, 2.5)
    batch = PackedBatch.from_lengths(torch.randint(3, 300, (sum(LENGTHS),)), LENGTHS)
    fusions.use(model, chosen)
    without_kernels = model.forward_packed(batch)
    monkeypatch.setattr(gpu, "kernels_for", lambda _: kernels)
    fused = model.forward_packed(batch)
    fusions.use(model, Fusions())
    apart = model.forward_packed(batch)
    assert not torch.equal(fused, apart)
    assert relative_error(fused, apart) < 1e-5
    assert relative_error(fused, without_kernels) < 1e-5


@pytest.mark.skipif(DEVICE == "cuda", reason="the GPU is a fake")
@pytest.mark.parametrize(
    ("chosen", "launches"),
    [(Fusions(), 10), (Fusions(SMALL), 9), (Fusions(None, SMALL), 9), (Fusions(SMALL, SMALL), 8)],
)
def test_each_fusion_is_a_launch_less(monkeypatch, chosen, launches):
    monkeypatch.setattr(
        products, "gated_product", lambda x, w, **_: x.new_empty(len(x), len(w) // 2)
    )
    monkeypatch.setattr(
        products, "rotated_product", lambda x, w, *_, **__: x.new_empty(len(x), len(w))
    )
    fused = (chosen.geglu is not None) + (chosen.rope is not None)
    counts = {}
    for layers in (4, 7):
        with torch.device("meta"):
            model = ModernBertModel(ModernBertConfig(num_hidden_layers=layers))
        with fake_gpu(monkeypatch) as seen:
            fusions.use(put_on_gpu(model), chosen)
            batch = PackedBatch.from_arrays(np.zeros(1024, np.int32), (1024,), torch.device("cuda"))
            seen.launches.clear()
            model.forward_packed(batch)
            counts[layers] = sum(seen.launches.values())
    assert (counts[7] - counts[4]) / 3 + fused == launches


# ---- which are used


@pytest.fixture
def timed(monkeypatch):
    """A function that chooses a tile on a GPU where each way takes the seconds that are given for it."""
    monkeypatch.setattr(gpu, "compute_capability", lambda _: (9, 0))
    first, second = tiles_for((9, 0))

    def choose(apart_s, first_s, second_s, **changes):
        seconds = {"apart": apart_s, first: first_s, second: second_s}

        def result(way, x):
            out = x * 2.0 if way == "apart" else changes.get("result", lambda x, _: x * 2.0)(x, way)
            result.last = way
            return out

        def seconds_of(call):
            rows = len(call())
            return seconds[result.last] * rows

        others = {tile: partial(result, tile) for tile in (first, second)}
        usual = partial(result, "apart")
        return fusions.fastest_way(
            "GeGLU, tiles of", usual, others, torch.ones(2048, 4), seconds_of
        )

    return choose


def test_a_fusion_that_loses_or_all_but_ties_is_not_used(timed):
    first, second = tiles_for((9, 0))
    assert timed(1.0, 1.2, 1.1) is None
    assert timed(1.0, 0.98, 0.97) is None
    assert timed(1.0, 0.8, 0.9) == first
    assert timed(1.0, 0.8, 0.78) == first  # processes choose alike
    assert timed(1.0, 0.8, 0.7) == second
    assert timed(1.0, 1.2, 0.7) == second


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, _: x * 2.2, "differs from the usual way by 1.0e-01"),
        (lambda x, _: x * float("nan"), "differs from the usual way by nan"),
        (lambda x, _: x * 2 + len(x) * 1e-6, "gives other bits with other numbers of rows"),
        (lambda *_: 1 / 0, "fails (division by zero)"),
    ],
)
def test_a_fusion_that_is_wrong_is_not_used_and_said(timed, caplog, wrong, message):
    first, second = tiles_for((9, 0))
    assert timed(1.0, 0.5, 0.5, result=wrong) is None
    assert caplog.text.count(message) == 2
    caplog.clear()
    one_wrong = lambda x, tile: wrong(x, tile) if tile == first else x * 2.0  # noqa: E731
    assert timed(1.0, 0.5, 0.5, result=one_wrong) == second
    assert f"tiles of {first}, is not used" in caplog.text


@pytest.mark.parametrize(
    ("config", "timed_products"),
    [
        ({}, ["geglu", "rope"]),
        ({"mlp_bias": True}, ["rope"]),
        ({"attention_bias": True}, ["geglu"]),
        ({"hidden_activation": "silu"}, ["rope"]),
        ({"hidden_size": 768, "num_attention_heads": 8}, ["geglu"]),  # heads of 96
    ],
)
def test_what_can_be_fused(monkeypatch, config, timed_products):
    asked: list[str] = []
    monkeypatch.setattr(fusions, "fastest_gated", lambda *_: asked.append("geglu"))
    monkeypatch.setattr(fusions, "fastest_rotated", lambda *_: asked.append("rope"))
    monkeypatch.setattr(fusions, "fastest_norm", lambda *_: False)
    with torch.device("meta"):
        model = ModernBertModel(ModernBertConfig(**{"num_hidden_layers": 2} | config)).bfloat16()
    monkeypatch.setattr(gpu, "kernels_for", lambda _: kernels)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert fusions.fastest(model) == Fusions()
    assert asked == timed_products
    asked.clear()
    fusions.fastest(model.float())
    assert not asked  # float32 would be rounded to TF32
    # Those of another model are used as far as this one has what they compute.
    fusions.use(model, Fusions(SMALL, SMALL))
    used = {"geglu": model.layers[0].mlp.Wi.product, "rope": model.layers[0].attn.product}
    assert [name for name, product in used.items() if product] == timed_products


def test_without_memory_to_time_it_nothing_is_fused(monkeypatch, caplog):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(fusions, "fastest_gated", lambda *_: SMALL)
    monkeypatch.setattr(fusions, "fastest_rotated", full)
    with torch.device("meta"):
        model = ModernBertModel(ModernBertConfig(num_hidden_layers=1)).bfloat16()
    monkeypatch.setattr(gpu, "kernels_for", lambda _: kernels)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert fusions.fastest(model) == Fusions()
    assert "no memory to time layers" in caplog.text


def test_without_triton_layers_run_as_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "modernbert.products", None)  # its import raises
    monkeypatch.delattr("modernbert.products")
    with torch.device("meta"):
        model = ModernBertModel(ModernBertConfig(num_hidden_layers=1))
    fusions.use(model, Fusions())
    assert model.layers[0].attn.product is None


def test_fusions_are_found_by_their_text():
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        for chosen in (
            Fusions(),
            Fusions(*tiles_for(capability)),
            Fusions(None, tiles_for(capability)[0], True),
        ):
            assert fusions_named(str(chosen), capability) == chosen
    assert fusions_named("GeGLU in another way", (9, 0)) is None
