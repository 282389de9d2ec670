"""Measure tokens per second of one thread against what else runs encoders on CPUs, on the same documents.

Each engine (benchmarks/peers.py) is loaded in a process of its own. Passes over all documents are interleaved: one pass
of each engine and batching at a time; the best pass and batching of each count, so that noise favours none. Seconds
are those of the CPU, since machines are shared; wall-clock seconds are in the JSON, too. Memory is the most that a process
had beyond what it had before the model was loaded, when the batching that counts had run once.

    python -m benchmarks.cpu_peers --layers 6 --save
    python -m benchmarks.cpu_peers --size small --layers 10
    python -m benchmarks.cpu_peers --infinity ../infinity/bin/python   # of an environment of its own

Prints a table; --save writes it as JSON under benchmarks/results/. README.md has the command that makes the environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.encoder import flops, gemm_rate, log_normal_lengths
from benchmarks.peer_models import (
    CLASSIFIER,
    SIZES,
    Documents,
    convert,
    machine,
    messages,
    random_documents,
    sample_corpus,
    write_model,
)
from benchmarks.peers import ENGINES

RESULTS = Path(__file__).parent / "results"
REFERENCE = "transformers, float32"
LIBRARIES = ("torch", "transformers", "openvino", "nncf", "onnxruntime", "sentence-transformers")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class EngineProcess:
    """An engine in a process of its own, which runs a pass when it is asked to."""

    def __init__(self, name: str, folder: Path, python: str):
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
            cwd=Path(__file__).parents[1],
        )
        self.name = name
        self.values_file = folder / f"{name}.npy"
        self.batchings: list[str] = self._receive()

    def _receive(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, batching: str) -> dict[str, float]:
        """Run one pass and return its wall and CPU seconds, and the most memory until now."""
        print(batching, file=self.process.stdin, flush=True)
        figures: dict[str, float] = self._receive()
        print(f"{self.name}, {batching}: {figures}", file=sys.stderr, flush=True)
        return figures

    def values(self) -> np.ndarray:
        """Return the values of the latest pass, a row a document."""
        return np.load(self.values_file)

    def end(self) -> None:
        """Close its input, and wait until it has ended."""
        self.process.communicate()


def measure(
    folder: Path, pythons: dict[str, str], documents: Documents, rounds: int
) -> dict[str, dict[str, Any]]:
    """Run all engines in turn and return {engine: figures of its best batching}."""
    documents.write(folder)
    processes = {name: EngineProcess(name, folder, python) for name, python in pythons.items()}
    warm_ups = {
        name: {batching: process.run(batching) for batching in process.batchings}
        for name, process in processes.items()
    }
    vectors = {name: process.values() for name, process in processes.items()}
    passes: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {batching: [] for batching in process.batchings}
        for name, process in processes.items()
    }
    for _ in range(rounds):
        for name, process in processes.items():
            for batching, taken in passes[name].items():
                taken.append(process.run(batching))
    result = {}
    for name, process in processes.items():
        process.end()
        cpu_s, wall_s = (
            {
                batching: min(each[unit] for each in taken)
                for batching, taken in passes[name].items()
            }
            for unit in ("cpu_s", "wall_s")
        )
        best = min(cpu_s, key=cpu_s.__getitem__)
        result[name] = {
            "batching": best,
            "cpu_s": cpu_s[best],
            "wall_s": wall_s[best],
            "peak_bytes": warm_ups[name][best]["peak_bytes"],
            "least_cosine": least_cosine(vectors[name], vectors[REFERENCE]),
            "cpu_s_by_batching": cpu_s,
        }
    return result


def least_cosine(vectors: np.ndarray, others: np.ndarray) -> float:
    """Return the least cosine of a vector with the other one of its document."""
    products = (vectors * others).sum(axis=1)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return round(float((products / norms).min()), 5)


def label_agreement(folder: Path, names: list[str], documents: Documents) -> dict[str, float]:
    """Return the share of documents whose label is that of transformers in float32."""
    documents.write(folder)
    labels = {}
    for name in names:
        process = EngineProcess(name, folder, sys.executable)
        process.run(process.batchings[0])
        labels[name] = process.values().argmax(axis=1)
        process.end()
    return {name: round(float((labels[name] == labels[REFERENCE]).mean()), 4) for name in names}


def table(engines: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a table of Markdown."""
    lines = [
        "| | tokens/s | of the first | best batching | memory, MB | least cosine | same labels |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(engines.values()))["tokens_per_cpu_s"]
    for name, row in engines.items():
        rate = row["tokens_per_cpu_s"]
        memory_mb = row["peak_bytes"] / 1e6
        same = f"{row['same_labels']:.1%}" if "same_labels" in row else ""
        lines.append(
            f"| {name} | {rate:,.0f} | {rate / first:.2f} | {row['batching']} | {memory_mb:,.0f} "
            f"| {row['least_cosine']:.4f} | {same} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base", help="its width")
    parser.add_argument("--layers", type=int, default=22, help="22 is ModernBERT-base")
    parser.add_argument("--tokens", type=int, default=8_000, help="tokens in a pass")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--infinity", help="the Python of an environment that has Infinity")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pythons = dict.fromkeys(ENGINES, sys.executable)
    del pythons["Infinity, float32"]
    if options.infinity:
        pythons["Infinity, float32"] = options.infinity
    lengths = log_normal_lengths(options.tokens, median=180, sigma=1.1, longest=8192, seed=0)
    with tempfile.TemporaryDirectory() as name:
        base, demo = Path(name) / "base", Path(name) / "demo"
        write_model(base, options.size, options.layers)
        convert(base, random_documents([64, 128, 256, 512] * 4, seed=1))
        engines = measure(base, pythons, random_documents(lengths, seed=0), options.rounds)
        shutil.copytree(CLASSIFIER, demo)
        convert(demo, messages())
        classifiers = [name for name in pythons if not ENGINES[name].takes_texts]
        for name, share in label_agreement(demo, classifiers, sample_corpus()).items():
            engines[name]["same_labels"] = share
    config = transformers.ModernBertConfig(num_hidden_layers=options.layers, **SIZES[options.size])
    ceilings = {name: gemm_rate(config, getattr(torch, name)) for name in ("float32", "bfloat16")}
    for name, row in engines.items():
        row["tokens_per_cpu_s"] = round(sum(lengths) / row["cpu_s"], 1)
        row["tokens_per_s"] = round(sum(lengths) / row["wall_s"], 1)
        ceiling = ceilings.get(name.partition(", ")[2])
        if ceiling:
            rate = flops(config, lengths) / row["cpu_s"]
            row["share_of_gemm_ceiling"] = round(rate / ceiling, 3)
    result = {
        "engines": engines,
        "gemm_gflops": {name: round(rate / 1e9, 1) for name, rate in ceilings.items()},
        "documents": len(lengths),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "options": {
            k: v for k, v in vars(options).items() if k in ("size", "layers", "tokens", "rounds")
        },
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        **machine(),
    }
    print(table(engines))
    if options.save:
        text = json.dumps(result, indent=1)
        name = "cpu_peers" if options.size == "base" else f"cpu_peers-{options.size}"
        (RESULTS / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
