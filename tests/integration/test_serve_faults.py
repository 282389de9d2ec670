"""The service on Ray Serve under load, while copies of a model die, stand still or are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import time

import httpx
import psutil
import pytest
from checkpoints import write_task
from conftest import SOAK, free_port, own_ray
from raw_http import exchanged, java_post

from pipelines import pipeline

pytestmark = pytest.mark.slow
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TEXTS = [f"the cat sat on the mat {n} times, " * 100 for n in range(16)]
"""Long enough that under load each copy has some at any time: Serve itself sends on what a copy has not yet begun."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_task(
        tmp_path_factory.mktemp("served"),
        "ModernBertForSequenceClassification",
        **SMALL,
        labels=[*"abcde"],
    )


@pytest.fixture(scope="module")
def expected(folder):
    return dict(
        zip(TEXTS, pipeline("text-classification", str(folder))(TEXTS, top_k=5), strict=True)
    )


@pytest.fixture(scope="module")
def http():
    """Serve's HTTP side on a free port; the port."""
    from ray import serve

    port = free_port()
    with own_ray(include_dashboard=False):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield port
        serve.shutdown()


@pytest.fixture(scope="module")
def deployed(http):
    """The options of the application that runs; none at first."""
    return {}


@pytest.fixture
def deploy(http, folder, deployed):
    """Deploy with options; returns the address of the model.

    The first deploy of a test goes on with the application that the last test has left if that has the same options.
    """
    from ray import serve

    from pipelines.serve.deployment import build

    left = dict(deployed)

    def deploy(**options):
        if left and left != options:
            serve.delete("faults")
        left.clear()
        served = {"name": "cat", "task": "classify", "model": str(folder), "cpus": 0.1, **options}
        top = {
            name.removeprefix("http_"): served.pop(name)
            for name in ("one_process", "http_replicas")
            if name in served
        }
        serve.run(build({"models": [served], **top}), name="faults", route_prefix="/")
        deployed.clear()
        deployed.update(options)
        return f"http://127.0.0.1:{http}/models/{served['name']}"

    return deploy


def processes(deployment="cat"):
    """The processes of a deployment's copies."""
    found = []
    for process in psutil.Process().children(recursive=True) or psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:faults:{deployment}"):
                found.append(process)
    return found


async def load(url, expected, disturb, seconds=2.0, clients=8):
    """PredictRequest until `disturb` has returned, and some seconds more; the wrong answers, and how many came."""
    wrong, answered, running = [], 0, True

    async def client(number):
        nonlocal answered
        async with httpx.AsyncClient(timeout=60) as session:
            at = number
            while running:
                text = TEXTS[at % len(TEXTS)]
                at += clients
                reply = await session.post(url, json={"inputs": text, "parameters": {"top_k": 5}})
                if reply.status_code != 200 or reply.json() != [expected[text]]:
                    wrong.append((reply.status_code, reply.text[:200]))
                answered += 1

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(1)
    await asyncio.to_thread(disturb)
    await asyncio.sleep(seconds)
    running = False
    await asyncio.gather(*tasks)
    return wrong, answered


def until(condition, seconds=60.0):
    """Wait for `condition`; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.2)


@pytest.mark.parametrize("replicas", [1, *([2] if SOAK else [])])
def test_a_copy_that_is_killed_under_load_loses_no_request(deploy, expected, replicas):
    """Also the only one; that of two, the test of another model kills, too."""
    url = deploy(replicas=replicas)
    before = {process.pid for process in processes()}
    assert len(before) == replicas

    def kill():
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len({process.pid for process in processes()} - before) == 1)

    wrong, answered = asyncio.run(load(url, expected, kill))
    assert wrong == []
    assert answered >= 8  # each client at least one


def test_a_copy_that_stands_still_is_replaced(deploy, expected, monkeypatch):
    """By checks as often as a second, each with three seconds: it is replaced after three that fail."""
    monkeypatch.setattr("pipelines.serve.deployment._HEALTH_S", 1.0)
    monkeypatch.setattr("pipelines.serve.deployment._GRACE_S", 2.0)
    url = deploy(batch_timeout_s=1, timeout_s=5)
    (stopped,) = processes()
    stopped.suspend()
    try:
        reply = httpx.post(url, json={"inputs": TEXTS[0]}, timeout=60)
        assert (reply.status_code, "does not answer" in reply.text) == (504, True), reply.text
        until(lambda: any(process.pid != stopped.pid for process in processes()), 120)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped.resume()

    def answers():
        reply = httpx.post(url, json={"inputs": TEXTS[0], "parameters": {"top_k": 5}}, timeout=60)
        return reply.status_code == 200 and reply.json() == [expected[TEXTS[0]]]

    until(answers)


def test_a_new_version_under_load_loses_no_request(deploy, expected):
    url = deploy(replicas=2)
    before = {process.pid for process in processes()}
    wrong, answered = asyncio.run(load(url, expected, lambda: deploy(replicas=2, budget_tokens=64)))
    assert wrong == []
    assert answered >= 8  # each client at least one
    until(lambda: not before & {process.pid for process in processes()})


def test_a_copy_that_finds_another_model_does_not_start(deploy, expected, folder, tmp_path):
    """The others answer as before, the status says why; the next deploy takes the files that are there."""
    from ray import serve

    url = deploy(replicas=2, budget_tokens=64)  # as the test above has left it
    before = {process.pid for process in processes()}
    shutil.copytree(folder, tmp_path / "kept")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    try:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

        def kill():
            os.kill(min(before), signal.SIGKILL)
            until(
                lambda: (
                    "has changed since"
                    in serve.status().applications["faults"].deployments["cat"].message
                )
            )

        wrong, answered = asyncio.run(load(url, expected, kill))
        assert not wrong
        assert answered > 10
        now = pipeline("text-classification", str(folder))(TEXTS, top_k=5)
        assert now != [*expected.values()]
        url = deploy(replicas=1)
        wrong, answered = asyncio.run(load(url, dict(zip(TEXTS, now, strict=True)), lambda: None))
        assert not wrong
        assert answered > 10
    finally:
        shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)


def test_copies_come_and_go_with_the_load_without_a_lost_request(deploy, expected, monkeypatch):
    """Ray has the figures of every copy of the HTTP side, too: together, each request that was answered."""
    import ray
    from ray import serve

    usual = serve.deployment

    def at_once(**options):  # Ray's usual delays are 30 s for more copies and 600 s for fewer
        if scaling := options.get("autoscaling_config"):
            delays = {
                "upscale_delay_s": 1,
                "downscale_delay_s": 2,
                "metrics_interval_s": 1,
                "look_back_period_s": 2,
            }
            options["autoscaling_config"] = scaling | delays
        return usual(**options)

    monkeypatch.setattr(serve, "deployment", at_once)
    scaled = {"replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2}
    url = deploy(name="counted", http_replicas=2, **scaled)
    assert len(processes("counted")) == 1
    requests = 0
    for clients, reached in ((16, 3), (1, 1)):
        wrong, answered = asyncio.run(
            load(
                url,
                expected,
                lambda: until(lambda: len(processes("counted")) == reached, 180),  # noqa: B023
                clients=clients,
            )
        )
        assert wrong == []
        assert answered >= clients
        requests += answered
    (node,) = ray.nodes()

    def counts():
        text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=60).text
        lines = re.findall(r"^ray_modernbert_http_requests_total\{(.*)\} (.*)$", text, re.MULTILINE)
        of_route = [
            (labels, float(value)) for labels, value in lines if 'route="/models/counted"' in labels
        ]
        assert all('status="200"' in labels for labels, _ in of_route)
        return {re.search(r'WorkerId="(\w+)"', labels)[1]: value for labels, value in of_route}

    until(lambda: sum(counts().values()) == requests)
    assert len(counts()) == 2


def test_one_process_serves_and_comes_back(deploy, expected):
    url = deploy(one_process=True)

    def answers():
        try:
            reply = httpx.post(
                url, json={"inputs": TEXTS[0], "parameters": {"top_k": 5}}, timeout=60
            )
        except httpx.TransportError:
            return False
        return reply.status_code == 200 and reply.json() == [expected[TEXTS[0]]]

    assert answers()
    # Serve's Python proxy, to which Java's client offers HTTP/2.
    body = json.dumps({"inputs": TEXTS[0], "parameters": {"top_k": 5}}).encode()
    host, _, path = url.removeprefix("http://").partition("/")
    [(status, reply)] = exchanged(
        url.removesuffix(f"/{path}"), [java_post(host, f"/{path}", body), body]
    )
    assert (status, json.loads(reply)) == (200, [expected[TEXTS[0]]])
    (process,) = processes("http")
    process.kill()
    until(answers)
