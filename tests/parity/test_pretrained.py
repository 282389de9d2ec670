"""from_pretrained and save_pretrained against transformers, both ways, for every class.

Weights travel bit for bit; answers agree within 2e-5 of the norm, as for the encoder.
"""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from checkpoints import HEADS, TINY, example, relative_error, write_checkpoint, write_pair
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import modernbert
from modernbert import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)
from modernbert.files import CheckpointError

MASKED, CLASSIFIER = "ModernBertForMaskedLM", "ModernBertForSequenceClassification"
NEW_HEADS = [name for name in HEADS if name not in ("ModernBertModel", MASKED)]
FILES = pytest.mark.parametrize("size", ["5GB", "60KB"], ids=["one file", "shards"])


def answers(output) -> torch.Tensor:
    names = ("last_hidden_state", "logits", "start_logits", "end_logits")
    return torch.cat([getattr(output, name).flatten() for name in names if hasattr(output, name)])


def inputs_of(architecture: str) -> dict[str, torch.Tensor]:
    return {name: example(architecture)[name] for name in ("input_ids", "attention_mask")}


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    wanted = dict(theirs.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == set(wanted)
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, wanted[name]), name


@FILES
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_we_load_what_transformers_saves(tmp_path, architecture, size):
    theirs = write_checkpoint(tmp_path / "result", architecture=architecture, **HEADS[architecture])
    theirs.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (size != "5GB")
    ours = getattr(modernbert, architecture).from_pretrained(tmp_path / "saved")
    assert_same_weights(ours, theirs)
    assert (
        relative_error(
            answers(ours(**inputs_of(architecture))), answers(theirs(**inputs_of(architecture)))
        )
        < 2e-5
    )
    assert not ours.training
    assert all(weight.requires_grad for weight in ours.parameters())


@FILES
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_transformers_loads_what_we_save(tmp_path, architecture, size):
    _, ours = write_pair(tmp_path / "result", architecture)
    ours.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (size != "5GB")
    theirs, report = getattr(transformers, architecture).from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same_weights(ours, theirs)
    assert (
        relative_error(
            answers(ours(**inputs_of(architecture))), answers(theirs(**inputs_of(architecture)))
        )
        < 2e-5
    )
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [
        architecture
    ]
    again = type(ours).from_pretrained(tmp_path / "saved")
    assert_same_weights(again, ours)
    assert again.config == ours.config


def test_saving_again_leaves_no_old_shards(tmp_path):
    _, ours = write_pair(tmp_path / "result", CLASSIFIER)
    for size in ("20KB", "5GB"):
        ours.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", torch.float32, torch.bfloat16], ids=str
)
def test_dtype(tmp_path, dtype):
    """Weights are what transformers makes of them in that dtype, and stay so on disk; loaded, they are fp32 again."""
    write_checkpoint(tmp_path / "result")
    ours = ModernBertForSequenceClassification.from_pretrained(tmp_path / "result", dtype=dtype)
    theirs = transformers.ModernBertForSequenceClassification.from_pretrained(
        tmp_path / "result", dtype=dtype
    )
    assert_same_weights(ours, theirs)
    assert {str(weight.dtype) for weight in ours.parameters()} == {
        f"torch.{str(dtype).removeprefix('torch.')}"
    }
    ours.save_pretrained(tmp_path / "saved")
    assert {w.dtype for w in load_file(tmp_path / "saved" / "model.safetensors").values()} == {
        ours.classifier.weight.dtype
    }
    again = ModernBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.classifier.weight.dtype == torch.float32
    assert torch.equal(again.classifier.weight, ours.classifier.weight.float())
    assert (
        transformers.AutoConfig.from_pretrained(tmp_path / "saved").dtype
        == ours.classifier.weight.dtype
    )


def test_an_unknown_dtype_is_an_error(tmp_path):
    write_checkpoint(tmp_path)
    with pytest.raises(
        ValueError, match="dtype 'int8' is unknown; known are float32, bfloat16, float16"
    ):
        ModernBertForSequenceClassification.from_pretrained(tmp_path, dtype="int8")


@pytest.mark.parametrize("stored", ["ModernBertModel", MASKED])
@pytest.mark.parametrize("architecture", NEW_HEADS)
def test_a_head_that_the_checkpoint_lacks_is_new_with_a_warning(
    tmp_path, caplog, architecture, stored
):
    """The encoder is the checkpoint's, of a masked language model the prediction head too; the classifier is random."""
    theirs = write_checkpoint(tmp_path, architecture=stored)
    count = {} if architecture.endswith(("Choice", "Answering")) else {"num_labels": 3}
    with caplog.at_level(logging.WARNING):
        ours = getattr(modernbert, architecture).from_pretrained(tmp_path, **count)
    lacking = ["classifier.weight", "classifier.bias"]
    if stored == "ModernBertModel":
        lacking = ["head.dense.weight", "head.norm.weight", *lacking]
    else:
        assert torch.equal(ours.head.dense.weight, theirs.head.dense.weight)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} lacks {', '.join(lacking)}: newly initialised, train before use"
    ]
    assert_same_weights(ours.model, getattr(theirs, "model", theirs))
    assert ours.classifier.out_features == {"ModernBertForMultipleChoice": 1}.get(
        architecture, count.get("num_labels", 2)
    )
    spread = ours.classifier.weight.abs().max()
    assert 0.5 * 64**-0.5 < spread <= 2 * 64**-0.5
    assert not ours.classifier.bias.any()
    ours(**example(architecture)).loss.backward()
    assert ours.classifier.weight.grad.any()


def test_a_new_decoder_is_tied(tmp_path, caplog):
    theirs = write_checkpoint(tmp_path, architecture="ModernBertModel")
    ours = ModernBertForMaskedLM.from_pretrained(tmp_path)
    assert "decoder.bias" in caplog.text
    assert "decoder.weight" not in caplog.text
    assert torch.equal(ours.decoder.weight, theirs.embeddings.tok_embeddings.weight)


def test_nothing_is_said_where_nothing_is_new(tmp_path, caplog):
    write_checkpoint(tmp_path)
    ModernBertForSequenceClassification.from_pretrained(tmp_path)
    ModernBertModel.from_pretrained(tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "lost", ["model.embeddings.tok_embeddings.weight", "model.layers.2.mlp.Wo.weight"]
)
def test_a_missing_weight_of_the_encoder_is_an_error(tmp_path, lost):
    write_checkpoint(tmp_path, architecture=MASKED)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"missing {lost}"):
        ModernBertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_labels": 4},
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {
            "num_labels": 3,
            "id2label": {0: "a", 1: "b", 2: "c"},
            "label2id": {"a": 0, "b": 1, "c": 2},
        },
        {"label2id": {"a": 0, "b": 1, "c": 2}},
        {"classifier_dropout": 0.25, "classifier_pooling": "mean", "attention_dropout": 0.1},
        {"local_attention": 64, "output_hidden_states": True},
        {"global_attn_every_n_layers": 2},
    ],
    ids=lambda overrides: ", ".join(overrides),
)
def test_overrides(tmp_path, overrides):
    """Each is in the configuration, works in the model, is saved, and agrees with the labels of transformers."""
    write_checkpoint(tmp_path / "result", architecture=MASKED)
    ours = ModernBertForSequenceClassification.from_pretrained(tmp_path / "result", **overrides)
    for name, value in overrides.items():
        assert getattr(ours.config, name) == value
    assert ours.classifier.out_features == ours.config.num_labels == len(ours.config.id2label)
    assert ours.drop.p == overrides.get("classifier_dropout", 0.0)
    ours.save_pretrained(tmp_path / "saved")
    assert (
        ModernBertForSequenceClassification.from_pretrained(tmp_path / "saved").config
        == ours.config
    )
    theirs = transformers.ModernBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert (theirs.config.id2label, theirs.config.label2id) == (
        ours.config.id2label,
        ours.config.label2id,
    )
    with torch.no_grad():
        inputs = inputs_of(CLASSIFIER)
        assert relative_error(ours(**inputs).logits, theirs(**inputs).logits) < 2e-5


def test_labels_stay_where_their_number_does(tmp_path):
    write_checkpoint(tmp_path, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    ours = ModernBertForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    assert ours.config.id2label == {0: "no", 1: "yes"}


def test_overrides_that_do_not_fit_are_errors(tmp_path):
    write_checkpoint(tmp_path, num_labels=3)
    load = ModernBertForSequenceClassification.from_pretrained
    with pytest.raises(
        ValueError, match="torch_dtype, window: neither an option of from_pretrained nor a field"
    ):
        load(tmp_path, window=3, torch_dtype="float16")
    with pytest.raises(
        CheckpointError, match=r"classifier.weight has shape \[3, 64\], not \[5, 64\]"
    ):
        load(tmp_path, num_labels=5)
    with pytest.raises(ValueError, match="problem_type is 'ranking'"):
        load(tmp_path, problem_type="ranking")
    with pytest.raises(ValueError, match="layer_types names 4 layers but num_hidden_layers is 7"):
        load(tmp_path, num_hidden_layers=7)


@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_shares_memory_where_it_is_tied(tmp_path, tied):
    theirs, ours = write_pair(tmp_path / "result", MASKED, tie_word_embeddings=tied)
    table = ours.model.embeddings.tok_embeddings.weight
    assert (ours.decoder.weight is table) == tied
    ours.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as stored:
        assert ("decoder.weight" in stored.keys()) != tied  # noqa: SIM118 (not a dict)
    again = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path / "saved")
    assert (again.decoder.weight is again.model.embeddings.tok_embeddings.weight) == tied
    assert torch.equal(again.decoder.weight, theirs.decoder.weight)


def test_a_tied_decoder_that_is_stored_too_is_left_out(tmp_path):
    """Some files hold it twice: the embeddings count, as in transformers."""
    write_checkpoint(tmp_path, architecture=MASKED)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"decoder.weight": torch.zeros(300, 64)}, tmp_path / "model.safetensors")
    ours = ModernBertForMaskedLM.from_pretrained(tmp_path)
    assert ours.decoder.weight is ours.model.embeddings.tok_embeddings.weight
    assert torch.equal(ours.decoder.weight, weights["model.embeddings.tok_embeddings.weight"])


@torch.no_grad()
def test_a_trained_model_goes_round(tmp_path):
    """Made here, saved, and loaded there and here."""
    torch.manual_seed(0)
    model = ModernBertForSequenceClassification(
        ModernBertConfig(**TINY, num_labels=3, classifier_bias=True)
    ).eval()
    model.save_pretrained(str(tmp_path))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    again = ModernBertForSequenceClassification.from_pretrained(str(tmp_path))
    inputs = inputs_of(CLASSIFIER)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert relative_error(model(**inputs).logits, theirs(**inputs).logits) < 2e-5
