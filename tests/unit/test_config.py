"""config.json of both generations, and the errors for what cannot be honoured."""

from __future__ import annotations

import json

import pytest
import transformers
from checkpoints import TINY

from modernbert.config import ModernBertConfig
from modernbert.stored import ConfigError

LEGACY = {
    "model_type": "modernbert", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 7, "vocab_size": 300,
    "global_rope_theta": 160000.0, "local_rope_theta": 9000.0, "global_attn_every_n_layers": 2, "local_attention": 32,
}  # fmt: skip


def test_reads_what_transformers_5_writes(tmp_path):
    theirs = transformers.ModernBertConfig(
        **TINY,
        layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
        id2label={0: "no", 1: "yes", 2: "maybe"},
        problem_type="multi_label_classification",
    )
    theirs.save_pretrained(tmp_path)
    ours = ModernBertConfig.from_json(tmp_path / "config.json")
    assert ours.layer_types == theirs.layer_types
    assert (ours.global_rope_theta, ours.local_rope_theta) == (1e6, 500.0)
    assert ours.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert (ours.num_labels, ours.problem_type) == (3, "multi_label_classification")


def test_reads_the_names_of_transformers_4():
    config = ModernBertConfig.from_dict(LEGACY)
    assert config.layer_types == ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
    assert [config.rope_theta(i) for i in (0, 1)] == [160000.0, 9000.0]
    assert [config.window(i) for i in (0, 1)] == [None, (16, 16)]
    assert (
        ModernBertConfig.from_dict(LEGACY | {"local_rope_theta": None}).local_rope_theta == 160000.0
    )
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert ModernBertConfig.from_dict(LEGACY | {"num_labels": 4}).num_labels == 4


def test_new_names_win_over_old_ones():
    rope = {"full_attention": {"rope_theta": 1.5e5}, "sliding_attention": {"rope_theta": 1.1e4}}
    config = ModernBertConfig.from_dict(
        LEGACY | {"rope_parameters": rope, "layer_types": ["sliding_attention"] * 7}
    )
    assert (config.global_rope_theta, config.local_rope_theta) == (1.5e5, 1.1e4)
    assert set(config.layer_types) == {"sliding_attention"}


def test_what_is_written_reads_the_same_here_and_in_transformers(tmp_path):
    ours = ModernBertConfig.from_dict(LEGACY | {"id2label": {"0": "a", "1": "b", "2": "c"}})
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    assert ModernBertConfig.from_json(tmp_path / "config.json") == ours
    theirs = transformers.ModernBertConfig.from_pretrained(tmp_path)
    assert theirs.layer_types == ours.layer_types
    assert theirs.rope_parameters["sliding_attention"]["rope_theta"] == 9000.0
    assert (theirs.num_labels, theirs.local_attention) == (3, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"hidden_activation": "swiglu"}, "hidden_activation is 'swiglu'; known are gelu"),
        ({"classifier_activation": "what"}, "classifier_activation is 'what'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}},
            "rope_parameters.full_attention has rope_type 'longrope'; known are default, dynamic",
        ),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters holds rope_theta"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "rope_scaling has type 'linear', which transformers 5 passes over; name it rope_type",
        ),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling has factor; default has"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling has no factor"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0}},
            "rope_scaling has factor 0; it must be a number above 0",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
            "rope_scaling has partial_rotary_factor; linear has",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}},
            "rope_scaling has truncate false",
        ),
        ({"hidden_size": 65}, "hidden_size 65 is not divisible by num_attention_heads 2"),
        ({"hidden_size": "64"}, "wrong type"),
        (
            {"layer_types": ["full_attention"]},
            "layer_types names 1 layers but num_hidden_layers is 7",
        ),
        ({"layer_types": ["chunked_attention"] * 7}, "layer_types holds chunked_attention"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must number the labels"),
        ({"id2label": {"zero": "a"}}, "id2label must map whole numbers"),
        (
            {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
            "num_labels is 3 but id2label names 2",
        ),
        ({"global_attn_every_n_layers": 0.5}, "global_attn_every_n_layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"is_causal": True}, "is_causal is True; only false is supported"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ModernBertConfig.from_dict(LEGACY | change)


def test_is_causal_false_is_the_default():
    """Ettin's encoders ship it."""
    assert ModernBertConfig.from_dict(LEGACY | {"is_causal": False}) == ModernBertConfig.from_dict(
        LEGACY
    )
