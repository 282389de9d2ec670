"""Measure the GPU path, part by part: ceilings, kernels, attention, encoder, predictor, invariance, memory, peers.

    python benchmarks/gpu.py [--out FOLDER] [--only PART ...] [--dry]

Needs torch and Triton; parts that need more (transformers, sentence-transformers, pydantic and pyarrow for the
predictor) are skipped with the reason where it is missing. The results are written to FOLDER/gpu.json after each part:
FOLDER is --out, else the variable OUT, else benchmarks/results. --dry runs every part at toy size on a CPU, with the
kernels interpreted, and writes no file unless --out names a folder. Takes at most nine minutes; parts that would begin
later are skipped.

Shapes: T packed tokens, D hidden, F MLP width, N heads, H head dim.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import numpy as np
import torch
import torch.nn.functional as F

from modernbert import float8, gpu, kernels
from modernbert.attention import length_classes, packed_attention, varlen_attention
from modernbert.attention_kernels import BACKENDS, resolve_backend
from modernbert.config import ModernBertConfig
from modernbert.heads import ModernBertForSequenceClassification, ModernBertForTokenClassification
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.rope import apply_rope, rope_table

SECONDS = 9 * 60
DRY = "--dry" in sys.argv
DEVICE = torch.device("cpu" if DRY else "cuda")
HALF = torch.float32 if DRY else torch.bfloat16  # the interpreter cuts bits off where a GPU rounds
BASE = ModernBertConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=2) if DRY else (
    ModernBertConfig()
)  # fmt: skip
LARGE = BASE if DRY else ModernBertConfig(
    hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
)  # fmt: skip
BUDGETS = (256,) if DRY else (8192, 16384, 32768, 65536)
LENGTHS = (16, 64) if DRY else (128, 512, 2048, 8192)
CHECKED_LENGTHS = (
    (1, 2, 31, 64) if DRY else (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 300, 1024, 8192)
)
WINDOWS = {"global": None, "local": (64, 64)}


# ---- timing --------------------------------------------------------------------------------------------------------


def seconds_of(fn: Callable[[], Any], runs: int = 7, at_least_s: float = 0.0) -> float:
    """Return the median time of `fn` on the device, after two calls that are not counted; dry, of one call."""
    if DRY:
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start
    times: list[float] = []
    spent = -2
    while spent < runs or sum(times) < at_least_s:
        spent += 1
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        fn()
        end.record()
        end.synchronize()
        elapsed = begin.elapsed_time(end) / 1e3
        if spent > 0:
            times.append(elapsed)
    return statistics.median(times)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


@contextmanager
def kernels_off() -> Iterator[None]:
    """Run models without the Triton kernels: RoPE out of place, residuals and activations by themselves."""
    before, gpu.kernels_for = gpu.kernels_for, lambda _: None
    try:
        yield
    finally:
        gpu.kernels_for = before


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


def mixed_lengths(tokens: int) -> list[int]:
    """Return lengths of documents, log-normal with the median 180, that fill a batch; ascending."""
    lengths = (
        np.random.default_rng(0)
        .lognormal(np.log(180), 1.1, tokens // 4)
        .astype(int)
        .clip(4, max(LENGTHS))
    )
    lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths), tokens, side="right")))]
    return sorted(min(int(n), tokens) for n in lengths)


def batch_of(lengths: list[int], seed: int = 0) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(5, 300, sum(lengths)).astype(np.int32)
    return PackedBatch.from_arrays(ids, lengths, DEVICE)


def encoder_of(
    config: ModernBertConfig, attention: str = "auto", dtype: torch.dtype = HALF
) -> ModernBertModel:
    torch.manual_seed(0)
    model = ModernBertModel(config, attention).eval().requires_grad_(False)
    return model.to(DEVICE, dtype)


# ---- parts ---------------------------------------------------------------------------------------------------------


def ceilings() -> dict[str, Any]:
    """What the device does at most: a large product and a copy over two seconds, and the products of the encoder."""
    size = 64 if DRY else 8192
    a, b = random(size, size, dtype=HALF), random(size, size, dtype=HALF, seed=1)
    result: dict[str, Any] = {
        "gemm_tflops": 2 * size**3 / seconds_of(lambda: a @ b, at_least_s=2.0) / 1e12
    }
    source = torch.empty(1 << (12 if DRY else 30), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    result["copy_tb_s"] = (
        2 * source.numel() / seconds_of(lambda: target.copy_(source), at_least_s=1.0) / 1e12
    )
    for size_name, config in (("base", BASE), ("large", LARGE)):
        d, f = config.hidden_size, config.intermediate_size
        for tokens in BUDGETS:
            for name, (k, n) in {
                "Wqkv": (d, 3 * d),
                "Wo": (d, d),
                "Wi": (d, 2 * f),
                "mlp.Wo": (f, d),
            }.items():
                x, w, y = (
                    random(tokens, k, dtype=HALF),
                    random(n, k, dtype=HALF),
                    random(tokens, n, dtype=HALF),
                )
                flops = 2 * tokens * k * n / 1e12
                result[f"{size_name} {name} {tokens}"] = {
                    "linear_tflops": flops / seconds_of(lambda x=x, w=w: F.linear(x, w)),
                    "addmm_tflops": flops / seconds_of(lambda x=x, w=w, y=y: y.addmm_(x, w.t())),
                }
    return result


def kernel_speeds() -> dict[str, Any]:
    """The error of each kernel against fp64, and the rate at which it moves memory; torch's LayerNorm beside them."""
    result: dict[str, Any] = {}
    tokens = BUDGETS[-1]
    for size_name, config in (("base", BASE), ("large", LARGE)):
        d, f, heads, dim = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.head_dim,
        )
        lengths = [max(1, tokens // 128)] * 128
        starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
        tables = rope_table(10_000.0, dim, 8192, DEVICE)
        positions = (torch.arange(tokens) % 512).int().to(DEVICE)
        qkv, y, x = (random(tokens, width, dtype=HALF) for width in (3 * d, 2 * f, d))
        qkv = qkv.view(tokens, 3, heads, dim)
        first = qkv[:64, :2].double().chunk(2, -1)
        cos, sin = (table[positions[:64]].double()[:, None, None] for table in tables)
        rotated = torch.cat((first[0] * cos - first[1] * sin, first[1] * cos + first[0] * sin), -1)
        kernels.rotate_(qkv, *tables, positions)
        a, b = y[:64].double().chunk(2, -1)
        weight, element = torch.ones(d, device=DEVICE, dtype=HALF), HALF.itemsize
        pooled = torch.stack([x_LD.double().mean(0) for x_LD in x.split(lengths)])
        result[size_name] = {
            "rotate": {
                "error": relative_error(qkv[:64, :2], rotated),
                "tb_s": 4 * tokens * d * element / seconds_of(lambda: kernels.rotate_(qkv, *tables, positions)) / 1e12,
            },
            "geglu": {
                "error": relative_error(kernels.geglu(y)[:64], F.gelu(a) * b),
                "tb_s": 3 * tokens * f * element / seconds_of(lambda: kernels.geglu(y)) / 1e12,
            },
            "pool": {
                "error": relative_error(kernels.pool_sequences(x, starts, "mean"), pooled),
                "tb_s": tokens * d * element / seconds_of(lambda: kernels.pool_sequences(x, starts, "mean")) / 1e12,
            },
            "layer_norm": {
                "tb_s": 2 * tokens * d * element / seconds_of(lambda: F.layer_norm(x, (d,), weight)) / 1e12
            },
            "norm_float8": {
                "tb_s": (element + 1) * tokens * d / seconds_of(lambda: kernels.norm_float8(x, weight, None, 1e-5))
                / 1e12
            },
            "geglu_float8": {
                "tb_s": (2 * element + 1) * tokens * f / seconds_of(lambda: kernels.geglu_float8(y)) / 1e12
            },
        }  # fmt: skip
    return result


def attention() -> dict[str, Any]:
    """Each backend: error by length against fp64 of the same inputs, bits alone and in company, FLOP/s, classes."""
    result: dict[str, Any] = {}
    heads, dim = BASE.num_attention_heads, BASE.head_dim
    for backend in BACKENDS[:-1]:
        try:
            resolve_backend(backend, DEVICE, HALF, dim)
        except ValueError as error:
            result[backend] = str(error)
            continue
        if backend == "sdpa" and not DRY:
            result[backend] = (
                "not measured: it builds masks on the host; it runs where no other backend can"
            )
            continue
        entry: dict[str, Any] = {}
        q, k, v = random(3, sum(CHECKED_LENGTHS), heads, dim, dtype=HALF)
        q, k = q * 1.5, k * 1.5
        starts = torch.tensor([0, *CHECKED_LENGTHS]).cumsum(0).int().to(DEVICE)
        for name, window in WINDOWS.items():
            out = varlen_attention(q, k, v, starts, CHECKED_LENGTHS, window, backend=backend)
            errors, changed = {}, []
            for start, n in zip(starts.tolist(), CHECKED_LENGTHS, strict=False):
                rows = slice(start, start + n)
                exact = exact_attention(q[rows], k[rows], v[rows], window)
                errors[n] = relative_error(out[rows], exact)
                one = torch.tensor([0, n], dtype=torch.int32, device=DEVICE)
                alone = varlen_attention(
                    *(x[rows].contiguous() for x in (q, k, v)), one, (n,), window, backend=backend
                )
                if not torch.equal(alone, out[rows]):
                    changed.append(n)
            entry[name] = {
                "errors": errors,
                "worst_error": max(errors.values()),
                "lengths_with_other_bits": changed,
            }
        tokens = BUDGETS[-1]
        q, k, v = random(tokens, 3, heads, dim, dtype=HALF).unbind(1)
        for n in LENGTHS:
            lengths = [n] * (tokens // n)
            starts = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
            for name, window in WINDOWS.items():
                keys = n if window is None else min(n, 129)
                took = seconds_of(
                    lambda s=starts, m=lengths, w=window: varlen_attention(
                        q, k, v, s, m, w, backend=backend
                    )
                )
                entry[name][f"tflops {n}"] = 4 * sum(lengths) * keys * heads * dim / took / 1e12
        mix = batch_of(mixed_lengths(tokens))
        rows = slice(0, sum(mix.seqlens))
        whole = length_classes(mix, heads, "flash_attn_3")
        cut = length_classes(mix, heads, "torch_varlen")
        for name, classes in (("mix in one call", whole), ("mix in classes", cut)):
            options: dict[str, Any] = {"classes": classes, "window": None, "backend": backend}
            entry[name] = {
                "calls": len(classes),
                "us": seconds_of(lambda o=options: packed_attention(q[rows], k[rows], v[rows], **o))
                * 1e6,
            }
        result[backend] = entry
    return result


def exact_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int] | None
) -> torch.Tensor:
    """The plain formula in fp64, a head at a time."""
    index = torch.arange(len(q), device=q.device)
    hidden = (index[:, None] - index).abs() > window[0] if window else None
    out = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[1]):
        scores = q[:, head].double() @ k[:, head].double().t() * q.shape[-1] ** -0.5
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        out[:, head] = scores.softmax(-1) @ v[:, head].double()
    return out


def encoder() -> dict[str, Any]:
    """Tokens per second and peak memory of the encoder by size, length and budget; without kernels; in float8."""
    result: dict[str, Any] = {}
    for size, config in (("base", BASE), ("large", LARGE)):
        model = encoder_of(config)
        for budget in BUDGETS:
            shapes = {str(n): [n] * (budget // n) for n in LENGTHS if n <= budget} | {
                "mix": mixed_lengths(budget)
            }
            for name, lengths in shapes.items():
                batch = batch_of(lengths)
                if not DRY:
                    torch.cuda.reset_peak_memory_stats()
                rate = sum(lengths) / seconds_of(lambda m=model, b=batch: m.forward_packed(b))
                result[f"{size} {name} {budget}"] = {
                    "tokens_s": rate,
                    "peak_bytes": 0 if DRY else torch.cuda.max_memory_allocated(),
                }
        batch = batch_of([LENGTHS[1]] * (BUDGETS[-1] // LENGTHS[1]))
        tokens = len(batch.input_ids)
        with kernels_off():
            result[f"{size} without kernels"] = tokens / seconds_of(
                lambda m=model, b=batch: m.forward_packed(b), 3
            )
        for backend in BACKENDS[:-2]:
            try:
                other = encoder_of(config, backend)
                took = seconds_of(lambda m=other, b=batch: m.forward_packed(b), 3)
                result[f"{size} {backend}"] = tokens / took
            except ValueError as error:
                result[f"{size} {backend}"] = str(error)
        try:
            float8.quantise(model)
            result[f"{size} float8"] = tokens / seconds_of(
                lambda m=model, b=batch: m.forward_packed(b)
            )
        except ValueError as error:
            result[f"{size} float8"] = str(error)
    return result


def host() -> dict[str, Any]:
    """Host time of a forward pass: from its call to its return, while the device is still at work; and its waits."""
    result: dict[str, Any] = {}
    for size, config in (("base", BASE), ("large", LARGE)):
        model = encoder_of(config)
        for budget in BUDGETS[:2]:
            lengths = [LENGTHS[0]] * (budget // LENGTHS[0])
            times = []
            for i in range(3 if DRY else 12):
                synchronize()
                start = time.perf_counter()
                model.forward_packed(batch_of(lengths, seed=i))
                times.append(time.perf_counter() - start)
            result[f"{size} {budget} us"] = statistics.median(times) * 1e6
        if not DRY:
            torch.cuda.set_sync_debug_mode("error")  # whatever waits for the device raises
            try:
                model.forward_packed(batch_of(lengths))
                result[f"{size} waits"] = "none"
            except RuntimeError as error:
                result[f"{size} waits"] = str(error).splitlines()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return result


def invariance() -> dict[str, Any]:
    """Documents whose bits depend on the order and the company they are in; with fixed rows, and what these cost."""
    model, budget = encoder_of(BASE), BUDGETS[-1]
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
    result: dict[str, Any] = {"documents": len(documents)}
    for name, rows in (("rows as they come", None), ("fixed rows", budget)):
        want = run(everyone, rows)
        halves = [
            a if len(a) else b
            for a, b in zip(run(everyone[::2], rows), run(everyone[1::2], rows), strict=True)
        ]
        orders = {"reversed": run(everyone[::-1], rows), "halves": halves}
        result[name] = {
            each: sum(not torch.equal(a, b) for a, b in zip(want, got, strict=True))
            for each, got in orders.items()
        }
    batch = batch_of(mixed_lengths(int(budget * 0.97)))
    padded = batch if DRY else with_rows(batch, budget)
    result["seconds, filled to 97%"] = seconds_of(lambda: model.forward_packed(batch))
    result["seconds, fixed rows"] = seconds_of(lambda: model.forward_packed(padded))
    return result


def with_rows(batch: PackedBatch, rows: int) -> PackedBatch:
    """Add rows after the last sequence, which belong to none."""
    missing = rows - len(batch.input_ids)
    ids, positions = (F.pad(x, (0, missing)) for x in (batch.input_ids, batch.position_ids))
    return replace(batch, input_ids=ids, position_ids=positions)


def accuracy() -> dict[str, Any]:
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
    result: dict[str, Any] = {
        "transformers": relative_error(theirs(grid).last_hidden_state.flatten(0, 1), exact),
        "ours": relative_error(ours.forward_packed(batch), exact),
    }
    try:
        float8.quantise(ours)
        result["ours in float8"] = relative_error(ours.forward_packed(batch), exact)
    except ValueError as error:
        result["ours in float8"] = str(error)
    return result


def answers_in_float8() -> dict[str, Any]:
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
        : 8 if DRY else None
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
    result: dict[str, Any] = {"texts": len(texts)}
    for dtype in ("bfloat16", "float8"):
        labels, vectors = outputs["intent-classifier"], outputs["sentence-encoder"]
        same = labels[dtype].argmax(1) == labels["float32"].argmax(1)
        cosines = F.cosine_similarity(vectors[dtype].float(), vectors["float32"].float())
        result[dtype] = {
            "same_labels": same.float().mean().item(),
            "mean_cosine": cosines.mean().item(), "least_cosine": cosines.min().item(),
        }  # fmt: skip
    return result


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


def memory() -> dict[str, Any]:
    """Bytes a token at the peak of a forward pass, measured and by the figure that the default budget follows."""
    result = {}
    for name, model_class in (
        ("classify", ModernBertForSequenceClassification), ("tag", ModernBertForTokenClassification)
    ):  # fmt: skip
        model = model_class(BASE).eval().requires_grad_(False).to(DEVICE, HALF)
        batch = batch_of([LENGTHS[1]] * (BUDGETS[-1] // LENGTHS[1]))
        model.forward_packed(batch)
        before = 0 if DRY else torch.cuda.memory_allocated()
        if not DRY:
            torch.cuda.reset_peak_memory_stats()
        model.forward_packed(batch)
        peak = 0 if DRY else torch.cuda.max_memory_allocated() - before
        result[name] = {
            "measured": peak / len(batch.input_ids),
            "figure": gpu.bytes_per_token(BASE, name == "tag", HALF),
        }
    return result


def graphs() -> dict[str, Any]:
    """Latency of one document: launched kernel by kernel, and as a CUDA graph."""
    model = encoder_of(BASE)
    start = time.perf_counter()
    model.enable_graphs()
    synchronize()
    result: dict[str, Any] = {"capture_common_s": time.perf_counter() - start}
    for n in (16, 64) if DRY else (16, 128, 512, 2048, 4096):
        batch = batch_of([n])
        synchronize()
        plain = wall_seconds(lambda b=batch: model.run_layers(b))
        graphed = wall_seconds(lambda b=batch: model.forward_packed(b))
        result[str(n)] = {"launched_us": plain * 1e6, "graph_us": graphed * 1e6}
    return result


def wall_seconds(fn: Callable[[], Any], runs: int = 20) -> float:
    times = []
    for _ in range(2 if DRY else runs):
        start = time.perf_counter()
        fn()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def predictor() -> dict[str, Any]:
    """The predictor end to end on the mix of lengths: tokens per second, and its share of the encoder's own rate."""
    import tempfile

    from safetensors.torch import save_file

    from pipelines.checkpoints import Checkpoint
    from pipelines.inference.predictor import Predictor
    from pipelines.options import ClassifyOptions
    from pipelines.tasks.classify import Classify

    folder = Path(tempfile.mkdtemp())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((ROOT / "jobs/demo/intent-classifier" / file).read_bytes())
    config = replace(BASE, vocab_size=4096, pad_token_id=0, num_labels=0, id2label={}, label2id={})
    torch.manual_seed(0)
    model = ModernBertForSequenceClassification(config)
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        folder / "model.safetensors",
    )
    names = {"architectures": ["ModernBertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | names))
    checkpoint = Checkpoint.open(folder)
    task = Classify.from_checkpoint(checkpoint, ClassifyOptions())
    result: dict[str, Any] = {}
    total = 512 if DRY else 2_000_000
    for budget in BUDGETS:
        lengths = np.array(mixed_lengths(total))
        ids = np.random.default_rng(0).integers(5, 300, lengths.sum()).astype(np.int32)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        running = Predictor(
            checkpoint, task, device=DEVICE.type, dtype="auto", budget_tokens=budget
        )
        running.predict(ids, starts)
        start = time.perf_counter()
        predictions = running.predict(ids, starts)
        seconds = time.perf_counter() - start
        batch = batch_of(mixed_lengths(budget))
        alone = len(batch.input_ids) / seconds_of(
            lambda m=running.model, b=batch: m.forward_packed(b)
        )
        result[str(budget)] = {
            "tokens_s": len(ids) / seconds, "batches": predictions.batches, "failed": len(predictions.failed),
            "share_of_the_model_alone": len(ids) / seconds / alone,
        }  # fmt: skip
    return result


def peers() -> dict[str, Any]:
    """transformers (sdpa, padded, sorted by length) and sentence-transformers on the documents of the mix."""
    import transformers

    config = transformers.ModernBertConfig(
        vocab_size=50368, hidden_size=BASE.hidden_size, intermediate_size=BASE.intermediate_size,
        num_hidden_layers=BASE.num_hidden_layers, num_attention_heads=BASE.num_attention_heads,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = (
        transformers.ModernBertModel._from_config(config, attn_implementation="sdpa")
        .eval()
        .to(DEVICE, HALF)
    )
    lengths = mixed_lengths(256 if DRY else 200_000)
    documents = [
        torch.randint(5, 300, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths
    ]
    result: dict[str, Any] = {}
    for count in (2,) if DRY else (16, 32, 64):
        result[f"transformers sdpa, batches of {count}"] = sum(lengths) / wall_seconds(
            lambda c=count: padded_pass(theirs, documents, c), 3
        )
    ours = encoder_of(BASE)
    budget = BUDGETS[-1]

    def packed_pass() -> None:
        start = 0
        while start < len(documents):
            stop = start + 1
            while stop < len(documents) and sum(lengths[start : stop + 1]) <= budget:
                stop += 1
            ids = torch.cat(documents[start:stop]).int().numpy()
            ours.forward_packed(PackedBatch.from_arrays(ids, lengths[start:stop], DEVICE))
            start = stop

    result["ours"] = sum(lengths) / wall_seconds(packed_pass, 3)
    try:
        from sentence_transformers import SentenceTransformer

        demo = str(ROOT / "jobs/demo/sentence-encoder")
        texts = [("word " * min(n, 400)).strip() for n in lengths]
        encoder = SentenceTransformer(demo, device=DEVICE.type, model_kwargs={"dtype": HALF})
        result["sentence-transformers, demo model, texts/s"] = len(texts) / wall_seconds(
            lambda: encoder.encode(texts, batch_size=32), 3
        )
    except ImportError as error:
        result["sentence-transformers"] = str(error)
    return result


def padded_pass(model: Any, documents: list[torch.Tensor], count: int) -> None:
    for first in range(0, len(documents), count):
        group = documents[first : first + count]
        ids = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in group])[:, None]
        model(input_ids=ids.to(DEVICE), attention_mask=mask.to(DEVICE))


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ceilings": ceilings, "kernels": kernel_speeds, "attention": attention, "encoder": encoder, "host": host,
    "invariance": invariance, "accuracy": accuracy, "float8": answers_in_float8, "graphs": graphs,
    "predictor": predictor, "memory": memory, "peers": peers,
}  # fmt: skip


def main() -> int:
    """Run the parts and write their results; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT"), help="the folder for gpu.json"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    options = parser.parse_args()
    if not DRY and not torch.cuda.is_available():
        print("skipped: no CUDA device (--dry runs every part on a CPU)")
        return 0
    if DRY:
        torch.set_num_threads(1)
        gpu.kernels_for = lambda _: kernels
    out = Path(options.out) if options.out else None if DRY else Path(__file__).parent / "results"
    result: dict[str, Any] = {
        "device": "dry run on a CPU" if DRY else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "parts": {},
    }
    started, failed = time.monotonic(), False
    for name in options.only:
        began = time.monotonic()
        if began - started > SECONDS - 30:
            outcome: dict[str, Any] = {"skipped": "no time left"}
        else:
            try:
                with torch.inference_mode():
                    outcome = PARTS[name]()
            except ImportError as error:
                outcome = {"skipped": f"{error}"}
            except Exception as error:  # one part's failure leaves the others
                failed = True
                outcome = {
                    "failed": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
        result["parts"][name] = outcome | {"seconds": round(time.monotonic() - began, 1)}
        print(name, json.dumps(outcome, default=float), flush=True)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / "gpu.json").write_text(json.dumps(result, indent=2, default=float) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
