"""Strict loading: every file layout that is read, and every way in which a folder can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from checkpoints import relative_error, write_checkpoint, write_tokenizer
from safetensors.torch import load_file, save_file

from modernbert.checkpoint import check_weights, load
from modernbert.config import ModernBertConfig
from modernbert.encoders.module_files import open_folder
from modernbert.files import CheckpointError, fingerprint, load_config, resolve
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.linear import prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from pipelines import pipeline

IDS = torch.arange(3, 60)
BATCH = PackedBatch.from_lengths(IDS, (57,))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_sharded_checkpoints(tmp_path, dtype):
    theirs = write_checkpoint(tmp_path / "whole", num_labels=3).to(dtype)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    ours = load(ModernBertForSequenceClassification, tmp_path / "sharded")
    assert ours.classifier.weight.dtype == torch.float32
    oracle = type(theirs).from_pretrained(tmp_path / "sharded", dtype=torch.float32).eval()
    assert relative_error(ours.forward_packed(BATCH), oracle(IDS[None]).logits) < 2e-5


@torch.no_grad()
def test_double_precision(tmp_path):
    theirs = write_checkpoint(tmp_path / "single", num_labels=3)
    theirs.double().save_pretrained(tmp_path / "double")
    ours = load(ModernBertForSequenceClassification, tmp_path / "double")
    assert ours.classifier.weight.dtype == torch.float32
    want = load(ModernBertForSequenceClassification, tmp_path / "single").forward_packed(BATCH)
    assert torch.equal(ours.forward_packed(BATCH), want)


LEFTOVERS = [
    "embeddings.position_ids", "model.embeddings.position_ids", "model.layers.0.attn.rotary_emb.inv_freq",
    "model.rotary_emb.full_attention_inv_freq", "model.rotary_emb.sliding_attention_original_inv_freq",
    "loss_fct.weight", "criterion.pos_weight", "model.loss_fct.weight",
]  # fmt: skip


@torch.no_grad()
def test_what_no_forward_pass_reads_is_left_out_and_said(tmp_path, caplog):
    theirs = write_checkpoint(tmp_path, num_labels=3)
    change_weights(
        tmp_path, lambda weights: weights.update({name: torch.ones(3) for name in LEFTOVERS})
    )
    ours = load(ModernBertForSequenceClassification, tmp_path)
    assert relative_error(ours.forward_packed(BATCH), theirs(IDS[None]).logits) < 1e-5
    (record,) = caplog.records
    assert f"left out {', '.join(sorted(LEFTOVERS))}, which no answer" in record.getMessage()


WRAPPERS = {
    "_orig_mod.": "it was saved while compiled; save it again with model._orig_mod.save",
    "module.": "it was saved while wrapped for training in parallel; save it again with model.module.save",
    "base_model.model.": "it was saved with PEFT's adapters; save it again with model.merge_and_unload().save",
}


@pytest.mark.parametrize(("prefix", "hint"), WRAPPERS.items(), ids=WRAPPERS)
def test_a_wrapper_that_was_saved_too(tmp_path, prefix, hint):
    write_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {prefix + name: weight for name, weight in weights.items()}, tmp_path / "model.safetensors"
    )
    for model_class in (ModernBertForSequenceClassification, ModernBertModel):
        with pytest.raises(CheckpointError) as caught:
            load(model_class, tmp_path)
        assert f"names begin with '{prefix}', {hint}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_gliner(tmp_path):
    (tmp_path / "gliner_config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for folder in (tmp_path, open_folder(tmp_path)):
        with pytest.raises(CheckpointError, match="a checkpoint of GLiNER: no task here runs one"):
            load(ModernBertForSequenceClassification, folder)


def test_inference_compiles_nothing(tmp_path):
    """Whatever the checkpoint says: a machine of a job may have no C++ compiler. from_pretrained follows it."""
    write_checkpoint(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"reference_compile": True}))

    def compiled(model):
        return {
            name for name, module in model.named_modules() if module._compiled_call_impl is not None
        }

    assert compiled(ModernBertForSequenceClassification.from_pretrained(tmp_path))
    assert not compiled(load(ModernBertForSequenceClassification, tmp_path))
    assert not compiled(pipeline_model(tmp_path))


def pipeline_model(folder):
    write_tokenizer(folder)
    return pipeline("text-classification", str(folder)).predictor.model


@torch.no_grad()
def test_the_encoder_loads_with_and_without_the_prefix(tmp_path):
    theirs = write_checkpoint(tmp_path / "mlm", architecture="ModernBertForMaskedLM")
    theirs.model.save_pretrained(tmp_path / "bare")
    want = theirs.model(IDS[None]).last_hidden_state[0]
    for folder in ("mlm", "bare"):
        assert (
            relative_error(load(ModernBertModel, tmp_path / folder).forward_packed(BATCH), want)
            < 2e-5
        )


def test_what_we_save_transformers_loads(tmp_path):
    config = ModernBertConfig(vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                              num_attention_heads=2, pad_token_id=0, id2label={0: "a", 1: "b", 2: "c"})  # fmt: skip
    model = ModernBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert relative_error(model.forward_packed(BATCH), theirs(IDS[None]).logits) < 2e-5
    prepack(model)
    with pytest.raises(ValueError, match="save it before prepack"):
        model.save_pretrained(tmp_path / "again")


def test_wrong_weights_are_all_listed(tmp_path):
    write_checkpoint(tmp_path)

    def spoil(weights):
        del weights["model.layers.1.mlp.Wi.weight"]
        weights["model.layers.0.extra"] = torch.zeros(1)
        weights["model.final_norm.weight"] = torch.zeros(5)
        weights["head.norm.weight"] = torch.zeros(64, dtype=torch.int8)

    change_weights(tmp_path, spoil)
    with pytest.raises(CheckpointError) as caught:
        load(ModernBertForSequenceClassification, tmp_path)
    for part in ("missing model.layers.1.mlp.Wi.weight", "unexpected model.layers.0.extra",
                 "model.final_norm.weight has shape [5], not [64]", "head.norm.weight is stored as I8"):  # fmt: skip
        assert part in str(caught.value)


def test_a_checkpoint_of_another_task_is_named(tmp_path):
    write_checkpoint(tmp_path, architecture="ModernBertForMaskedLM")
    config = load_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing classifier\.weight"):
        check_weights(ModernBertForSequenceClassification, tmp_path, config)


def test_pickles_are_never_loaded(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Convert it once"):
        load(ModernBertForSequenceClassification, tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_missing_files(tmp_path, lost):
    write_checkpoint(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {lost}"):
        load(ModernBertForSequenceClassification, tmp_path)


def test_truncated_weights(tmp_path):
    write_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(ModernBertForSequenceClassification, tmp_path)


def test_a_broken_index(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=r"lacks elsewhere\.safetensors"):
        load(ModernBertForSequenceClassification, tmp_path)


def test_resolve(tmp_path):
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve("/no/such/folder")
    with pytest.raises(CheckpointError, match="is not a folder here, not in the hub's cache"):
        resolve("nobody/nothing")


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    """The layout that huggingface_hub itself writes and reads, so that a cached model loads without a network."""
    revision = "0" * 40
    repository = tmp_path / "models--someone--classifier"
    write_checkpoint(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_config(resolve("someone/classifier")).hidden_size == 64


def test_fingerprint_changes_with_weights_config_and_tokenizer(tmp_path):
    write_checkpoint(tmp_path)
    seen = {fingerprint(tmp_path)}
    change_weights(tmp_path, lambda weights: weights["classifier.bias"].add_(1e-3))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.add(fingerprint(tmp_path))
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 4
