"""Random checkpoints for tests, written by transformers: the oracle for everything that reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "cls_token_id": 1,
    "bos_token_id": 1,
    "sep_token_id": 2,
    "eos_token_id": 2,
}


def make_hot(model: torch.nn.Module, heat: float, seed: int = 0) -> None:
    """Scale projections up so that attention is peaked and every layer matters: default weights hide wrong code."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "tok_embeddings" not in name:
                gain = heat if "Wqkv" in name else min(heat, 1.2) if heat > 2 else 1.0
                weight.normal_(0, gain * weight.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3, generator=generator)
            elif "norm" in name:
                weight.normal_(1, 0.2, generator=generator)
            else:
                weight.normal_(0, 1, generator=generator)


def write_checkpoint(
    folder: Path, *, architecture: str = "ModernBertForSequenceClassification", heat: float = 2.5, **config: Any
):
    """Write a hot random checkpoint with transformers; returns its model in fp32 and eval mode."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, architecture)(transformers.ModernBertConfig(**(TINY | config)))
    make_hot(made, heat)
    made.save_pretrained(folder)
    return made.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference as a share of the norm of `theirs`."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def write_tokenizer(folder: Path, vocab_size: int = 300) -> None:
    """Write a byte-level BPE tokenizer.json whose ids fit `vocab_size`, with special tokens as in ModernBERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the other cat sat there too"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
