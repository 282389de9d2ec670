"""`ray job submit` and `serve deploy` against a head started on this machine, as on a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, free_port

RAY, SERVE = ([str(Path(sys.executable).with_name(name))] for name in ("ray", "serve"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
    "RAY_AUTH_MODE": "disabled",  # a token file on the machine would switch it on
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of the job server of a head of our own."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's socket paths must be short
    dashboard = free_port()
    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    ports.append(f"--dashboard-agent-listen-port={free_port()}")  # another Ray's agent may hold the usual one
    options = ["--head", "--block", "--num-cpus=2", "--include-dashboard=true", f"--temp-dir={folder}"]
    process = subprocess.Popen(
        [*RAY, "start", *options, *ports],
        env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, "the head ended"
                time.sleep(1)
        else:
            pytest.fail("the job server did not answer")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_submitted_job_labels_a_corpus(head, tmp_path):
    pq.write_table(
        pa.table({"message": [f"please set an alarm for {i} o'clock" for i in range(100)]}), tmp_path / "in.parquet"
    )
    job = [
        "python",
        "jobs/classify_corpus.py",
        "--input",
        str(tmp_path / "in.parquet"),
        "--output",
        str(tmp_path / "out"),
    ]
    job += ["--model", "jobs/demo/intent-classifier", "--text-column", "message"]
    submit = [*RAY, "job", "submit", "--address", head, "--working-dir", ".", "--", *job]
    for _ in range(5):  # the head answers some seconds before its agent takes jobs
        done = subprocess.run(submit, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(5)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "100 labelled" in done.stdout
    rows = ds.dataset(tmp_path / "out").to_table()
    assert rows["message"].to_pylist() == [f"please set an alarm for {i} o'clock" for i in range(100)]
    assert set(rows["label"].to_pylist()) == {"alarm"}


def serve(address: str, command: str, *options: str) -> str:
    """What a command of `serve` says to the head at `address`."""
    call = [*SERVE, command, "--address", address, *options]
    done = subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_deployed_service_answers(head, tmp_path):
    config = yaml.safe_load((REPOSITORY / "jobs" / "serve.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    served = config["applications"][0]["args"]["models"] = config["applications"][0]["args"]["models"][:1]
    file = tmp_path / "serve.yaml"

    def deployed(model: str) -> dict:
        """The state of the application that serves `model`, once it is settled."""
        served[0]["model"] = model
        file.write_text(yaml.safe_dump(config))
        serve(head, "deploy", str(file))
        for _ in range(120):
            state = yaml.safe_load(serve(head, "status"))["applications"]["modernbert"]
            if state["status"] in ("RUNNING", "DEPLOY_FAILED"):
                return state
            time.sleep(1)
        raise AssertionError(state)

    wrong = deployed(str(tmp_path / "nothing"))
    assert (wrong["status"], f"{tmp_path / 'nothing'}" in wrong["message"]) == ("DEPLOY_FAILED", True), wrong
    assert deployed(str(REPOSITORY / "jobs/demo/intent-classifier"))["status"] == "RUNNING"
    body = json.dumps({"inputs": "wake me up at six", "parameters": {"top_k": 1}}).encode()
    kind = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/models/intent", body, kind)
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert [label["label"] for label in json.loads(reply.read())[0]] == ["alarm"]
    serve(head, "shutdown", "--yes")
