"""A node of the cluster that does not see the job's folders: the job ends before any work, and names it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import (
    HEAD_ENVIRONMENT,
    RAY,
    REPOSITORY,
    RayHead,
    free_port,
    kill_tree,
    own_head,
    own_ray,
)

from pipelines import run_corpus
from pipelines.errors import JobError
from pipelines.output.parts import Listing

MODEL = str(REPOSITORY / "jobs/demo/intent-classifier")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL, check=False).returncode
        != 0,
        reason="this process may not make mount namespaces, which stand in for the disks of nodes",
    ),
]


@contextmanager
def node_with_its_own(folder: Path, head: RayHead) -> Iterator[None]:
    """A node for which a folder is an empty one on a disk of its own."""
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    start = [
        *RAY,
        "start",
        "--address",
        head.address,
        "--block",
        "--num-cpus=1",
        f"--temp-dir={temporary}",
    ]
    start.append(f"--dashboard-agent-listen-port={free_port()}")
    command = [
        "unshare",
        "-m",
        "bash",
        "-c",
        f'mount -t tmpfs none {folder} && exec "$0" "$@"',
        *start,
    ]
    process = subprocess.Popen(
        command,
        env=HEAD_ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        kill_tree(process)
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> Iterator[Path]:
    """A folder that a node of the cluster that this process has joined does not see."""
    folder = tmp_path_factory.mktemp("hidden")
    with own_head(cpus=1) as head, node_with_its_own(folder, head), own_ray(head.address):
        until = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) < 2:
            assert time.monotonic() < until, "the second node did not join"
            time.sleep(0.5)
        yield folder


def write(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in "abcd":
        pq.write_table(pa.table({"text": ["wake me at six"] * 200}), folder / f"{name}.parquet")
    return str(folder)


@pytest.mark.parametrize("what", ["output", "input", "staged"])
def test_a_node_without_the_folder_of_a_job_ends_it_before_any_work(hidden, tmp_path, what):
    source = write(hidden / "in" if what == "input" else tmp_path / "in")
    if what == "staged":
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.jsonl").write_text('{"text": "a"}\n' * 200)
        source = str(tmp_path / "text")
    out = tmp_path / "out" if what == "input" else hidden / f"out-{what}"
    missing = "the input" if what == "input" else "the output"
    with pytest.raises(
        JobError, match=rf"node .* does not see {missing} .*give a folder that all nodes share"
    ):
        run_corpus("classify", input=source, output=str(out), model=MODEL, actors="2")
    assert not list(out.rglob("*.parquet"))
    assert not (out / "_lease.json").exists()


def test_parts_that_were_reported_and_are_not_there_fail_the_run(hidden, tmp_path, monkeypatch):
    """What the look at nodes and leases would miss: a receipt is no part."""
    monkeypatch.setattr("pipelines.corpus.execute.check_nodes", lambda *_: None)
    (hidden / "_lease.json").write_text("{}")
    out = hidden / "unseen"
    with pytest.raises(
        JobError, match=r"does not see the output folder of this job|not in the output"
    ):
        run_corpus(
            "classify", input=write(tmp_path / "in"), output=str(out), model=MODEL, actors="2"
        )
    record = json.loads((out / "_run.json").read_text())
    assert not record["complete"]
    monkeypatch.setattr("pipelines.corpus.run.list_parts", lambda *_: Listing())
    local = str(tmp_path / "out")
    with pytest.raises(
        JobError, match=r"\d parts that were reported as written are not in the output"
    ):
        run_corpus("classify", input=write(tmp_path / "in"), output=local, model=MODEL, actors="1")
    record = json.loads(Path(local, "_run.json").read_text())
    assert (record["complete"], record["attempts"][-1]["outcome"]) == (False, "failed")
    assert set(record["failed"].values()) == {"its part is not in the output"}
    assert os.listdir(Path(local, "data"))
