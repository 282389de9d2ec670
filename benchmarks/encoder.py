"""Measure tokens per second of the packed encoder and of transformers, on the same lengths and dtype in one process.

transformers runs with sdpa one document at a time, and on padded batches, sorted by length: of 8, of 32 and by token budget;
the best of the four counts. Passes over the same documents are interleaved and the best pass of each is kept, so that noise favours none.

    python benchmarks/encoder.py --dtype bfloat16
    python benchmarks/encoder.py --dtype float32 --layers 6 --tokens 20000
    python benchmarks/encoder.py --dtype int8

int8 runs against transformers in float32. Times are CPU seconds of the process: what others take of a shared machine does
not count.

Prints one JSON object; --save writes it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from modernbert import int8
from modernbert.checkpoint import DTYPES, load
from modernbert.cpu import processor
from modernbert.linear import prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from pipelines.inference.bucketing import packed_batches

RESULTS = Path(__file__).parent / "results"


def log_normal_lengths(
    tokens: int, median: int, sigma: float, longest: int, seed: int
) -> list[int]:
    """Draw document lengths, from 4 to `longest` tokens, that sum to at least `tokens`."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(np.clip(generator.lognormal(np.log(median), sigma), 4, longest)))
    return lengths


def run_packed(model: ModernBertModel, documents: list[torch.Tensor], budget: int) -> None:
    """Run the packed encoder over all documents, in batches of `budget` tokens."""
    for rows in packed_batches([len(document) for document in documents], budget):
        model.forward_packed(
            PackedBatch.from_lengths(
                torch.cat([documents[i] for i in rows]), tuple(len(documents[i]) for i in rows)
            )
        )


def run_transformers(
    model: torch.nn.Module, documents: list[torch.Tensor], batches: list[list[int]]
) -> None:
    """Run transformers over all documents, in padded batches."""
    for rows in batches:
        ids = torch.nn.utils.rnn.pad_sequence([documents[i] for i in rows], batch_first=True)
        lengths = torch.tensor([len(documents[i]) for i in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        model(input_ids=ids, attention_mask=mask)


def padded_batches(lengths: list[int], budget: int | None, count: int | None) -> list[list[int]]:
    """Cut documents, sorted by length, into batches of `count`, or of at most `budget` tokens with padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        batch = batches[-1] if batches else []
        full = len(batch) == count if count else (len(batch) + 1) * lengths[i] > (budget or 0)
        if not batch or full:
            batches.append([i])
        else:
            batch.append(i)
    return batches


def gemm_rate(config: transformers.ModernBertConfig, dtype: torch.dtype) -> float:
    """Measure FLOP/s of the encoder's matrix products, prepacked: the ceiling of this machine."""
    d, f = config.hidden_size, config.intermediate_size
    shapes = [(d, 3 * d), (d, d), (d, 2 * f), (f, d)]
    flops_per_round = sum(2 * 512 * k * n for k, n in shapes)
    operands = []
    for k, n in shapes:
        x, weight = torch.randn(512, k), torch.randn(n, k)
        if dtype == torch.int8:
            operands.append((x.to(dtype), weight.to(dtype).t()))
        else:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
            operands.append((x.to(dtype), packed))

    def products() -> None:
        for x, weight in operands * 10:
            if dtype == torch.int8:
                torch._int_mm(x, weight)
            else:
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    return 10 * flops_per_round / best_of({"gemm": products}, 5)["gemm"]


def flops(config: transformers.ModernBertConfig, lengths: list[int]) -> float:
    """Count floating-point operations of a pass: linear layers, and attention over the keys that a query sees."""
    d, f = config.hidden_size, config.intermediate_size
    weights = config.num_hidden_layers * (4 * d * d + 3 * d * f)
    half, total = config.local_attention // 2, 0.0
    global_layers = config.layer_types.count("full_attention")
    for n in lengths:
        visible_keys = sum(min(n, i + half + 1) - max(0, i - half) for i in range(n))
        total += 2 * weights * n + 4 * d * (
            global_layers * n * n + (config.num_hidden_layers - global_layers) * visible_keys
        )
    return total


def best_of(passes: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of each pass over `rounds` interleaved rounds, after a warm-up."""
    best = dict.fromkeys(passes, float("inf"))
    for round_ in range(rounds + 1):
        for name, run_pass in passes.items():
            start = time.process_time()
            run_pass()
            if round_:
                best[name] = min(best[name], time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--layers", type=int, default=22, help="22 is ModernBERT-base")
    parser.add_argument("--tokens", type=int, default=16_000, help="tokens in a pass")
    parser.add_argument("--median", type=int, default=180, help="median document length")
    parser.add_argument("--sigma", type=float, default=1.1)
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--budget-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    in_int8 = options.dtype == "int8"
    dtype = int8.compute_dtype() if in_int8 else DTYPES[options.dtype]
    config = transformers.ModernBertConfig(
        num_hidden_layers=options.layers, attn_implementation="sdpa"
    )
    lengths = log_normal_lengths(
        options.tokens, options.median, options.sigma, options.longest, options.seed
    )
    documents = [torch.randint(0, 50_000, (n,)) for n in lengths]
    reference = transformers.ModernBertModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = load(ModernBertModel, Path(folder), dtype=dtype)
    reference.to(torch.float32 if in_int8 else dtype)
    if in_int8:
        int8.quantise(model)
    prepack(model)
    batchings = {
        "transformers one at a time": padded_batches(lengths, None, 1),
        "transformers batch 8": padded_batches(lengths, None, 8),
        "transformers batch 32": padded_batches(lengths, None, 32),
        "transformers token budget": padded_batches(lengths, options.budget_tokens, None),
    }
    with torch.inference_mode():
        passes: dict[str, Callable[[], None]] = {
            "ours": lambda: run_packed(model, documents, options.budget_tokens)
        }
        passes |= {
            name: lambda b=b: run_transformers(reference, documents, b)
            for name, b in batchings.items()
        }
        seconds = best_of(passes, options.rounds)
        ceiling = gemm_rate(config, torch.int8 if in_int8 else dtype)
    rates = {name: sum(lengths) / s for name, s in seconds.items()}
    reference_rates = {name: rate for name, rate in rates.items() if name != "ours"}
    result = {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ours_over_their_best": round(rates["ours"] / max(reference_rates.values()), 3),
        "gemm_gflops": round(ceiling / 1e9, 1),
        "share_of_gemm_ceiling": round(flops(config, lengths) / seconds["ours"] / ceiling, 3),
        "documents": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "options": {k: v for k, v in vars(options).items() if k != "save"},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "processor": processor(),
        "attention": model.cpu_way,
    }
    print(json.dumps(result, indent=2))
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"encoder-{options.dtype}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
