"""Measure throughput and latency of the online service over HTTP, and compare them with the predictor in a loop.

The loop calls Predictor.predict on the same texts, tokenised beforehand: one text per call, and as many per call as all
clients send at a time. It runs right before and right after each load on the service, with as many threads as the
model of the service has; the mean of both counts, so that noise favours none. The clients run on the same machine.

    python benchmarks/serve.py --save
    python benchmarks/serve.py --model base --topology together-haproxy --seconds 10

Topologies: HTTP and model in one process (together) or in two (apart); behind Serve's own proxy, or behind HAProxy as
in the README. `base` has random weights in the size of ModernBERT-base.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
DEMO = REPOSITORY / "jobs" / "demo"
TOPOLOGIES = ["apart-haproxy", "together-haproxy", "apart-proxy"]


def load_texts(text_length: str) -> list[str]:
    """Read texts of the sample corpus: "short" ones of about 20 tokens, or all up to 2000 characters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pq.read_table(DEMO / "requests.parquet")["text"].cast(pa.binary()).to_pylist()
    decoded = [value.decode("utf-8", "replace") for value in column if value]
    min_chars, max_chars = (40, 120) if text_length == "short" else (1, 2000)
    return [text for text in decoded if min_chars < len(text) < max_chars and not text.isspace()]


def base_checkpoint(folder: Path, layers: int = 22) -> Path:
    """Write a checkpoint of the width of ModernBERT-base: random weights, the demo's tokenizer and labels."""
    import transformers

    labels = json.loads((DEMO / "intent-classifier/config.json").read_text())["id2label"]
    config = transformers.ModernBertConfig(
        num_hidden_layers=layers,
        id2label={int(i): label for i, label in labels.items()},
        pad_token_id=0,
    )
    transformers.ModernBertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "intent-classifier" / name, folder / name)
    return folder


def serve_until_stdin_closes(args: dict[str, Any], port: int) -> None:
    """Serve until standard input is closed."""
    import ray
    from ray import serve

    from pipelines.serve.deployment import build

    ray.init(
        "local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", num_cpus=4
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(args), name="benchmark")
    print("ready", flush=True)
    sys.stdin.read()
    ray.shutdown()


class PredictorLoop:
    """Calls the predictor in a loop."""

    def __init__(self, model: Path, threads: int):
        from pipelines.checkpoints import Checkpoint
        from pipelines.inference.predictor import Predictor
        from pipelines.options import ClassifyOptions
        from pipelines.tasks.classify import Classify

        checkpoint = Checkpoint.open(model)
        self.predictor = Predictor(
            checkpoint, Classify.from_checkpoint(checkpoint, ClassifyOptions()), threads=threads
        )

    def seconds(self, documents: list[str], batch_size: int) -> float:
        """Measure the seconds that all documents take, `batch_size` per call, without tokenising."""
        windows = self.predictor.task.encode(self.predictor.checkpoint.tokenizer, documents)
        starts = windows.cu_seqlens
        start = time.perf_counter()
        for first in range(0, len(documents), batch_size):
            chunk = starts[first : first + batch_size + 1]
            self.predictor.predict(windows.input_ids[chunk[0] : chunk[-1]], chunk - chunk[0])
        return time.perf_counter() - start


async def run_clients(
    url: str, documents: list[str], clients: int, inputs: int
) -> tuple[float, list[float]]:
    """Send all documents from `clients` clients, `inputs` per request; return the total seconds and all latencies."""
    import aiohttp

    latencies = []
    requests = [documents[first : first + inputs] for first in range(0, len(documents), inputs)]

    async def client(session: aiohttp.ClientSession, source: Iterator[list[str]]) -> None:
        for chunk in source:
            sent = time.perf_counter()
            async with session.post(
                url, json={"inputs": chunk, "parameters": {"top_k": 1}}
            ) as reply:
                await reply.read()
                reply.raise_for_status()
            latencies.append(time.perf_counter() - sent)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        warm_up = iter(requests[: 2 * clients])
        await asyncio.gather(*(client(session, warm_up) for _ in range(clients)))
        latencies.clear()
        source = iter(requests)
        start = time.perf_counter()
        await asyncio.gather(*(client(session, source) for _ in range(clients)))
        return time.perf_counter() - start, latencies


def http_copy(service: int) -> tuple[float, int]:
    """Return the CPU seconds and the resident bytes of the copy that speaks HTTP."""
    for process in psutil.Process(service).children(recursive=True):
        if process.cmdline()[0].startswith("ray::ServeReplica:benchmark:http"):
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
    raise SystemExit("no process speaks HTTP")


def free_port(first: int) -> int:
    """Return the first free port from `first` on, below the range of ephemeral ports."""
    for port in range(first, 30_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise SystemExit("no free port")


def measure(
    name: str, model: Path, threads: int, topology: str, levels: list[int], seconds: float
) -> list[dict]:
    """Measure the service in one topology at each number of clients; return a row for each."""
    port = free_port(20_000)
    model_config = {"name": "intent", "task": "classify", "model": str(model), "cpus": threads}
    args = {"models": [model_config], "one_process": topology.startswith("together")}
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, __file__, "--serve", json.dumps(args), str(port)]
    if topology.endswith("haproxy"):
        environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    loop, rows = PredictorLoop(model, threads), []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdin
        assert service.stdout
        while (line := service.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit("the service did not start")
        load_levels = [
            (text_length, clients, 1) for text_length in ("short", "mixed") for clients in levels
        ]
        for text_length, clients, inputs in [*load_levels, ("short", 16, 16)]:
            documents = load_texts(text_length)
            probe = documents[:20]
            count = int(
                seconds / loop.seconds(probe, 1) * len(probe)
            )  # enough for `seconds` of the loop
            count = max(count, 2 * clients * inputs)
            documents = list(itertools.islice(itertools.cycle(documents), count))
            tokens = int(
                loop.predictor.task.encode(
                    loop.predictor.checkpoint.tokenizer, documents
                ).n_tokens.sum()
            )
            before = [loop.seconds(documents, batch_size) for batch_size in (1, clients * inputs)]
            cpu_before_s, _ = http_copy(service.pid)
            elapsed_s, latencies = asyncio.run(
                run_clients(f"http://127.0.0.1:{port}/models/intent", documents, clients, inputs)
            )
            cpu_s, resident = http_copy(service.pid)
            after = [loop.seconds(documents, batch_size) for batch_size in (1, clients * inputs)]
            one, many = (
                2 * tokens / (before_s + after_s)
                for before_s, after_s in zip(before, after, strict=True)
            )
            p50, p95, p99 = (np.percentile(latencies, [50, 95, 99]) * 1000).round(1).tolist()
            row = {"model": name, "threads": threads, "topology": topology, "texts": text_length}
            row |= {"clients": clients, "inputs": inputs, "requests": len(latencies)}
            row |= {"tokens_per_text": round(tokens / count, 1)}
            row |= {
                "requests_per_s": round(len(latencies) / elapsed_s, 1),
                "tokens_per_s": round(tokens / elapsed_s),
            }
            row |= {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
            warm_up = min(2 * clients, -(-count // inputs))
            row |= {
                "http_cpu_ms": round(1000 * (cpu_s - cpu_before_s) / (len(latencies) + warm_up), 2)
            }
            row |= {"http_mb": round(resident / 1e6)}
            row |= {"loop_tokens_per_s": round(one), "batched_loop_tokens_per_s": round(many)}
            row |= {"of_loop": round(tokens / elapsed_s / one, 2)}
            row |= {"of_batched_loop": round(tokens / elapsed_s / many, 2)}
            rows.append(row)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        service.stdin.close()
    return rows


def main() -> None:
    """Measure, and print or save the rows."""
    if sys.argv[1:2] == ["--serve"]:
        serve_until_stdin_closes(json.loads(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", choices=["intent", "base"], action="append", help="(default: both)"
    )
    parser.add_argument("--topology", choices=TOPOLOGIES, action="append", help="(default: all)")
    parser.add_argument("--clients", type=int, action="append", help="(default: 1, 16 and 64)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="seconds of the loop for each load"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the model (default: 1)")
    parser.add_argument(
        "--save",
        action="store_true",
        help="put into benchmarks/results/serve.json, in place of the same models and topologies",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or ["intent", "base"]:
            model = (
                DEMO / "intent-classifier" if name == "intent" else base_checkpoint(Path(folder))
            )
            for topology in options.topology or TOPOLOGIES:
                levels = options.clients or [1, 16, 64]
                rows = measure(name, model, options.threads, topology, levels, options.seconds)
                if options.save:
                    save(rows)
                else:
                    print(json.dumps(rows))


def save(rows: list[dict]) -> None:
    """Write rows to results/serve.json, in place of earlier ones of the same model and topology."""
    file = RESULTS / "serve.json"
    replaced = {(row["model"], row["topology"]) for row in rows}
    earlier = json.loads(file.read_text())["rows"] if file.is_file() else []
    kept = [row for row in earlier if (row["model"], row["topology"]) not in replaced]
    result = {"cpu_count": os.cpu_count(), "python": platform.python_version(), "rows": kept + rows}
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
