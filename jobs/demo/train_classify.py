"""Train the demo intent classifier with this project's own modules: about a quarter of an hour on one CPU core.

    python jobs/demo/train_classify.py --train clinc150/train.parquet --val clinc150/val.parquet

The data are CLINC150 (Larson et al. 2019, CC BY 3.0) as Parquet with the columns `text` and `intent`. The result is a
checkpoint folder like any other: config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modernbert.checkpoint import save_pretrained
from modernbert.config import ModernBertConfig
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.model import init_weights
from modernbert.packing import PackedBatch

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Example = tuple[list[int], int]


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE tokenizer with BERT's special tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
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


def model_config(vocab_size: int, labels: list[str]) -> ModernBertConfig:
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
        classifier_pooling="mean",
        classifier_dropout=0.4,
        embedding_dropout=0.15,
        mlp_dropout=0.15,
        problem_type="single_label_classification",
        id2label=dict(enumerate(labels)),
    )


def augmented(examples: list[Example], by_label: dict[int, list[list[int]]], dice: random.Random) -> list[Example]:
    """An epoch's examples: some tokens dropped, and one in ten grown by other requests of its label.

    The longer ones teach the mean over tokens to hold for messages of several sentences.
    """
    out = []
    for ids, label in examples:
        body = ids[1:-1]
        if dice.random() < 0.1:
            for _ in range(dice.choice((1, 1, 2, 3, 5, 10))):
                body = body + dice.choice(by_label[label])[1:-1]
        body = [i for i in body if dice.random() > 0.1] or body
        out.append(([ids[0], *body, ids[-1]], label))
    return out


def batch_of(examples: list[Example]) -> tuple[PackedBatch, torch.Tensor]:
    """Examples as a packed batch, sorted by length, and their labels."""
    examples = sorted(examples, key=lambda example: len(example[0]))
    ids = torch.tensor([i for example, _ in examples for i in example])
    return PackedBatch.from_lengths(ids, tuple(len(example) for example, _ in examples)), torch.tensor(
        [label for _, label in examples]
    )


@torch.no_grad()
def accuracy(model: ModernBertForSequenceClassification, examples: list[Example]) -> float:
    """The share of `examples` that the model labels rightly."""
    model.eval()
    right = 0
    for start in range(0, len(examples), 256):
        batch, labels = batch_of(examples[start : start + 256])
        right += int((model.forward_packed(batch).argmax(-1) == labels).sum())
    model.train()
    return right / len(examples)


def train(options: argparse.Namespace) -> None:
    """Tokenizer, model, training loop, checkpoint."""
    torch.manual_seed(options.seed)
    dice = random.Random(options.seed)
    tables = [pq.read_table(path, columns=["text", "intent"]).to_pydict() for path in (options.train, options.val)]
    labels = sorted(set(tables[0]["intent"]))
    tokenizer = train_tokenizer(tables[0]["text"], options.vocab_size)
    examples, held_out = (
        [(e.ids, labels.index(i)) for e, i in zip(tokenizer.encode_batch(t["text"]), t["intent"], strict=True)]
        for t in tables
    )
    held_out = [example for example in held_out if labels[example[1]] != "oos"]
    by_label: dict[int, list[list[int]]] = {}
    for ids, label in examples:
        by_label.setdefault(label, []).append(ids)
    config = model_config(tokenizer.get_vocab_size(), labels)
    model = ModernBertForSequenceClassification(config)
    init_weights(model, config)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(examples):,} examples", flush=True)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    steps = options.epochs * math.ceil(len(examples) / options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.1)
    start = time.time()
    for epoch in range(options.epochs):
        tokenizer.model.dropout = 0.1  # words split at random: the strongest augmentation for so little data
        encoded = tokenizer.encode_batch(tables[0]["text"])
        split = [(e.ids, label) for e, (_, label) in zip(encoded, examples, strict=True)]
        tokenizer.model.dropout = None
        shuffled = augmented(dice.sample(split, len(split)), by_label, dice)
        for i in range(0, len(shuffled), options.batch):
            batch, targets = batch_of(shuffled[i : i + options.batch])
            loss = F.cross_entropy(model.forward_packed(batch), targets, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        if epoch % 5 == 4 or epoch == options.epochs - 1:
            shown = f"loss {loss.item():.3f}, in-scope validation accuracy {accuracy(average.module, held_out):.4f}"
            print(f"epoch {epoch + 1}: {shown}, {time.time() - start:.0f} s", flush=True)
    save_pretrained(average.module.half(), options.output)
    tokenizer.save(str(options.output / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_position_embeddings}
    settings |= {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    (options.output / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=HERE / "intent-classifier")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    sys.exit(main())
