"""The Triton kernels against fp64, and the model with them against the model without: on a GPU, or interpreted.

The interpreter turns fp32 into bf16 by cutting bits off, where a GPU rounds to the nearest: bf16 has a wider tolerance.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_hot, relative_error

pytest.importorskip(
    "triton", reason="Triton comes with torch's CUDA builds, and with the extra `test`"
)

from modernbert import float8, gpu, kernels
from modernbert.config import ModernBertConfig
from modernbert.encoders import sparse
from modernbert.encoders.sparse import SparseEncoder
from modernbert.encoders.sparse_config import SparseConfig
from modernbert.heads import (
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.rope import apply_rope, rope_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (1, 2, 33, 64, 65, 5)
T = sum(LENGTHS)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def starts_of(lengths) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)


@dtypes
@pytest.mark.parametrize(("heads", "dim"), [(12, 64), (16, 64), (3, 64), (1, 24), (2, 128)])
def test_rotation_turns_queries_and_keys_and_leaves_values(heads, dim, dtype):
    qkv = random(T, 3, heads, dim, dtype=dtype)
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).int().to(DEVICE)
    tables = rope_table(10_000.0, dim, 128, DEVICE)
    want = apply_rope(qkv[:, :2].double(), *(table[positions].double() for table in tables))
    values = qkv[:, 2].clone()
    kernels.rotate_(qkv, *tables, positions)
    assert relative_error(qkv[:, :2].double(), want) < TOLERANCE[dtype]
    assert torch.equal(qkv[:, 2], values)


@dtypes
@pytest.mark.parametrize("width", [1152, 2624, 96, 17])
def test_geglu_has_the_exact_erf(width, dtype):
    y = random(T, 2 * width, dtype=dtype)
    a, b = y.double().chunk(2, -1)
    got = kernels.geglu(y).double()
    assert relative_error(got, F.gelu(a) * b) < 1.3 * TOLERANCE[dtype]
    assert (
        relative_error(got, F.gelu(a, approximate="tanh") * b) > 1e-4
    )  # the other function is told apart


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", kernels.POOLING)
def test_pooling_equals_the_cpu_path(pooling, dtype, skip):
    from modernbert.encoders.sentence import _POOLING_FUNCTIONS

    twins = _POOLING_FUNCTIONS | {"sum": lambda x_LD, skip: x_LD[skip:].sum(dim=0)}
    lengths = [n + skip for n in LENGTHS]
    x = random(sum(lengths), 100, dtype=dtype)
    got = kernels.pool_sequences(x, starts_of(lengths), pooling, skip)
    want = torch.stack([twins[pooling](x_LD.double(), skip) for x_LD in x.split(lengths)])
    assert relative_error(got.double(), want) < 1e-6  # both read the same numbers, and sum in fp32
    alone = kernels.pool_sequences(
        x[lengths[0] : sum(lengths[:2])].contiguous(), starts_of(lengths[1:2]), pooling, skip
    )
    assert torch.equal(alone[0], got[1])  # not a bit depends on the other sequences


def test_stretches_that_overlap_are_pooled():
    x = random(40, 20)
    spans = [(0, 40), (3, 17), (16, 17), (10, 40)]
    starts, stops = torch.tensor(spans, dtype=torch.int32, device=DEVICE).T.contiguous()
    got = kernels.pool_stretches(x, starts, stops, "mean")
    want = torch.stack([x[start:stop].double().mean(0) for start, stop in spans])
    assert relative_error(got.double(), want) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pooling", kernels.POOLING)
def test_pooling_passes_on_what_is_no_number(pooling, bad):
    x = random(T, 64)
    x[5, 7] = bad
    pooled = kernels.pool_sequences(x, starts_of(LENGTHS), pooling)
    finite = pooled.isfinite()
    assert not finite[2, 7]
    assert finite.sum() == finite.numel() - 1


@dtypes
@pytest.mark.parametrize(("width", "bias"), [(768, False), (96, True), (17, False)])
def test_layer_norm(width, bias, dtype):
    x, weight = random(T, width, dtype=dtype) + 3.0, random(width, dtype=dtype, seed=2)
    shift = random(width, dtype=dtype, seed=3) if bias else None
    got = kernels.layer_norm(x, weight, shift, 1e-5)
    exact = F.layer_norm(
        x.double(), (width,), weight.double(), None if shift is None else shift.double(), 1e-5
    )
    assert got.dtype == dtype
    assert relative_error(got.double(), exact) < TOLERANCE[dtype]
    assert torch.equal(kernels.layer_norm(x[5:6], weight, shift, 1e-5), got[5:6])
    columns = torch.cat((x, x), 1)[:, width:]  # rows that are not contiguous
    assert torch.equal(kernels.layer_norm(columns, weight, shift, 1e-5), got)


@pytest.mark.parametrize("width", [768, 96])
@pytest.mark.parametrize("bias", [True, False])
def test_norm_in_float8(width, bias):
    x, weight = random(T, width), random(width, seed=2)
    shift = random(width, seed=3) if bias else None
    values, scales = kernels.norm_float8(x, weight, shift, 1e-5)
    want = F.layer_norm(
        x.double(), (width,), weight.double(), None if shift is None else shift.double(), 1e-5
    )
    assert values.dtype == torch.float8_e4m3fn
    assert torch.allclose(scales[:, 0].double(), want.abs().amax(1) / 448, rtol=1e-5)
    assert_float8(values, scales, want)


@pytest.mark.parametrize("width", [1152, 96, 64, 17])
def test_geglu_in_float8(width):
    y = random(T, 2 * width)
    a, b = y.double().chunk(2, -1)
    assert_float8(*kernels.geglu_float8(y), F.gelu(a) * b)


def assert_float8(values: torch.Tensor, scales: torch.Tensor, want: torch.Tensor) -> None:
    """The values are those that torch rounds to; fp32 sums on the way may turn a tie."""
    expected = (want / scales).float().to(torch.float8_e4m3fn).float()
    compared = torch.ones_like(expected, dtype=torch.bool)
    if DEVICE == "cpu":  # the interpreter loses the carry where it rounds up to a power of two
        compared = torch.frexp(expected.abs()).mantissa != 0.5
    assert compared.float().mean() > 0.8
    assert (values.float() == expected)[compared].float().mean() > 0.999


@pytest.fixture
def use_kernels(monkeypatch):
    """A function that switches the kernels on or off, whatever the device is."""
    return lambda on: monkeypatch.setattr(gpu, "kernels_for", lambda _: kernels if on else None)


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
}
CONFIGS = {
    "as published": {},
    "all biases": {
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "classifier_bias": True,
    },
    "mean pooling": {"classifier_pooling": "mean"},
    "another activation": {"hidden_activation": "silu"},
    "narrow heads": {"num_attention_heads": 16},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "model_class", [ModernBertForSequenceClassification, ModernBertForTokenClassification]
)
@torch.inference_mode()
def test_a_model_with_kernels_is_its_twin_without(use_kernels, model_class, config):
    model = model_class(
        ModernBertConfig(vocab_size=300, local_attention=16, **SHAPE | config)
    ).eval()
    make_hot(model, 2.5)
    model.to(DEVICE)
    batch = PackedBatch.from_lengths(torch.randint(3, 300, (T,), device=DEVICE), LENGTHS)
    states: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    logits = {}
    for on in states:
        use_kernels(on)
        logits[on] = model.forward_packed(batch)
        model.model.forward_packed(batch, states[on])
    assert relative_error(logits[True], logits[False]) < 1e-5
    for got, want in zip(
        states[True], states[False], strict=True
    ):  # none is overwritten by a later layer
        assert relative_error(got, want) < 1e-5


@torch.inference_mode()
def test_given_positions_and_maps_with_kernels(use_kernels):
    model = (
        ModernBertModel(ModernBertConfig(vocab_size=300, local_attention=16, **SHAPE))
        .eval()
        .to(DEVICE)
    )
    make_hot(model, 2.5)
    ids = torch.randint(3, 300, (2, 40), device=DEVICE)
    inputs = {
        "input_ids": ids,
        "position_ids": torch.arange(40, device=DEVICE) * 7,
        "output_attentions": True,
    }
    use_kernels(False)
    want = model(**inputs)
    use_kernels(True)
    got = model(**inputs)
    assert relative_error(got.last_hidden_state, want.last_hidden_state) < 1e-5
    for ours, theirs in zip(got.attentions, want.attentions, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def multiply_in_fp32(x, weight_ED, scales_1E, dtype):
    """`scaled_product` on a CPU."""
    return ((x.values.float() * x.scales) @ (weight_ED.float() * scales_1E.t()).t()).to(dtype)


@pytest.mark.parametrize("config", [{}, CONFIGS["all biases"]], ids=["as published", "all biases"])
@torch.inference_mode()
def test_a_model_in_float8_is_near_its_twin(monkeypatch, use_kernels, config):
    """A product of e4m3 rows is off by 3-4%, a model of four layers by a little more; 1 would be no relation."""
    model = ModernBertModel(
        ModernBertConfig(vocab_size=300, local_attention=16, **SHAPE | config)
    ).eval()
    make_hot(model, 1.0)
    model.to(DEVICE)
    batch = PackedBatch.from_lengths(torch.randint(3, 300, (T,), device=DEVICE), LENGTHS)
    use_kernels(True)
    want = model.forward_packed(batch)
    if DEVICE == "cpu":
        monkeypatch.setattr(float8, "scaled_product", multiply_in_fp32)
        monkeypatch.setattr(float8, "_check", lambda *_: None)
    float8.quantise(model)
    assert 0.01 < relative_error(model.forward_packed(batch), want) < 0.15


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
@torch.inference_mode()
def test_sparse_weights_pooled_together_are_those_of_each_sequence(
    monkeypatch, use_kernels, strategy, activation
):
    """Chunks of 32 tokens hold whole sequences; those of 33 to 65 are cut, from their own start."""
    monkeypatch.setitem(sparse.CHUNK_ROWS, "cuda", 32)
    monkeypatch.setitem(sparse.CHUNK_ROWS, "cpu", 32)
    model = ModernBertForMaskedLM(ModernBertConfig(vocab_size=300, **SHAPE)).eval()
    make_hot(model, 2.5)
    encoder = SparseEncoder(
        model.to(DEVICE), SparseConfig(Path(), strategy=strategy, activation=activation)
    )
    batch = PackedBatch.from_lengths(torch.randint(3, 300, (T,), device=DEVICE), LENGTHS)
    weights = {}
    for on in (False, True):
        use_kernels(on)
        rows_R3 = encoder.forward_packed(batch)
        sequences_R, ids_R = rows_R3[:, :2].long().T
        weights[on] = torch.zeros(len(LENGTHS), 300)
        weights[on][sequences_R, ids_R] = rows_R3[:, 2]
    # A score that is all but zero may be a weight in one of them alone.
    assert relative_error(weights[True], weights[False]) < 1e-5


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run here")
def test_kernels_that_do_not_run_are_warned_of(monkeypatch, caplog):
    gpu._kernels.cache_clear()
    monkeypatch.setattr(kernels, "geglu", lambda _: 1 / 0)
    assert gpu._kernels(torch.device("cpu")) is None
    assert "Triton's kernels do not run on cpu (ZeroDivisionError" in caplog.text
    gpu._kernels.cache_clear()


@pytest.mark.parametrize(
    ("variables", "moves"),
    [
        ({"HOME": "/dev/null"}, True),
        ({"TRITON_HOME": "/dev/null/cache"}, True),
        ({"HOME": "/dev/null", "TRITON_CACHE_DIR": "/set/by/hand"}, False),
        ({}, False),
    ],
)
def test_what_triton_compiles_is_kept_where_it_can_be_written(
    monkeypatch, tmp_path, variables, moves
):
    for name, value in ({"HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    if "TRITON_CACHE_DIR" not in variables:
        monkeypatch.setenv("TRITON_CACHE_DIR", "to be restored")
        del os.environ["TRITON_CACHE_DIR"]
    gpu._find_cache()
    chosen = os.environ.get("TRITON_CACHE_DIR")
    if moves:
        assert os.access(chosen, os.W_OK)
    else:
        assert chosen == variables.get("TRITON_CACHE_DIR")
