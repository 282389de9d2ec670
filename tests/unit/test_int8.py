"""Products in int8 on CPUs: what they round, what they do not depend on, where they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import make_hot, relative_error

from modernbert import int8
from modernbert.config import ModernBertConfig
from modernbert.int8 import Int8Linear, quantise
from modernbert.linear import Linear, prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from pipelines import pipeline
from pipelines.checkpoints import Checkpoint
from pipelines.inference.loading import ModelRun
from pipelines.inference.predictor import Predictor
from pipelines.options import ClassifyOptions, EmbedOptions
from pipelines.raydata import actor
from pipelines.tasks.classify import Classify
from pipelines.tasks.embed import Embed

DEMO = Path(__file__).parents[2] / "jobs/demo"
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
has_int8 = torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()
needs_int8 = pytest.mark.skipif(not has_int8, reason="the processor has no AVX512_VNNI or AMX")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_product_is_that_of_the_rounded_rows_and_weights(bias, dtype):
    """Exactly but for the rounding of sums: within an int32, a product of int8 is exact."""
    torch.manual_seed(0)
    linear = Linear(96, 48, bias=bias)
    linear.weight[3] = 0.0
    product = Int8Linear(linear)
    x = torch.randn(32, 96, dtype=dtype) * torch.logspace(-6, 4, 32)[:, None].to(dtype)
    x[5] = 0.0
    residual = torch.randn(32, 48, dtype=dtype)
    scales = (x.double().abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    rounded = (x.float() / scales.float()).round().clamp(-127, 127).double() * scales
    weight = product.weight.double() * product.scales.double()[:, None]
    want = rounded @ weight.t() + residual.double()
    if bias:
        want += linear.bias.double()
    got = product(x, residual)
    assert got.dtype == dtype
    # A value half way between two may be rounded to either: a step of the largest value of its row.
    step = (scales * weight.abs().amax()).clamp(min=1e-6)
    eps = 2**-8 if dtype == torch.bfloat16 else 1e-5
    assert ((got.double() - want).abs() <= step + eps * want.abs()).all()
    assert relative_error(weight.float(), linear.weight) < 0.01


@needs_int8
@pytest.mark.parametrize("config", [{}, BIASES], ids=["as published", "all biases"])
@torch.inference_mode()
def test_a_model_is_near_its_twin_and_no_answer_depends_on_its_neighbours(config):
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    layers = {"num_hidden_layers": 4, "vocab_size": 300, "pad_token_id": 0, "local_attention": 16}
    model = ModernBertModel(ModernBertConfig(**shape | layers | config)).eval()
    make_hot(model, 1.0)
    lengths = (5, 40, 90, 300)
    ids = torch.randint(3, 300, (sum(lengths),))
    want = model.forward_packed(PackedBatch.from_lengths(ids, lengths))
    quantise(model)
    prepack(model)
    got = model.forward_packed(PackedBatch.from_lengths(ids, lengths))
    # A row and a weight are each off by up to 0.4% of their largest value; 1 would be no relation.
    assert 1e-4 < relative_error(got, want) < 0.05
    for i, (one, part) in enumerate(zip(ids.split(lengths), got.split(lengths), strict=True)):
        alone = model.forward_packed(PackedBatch.from_lengths(one, (lengths[i],)))
        assert torch.equal(alone, part)


def test_a_processor_without_it_is_refused_at_once(monkeypatch, checkpoint):
    """An actor does not try again, as it does where a server or a device may be busy."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    message = "dtype int8 needs a processor with AVX512_VNNI or AMX"
    with pytest.raises(ValueError, match=message):
        quantise(torch.nn.Linear(2, 2))

    class Reports:
        """Those of an actor of which others start."""

        watch = object()

        def __init__(self, *_):
            pass

        def start(self):
            return 1

        def no_other_actor_starts(self):
            raise AssertionError("the failure is not final")

    monkeypatch.setattr(actor, "Reports", Reports)
    model = Checkpoint.open(checkpoint)
    task = Classify.from_checkpoint(model, ClassifyOptions())
    run = ModelRun(
        model=model, task=task, device="cpu", dtype="int8", budget_tokens=64, batch_timeout_s=60
    )
    assert message in actor.Predict(run).start_error


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_what_is_no_product_is_in_the_faster_dtype(monkeypatch, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert int8.compute_dtype() == dtype


@needs_int8
def test_the_demo_models_answer_in_int8_as_in_fp32():
    """On all 300 texts 99.7% of labels, an F1 of 0.990 of entities, a cosine of 0.99998 and more."""
    lines = (DEMO / "held_out_messages.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines[:100]]
    labels, entities, vectors = [], [], []
    for dtype in ("float32", "int8"):
        classify = pipeline("text-classification", str(DEMO / "intent-classifier"), dtype=dtype)
        labels.append([answer["label"] for answer in classify(texts)])
        tag = pipeline(
            "token-classification",
            str(DEMO / "pii-tagger"),
            dtype=dtype,
            aggregation_strategy="simple",
        )
        entities.append(
            {
                (row, entity["entity_group"], entity["start"], entity["end"])
                for row, answer in enumerate(tag(texts))
                for entity in answer
            }
        )
        checkpoint = Checkpoint.open(str(DEMO / "sentence-encoder"))
        embed = Predictor(
            checkpoint, Embed.from_checkpoint(checkpoint, EmbedOptions()), dtype=dtype
        )
        outputs, _ = embed.answer(texts)
        vectors.append(torch.from_numpy(outputs.values))
    same = sum(one == other for one, other in zip(*labels, strict=True))
    assert same >= 98
    common = len(entities[0] & entities[1])
    assert 2 * common / (len(entities[0]) + len(entities[1])) > 0.97
    assert torch.cosine_similarity(*vectors).min() > 0.999
