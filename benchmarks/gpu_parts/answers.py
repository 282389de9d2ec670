"""What answers depend on: company, number types, other implementations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_parts.common import (
    BASE,
    BUDGETS,
    DEVICE,
    DRY,
    HALF,
    LENGTHS,
    ROOT,
    batch_of,
    encoder_of,
    mixed_lengths,
    relative_error,
    seconds_of,
)  # fmt: skip
from benchmarks.gpu_parts.lines import Figures
from modernbert import float8, fusions, gpu, kernels
from modernbert.config import ModernBertConfig
from modernbert.heads import ModernBertForSequenceClassification
from modernbert.packing import PackedBatch
from modernbert.rope import apply_rope
from modernbert.tiles import Fusions, tiles_for


def invariance(figures: Figures) -> None:
    """Documents whose bits depend on the order and the company they are in; with fixed rows, and what these cost."""
    model, budget = encoder_of(BASE), BUDGETS[-1]
    if not DRY:
        fusions.use(model, fusions.fastest(model))
        figures["products"] = str(model.fusions)
    lengths = mixed_lengths(budget // 2)
    rng = np.random.default_rng(0)
    documents = [rng.integers(5, 300, n).astype(np.int32) for n in lengths]

    def run(order: list[int], rows: int | None) -> list[torch.Tensor]:
        ids = np.concatenate([documents[i] for i in order])
        batch = PackedBatch.from_arrays(ids, [lengths[i] for i in order], DEVICE)
        if rows and not DRY:  # the CPU's attention has a row for each token of a sequence
            batch = with_rows(batch, rows)
        hidden = model.forward_packed(batch)[: len(ids)]
        outs = dict(zip(order, hidden.split([lengths[i] for i in order]), strict=True))
        return [outs.get(i, torch.empty(0, device=DEVICE)) for i in range(len(documents))]

    everyone = list(range(len(documents)))
    figures["documents"] = len(documents)
    for name, rows in (("rows as they come", None), ("fixed rows", budget)):
        want = run(everyone, rows)
        halves = [
            a if len(a) else b
            for a, b in zip(run(everyone[::2], rows), run(everyone[1::2], rows), strict=True)
        ]
        orders = {"reversed": run(everyone[::-1], rows), "halves": halves}
        figures[name] = {
            each: sum(not torch.equal(a, b) for a, b in zip(want, got, strict=True))
            for each, got in orders.items()
        }
    batch = batch_of(mixed_lengths(int(budget * 0.97)))
    padded = batch if DRY else with_rows(batch, budget)
    figures["seconds, filled to 97%"] = seconds_of(lambda: model.forward_packed(batch))
    figures["seconds, fixed rows"] = seconds_of(lambda: model.forward_packed(padded))


def with_rows(batch: PackedBatch, rows: int) -> PackedBatch:
    """Add rows after the last sequence, which belong to none."""
    missing = rows - len(batch.input_ids)
    ids, positions = (F.pad(x, (0, missing)) for x in (batch.input_ids, batch.position_ids))
    return replace(batch, input_ids=ids, position_ids=positions)


def accuracy(figures: Figures) -> None:
    """The error of hidden states against fp64 arithmetic of the same weights: ours, in float8, and transformers'."""
    import transformers

    lengths = [LENGTHS[0]] * 8
    config = {
        "vocab_size": 300,
        "num_hidden_layers": BASE.num_hidden_layers,
        "hidden_size": BASE.hidden_size,
    }
    config |= {
        "intermediate_size": BASE.intermediate_size,
        "num_attention_heads": BASE.num_attention_heads,
    }
    torch.manual_seed(0)
    theirs = (
        transformers.ModernBertModel(transformers.ModernBertConfig(**config, pad_token_id=0))
        .eval()
        .to(DEVICE)
    )
    with torch.no_grad():
        for weight in theirs.parameters():  # weights that matter: the initial ones are small
            if weight.dim() == 2:
                weight.normal_(0, 1.2 * weight.shape[1] ** -0.5)
    theirs.to(HALF)
    ours = encoder_of(ModernBertConfig(**config, pad_token_id=0))
    ours.load_state_dict(theirs.state_dict())
    batch = batch_of(lengths)
    grid = batch.input_ids.view(len(lengths), -1).long()
    exact = theirs.double()(grid).last_hidden_state.flatten(0, 1)
    theirs.to(HALF)
    figures["transformers"] = relative_error(theirs(grid).last_hidden_state.flatten(0, 1), exact)
    figures["ours"] = relative_error(ours.forward_packed(batch), exact)
    if not DRY:  # whichever is fastest
        for tile in tiles_for(gpu.compute_capability(DEVICE)):
            fusions.use(ours, Fusions(tile, tile))
            figures[f"ours, tiles of {tile}"] = relative_error(ours.forward_packed(batch), exact)
        fusions.use(ours, Fusions())
    try:
        float8.quantise(ours)
        figures["ours in float8"] = relative_error(ours.forward_packed(batch), exact)
    except ValueError as error:
        figures["ours in float8"] = str(error)


def answers_in_float8(figures: Figures) -> None:
    """How many labels of the demo classifier stay in float8, and how near the vectors of the demo encoder are."""
    import pyarrow.parquet as pq  # the demo corpus

    from modernbert.checkpoint import load
    from modernbert.encoders.sentence import SentenceEncoder
    from modernbert.encoders.sentence_config import SentenceConfig
    from modernbert.text.tokenizer import Tokenizer

    folders = {
        name: ROOT / "jobs/demo" / name for name in ("intent-classifier", "sentence-encoder")
    }
    column = (
        pq.read_table(ROOT / "jobs/demo/requests.parquet", columns=["text"])["text"]
        .cast("binary")
        .to_pylist()
    )
    texts = [text.decode(errors="replace") for text in column if text and text.strip()][
        : 4 if DRY else None
    ]
    outputs: dict[str, dict[str, torch.Tensor]] = {name: {} for name in folders}
    for dtype in ("float32", "bfloat16", "float8"):
        half = torch.float32 if dtype == "float32" else torch.bfloat16
        for name, folder in folders.items():
            if name == "sentence-encoder":
                config = SentenceConfig.from_folder(folder)
                model: Any = SentenceEncoder.load(config, device=DEVICE, dtype=half)
            else:
                model = load(ModernBertForSequenceClassification, folder, device=DEVICE, dtype=half)
            if dtype == "float8":
                with emulated_float8() if DEVICE.type == "cpu" else nullcontext():
                    float8.quantise(model)
                    outputs[name][dtype] = run_texts(model, Tokenizer.from_folder(folder), texts)
            else:
                outputs[name][dtype] = run_texts(model, Tokenizer.from_folder(folder), texts)
    figures["texts"] = len(texts)
    for dtype in ("bfloat16", "float8"):
        labels, vectors = outputs["intent-classifier"], outputs["sentence-encoder"]
        same = labels[dtype].argmax(1) == labels["float32"].argmax(1)
        cosines = F.cosine_similarity(vectors[dtype].float(), vectors["float32"].float())
        figures[dtype] = {
            "same_labels": same.float().mean().item(),
            "mean_cosine": cosines.mean().item(), "least_cosine": cosines.min().item(),
        }  # fmt: skip


def run_texts(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    outputs = []
    for first in range(0, len(texts), 256):
        windows = tokenizer.encode(texts[first : first + 256])
        batch = PackedBatch.from_arrays(windows.input_ids, windows.lengths.tolist(), DEVICE)
        outputs.append(model.forward_packed(batch))
    return torch.cat(outputs)


@contextmanager
def emulated_float8() -> Iterator[None]:
    """Let a CPU compute what a GPU would in float8, in plain torch: rows and weights are rounded to e4m3."""

    def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
        return (x.float() / scales).to(torch.float8_e4m3fn), scales

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> Any:
        return rounded(F.layer_norm(x.float(), weight.shape, weight.float(), bias, eps))

    def gated(y: torch.Tensor) -> Any:
        a, b = y.float().chunk(2, dim=-1)
        return rounded(F.gelu(a) * b)

    def product(
        x: Any, weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        return ((x.values.float() * x.scales) @ (weight.float() * scales.t()).t()).to(dtype)

    before = float8._check, float8.scaled_product, gpu.kernels_for

    def rotate_(
        qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
    ) -> None:
        qkv[:, :2] = apply_rope(qkv[:, :2], cos[positions], sin[positions])

    stand_ins = SimpleNamespace(
        norm_float8=norm, geglu_float8=gated, rotate_=rotate_, pool_sequences=kernels.pool_sequences
    )
    float8._check, float8.scaled_product, gpu.kernels_for = (
        lambda *_: None,
        product,
        lambda _: stand_ins,
    )
    try:
        yield
    finally:
        float8._check, float8.scaled_product, gpu.kernels_for = before
