"""`ray job submit` and `serve deploy` against a head started on this machine, as on a cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import (
    HEAD_ENVIRONMENT,
    RAY,
    REPOSITORY,
    SOAK,
    RayHead,
    free_port,
    kill_tree,
    own_head,
)
from corpora import count_parts
from ray._raylet import GcsClient

SERVE = [str(Path(sys.executable).with_name("serve"))]


@contextmanager
def joined(head: RayHead) -> Iterator[None]:
    """A raylet of two CPUs beside the head."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    options = ["--address", head.address, "--block", "--num-cpus=2", f"--temp-dir={folder}"]
    options += [f"--dashboard-agent-listen-port={free_port()}"]
    raylet = subprocess.Popen(
        [*RAY, "start", *options],
        env=HEAD_ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        gcs = GcsClient(address=head.address)
        while len(gcs.get_all_node_info()) < 2:
            assert raylet.poll() is None
            time.sleep(0.2)
        yield
    finally:
        kill_tree(raylet)
        raylet.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def write_corpus(folder: Path, rows: int) -> list[str]:
    """Write a corpus, and return the command that labels it."""
    texts = [f"please set an alarm for {i} o'clock" for i in range(rows)]
    pq.write_table(
        pa.table({"id": range(rows), "message": texts}), folder / "in.parquet", row_group_size=50
    )
    options = {
        "input": folder / "in.parquet",
        "output": folder / "out",
        "model": "jobs/demo/intent-classifier",  # in the working directory, which is uploaded
    }
    named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["python", "jobs/classify_corpus.py", *named, "--text-column", "message"]


def ray_job(head: RayHead, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [*RAY, "job", command, "--address", head.dashboard, *arguments]
    return subprocess.run(
        call, cwd=REPOSITORY, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=400
    )


def submit(head: RayHead, job: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    for _ in range(10):  # the head answers some seconds before its agent takes jobs
        done = ray_job(
            head,
            "submit",
            *options,
            "--working-dir",
            ".",
            "--runtime-env-json",
            environment,
            "--",
            *job,
        )
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(3)
    return done


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "_run.json").read_text())


def wait_until(head: RayHead, is_so: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError(ray_job(head, "logs", "first").stdout)


def test_the_files_that_are_not_uploaded_are_named():
    """What `--working-dir .` leaves out, and that it keeps what a job needs."""
    ignored = (REPOSITORY / ".rayignore").read_text().split()
    assert {"/tests/", "/benchmarks/"} <= set(ignored)
    assert not {"/jobs/", "/pipelines/", "/modernbert/", "/pyproject.toml"} & set(ignored)


@pytest.mark.slow
def test_a_job_that_is_stopped_and_then_lost_with_its_cluster_goes_on(ray_head, tmp_path):
    """On a head without CPUs for actors and a raylet, as `ray job stop` does it; then on another head."""
    rows, out = 3000, tmp_path / "out"
    job = write_corpus(tmp_path, rows)
    with own_head(cpus=0) as head, joined(head):
        assert submit(head, job, "--no-wait", "--submission-id", "first").returncode == 0
        wait_until(head, lambda: count_parts(out) >= 8)
        url = f"{head.dashboard}/api/jobs/first"
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/stop", method="POST")
        ).read()  # `ray job stop`, at once
        while (status := json.load(urllib.request.urlopen(url))["status"]) == "RUNNING":
            time.sleep(0.5)
        assert status == "STOPPED"
        logs = json.load(urllib.request.urlopen(f"{url}/logs"))["logs"]
        assert re.search(r"Ray joined at [\d.]+:\d+: 2 nodes, 2 CPUs, 0 GPUs", logs), logs
        assert logs.rstrip().endswith("stopped; the same command goes on where this one stopped"), (
            logs
        )
        assert "Traceback" not in logs
        stopped = record(out)
        (attempt,) = stopped["attempts"]
        assert (attempt["outcome"], attempt["rows"] is None) == (
            "stopped",
            False,
        )  # it may not have heard of the last
        assert (
            0 < stopped["totals"]["rows"] <= ds.dataset(out).count_rows()
        )  # a last commit may have come later
        assert not stopped["complete"]
        assert "Not complete" in (out / "_report.html").read_text()

        assert submit(head, job, "--no-wait").returncode == 0
        wait_until(head, lambda: len(record(out)["attempts"]) == 2)
        done = count_parts(
            out
        )  # a commit that was under way when the job was stopped may have added one
        wait_until(head, lambda: count_parts(out) > done)
        kill_tree(head.process)  # the machine is gone, with the job's driver on it
    lost = count_parts(out)
    again = submit(ray_head, job)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert re.search(r"\d+ shards were in the output already", again.stdout)
    assert re.search(r"^rows +[\d,]+: [\d,]+ labelled, 0 rejected", again.stdout, re.MULTILINE)
    if SOAK:  # what the job itself exits with, test_task_jobs.py has for each
        # 1 is all that the job server tells apart.
        assert submit(ray_head, [*job, "--top-k", "0"]).returncode == 1
    assert done < lost < count_parts(out)
    assert [attempt["outcome"] for attempt in record(out)["attempts"]] == [
        "stopped",
        None,
        "complete",
    ]
    labelled = ds.dataset(out).to_table()
    assert labelled["id"].to_pylist() == list(range(rows))
    assert set(labelled["label"].to_pylist()) == {"alarm"}
    assert "By attempt" in (out / "_report.html").read_text()


def serve(address: str, command: str, *options: str) -> str:
    """What a command of `serve` says to the head at `address`."""
    call = [*SERVE, command, "--address", address, *options]
    done = subprocess.run(call, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_deployed_service_answers(ray_head, tmp_path):
    config = yaml.safe_load((REPOSITORY / "jobs" / "serve.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    served = config["applications"][0]["args"]["models"] = config["applications"][0]["args"][
        "models"
    ][:1]
    file = tmp_path / "serve.yaml"

    def deployed(model: str) -> dict:
        """The state of the application that serves `model`, once it is settled."""
        served[0]["model"] = model
        file.write_text(yaml.safe_dump(config))
        serve(ray_head.dashboard, "deploy", str(file))
        for _ in range(480):
            with urllib.request.urlopen(f"{ray_head.dashboard}/api/serve/applications/") as reply:
                state = json.load(reply)["applications"]["modernbert"]
            if state["status"] in ("RUNNING", "DEPLOY_FAILED"):
                return state
            time.sleep(0.25)
        raise AssertionError(state)

    wrong = deployed(str(tmp_path / "nothing"))
    assert (wrong["status"], f"{tmp_path / 'nothing'}" in wrong["message"]) == (
        "DEPLOY_FAILED",
        True,
    ), wrong
    assert deployed(str(REPOSITORY / "jobs/demo/intent-classifier"))["status"] == "RUNNING"
    shown = yaml.safe_load(serve(ray_head.dashboard, "status"))["applications"]["modernbert"]
    assert shown["status"] == "RUNNING"
    body = json.dumps({"inputs": "wake me up at six", "parameters": {"top_k": 1}}).encode()
    kind = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/models/intent", body, kind)
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert [label["label"] for label in json.loads(reply.read())[0]] == ["alarm"]
    serve(ray_head.dashboard, "shutdown", "--yes")
