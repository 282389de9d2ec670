"""A document's answer is the same from the corpus job and over HTTP, whatever it is asked with, as users start both."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml
from commands import here, run_script
from conftest import REPOSITORY, free_port, readme_block
from online_service import until
from raw_http import exchanged, java_post

CLIENTS, MOST_INPUTS = 8, 20


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, str]:
    """The output of the job in the README's quickstart, in a process and with a Ray of its own, and what it prints."""
    folder = tmp_path_factory.mktemp("quickstart")
    job = here(readme_block("quickstart").rpartition(" && ")[2])
    done = subprocess.run(job, shell=True, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "output" / "classified-requests", done.stdout


@pytest.fixture(scope="module")
def labelled(quickstart, local_ray, tmp_path_factory) -> dict[str, Path]:
    """The outputs of the demo jobs."""
    folder = tmp_path_factory.mktemp("embedded")
    done = run_script("jobs/embed_corpus.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    (embedded,) = (folder / "output").iterdir()
    return {"classify": quickstart[0], "embed": embedded}


@pytest.fixture(scope="module")
def server(labelled, tmp_path_factory):  # after the jobs: they would share the cores
    """The README's command with jobs/serve.yaml, on a free port: its URL, its process, and its log."""
    config = yaml.safe_load((REPOSITORY / "jobs" / "serve.yaml").read_text())
    config["http_options"]["port"] = free_port()
    for model in config["applications"][0]["args"]["models"]:
        model["model"] = str(REPOSITORY / model["model"])
    file = tmp_path_factory.mktemp("serve") / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    command = readme_block("serve").replace(
        ".venv/bin/modernbert-ray", f"exec {Path(sys.executable).with_name('modernbert-ray')}"
    )
    command = command.replace("jobs/serve.yaml", str(file))
    with open(file.with_name("log"), "w") as log:
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ
            | {"RAY_ADDRESS": "local", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"},
        )
    address = f"http://127.0.0.1:{config['http_options']['port']}"
    deadline = time.monotonic() + 180
    while True:
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert process.poll() is None, file.with_name("log").read_text()
        assert time.monotonic() < deadline, file.with_name("log").read_text()
        time.sleep(0.5)
    yield address, process, file.with_name("log")
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="module")
def url(server) -> str:
    return server[0]


def asked(url: str, path: str, texts: list[str], seed: int, **options) -> dict[int, object]:
    """The answer to each text, sent in random order by several clients, in requests of random sizes."""
    dice = random.Random(seed)
    order = dice.sample(range(len(texts)), len(texts))
    requests = []
    while order:
        size = dice.randint(1, MOST_INPUTS)
        requests.append(order[:size])
        order = order[size:]

    def send(rows: list[int]) -> list[tuple[int, object]]:
        body = {"inputs": [texts[row] for row in rows], **options}
        reply = httpx.post(url + path, json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        return list(zip(rows, reply.json(), strict=True))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return dict(pair for pairs in pool.map(send, requests) for pair in pairs)


@pytest.mark.slow
def test_the_quickstart_labels_its_corpus(quickstart):
    _, printed = quickstart
    assert re.match(r"Ray started here: 1 node, \d+ CPUs?, \d+ GPUs?\n", printed)
    assert re.search(r"^rows +1,000: 994 labelled, 6 rejected in ", printed, re.MULTILINE)
    assert "example " in printed


@pytest.mark.slow
def test_the_request_in_the_readme(url):
    command = readme_block("curl", "pipelines/serve/README.md").replace(
        "http://127.0.0.1:8000", url
    )
    message = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True, timeout=60
    ).stdout
    assert [(entity["entity_group"], entity["word"].strip()) for entity in json.loads(message)] == [
        ("PERSON", "Peter Miller"),
        ("PHONE", "+44 20 7946 0123"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("body", [{"inputs": "a"}, {"inputs": 1}], ids=["answered", "refused"])
def test_each_answer_has_one_request_id(url, body):
    with httpx.Client(timeout=60) as client:
        named = client.post(f"{url}/models/intent", json=body, headers={"x-request-id": "mine-1"})
        unnamed = client.post(f"{url}/models/intent", json=body)
    assert named.headers.get_list("x-request-id") == ["mine-1"]
    assert len(unnamed.headers.get_list("x-request-id")) == 1


@pytest.mark.slow
def test_java_may_offer_another_protocol(url):
    """Behind the HAProxy of Serve."""
    body = json.dumps({"inputs": "a", "parameters": {}}).encode()
    head = java_post(url.removeprefix("http://"), "/models/intent", body)
    want = httpx.post(f"{url}/models/intent", json=json.loads(body)).json()
    assert [(status, json.loads(answer)) for status, answer in exchanged(url, [head, body])] == [
        (200, want)
    ]


def test_labels_and_scores_are_equal(labelled, url):
    rows = ds.dataset(labelled["classify"]).to_table().to_pylist()[::2]
    answers = asked(
        url, "/models/intent", [row["text"] for row in rows], 1, parameters={"top_k": 1}
    )
    assert len(rows) == 497
    for i, row in enumerate(rows):
        (answer,) = answers[i]
        assert (answer["label"], answer["score"]) == (row["label"], row["score"])  # bit for bit


@pytest.mark.slow
def test_vectors_are_equal(labelled, url):
    rows = ds.dataset(labelled["embed"]).to_table().to_pylist()[1::2]
    answers = asked(url, "/embed", [row["text"] for row in rows], 2, normalize=False)
    for i, row in enumerate(rows):
        assert pa.array(answers[i], pa.float32()).to_pylist() == row["embedding"]


@pytest.mark.slow
def test_a_stop_answers_what_is_under_way(server):
    """The last test of the service: SIGTERM comes while half of a request's body has arrived."""
    url, process, log = server
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": "Please reset my password"}).encode()
    head = f"POST /models/intent HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + body[:5])
        until(lambda: "modernbert_http_body_bytes 5.0" in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/health").status_code == 503)
        time.sleep(3)  # for what ends it too early to do so
        assert httpx.get(f"{url}/ping").status_code == 200
        connection.sendall(body[5:])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"score" in answer
    assert process.wait(60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
