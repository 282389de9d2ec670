"""The packed model against transformers in fp32 on hot checkpoints; packs against documents alone, bit for bit.

Tolerance: 2e-5 of the norm of the logits. Right code in another order of operations differs by about 1e-6 here, and
transformers' own two attention paths by 1e-5; a window off by one or swapped thetas show as more than 1e-1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import relative_error, write_checkpoint
from conftest import SOAK

from modernbert.checkpoint import load
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.linear import prepack
from modernbert.packing import PackedBatch

BASE_LAYERS = 22 if SOAK else 6
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 130, 300, 1024)
BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
LOCAL_FIRST = [
    "sliding_attention",
    "sliding_attention",
    "full_attention",
    "sliding_attention",
    "full_attention",
]
CONFIGS = {
    "tiny": {},
    "biases, mean pooling, head dim 64": BIASED
    | {"num_attention_heads": 1, "classifier_pooling": "mean"},
    "one layer": {"num_hidden_layers": 1},
    "window of 32": {"local_attention": 32},
    "local layers first": {"num_hidden_layers": 5, "layer_types": LOCAL_FIRST},
    "all local, other thetas": {
        "layer_types": ["sliding_attention"] * 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 777.0},
        },
    },
    "tanh gelu, head dim 32, odd widths": {
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": 90,
    },
    "silu and relu": {"hidden_activation": "silu", "classifier_activation": "relu"},
}


def random_documents(lengths: tuple[int, ...], vocabulary: int = 300) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (n,), generator=generator) for n in lengths]


def pack(documents: list[torch.Tensor]) -> PackedBatch:
    return PackedBatch.from_lengths(torch.cat(documents), tuple(map(len, documents)))


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("parity")
    return write_checkpoint(folder, num_labels=5, **CONFIGS[request.param]), folder


def our_models(folder: Path) -> dict[str, torch.nn.Module]:
    models = {
        name: load(ModernBertForSequenceClassification, folder) for name in ("plain", "prepacked")
    }
    models["eager"] = load(ModernBertForSequenceClassification, folder, attention="eager")
    prepack(models["prepacked"])
    return models


@torch.no_grad()
def test_logits_equal_transformers(reference):
    theirs, folder = reference
    documents = random_documents(LENGTHS)
    want = torch.cat([theirs(ids[None]).logits for ids in documents])
    for name, model in our_models(folder).items():
        got = model.forward_packed(pack(documents))
        assert relative_error(got, want) < 2e-5, name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_do_not_depend_on_neighbours(reference, dtype):
    _, folder = reference
    model = load(ModernBertForSequenceClassification, folder, dtype=dtype)
    prepack(model)
    documents = random_documents(LENGTHS)
    together = model.forward_packed(pack(documents))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(2)).tolist()
    permuted = model.forward_packed(pack([documents[i] for i in order]))
    alone = torch.cat([model.forward_packed(pack([ids])) for ids in documents])
    assert torch.equal(together, alone)
    assert torch.equal(together[order], permuted)


@torch.no_grad()
def test_padded_input_equals_packed(reference):
    theirs, folder = reference
    model = load(ModernBertForSequenceClassification, folder)
    documents = random_documents((5, 90, 200))
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    mask = (torch.arange(200) < torch.tensor([[5], [90], [200]])).long()
    got = model(padded, mask)
    assert torch.equal(got.logits, model.forward_packed(pack(documents)))
    assert relative_error(got.logits, theirs(padded, attention_mask=mask).logits) < 2e-5
    hidden = model.model(padded, mask).last_hidden_state
    real = mask.bool()
    assert (
        relative_error(
            hidden[real], theirs.model(padded, attention_mask=mask).last_hidden_state[real]
        )
        < 2e-5
    )
    assert not hidden[~real].any()


@torch.no_grad()
def test_a_document_of_8192_tokens(tmp_path):
    theirs = write_checkpoint(tmp_path, num_labels=3)
    documents = random_documents((8192, 40))
    want = torch.cat([theirs(ids[None]).logits for ids in documents])
    for name in ("plain", "prepacked"):
        got = our_models(tmp_path)[name].forward_packed(pack(documents))
        assert relative_error(got, want) < 2e-5


@torch.no_grad()
def test_bfloat16_is_close_to_float32(tmp_path):
    """Default-scale weights: hot ones amplify bf16 rounding in transformers as much as here."""
    import transformers
    from checkpoints import TINY

    torch.manual_seed(0)
    theirs = transformers.ModernBertForSequenceClassification(
        transformers.ModernBertConfig(**TINY, num_labels=3)
    ).eval()
    theirs.save_pretrained(tmp_path)
    documents = random_documents(LENGTHS)
    want = torch.cat([theirs(ids[None]).logits for ids in documents])
    model = load(ModernBertForSequenceClassification, tmp_path, dtype=torch.bfloat16)
    prepack(model)
    assert (
        relative_error(model.forward_packed(pack(documents)).float(), want) < 2e-2
    )  # 8 bits of mantissa


def test_losses_and_gradients_equal_transformers(tmp_path):
    theirs = write_checkpoint(tmp_path, num_labels=4)
    model = load(ModernBertForSequenceClassification, tmp_path).requires_grad_(True)
    ids = torch.stack(random_documents((150, 150)))
    for labels in (torch.tensor([1, 3]), torch.rand(2, 4)):
        theirs.config.problem_type = None
        theirs.zero_grad()
        model.zero_grad()
        want = theirs(ids, labels=labels).loss
        got = model(ids, labels=labels).loss
        want.backward()
        got.backward()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        for (name, ours), (_, other) in zip(
            model.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert relative_error(ours.grad, other.grad) < 1e-4, (
                name
            )  # fp32 sums over 300 tokens in another order


@pytest.mark.slow
@torch.no_grad()
def test_base_size(tmp_path):
    """The real shape, windows and head dim of ModernBERT-base: 6 of its 22 layers, all in .ci/soak (149 million parameters)."""
    base = {
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": BASE_LAYERS,
        "num_attention_heads": 12, "pad_token_id": 50283, "num_labels": 3,
    }  # fmt: skip
    theirs = write_checkpoint(
        tmp_path, heat=1.4, **base
    )  # hotter, 22 layers amplify any rounding beyond 2e-5
    left_out = (22 - BASE_LAYERS) * 5_015_040  # parameters of a layer
    assert sum(p.numel() for p in theirs.model.parameters()) == 149_014_272 - left_out
    documents = random_documents((1, 64, 66, 129, 300, 1024), 50000)
    want = torch.cat([theirs(ids[None]).logits for ids in documents])
    del theirs
    model = load(ModernBertForSequenceClassification, tmp_path)
    prepack(model)
    got = model.forward_packed(pack(documents))
    assert relative_error(got, want) < 2e-5
    assert torch.equal(got[3], model.forward_packed(pack([documents[3]]))[0])
