"""An adapter is merged strictly: every setting is followed or refused by name, every tensor has its place."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import change_json, write_checkpoint, write_task
from safetensors.torch import load_file, save_file

from modernbert import ModernBertForMaskedLM, ModernBertForSequenceClassification, ModernBertModel
from modernbert.files import CheckpointError, fingerprint, load_config, raw_config
from pipelines import pipeline
from pipelines.checkpoints import Checkpoint

BASE = "base_model.model."
WQKV = f"{BASE}model.layers.0.attn.Wqkv"
LABELLED = ModernBertForSequenceClassification


def lora(module, rows, columns, rank=2):
    draw = torch.Generator().manual_seed(len(module))
    return {
        f"{BASE}{module}.lora_A.weight": torch.randn(rank, columns, generator=draw),
        f"{BASE}{module}.lora_B.weight": torch.randn(rows, rank, generator=draw),
    }


@pytest.fixture
def adapter(tmp_path):
    """An adapter of one layer, with a classifier of four labels, over a masked language model."""
    write_task(tmp_path / "base", "ModernBertForMaskedLM", num_hidden_layers=2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(tmp_path / "base"),
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["Wqkv"],
        "modules_to_save": ["classifier", "score"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = lora("model.layers.0.attn.Wqkv", 192, 64) | lora("model.layers.1.attn.Wqkv", 192, 64)
    head = {f"{BASE}classifier.weight": torch.randn(4, 64), f"{BASE}classifier.bias": torch.ones(4)}
    save_file(tensors | head, folder / "adapter_model.safetensors")
    return folder


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_weight_is_changed_by_the_product_of_its_matrices(adapter):
    base = ModernBertForMaskedLM.from_pretrained(adapter.parent / "base")
    model = LABELLED.from_pretrained(adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    product = tensors[f"{WQKV}.lora_B.weight"] @ tensors[f"{WQKV}.lora_A.weight"]
    want = base.model.layers[0].attn.Wqkv.weight + 3 * product
    torch.testing.assert_close(model.model.layers[0].attn.Wqkv.weight, want)
    assert torch.equal(model.classifier.weight, tensors[f"{BASE}classifier.weight"])
    assert torch.equal(model.head.dense.weight, base.head.dense.weight)


REFUSED = {
    "use_dora": True,
    "bias": "all",
    "lora_bias": True,
    "fan_in_fan_out": True,
    "layer_replication": [[0, 1]],
    "trainable_token_indices": [1],
    "target_parameters": ["weight"],
    "megatron_config": {"a": 1},
    "use_qalora": True,
    "alora_invocation_tokens": [1],
    "a_setting_of_tomorrow": 3,
    "init_lora_weights": "pissa_niter_4",
    "peft_type": "IA3",
    "base_model_name_or_path": None,
    "rank_pattern": {".*Wqkv|Wi": 3},
    "alpha_pattern": {"layers[.]1": 3},
    "r": "two",
}


@pytest.mark.parametrize(("setting", "value"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_is_not_followed_is_refused_by_its_name(adapter, setting, value):
    change_json(adapter / "adapter_config.json", **{setting: value})
    with pytest.raises(CheckpointError) as caught:
        LABELLED.from_pretrained(adapter)
    assert "adapter_config.json has " in str(caught.value)
    assert setting in str(caught.value) or setting == "r"
    assert "\n" not in str(caught.value)


TENSORS = {
    "one matrix": (
        lambda tensors: tensors.pop(f"{WQKV}.lora_B.weight"),
        rf"missing {WQKV}\.lora_B\.weight",
    ),
    "no matrices of a layer": (
        lambda tensors: [tensors.pop(f"{WQKV}.lora_{part}.weight") for part in "AB"],
        r"missing the LoRA matrices of model\.layers\.0\.attn\.Wqkv",
    ),
    "a magnitude": (
        lambda tensors: tensors.update({f"{WQKV}.lora_magnitude_vector": torch.ones(192)}),
        r"unexpected .*lora_magnitude_vector",
    ),
    "a module that is not named": (
        lambda tensors: tensors.update(lora("model.layers.0.mlp.Wo", 64, 96)),
        r"unexpected LoRA matrices of model\.layers\.0\.mlp\.Wo: not in target_modules",
    ),
    "a layer that there is not": (
        lambda tensors: tensors.update(lora("model.layers.2.attn.Wqkv", 192, 64)),
        r"unexpected .*layers\.2\.attn\.Wqkv\.lora_A",
    ),
    "a whole weight": (
        lambda tensors: tensors.update({f"{WQKV}.weight": torch.ones(192, 64)}),
        r"unexpected .*Wqkv\.weight: neither a LoRA matrix nor of modules_to_save",
    ),
    "another rank": (
        lambda tensors: tensors.update(lora("model.layers.0.attn.Wqkv", 192, 64, rank=3)),
        r"shapes \[3, 64\] and \[192, 3\], not \[2, 64\] and \[192, 2\]",
    ),
    "no bias of a head": (
        lambda tensors: tensors.pop(f"{BASE}classifier.bias"),
        rf"missing {BASE}classifier\.bias",
    ),
    "another prefix": (
        lambda tensors: tensors.update({"classifier.bias": torch.ones(4)}),
        r"unexpected classifier\.bias: its name does not begin with base_model\.model\.",
    ),
    "whole numbers": (
        lambda tensors: tensors.update(
            {f"{WQKV}.lora_A.weight": torch.ones(2, 64, dtype=torch.int8)}
        ),
        r"lora_A\.weight is stored as I8",
    ),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_without_its_place_and_a_place_without_its_tensor(adapter, change, message):
    change_tensors(adapter, change)
    with pytest.raises(CheckpointError, match=message):
        LABELLED.from_pretrained(adapter)


@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save"])
def test_a_module_that_there_is_not(adapter, setting):
    stored = json.loads((adapter / "adapter_config.json").read_text())
    change_json(adapter / "adapter_config.json", **{setting: [*stored[setting], "query"]})
    with pytest.raises(CheckpointError, match=f"{setting} names 'query', which no module is call"):
        LABELLED.from_pretrained(adapter)


def test_a_head_that_was_trained_and_not_saved(adapter):
    """PEFT adds its own names of heads; a model with another one draws it anew each time."""
    change_json(adapter / "adapter_config.json", modules_to_save=["qa_outputs", "score"])
    change_tensors(adapter, lambda tensors: [tensors.pop(f"{BASE}classifier.{name}") for name in ("weight", "bias")])  # fmt: skip
    with pytest.raises(CheckpointError, match=r"missing classifier\.weight"):
        pipeline("classify", str(adapter))


def test_embeddings_that_are_the_decoder_too(adapter):
    change_json(adapter / "adapter_config.json", target_modules=["tok_embeddings", "Wqkv"])
    name = f"{BASE}model.embeddings.tok_embeddings.lora_embedding_"
    matrices = {f"{name}A": torch.ones(2, 300), f"{name}B": torch.ones(64, 2)}
    change_tensors(adapter, lambda tensors: tensors.update(matrices))
    assert LABELLED.from_pretrained(adapter)
    with pytest.raises(CheckpointError, match="changes embeddings or decoder, which tie_word_embe"):
        ModernBertForMaskedLM.from_pretrained(adapter)


def test_a_class_without_the_head_leaves_it_out(adapter):
    model = ModernBertModel.from_pretrained(adapter)
    want = LABELLED.from_pretrained(adapter).model.layers[1].attn.Wqkv.weight
    assert torch.equal(model.layers[1].attn.Wqkv.weight, want)


def test_labels_are_those_of_the_adapter(adapter, caplog):
    assert load_config(adapter).id2label == {i: f"LABEL_{i}" for i in range(4)}
    assert "has 4 labels, for which neither it nor its base has names" in caplog.text
    assert raw_config(adapter)["architectures"] == ["ModernBertForSequenceClassification"]
    config = json.loads((adapter.parent / "base/config.json").read_text())
    names = dict(enumerate("abcd"))
    own = config | {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    (adapter / "config.json").write_text(json.dumps(own))
    assert pipeline("classify", str(adapter))("the cat")[0]["label"] in names.values()


def test_a_task_that_the_adapter_was_not_trained_for(adapter):
    with pytest.raises(ValueError, match="is a ModernBertForSequenceClassification: it fits class"):
        pipeline("fill", str(adapter))


def test_a_base_that_is_missing_or_an_adapter(adapter, tmp_path):
    file = adapter / "adapter_config.json"
    for name, message in (
        (
            str(tmp_path / "gone"),
            r"base_model_name_or_path: model folder .*gone.* Write the folder",
        ),
        (str(adapter), "which holds an adapter itself: merge that one first"),
    ):
        change_json(file, base_model_name_or_path=name)
        for load in (LABELLED.from_pretrained, Checkpoint.open):
            with pytest.raises(CheckpointError, match=message):
                load(adapter)


def test_an_adapter_beside_a_whole_model(adapter):
    write_checkpoint(adapter)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json and model\.safetensors: an a"):
        Checkpoint.open(adapter)


def test_a_pickle_is_never_loaded(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        LABELLED.from_pretrained(adapter)


def test_the_fingerprint_covers_the_adapter_and_its_base(adapter, tmp_path):
    before = fingerprint(adapter)
    assert fingerprint(Checkpoint.open(adapter).encoder) == before
    shutil.copytree(tmp_path, tmp_path / "kept")
    seen = {before}
    for name in (
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "base/config.json",
        "base/model.safetensors",
        "base/tokenizer.json",
    ):
        content = bytearray((tmp_path / name).read_bytes())
        content[-3] ^= 1
        if name.endswith(".json"):
            content = (tmp_path / name).read_bytes() + b" "
        (tmp_path / name).write_bytes(content)
        seen.add(fingerprint(adapter))
        shutil.copy(tmp_path / "kept" / name, tmp_path / name)
    assert len(seen) == 6
    assert fingerprint(adapter) == before
