"""How busy many actors are, and what a hundred thousand shards cost the driver; stand-ins sleep in place of models.

    python benchmarks/scale.py busy --nodes 4 --gpus 8 --seconds 12 --out benchmarks/results/scale-busy.json
    python benchmarks/scale.py shards --shards 100000 --out benchmarks/results/scale-shards.json

`busy` runs a corpus job, with real reading, tokenising and committing, on as many raylets with as many logical GPUs
each; an actor takes its seconds for a shard. `shards` plans an input of so many shards and streams them through Ray
Data, with stages that do nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from modernbert.text.windows import Windows
from pipelines import run_corpus
from pipelines.corpus import pipeline
from pipelines.corpus.execute import Execution
from pipelines.input.cutting import ShardSize
from pipelines.input.inspection import inspect_input
from pipelines.input.plan import cut
from pipelines.input.text import TextOptions
from pipelines.output.shard_stats import count_windows
from pipelines.raydata.wire import Committed, shard_of, unit_of
from pipelines.storage import Folder, Location

DEMO = Path(__file__).parents[1] / "jobs/demo/intent-classifier"
ROWS = 32
"""The rows of a shard of `busy`: what a shard costs beside its rows is what is measured."""


def install(seconds: float, spans: Path) -> None:
    """Put into this worker a stand-in that takes `seconds` for a shard and answers zeros; it notes when in `spans`."""
    from pipelines.raydata import actor
    from pipelines.tasks.outputs import Predictions

    class StandIn:
        budget_tokens = 65536

        def __init__(self, task: Any):
            self.task, self.device = task, threading.Lock()

        def predict_windows(self, windows: Windows, done: Any) -> Predictions:
            input_ids, cu_seqlens = windows.input_ids, windows.cu_seqlens
            with self.device:  # a GPU does one thing at a time for the two threads of its actor
                began = time.time()
                time.sleep(seconds)
                with open(spans / str(os.getpid()), "a") as file:
                    file.write(f"{began} {time.time()}\n")
            done()
            rows = self.task.rows(input_ids, cu_seqlens)
            splits = np.concatenate(([0], np.cumsum(rows)))
            return Predictions(
                np.zeros((splits[-1], self.task.width), np.float32), splits, {}, 1, seconds
            )

    def load(self: Any) -> None:
        self.predictor = StandIn(self.run.task)

    actor.Predict._load = load  # type: ignore[method-assign]


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Yield figures of this process and of the machine, which are there when the block ends."""
    me, figures, stop = psutil.Process(), dict[str, float](), threading.Event()
    figures["driver_rss_mb_before"] = figures["driver_rss_mb"] = me.memory_info().rss / 1e6

    def watch() -> None:
        while not stop.wait(0.5):
            figures["driver_rss_mb"] = max(figures["driver_rss_mb"], me.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    started, cpu, machine = time.monotonic(), me.cpu_times(), psutil.cpu_times()
    thread.start()
    yield figures
    stop.set()
    thread.join()
    spent, used = me.cpu_times(), psutil.cpu_times()
    figures["seconds"] = time.monotonic() - started
    figures["driver_cpu_s"] = spent.user + spent.system - cpu.user - cpu.system
    idle = used.idle - machine.idle
    figures["cores_used"] = 1 - idle / (figures["seconds"] * (os.cpu_count() or 1))


def busy(nodes: int, gpus: int, seconds: float, shards_each: int) -> dict[str, Any]:
    """Return the share of their time that `nodes` * `gpus` actors compute, from the second shard of all to an end."""
    actors = nodes * gpus
    shards = actors * shards_each
    folder = Path(tempfile.mkdtemp(prefix="scale"))
    text = "please set an alarm for six in the morning and tell me how the weather will be"
    table = pa.table({"id": range(ROWS * shards), "text": [text] * (ROWS * shards)})
    pq.write_table(table, folder / "in.parquet", row_group_size=ROWS * 64)
    (folder / "spans").mkdir()
    head = {
        "num_cpus": 0,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": 200 << 20,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=gpus + 1, num_gpus=gpus, object_store_memory=150 << 20)

        def hook() -> None:
            install(seconds, folder / "spans")

        ray.init(
            cluster.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": hook},
        )
        named = {
            "input": str(folder / "in.parquet"),
            "output": str(folder / "out"),
            "model": str(DEMO),
            "rows_per_file": ROWS,
        }
        with measured() as figures:
            done = run_corpus("classify", **named, device="cuda", actors=str(actors))
        assert (done.outcome, done.rows) == ("complete", ROWS * shards), done
        spans = [np.loadtxt(file, ndmin=2) for file in (folder / "spans").iterdir()]
        answered = np.sort(np.concatenate([each[:, 1] for each in spans]))
        parts = (folder / "out" / "data").iterdir()
        committed_at = np.sort([part.stat().st_mtime for part in parts])
        start, end = max(each[1, 0] for each in spans), min(each[-1, 1] for each in spans)
        worked = sum(np.diff(each.clip(start, end), axis=1).sum() for each in spans)
        return {
            "actors": actors,
            "shards": shards,
            "seconds_a_shard": seconds,
            "busy": worked / (len(spans) * (end - start)),
            "most_not_committed": most_between(answered, committed_at),
            "steady_s": end - start,
            **figures,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def most_between(began: np.ndarray, ended: np.ndarray) -> int:
    """Return the most that had begun and not ended at one time; both are times in order."""
    return int((np.arange(1, len(began) + 1) - np.searchsorted(ended, began, "right")).max())


class Nothing:
    """In place of the model actor."""

    def __init__(self, _: Any, watch: Any, round_number: int) -> None:
        ray.get(watch.start.remote(round_number, "stand-in"))

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def shards_of(_: Any, table: pa.Table, watch: Any) -> Iterator[pa.Table]:  # noqa: ARG001
    """In place of what reads shards."""
    for shard in unit_of(table):
        yield pa.table({"shard": [json.dumps(asdict(shard))]})


def committed(_: Any, table: pa.Table, watch: Any, round_number: int) -> pa.Table:  # noqa: ARG001
    """Report a shard of 4,096 rows as it is reported that is labelled."""
    stats = {
        "name": shard_of(table).name,
        "rows": 4096,
        "labelled": 4090,
        "tokens": 300_000,
        "truncated": 3,
    }
    stats |= count_windows(np.full(4090, 73)) | {
        "scores": [204] * 20,
        "rejects": {"text is null": 6},
    }
    stats |= {
        "labels": {f"label-{i}": 102 for i in range(40)},
        "batches": 5,
        "room": 327_680,
        "committed_at": time.time(),
    }
    stats |= {"predict_s": 0.2, "tokenise_s": 0.6, "waited_s": 0.0}
    return Committed(stats["name"], stats=json.dumps(stats)).to_table()


def many_shards(shards: int) -> dict[str, Any]:
    """Return what it costs the driver to plan so many shards, and to stream them."""
    folder = Path(tempfile.mkdtemp(prefix="scale"))
    files = max(shards // 1000, 1)
    try:
        rows = 4096 * (shards // files)
        pq.write_table(
            pa.table({"text": pa.array(["a"] * rows).dictionary_encode()}), folder / "0.parquet"
        )
        for i in range(1, files):
            os.link(folder / "0.parquet", folder / f"{i}.parquet")
        size = ShardSize(rows=4096, text_bytes=1 << 62, rows_per_file=4096)
        with measured() as planning:
            corpus = cut(inspect_input(Location.of_user(str(folder)), TextOptions()), size)
        planned = len(corpus.shards)
        ray.init("local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        pipeline.Predict, pipeline.read_and_tokenise, pipeline.commit = (
            Nothing,
            shards_of,
            committed,
        )  # type: ignore
        out = Folder(str(folder / "out"))
        job = SimpleNamespace(
            device="cpu", dtype="float32", source="nowhere", folder=out, attempt_id="scale"
        )
        with measured() as streaming:
            execution = Execution(job, corpus.shards, None, lambda: None)  # type: ignore[arg-type]
            execution.run("auto", 60)
        assert (execution.stats.totals()["shards"], execution.failed) == (planned, {})
        return {"shards": planned, "planning": planning, "streaming": streaming}
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure one of the two, print it, and write it to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["busy", "shards"])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=8, help="logical GPUs a node")
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="seconds that an actor takes for a shard"
    )
    parser.add_argument("--shards-each", type=int, default=16, help="shards of an actor")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    if options.what == "busy":
        figures = busy(options.nodes, options.gpus, options.seconds, options.shards_each)
    else:
        figures = many_shards(options.shards)
    figures |= {
        "machine": f"{os.cpu_count()} cores of {platform.machine()}",
        "ray": ray.__version__,
    }
    rounded = json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))
    print(json.dumps(rounded, indent=2))
    if options.out:
        options.out.write_text(json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()
