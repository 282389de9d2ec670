"""SIGKILL at random moments of a run under way: of the whole job, its actors, its task workers, whole nodes.

Two kills of each kind; the environment variable KILLS sets another number (`KILLS=8` by hand, 25 in .ci/soak). What is
decided after a kill is in the tables of test_retries.py, and each point of a crash in test_crash_points.py.

Afterwards every row is there once, equal in each column to that of a run without kills. The seeds are printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_job, stages_here
from conftest import REPOSITORY, RayHead, runs
from corpora import count_parts

from pipelines.output import shard_stats
from pipelines.output.lease import LEASE

JOB = REPOSITORY / "jobs" / "classify_corpus.py"
KILLS = runs("KILLS", few=2, many=25)
ROWS = 2000
SHARDS = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """in/: four files; some rows hold no text."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in").mkdir()
    for i in range(4):
        rows = range(ROWS // 4 * i, ROWS // 4 * (i + 1))
        texts = [f"the cat {row} sat" * (row % 7) if row % 99 else None for row in rows]
        pq.write_table(pa.table({"id": rows, "text": texts}), folder / "in" / f"{i}.parquet")
    return folder


@pytest.fixture(scope="module")
def clean(corpus, checkpoint) -> Path:
    """The output of a run without kills, and without Ray."""
    out = corpus / "clean"
    with stages_here():
        assert run_job("classify", input=corpus / "in", output=out, model=checkpoint) == 0
    assert len(answers(out)) + len(rejects(out)) == ROWS
    assert count_parts(out) == SHARDS
    return out


@pytest.fixture
def dice() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return random.Random(seed)


def answers(out: Path) -> pa.Table:
    return ds.dataset(out).to_table().sort_by("id")


def rejects(out: Path) -> pa.Table:
    table = ds.dataset(out / "_rejected").to_table().sort_by("id")
    return table.drop_columns("_shard")  # a shard may have been cut up


def same(out: Path, clean: Path) -> bool:
    return answers(out).equals(answers(clean)) and rejects(out).equals(rejects(clean))


def start(corpus: Path, out: Path, checkpoint: Path, *options: str, **settings) -> subprocess.Popen:
    command = [
        sys.executable,
        JOB,
        "--input",
        corpus / "in",
        "--output",
        out,
        "--model",
        checkpoint,
        *options,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


@pytest.mark.slow
def test_kills_of_the_whole_job_lose_and_double_nothing(
    corpus, clean, checkpoint, dice, tmp_path, ray_head
):
    """The driver and all its processes at once; then the same command, and the same files byte for byte.

    Each fourth time its Ray is one of them; else it is the head's, which goes on.
    """
    out, kills = tmp_path / "out", 0
    while kills < KILLS:
        done = sorted(out.glob("data/*.parquet"))
        assert all(part.read_bytes() == (clean / "data" / part.name).read_bytes() for part in done)
        for part in dice.sample(
            done, max(0, len(done) - SHARDS // 3)
        ):  # so that there is something to do
            part.unlink()
        lease_before, parts = lease_of(out), count_parts(out)
        on_head = kills % 4
        environment = ray_head.environment if on_head else None
        job = start(
            corpus, out, checkpoint, "--actors", "1", start_new_session=True, env=environment
        )
        more = (0, 1, 4)[kills % 3]  # at its beginning, or once it has committed some
        while job.poll() is None and (
            lease_of(out) in (None, lease_before) or count_parts(out) < parts + more
        ):
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1))
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            for process in workers_of(ray_head) if on_head else []:
                if is_worker(process, "ray::Map"):
                    process.kill()
            job.communicate()
            kills += 1
            continue
        message = job.communicate()
        assert job.returncode == 0, message
        assert same(out, clean)
    for _ in range(600):  # until nothing but this process writes
        if not any(is_worker(process, "ray::Map") for process in workers_of(ray_head)):
            break
        time.sleep(0.1)
    with stages_here():
        assert run_job("classify", input=corpus / "in", output=out, model=checkpoint) == 0
    for folder in ("data", "_rejected"):
        parts, want = (
            sorted(part.name for part in (each / folder).glob("*.parquet")) for each in (out, clean)
        )
        assert parts == want
        assert all(
            (out / folder / part).read_bytes() == (clean / folder / part).read_bytes()
            for part in parts
        )
    record, want = (json.loads((each / "_run.json").read_text()) for each in (out, clean))
    assert all(
        record["totals"][name] == want["totals"][name] for name in shard_stats.KEPT
    )  # from footers, where need be
    assert None in [
        attempt["outcome"] for attempt in record["attempts"]
    ]  # killed after it had begun


@pytest.mark.slow
def test_kills_of_single_workers_lose_and_double_nothing(
    corpus, clean, checkpoint, dice, tmp_path, ray_head
):
    """Actors, and workers of reading and committing, while the run goes on to its end."""
    kills = {"ray::MapWorker": 0, "ray::MapBatches": 0}
    while min(kills.values()) < KILLS:
        job = start(corpus, tmp_path / "out", checkpoint, "--overwrite", env=ray_head.environment)
        reader = threading.Thread(
            target=lambda job=job: setattr(job, "message", job.communicate(timeout=500))
        )
        reader.start()
        while job.poll() is None and min(kills.values()) < KILLS:
            time.sleep(dice.uniform(0.1, 1.2))
            for kind in sorted(
                kills, key=kills.__getitem__
            ):  # the one killed less often, if there is one
                workers = [process for process in workers_of(ray_head) if is_worker(process, kind)]
                if workers and kills[kind] < KILLS:
                    dice.choice(workers).kill()
                    kills[kind] += 1
                    break
        reader.join()
        assert job.returncode == 0, job.message
        assert same(tmp_path / "out", clean)


@pytest.mark.slow
def test_kills_of_whole_nodes_lose_and_double_nothing(corpus, clean, checkpoint, dice, tmp_path):
    """Raylets of a cluster of three nodes, with all that runs there; another node comes for each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        settings = {"env": os.environ | {"RAY_ADDRESS": cluster.address}}
        del settings["env"][
            "RAY_AUTH_MODE"
        ]  # as for users: a token of this machine is not for this cluster
        kills = 0
        while kills < KILLS:
            job = start(corpus, tmp_path / "out", checkpoint, "--overwrite", **settings)
            reader = threading.Thread(
                target=lambda job=job: setattr(job, "message", job.communicate(timeout=900))
            )
            reader.start()
            while job.poll() is None and kills < KILLS:
                time.sleep(dice.uniform(0.5, 6))
                cluster.remove_node(nodes.pop(dice.randrange(2)), allow_graceful=False)
                kills += 1
                nodes.append(cluster.add_node(num_cpus=2))
            reader.join()
            for _ in range(
                3
            ):  # what was lost again and again is named, and the same command does it
                if job.returncode == 0:
                    break
                assert job.returncode == 1, job.message
                job = start(corpus, tmp_path / "out", checkpoint, **settings)
                job.message = job.communicate(timeout=900)
            assert job.returncode == 0, job.message
            assert same(tmp_path / "out", clean)
    finally:
        cluster.shutdown()


def lease_of(out: Path) -> bytes | None:
    return (out / LEASE).read_bytes() if (out / LEASE).exists() else None


def workers_of(head: RayHead) -> list[psutil.Process]:
    try:
        return psutil.Process(head.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_worker(process: psutil.Process, kind: str) -> bool:
    try:
        return process.cmdline()[0].startswith(kind)
    except (psutil.Error, IndexError):
        return False
