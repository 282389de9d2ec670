"""What the demo's training scripts share: tokenizer, configuration, packed batches, loop, checkpoint files."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor

from modernbert.checkpoint import PreTrained
from modernbert.config import ModernBertConfig
from modernbert.packing import PackedBatch

DEMO = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MASK = SPECIAL.index("[MASK]")
Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=PreTrained)
Splits = list[list[tuple[int, int]]]


def settings(docstring: str, output: Path, *files: str, **defaults: float) -> argparse.Namespace:
    """What a training script's command line says: where to, files that it needs, and numbers that have defaults.

    torch runs on as many threads as it says.
    """
    parser = argparse.ArgumentParser(description=docstring.split("\n")[0])
    parser.add_argument("--output", type=Path, default=output)
    for name, value in {**defaults, "seed": 0, "threads": 1}.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    for name in files:
        parser.add_argument("--" + name, type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> Tokenizer:
    """A byte-level BPE tokenizer with BERT's special tokens; `pre_tokenizer` ends in bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = (("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]")))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    return tokenizer


def model_config(vocab_size: int, **fields: object) -> ModernBertConfig:
    """Two million parameters of the real architecture: alternating attention, GeGLU, rotary embeddings."""
    ids = {name.strip("[]").lower() + "_token_id": i for i, name in enumerate(SPECIAL)}
    return ModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=3,
        pad_token_id=ids["pad_token_id"],
        cls_token_id=ids["cls_token_id"],
        bos_token_id=ids["cls_token_id"],
        sep_token_id=ids["sep_token_id"],
        eos_token_id=ids["sep_token_id"],
        **fields,  # type: ignore[arg-type]
    )


def pack(sequences: list[list[int]]) -> PackedBatch:
    """Token ids end to end, in the order given."""
    return PackedBatch.from_lengths(
        torch.tensor([i for ids in sequences for i in ids]), tuple(map(len, sequences))
    )


def token_splits(tokenizer: Tokenizer) -> Splits:
    """For each token id the pairs of tokens that spell the same; none for special tokens and single bytes."""
    vocab = tokenizer.get_vocab()
    splits: Splits = [[] for _ in range(len(vocab))]
    for token in vocab.keys() - set(SPECIAL):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        splits[vocab[token]] = [
            (vocab[a], vocab[b]) for a, b in halves if a in vocab and b in vocab
        ]
    return splits


def resplit(
    ids: list[int], splits: Splits, share: float, dice: random.Random
) -> tuple[list[int], list[int]]:
    """`ids` with a `share` of tokens cut in two, and where each came from: BPE dropout that a seed determines."""
    new, origin = [], []
    for at, token in enumerate(ids):
        pieces = dice.choice(splits[token]) if splits[token] and dice.random() < share else (token,)
        new += pieces
        origin += [at] * len(pieces)
    return new, origin


def fit(
    model: Model,
    batches: Callable[[], list[Batch]],
    loss_of: Callable[[Batch], Tensor],
    score: Callable[[Model], str],
    *,
    epochs: int,
    steps: int,
    lr: float,
    average_decay: float = 0.998,
) -> Model:
    """Train `model` with AdamW under a one-cycle schedule and return the running average of its weights.

    `batches()` gives an epoch's `steps` batches; `score` describes the average after every fifth epoch. The average
    reaches back over about 1 / (1 - `average_decay`) steps, which should be a small part of all.
    """
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(average_decay)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=averaging)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps an epoch",
        flush=True,
    )
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps, pct_start=0.1
    )
    start = time.time()
    model.train()
    for epoch in range(epochs):
        for batch in batches():
            loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        if epoch % 5 == 4 or epoch == epochs - 1:
            average.module.eval()
            with torch.no_grad():
                shown = f"loss {loss.item():.3f}, {score(average.module)}"
            print(f"epoch {epoch + 1}: {shown}, {time.time() - start:.0f} s", flush=True)
    return average.module.eval()


def save(model: PreTrained, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a checkpoint folder: config.json, model.safetensors in float16, tokenizer.json, tokenizer_config.json."""
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
    }
    settings |= {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
