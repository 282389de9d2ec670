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
    folder: Path,
    *,
    architecture: str = "ModernBertForSequenceClassification",
    heat: float = 2.5,
    **config: Any,
):
    """Write a hot random checkpoint with transformers; returns its model in fp32 and eval mode."""
    import transformers

    torch.manual_seed(0)
    result = getattr(transformers, architecture)(transformers.ModernBertConfig(**(TINY | config)))
    make_hot(result, heat)
    result.save_pretrained(folder)
    return result.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference as a share of the norm of `theirs`."""
    return ((ours - theirs).norm() / theirs.norm()).item()


SENTENCE = "the cat sat on the mat and then the other cat sat there too"


def write_tokenizer(folder: Path, vocab_size: int = 300, text: str = SENTENCE) -> None:
    """Write a byte-level BPE tokenizer.json, trained on `text`, with special tokens as in ModernBERT."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]", AddedToken("[MASK]", lstrip=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_gemma_tokenizer(folder: Path) -> None:
    """Write a tokenizer like mmBERT's (Gemma 2): BPE with bytes for what is not in the vocabulary, without words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    in_bytes = [f"<0x{code:02X}>" for code in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names + in_bytes, show_progress=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training alone
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    # The normalizer leaves no space at which it could split.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _save_with_bos_and_eos(folder, tokenizer, "<bos>", "<eos>")


def write_unigram_tokenizer(folder: Path) -> None:
    """Write a tokenizer like that of ModernBERT-Ja and Ruri v3: Unigram of sentencepiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE, "abcdefgh 0123 é 中文"] * 3, trainer)
    _save_with_bos_and_eos(folder, tokenizer, "<s>", "</s>")


def write_wordpiece_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose vocabulary marks tokens that go on with a word, and that lacks some characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator([SENTENCE, "abcdefgh 0123 é 中文"], trainer)
    _save_with_bos_and_eos(folder, tokenizer, "[CLS]", "[SEP]")
    settings = folder / "tokenizer_config.json"
    change_json(settings, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")


def _save_with_bos_and_eos(folder: Path, tokenizer: Any, bos: str, eos: str) -> None:
    from tokenizers import processors

    ids = [(name, tokenizer.token_to_id(name)) for name in (bos, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} $B:1 {eos}:1", special_tokens=ids
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": eos, "cls_token": bos, "sep_token": eos}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


TOKENIZERS = {
    "byte-level BPE": write_tokenizer,
    "Gemma": write_gemma_tokenizer,
    "Unigram": write_unigram_tokenizer,
    "WordPiece": write_wordpiece_tokenizer,
}
"""The kinds of tokenizers that checkpoints of the family have."""


HEADS: dict[str, dict[str, Any]] = {
    "ModernBertModel": {},
    "ModernBertForMaskedLM": {},
    "ModernBertForSequenceClassification": {"num_labels": 3},
    "ModernBertForTokenClassification": {"num_labels": 3},
    "ModernBertForQuestionAnswering": {},
    "ModernBertForMultipleChoice": {},
}
"""Every class, and what its configuration needs."""


def write_pair(folder: Path, architecture: str, **config: Any):
    """Write a hot random checkpoint; returns transformers' model and ours with its weights, both in eval mode."""
    import modernbert

    theirs = write_checkpoint(folder, architecture=architecture, **HEADS[architecture] | config)
    return theirs, getattr(modernbert, architecture).from_pretrained(folder)


def example(architecture: str, rows: int = 2, length: int = 90) -> dict[str, torch.Tensor]:
    """Random `input_ids` and `attention_mask` without padding for that class, and the labels it takes, by argument."""
    generator = torch.Generator().manual_seed(3)
    choices = (2,) if "MultipleChoice" in architecture else ()
    ids = torch.randint(5, 300, (rows, *choices, length), generator=generator)
    task = architecture.removeprefix("ModernBert").removeprefix("For")
    labels = {
        "MaskedLM": {
            "labels": ids.flip(0).where(torch.rand(ids.shape, generator=generator) < 0.3, -100)
        },
        "SequenceClassification": {"labels": torch.arange(rows) % 3},
        "TokenClassification": {"labels": (ids % 3).where(ids % 5 > 0, -100)},
        "QuestionAnswering": {
            "start_positions": torch.arange(rows) + 3,
            "end_positions": torch.arange(rows) + 9,
        },
        "MultipleChoice": {"labels": torch.arange(rows) % 2},
    }.get(task, {})
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **labels}


def write_task(
    folder: Path,
    architecture: str,
    *,
    heat: float = 1.5,
    tokenizer: str = "byte-level BPE",
    **config: Any,
) -> Path:
    """Write a hot random checkpoint with one of TOKENIZERS, and return its folder."""
    if labels := config.pop("labels", None):
        config |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, architecture=architecture, heat=heat, **config)
    TOKENIZERS[tokenizer](folder)
    return folder


def write_multi_vector(folder: Path, **settings: Any) -> Path:
    """Write a multi-vector encoder with sentence-transformers, whose queries have 16 tokens, and return its folder."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(0)
    names = {"module_input_name": "token_embeddings"}
    plain = write_task(folder / "plain", "ModernBertModel")
    settings = {
        "query_expansion": {"strategy": "fixed", "length": 16},
        "document_length": 300,
    } | settings
    dense = Dense(64, 32, bias=False, activation_function=torch.nn.Identity(), **names)
    modules = [
        Transformer(str(plain), **settings),
        dense,
        MultiVectorMask(skiplist_words=[".", ","]),
        Normalize(**names),
    ]
    MultiVectorEncoder(modules=modules, device="cpu").save(str(folder / "saved"))
    return folder / "saved"


def write_gliclass(
    folder: Path, *, tokenizer: str = "byte-level BPE", heat: float = 1.5, **config: Any
) -> Path:
    """Write a hot random GLiClass with the package gliclass, whose tokenizer knows its markers, and return its folder."""
    import transformers
    from gliclass import GLiClassModel, GLiClassModelConfig

    folder.mkdir(parents=True, exist_ok=True)
    TOKENIZERS[tokenizer](folder)
    markers = ["<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>"]
    with_markers = transformers.AutoTokenizer.from_pretrained(folder)
    with_markers.add_tokens(markers, special_tokens=True)
    with_markers.save_pretrained(folder)
    label, sep, example = with_markers.convert_tokens_to_ids(markers)
    small = {"num_hidden_layers": 2, "vocab_size": len(with_markers)}
    encoder = transformers.ModernBertConfig(**TINY | small | config.pop("encoder", {}))
    named = {"class_token_index": label, "text_token_index": sep, "example_token_index": example}
    torch.manual_seed(0)
    settings = {"scorer_num_heads": 4} | named | config
    model = GLiClassModel(
        GLiClassModelConfig(encoder_config=encoder, encoder_model="its base", **settings)
    )
    make_hot(model, heat)
    model.save_pretrained(folder)
    return folder


def change_json(file: Path, **values: Any) -> None:
    """Change the values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


SETTINGS_OF_SIDES: dict[str, dict[str, Any]] = {
    "no prompts": {"prompts": {}},
    "query alone": {"prompts": {"query": "the: "}},
    "a default one": {"prompts": {"more": "cat cat "}, "default_prompt_name": "more"},
}
"""Prompts as versions of sentence-transformers before 6 store them: not for both sides."""
