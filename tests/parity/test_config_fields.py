"""Each field of the configuration shows its effect; README.md of modernbert names the test of each.

Tolerance against transformers: 2e-5 of the norm, as for the encoder. Rates of dropout are counted over at least 10,000
draws, of which 0.02 is four standard deviations.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from checkpoints import HEADS, TINY, example, relative_error, write_pair

import modernbert
from modernbert import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)
from modernbert.attention import varlen_attention
from modernbert.linear import prepack
from modernbert.stored import ConfigError

MASKED, CLASSIFIER, TAGGER = (
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
)
IDS = example("ModernBertModel", rows=2, length=90)["input_ids"]


def tiny(**config) -> ModernBertConfig:
    return ModernBertConfig(**TINY | config)


def like(model, **changes):
    """A model with the weights of `model` and another configuration."""
    other = type(model)(replace(model.config, **changes)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ModernBertModel:
    return write_pair(tmp_path_factory.mktemp("encoder"), "ModernBertModel")[1]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> ModernBertForMaskedLM:
    return write_pair(tmp_path_factory.mktemp("masked"), MASKED)[1]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModernBertForSequenceClassification:
    return write_pair(tmp_path_factory.mktemp("classifier"), CLASSIFIER)[1]


def test_sizes_are_the_shapes_of_the_weights():
    """vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads."""
    model = ModernBertModel(
        tiny(vocab_size=70, hidden_size=48, intermediate_size=40, num_attention_heads=3)
    )
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes["embeddings.tok_embeddings.weight"] == (70, 48)
    assert shapes["layers.3.attn.Wqkv.weight"] == (144, 48)
    assert shapes["layers.3.mlp.Wi.weight"] == (80, 48)
    assert shapes["layers.3.mlp.Wo.weight"] == (48, 40)
    assert len(model.layers) == TINY["num_hidden_layers"] == 4
    assert model(IDS % 70, output_attentions=True).attentions[0].shape == (2, 3, 90, 90)


def test_defaults_are_those_of_modernbert_base():
    ours, theirs = ModernBertConfig(), transformers.ModernBertConfig()
    for field in fields(ModernBertConfig):
        if hasattr(theirs, field.name):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    thetas = [
        theirs.rope_parameters[kind]["rope_theta"]
        for kind in ("full_attention", "sliding_attention")
    ]
    assert [ours.global_rope_theta, ours.local_rope_theta] == thetas
    assert (
        ours.reference_compile,
        ours.repad_logits_with_grad,
        ours.global_attn_every_n_layers,
    ) == (None, False, 3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_hidden_activation_by_name(tmp_path, activation):
    theirs, ours = write_pair(tmp_path, "ModernBertModel", hidden_activation=activation)
    with torch.no_grad():
        assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 2e-5
        plain = like(ours, hidden_activation="gelu")(IDS)[0]
    assert activation == "gelu" or relative_error(ours(IDS)[0], plain) > 1e-5


@torch.no_grad()
def test_hidden_activation_as_a_function(encoder):
    squared = like(encoder, hidden_activation=lambda x: F.relu(x).square())
    batch = modernbert.packing.PackedBatch.from_lengths(IDS.flatten(), (90, 90))
    plain = squared.forward_packed(batch)
    assert relative_error(plain, encoder.forward_packed(batch)) > 1e-2
    named = like(encoder, hidden_activation="relu").forward_packed(batch)
    assert torch.equal(like(encoder, hidden_activation=F.relu).forward_packed(batch), named)
    prepack(squared)
    assert relative_error(squared.forward_packed(batch), plain) < 2e-5
    with pytest.raises(ConfigError, match="hidden_activation is a function"):
        squared.config.to_dict()


@pytest.mark.parametrize("activation", ["relu", F.relu], ids=["name", "function"])
@torch.no_grad()
def test_classifier_activation(classifier, activation):
    changed = like(classifier, classifier_activation=activation)
    pooled = changed.model(IDS)[0][:, 0]
    want = changed.classifier(changed.head.norm(F.relu(changed.head.dense(pooled))))
    torch.testing.assert_close(changed(IDS).logits, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, classifier(IDS).logits, atol=1e-3)


@torch.no_grad()
def test_max_position_embeddings(encoder):
    """A size of tables, not a limit: more tokens are computed exactly; the pipeline is what cuts at it."""
    short = like(encoder, max_position_embeddings=16)
    assert torch.equal(short(IDS)[0], encoder(IDS)[0])
    assert {len(cos) for cos, _ in short._rope_tables.values()} == {90}
    assert {len(cos) for cos, _ in encoder._rope_tables.values()} == {8192}


STDS = {  # kind of weight: its share of initializer_range; where a residual branch ends, 1 / sqrt(2 * 4 layers)
    "model.embeddings.tok_embeddings.weight": 1.0,
    "model.layers.1.attn.Wqkv.weight": 1.0,
    "model.layers.1.attn.Wo.weight": 8**-0.5,
    "model.layers.1.mlp.Wi.weight": 1.0,
    "model.layers.1.mlp.Wo.weight": 8**-0.5,
    "head.dense.weight": 8**-0.5,
    "decoder.weight": 8**-0.5,
}
SPREAD = {1.0: 0.5396, 2.0: 0.8796, None: 0.9866}
"""The standard deviation of a normal cut at so many of them, as a share; None stands for 3."""


@pytest.mark.parametrize("cutoff", SPREAD)
def test_initializer_range_and_initializer_cutoff_factor(cutoff):
    """Ours and transformers' alike: the bound is kept and nearly reached, and the spread within it is the normal's."""
    wide = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
    }
    config = TINY | wide | {"initializer_cutoff_factor": cutoff, "vocab_size": 400}
    torch.manual_seed(0)
    created = [ModernBertForMaskedLM(ModernBertConfig(**config))]
    if cutoff is not None:
        created.append(transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**config)))
    for model in created:
        weights = dict(model.named_parameters())
        for name, share in STDS.items():
            std = 0.05 * share
            assert weights[name].std().item() == pytest.approx(SPREAD[cutoff] * std, rel=0.03), (
                name
            )  # 4 of 16,384
            assert (
                0.97 < weights[name].abs().max().item() / ((cutoff or 3) * std) <= 1 + 1e-6
                or cutoff is None
            ), name
            assert weights[name].abs().max() <= (cutoff or 3) * std * (1 + 1e-6), name


@pytest.mark.parametrize(
    "architecture", [name for name in HEADS if name not in ("ModernBertModel", MASKED)]
)
def test_initialisation_of_classifiers_biases_and_norms(architecture):
    """A classifier's spread is 1 / sqrt(hidden_size), whatever initializer_range; biases are 0 and norms 1."""
    biases = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
    torch.manual_seed(0)
    labels = {} if "Question" in architecture else {"num_labels": 100}
    model = getattr(modernbert, architecture)(
        tiny(hidden_size=512, initializer_range=1e-4, **biases, **labels)
    )
    assert model.classifier.weight.std().item() == pytest.approx(
        0.88 * 512**-0.5, rel=0.12
    )  # 512 draws at the least
    assert model.classifier.weight.abs().max() <= 2 * 512**-0.5
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == (0.0 if name.endswith("bias") else 1.0)).all(), name


@torch.no_grad()
def test_norm_eps(tmp_path):
    theirs, ours = write_pair(tmp_path, "ModernBertModel", norm_eps=0.5)
    assert {module.eps for module in ours.modules() if isinstance(module, torch.nn.LayerNorm)} == {
        0.5
    }
    assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 2e-5
    assert relative_error(ours(IDS)[0], like(ours, norm_eps=1e-5)(IDS)[0]) > 1e-2


BIASES = {
    "norm_bias": r"norm\.bias$",
    "attention_bias": r"attn\.(Wqkv|Wo)\.bias$",
    "mlp_bias": r"mlp\.(Wi|Wo)\.bias$",
    "classifier_bias": r"head\.dense\.bias$",
    "decoder_bias": r"decoder\.bias$",
}


@pytest.mark.parametrize("field", BIASES)
@torch.no_grad()
def test_each_bias_field_adds_its_biases_alone(tmp_path, field):
    off = dict.fromkeys(BIASES, False)
    theirs, ours = write_pair(tmp_path, MASKED, **off | {field: True})
    biases = [name for name, _ in ours.named_parameters() if name.endswith("bias")]
    assert biases
    assert all(re.search(BIASES[field], name) for name in biases)
    assert biases == [name for name, _ in theirs.named_parameters() if name.endswith("bias")]
    assert not [
        n for n, _ in ModernBertForMaskedLM(tiny(**off)).named_parameters() if n.endswith("bias")
    ]
    got = ours(IDS).logits
    assert relative_error(got, theirs(IDS).logits) < 2e-5
    for name in biases:
        ours.get_parameter(name).zero_()
    assert relative_error(ours(IDS).logits, got) > 1e-3


def inputs_of(module: torch.nn.Module, run) -> torch.Tensor:
    """What `module` reads while `run()` runs."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    run()
    handle.remove()
    return seen[0]


DROPPED = {  # field: what its dropout stands before
    "embedding_dropout": lambda model: model.model.layers[0].attn.Wqkv,
    "mlp_dropout": lambda model: model.model.layers[0].mlp.Wo,
    "classifier_dropout": lambda model: model.classifier,
}


@pytest.mark.parametrize("field", DROPPED)
def test_dropout_fields(tmp_path, field):
    """In training zeros at the rate asked for and the rest scaled up to keep the mean; in evaluation nothing."""
    _, plain = write_pair(tmp_path, TAGGER)
    model = like(plain, **{field: 0.3})
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    kept = inputs_of(DROPPED[field](plain), lambda: plain(IDS))
    torch.manual_seed(0)
    model.train()
    dropped = inputs_of(DROPPED[field](model), lambda: model(IDS))
    zeros = dropped == 0
    assert zeros.float().mean().item() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(dropped[~zeros], (kept / 0.7)[~zeros], rtol=1e-4, atol=1e-4)
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "maps"])
def test_attention_dropout(encoder, attention):
    """Of the weights after softmax, in every way of computing them, and of the output projection: as transformers."""
    config = replace(
        encoder.config,
        attention_dropout=0.3,
        num_hidden_layers=2,
        layer_types=encoder.config.layer_types[:2],
    )
    model = ModernBertModel(config, "auto" if attention == "maps" else attention)
    assert torch.equal(model.eval()(IDS)[0], model(IDS)[0])
    model.train()
    torch.manual_seed(0)
    wanted = {"output_attentions": attention == "maps"}
    for layer in model.layers:
        layer.attn.out_drop.p = 0.0
    assert not torch.equal(
        model(IDS, **wanted)[0], model(IDS, **wanted)[0]
    )  # the weights' own dropout
    for layer in model.layers:
        layer.attn.out_drop.p = 0.3
    projected = []
    model.layers[0].attn.out_drop.register_forward_hook(lambda _, __, out: projected.append(out))
    output = model(IDS, **wanted)
    assert (projected[0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    if attention == "maps":
        assert (output.attentions[0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
        return
    ones = torch.ones(
        300, 64, 4
    )  # values of one: each result is the sum of the weights that were kept
    starts = torch.tensor([0, 300], dtype=torch.int32)
    sums = varlen_attention(
        torch.zeros_like(ones), ones, ones, starts, (300,), backend=attention, dropout=0.3
    )[..., 0]
    assert sums.mean().item() == pytest.approx(1.0, abs=0.002)  # 300 * 300 * 64 draws
    assert sums.std().item() == pytest.approx((0.3 / 0.7 / 300) ** 0.5, rel=0.05)


def test_global_attn_every_n_layers(tmp_path):
    theirs, ours = write_pair(tmp_path, "ModernBertModel", global_attn_every_n_layers=2)
    assert ours.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert [layer.window for layer in ours.layers] == [None, (64, 64)] * 2
    with torch.no_grad():
        assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 2e-5
    assert tiny(global_attn_every_n_layers=1).layer_types == ["full_attention"] * 4


def test_layer_types():
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    config = tiny(layer_types=kinds)
    assert config.global_attn_every_n_layers is None
    assert [layer.window for layer in ModernBertModel(config).layers] == [
        (64, 64),
        None,
        None,
        (64, 64),
    ]


@torch.no_grad()
def test_local_attention():
    """local_attention // 2 keys on each side, ends included: a local layer sees a change that far and no farther."""
    model = ModernBertModel(
        tiny(num_hidden_layers=1, layer_types=["sliding_attention"], local_attention=32)
    ).eval()
    other = IDS.clone()
    other[:, 40] = (other[:, 40] + 7) % 300
    changed = (model(IDS)[0] != model(other)[0]).any(dim=-1).any(dim=0)
    assert changed.nonzero()[:, 0].tolist() == list(range(24, 57))


@pytest.mark.parametrize(
    "raw", [{"sliding_window": 8}, {"sliding_window": 8, "local_attention": 64}], ids=str
)
@torch.no_grad()
def test_sliding_window(tmp_path, raw):
    """Half of local_attention by another name, which counts before it, as in transformers 5."""
    write_pair(tmp_path, "ModernBertModel")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["local_attention"]
    (tmp_path / "config.json").write_text(json.dumps(config | raw))
    ours = ModernBertModel.from_pretrained(tmp_path)
    theirs = transformers.ModernBertModel.from_pretrained(tmp_path).eval()
    assert ours.config.local_attention == theirs.config.local_attention == 16
    assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 1e-5
    assert relative_error(like(ours, local_attention=128)(IDS)[0], theirs(IDS)[0]) > 1e-3
    for wrong in (0, "8", 2.5):
        with pytest.raises(
            ConfigError, match=r"sliding_window is .*; it must be a whole number of at least 1"
        ):
            ModernBertConfig.from_dict(config | {"sliding_window": wrong})


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.4},
    "proportional, all pairs": {"rope_type": "proportional"},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024},
    "yarn, more settings": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "yarn, attention_factor": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("kind", ["global", "local", "both"])
@torch.no_grad()
def test_global_rope_scaling_and_local_rope_scaling(tmp_path, kind, scaling):
    """Both as `rope_scaling`, the older name, which is for all layers."""
    plain = {"rope_type": "default", "rope_theta": 900.0}
    ropes = {
        name: (scaling | {"rope_theta": 900.0} if name == kind else plain)
        for name in ("global", "local")
    }
    names = {
        "rope_parameters": {"full_attention": ropes["global"], "sliding_attention": ropes["local"]}
    }
    theirs, ours = write_pair(
        tmp_path, "ModernBertModel", **{"rope_scaling": scaling} if kind == "both" else names
    )
    want = theirs(IDS)[0]
    assert relative_error(ours(IDS)[0], want) < 2e-5
    if scaling["rope_type"] != "dynamic" and scaling != {"rope_type": "proportional"}:
        unscaled = like(ours, global_rope_scaling=None, local_rope_scaling=None)
        assert relative_error(unscaled(IDS)[0], want) > 1e-3
    ours.save_pretrained(tmp_path / "again")
    again = ModernBertModel.from_pretrained(tmp_path / "again")
    assert again.config == ours.config
    theirs_again = transformers.AutoModel.from_pretrained(tmp_path / "again")
    assert relative_error(theirs_again(IDS)[0], want) < 2e-5


@torch.no_grad()
def test_a_dynamic_embedding_ends_where_its_batch_would_change_answers(tmp_path):
    theirs, ours = write_pair(
        tmp_path,
        "ModernBertModel",
        rope_scaling={"rope_type": "dynamic", "factor": 4.0},
        max_position_embeddings=60,
    )
    assert relative_error(ours(IDS[:, :60])[0], theirs(IDS[:, :60])[0]) < 2e-5
    with pytest.raises(ValueError, match=r"has 90 positions; .* at most .* 60"):
        ours(IDS)


@pytest.mark.parametrize("kind", ["global", "local"])
@torch.no_grad()
def test_global_rope_theta_and_local_rope_theta(tmp_path, kind):
    name = "full_attention" if kind == "global" else "sliding_attention"
    rope = {name: {"rope_type": "default", "rope_theta": 50.0}}
    theirs, ours = write_pair(tmp_path, "ModernBertModel", rope_parameters=rope)
    assert getattr(ours.config, f"{kind}_rope_theta") == 50.0
    assert relative_error(ours(IDS)[0], theirs(IDS)[0]) < 2e-5
    other = {f"{kind}_rope_theta": 10_000.0 if kind == "local" else 160_000.0}
    assert relative_error(ours(IDS)[0], like(ours, **other)(IDS)[0]) > 1e-2
    assert [ours.config.rope_theta(i) == 50.0 for i in range(4)] == [
        (i % 3 == 0) == (kind == "global") for i in range(4)
    ]


def test_pad_token_id_gets_no_gradient(encoder):
    model = like(encoder, pad_token_id=7)
    ids = torch.cat((torch.full((1, 5), 7), IDS[:1]), dim=1)
    model(ids)[0].square().sum().backward()
    table = model.embeddings.tok_embeddings
    assert table.padding_idx == 7
    assert not table.weight.grad[7].any()
    assert table.weight.grad[IDS[0, 0]].any()
    assert ModernBertModel(tiny(pad_token_id=None)).embeddings.tok_embeddings.padding_idx is None


def test_special_token_ids_are_kept(tmp_path):
    """eos, bos, cls and sep say nothing of the computation: they travel with the checkpoint."""
    special = {
        "eos_token_id": 11,
        "bos_token_id": 12,
        "cls_token_id": 13,
        "sep_token_id": 14,
        "pad_token_id": 15,
    }
    model = ModernBertModel(tiny(**special))
    model.save_pretrained(tmp_path)
    for config in (modernbert.ModernBertModel.from_pretrained(tmp_path).config,
                   transformers.ModernBertConfig.from_pretrained(tmp_path)):  # fmt: skip
        assert {name: getattr(config, name) for name in special} == special


def test_tie_word_embeddings(masked):
    assert masked.decoder.weight is masked.model.embeddings.tok_embeddings.weight
    names = [name for name, _ in masked.named_parameters()]
    untied = ModernBertForMaskedLM(replace(masked.config, tie_word_embeddings=False))
    assert untied.decoder.weight is not untied.model.embeddings.tok_embeddings.weight
    assert [name for name, _ in untied.named_parameters() if name not in names] == [
        "decoder.weight"
    ]


@pytest.mark.parametrize("ignored", [-100, -1])
def test_sparse_prediction_and_sparse_pred_ignore_index(tmp_path, ignored):
    """Logits of the labelled tokens alone, in order; loss and gradients as when all are decoded."""
    theirs, dense = write_pair(tmp_path, MASKED, sparse_pred_ignore_index=ignored)
    inputs = example(MASKED)
    chosen = inputs["labels"] >= 0
    sparse = like(dense, sparse_prediction=True)
    got = sparse(**inputs | {"labels": inputs["labels"].where(chosen, ignored)})
    want = dense(**inputs)
    assert got.logits.shape == (int(chosen.sum()), 300)
    torch.testing.assert_close(got.logits, want.logits[chosen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)
    theirs.sparse_prediction = True
    torch.testing.assert_close(
        got.loss,
        theirs(**inputs | {"labels": inputs["labels"].where(chosen, ignored)}).loss,
        rtol=2e-5,
        atol=1e-6,
    )
    got.loss.backward()
    want.loss.backward()
    for (name, mine), (_, other) in zip(
        sparse.named_parameters(), dense.named_parameters(), strict=True
    ):
        assert relative_error(mine.grad, other.grad) < 1e-4, name
    unlabelled = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert sparse(**unlabelled).logits.shape == (2, 90, 300)


def test_repad_logits_with_grad(masked):
    inputs = example(MASKED)
    labelled, repadded = masked(**inputs), like(masked, repad_logits_with_grad=True)(**inputs)
    assert torch.equal(labelled.logits, repadded.logits)
    assert torch.equal(labelled.loss, repadded.loss)
    assert labelled.loss.requires_grad
    assert not labelled.logits.requires_grad
    assert repadded.logits.requires_grad
    assert masked(inputs["input_ids"]).logits.requires_grad


@torch.no_grad()
def test_classifier_pooling(classifier):
    mean = like(classifier, classifier_pooling="mean")
    hidden = classifier.model(IDS)[0]
    for model, pooled in ((classifier, hidden[:, 0]), (mean, hidden.mean(dim=1))):
        want = model.classifier(model.head(pooled))
        torch.testing.assert_close(model(IDS).logits, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(classifier(IDS).logits, mean(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("deterministic", [False, True])
@torch.no_grad()
def test_deterministic_flash_attn(encoder, monkeypatch, deterministic):
    """What flash-attn is called with; in its place, the plain formula."""
    calls = []

    def flash_attn_varlen_func(
        q,
        k,
        v,
        *,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        window_size,
        deterministic,
    ):
        calls.append((window_size, dropout_p, deterministic))
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q == max_seqlen_k == 128
        window = None if window_size == (-1, -1) else window_size
        return varlen_attention(
            q, k, v, cu_seqlens_q, cu_seqlens_q.diff().tolist(), window, backend="eager"
        )

    monkeypatch.setattr("modernbert.model.resolve_backend", lambda *_, **__: "flash_attn")
    monkeypatch.setattr("modernbert.attention_kernels._kernel", lambda _: flash_attn_varlen_func)
    model = like(encoder, deterministic_flash_attn=deterministic)
    got = model(IDS)[0]
    assert calls == [
        (window or (-1, -1), 0.0, deterministic) for window in (None, (64, 64), (64, 64), None)
    ]
    monkeypatch.undo()
    assert relative_error(got, encoder(IDS)[0]) < 2e-5


def compiled(model: torch.nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules() if module._compiled_call_impl is not None
    }


@pytest.mark.parametrize("choice", [None, False])
def test_reference_compile_is_off_unless_asked_for(choice):
    assert not compiled(ModernBertForMaskedLM(tiny(reference_compile=choice)))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
@torch.no_grad()
def test_reference_compile(tmp_path):
    """True: embeddings, each MLP and the prediction head run compiled, other lengths without compiling anew."""
    _, plain = write_pair(tmp_path, MASKED, num_hidden_layers=2)
    model = ModernBertForMaskedLM.from_pretrained(tmp_path, reference_compile=True)
    parts = {"model.embeddings", "model.layers.0.mlp", "model.layers.1.mlp", "head"}
    assert compiled(model) == parts
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for length in (40, 90):
        got, want = (each(IDS[:, :length]).logits for each in (model, plain))
        assert relative_error(got, want) < 1e-5  # fused operations round otherwise
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(parts)
    torch._dynamo.reset()


def test_num_labels_id2label_and_label2id():
    """Whichever is given settles the others and the classifier's outputs; what disagrees is an error."""
    names = {0: "no", 1: "yes", 2: "maybe"}
    inverse = {"no": 0, "yes": 1, "maybe": 2}
    for config in (
        tiny(id2label=names),
        tiny(label2id=inverse),
        tiny(id2label=names, num_labels=3),
    ):
        assert (config.num_labels, config.id2label, config.label2id) == (3, names, inverse)
    assert tiny(num_labels=4).id2label == {i: f"LABEL_{i}" for i in range(4)}
    assert tiny().num_labels == 2
    for architecture in (ModernBertForSequenceClassification, ModernBertForTokenClassification):
        assert architecture(tiny(id2label=names)).classifier.out_features == 3
    with pytest.raises(ConfigError, match="num_labels is 4 but id2label names 3"):
        tiny(id2label=names, num_labels=4)
    with pytest.raises(ConfigError, match="two outputs, start and end; id2label names 3"):
        ModernBertForQuestionAnswering(tiny(num_labels=3))


PROBLEMS = {
    "regression, one number": ("regression", 1, torch.tensor([0.5, -1.0])),
    "regression, three numbers": (
        "regression",
        3,
        torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]]),
    ),
    "single label": ("single_label_classification", 3, torch.tensor([2, 0])),
    "multi label": (
        "multi_label_classification",
        3,
        torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
    ),
    "told from one output": (None, 1, torch.tensor([0.5, -1.0])),
    "told from whole numbers": (None, 3, torch.tensor([2, 0])),
    "told from fractions": (None, 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@torch.no_grad()
def test_problem_type(tmp_path, problem):
    kind, outputs, labels = PROBLEMS[problem]
    theirs, ours = write_pair(tmp_path, CLASSIFIER, num_labels=outputs, problem_type=kind)
    got, want = ours(IDS, labels=labels).loss, theirs(IDS, labels=labels).loss
    torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)
    assert ours.config.problem_type == kind


README = Path(modernbert.__file__).parent / "README.md"
HERE = Path(__file__).parent


def table_rows() -> dict[str, list[str]]:
    """{what the first column names: the tests that its row names}, of every table in the README."""
    rows = re.findall(r"^\| (`[^|]+`) \|.*\| ([^|]+) \|$", README.read_text(), flags=re.MULTILINE)
    return {
        name: re.findall(r"`([^`]+)`", tests)
        for names, tests in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_the_readme_names_a_test_that_exists_for_every_field_and_argument():
    classes = [getattr(modernbert, name) for name in HEADS]
    arguments = {name for each in classes for name in inspect.signature(each.forward).parameters}
    wanted = {field.name for field in fields(ModernBertConfig)} | arguments - {"self", "ignored"}
    rows = table_rows()
    assert wanted - set(rows) == set()
    assert set(rows) - wanted <= {"token_type_ids"}
    for name, tests in rows.items():
        assert tests, name
        for test in tests:
            file, function = test.split("::")
            tree = ast.parse((HERE / file).read_text())
            assert function in {
                node.name for node in tree.body if isinstance(node, ast.FunctionDef)
            }, test
