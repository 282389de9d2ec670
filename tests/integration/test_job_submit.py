"""`ray job submit` and `serve deploy` against a head started on this machine, as on a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HEAD_ENVIRONMENT, RAY, REPOSITORY, free_port

SERVE = [str(Path(sys.executable).with_name("serve"))]


@pytest.mark.slow
def test_a_submitted_job_labels_a_corpus(ray_head, tmp_path):
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
    submit = [*RAY, "job", "submit", "--address", ray_head.dashboard, "--working-dir", ".", "--", *job]
    for _ in range(5):  # the head answers some seconds before its agent takes jobs
        done = subprocess.run(submit, cwd=REPOSITORY, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=180)
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
    done = subprocess.run(call, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_deployed_service_answers(ray_head, tmp_path):
    config = yaml.safe_load((REPOSITORY / "jobs" / "serve.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    served = config["applications"][0]["args"]["models"] = config["applications"][0]["args"]["models"][:1]
    file = tmp_path / "serve.yaml"

    def deployed(model: str) -> dict:
        """The state of the application that serves `model`, once it is settled."""
        served[0]["model"] = model
        file.write_text(yaml.safe_dump(config))
        serve(ray_head.dashboard, "deploy", str(file))
        for _ in range(120):
            state = yaml.safe_load(serve(ray_head.dashboard, "status"))["applications"]["modernbert"]
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
    serve(ray_head.dashboard, "shutdown", "--yes")
