"""Where a job's actors go: a Ray that does not answer, a busy cluster, one that grows from nothing, a second run."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import standin_gpu
from autoscaling import autoscaling_head
from commands import stages_here
from conftest import HEAD_ENVIRONMENT, RAY, REPOSITORY, free_port, runs

from pipelines import run_corpus
from pipelines.errors import JobError, UserError
from pipelines.raydata import cluster, placement
from pipelines.storage import Folder

TEXTS = [f"please set an alarm for {i} o'clock" for i in range(40)]
GPU_NODES = runs("GPU_NODES", few=2, many=4)
"""How many nodes a cluster that grows may have."""


@pytest.fixture
def corpus(tmp_path, checkpoint):
    """The input, output and model of a small job."""
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "in.parquet")
    named = {"input": tmp_path / "in.parquet", "output": tmp_path / "out", "model": checkpoint}
    return {name: str(path) for name, path in named.items()}


@pytest.fixture
def no_ray(monkeypatch):
    """No Ray of this process, and a second for one to answer."""
    import ray

    ray.shutdown()
    monkeypatch.setattr(cluster, "_ANSWERS_S", 1.0)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "127.0.0.1:{closed}",
            JobError,
            r"no Ray answers at [\d.]+:{closed} \(RAY_ADDRESS names it\): start one .*local",
        ),
        (
            "127.0.0.1:{silent}",
            JobError,
            r"no Ray answers at [\d.]+:{silent} \(RAY_ADDRESS names it\)",
        ),
        ("head.invalid:6379", JobError, r"no Ray answers at head\.invalid:6379"),
        (
            "http://127.0.0.1:8265",
            UserError,
            r"RAY_ADDRESS http://127.0.0.1:8265 must be host:port .* ray job submit",
        ),
        (
            "ray://127.0.0.1:10001",
            UserError,
            r"RAY_ADDRESS ray://127.0.0.1:10001 must be host:port of a head",
        ),
        (
            "somewhere",
            UserError,
            r"RAY_ADDRESS somewhere must be host:port of a head, auto or local",
        ),
    ],
)
def test_a_ray_that_cannot_be_reached_is_one_line(no_ray, monkeypatch, address, error, message):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = {"closed": free_port(), "silent": silent.getsockname()[1]}
        monkeypatch.setenv("RAY_ADDRESS", address.format(**ports))
        with pytest.raises(error, match=message.format(**ports)):
            cluster.cluster_resources()


@pytest.mark.parametrize("named", [None, "auto"])
def test_a_ray_that_was_killed_on_this_machine_is_forgotten(no_ray, monkeypatch, tmp_path, named):
    """Its address is still there; only RAY_ADDRESS=auto insists on it."""
    from ray._private import services

    monkeypatch.setattr(
        services, "find_gcs_addresses", set
    )  # the Rays of other tests on this machine
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    if named:
        monkeypatch.setenv("RAY_ADDRESS", named)
        with pytest.raises(JobError, match="the last one that was started on this machine"):
            cluster._address_to_join()
        return
    assert services.canonicalize_bootstrap_address(None) is not None
    assert cluster._address_to_join() is None
    assert services.canonicalize_bootstrap_address(None) is None  # one is started here


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_ray_that_wants_a_token_says_where_to_put_it(tmp_path):
    port, secret = free_port(), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 40}
    home = HEAD_ENVIRONMENT | {
        "HOME": str(tmp_path),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "PYTHONPATH": str(REPOSITORY),
    }
    options = ["--head", "--block", "--num-cpus=1", f"--port={port}", "--include-dashboard=false"]
    options += [
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    head = subprocess.Popen(
        [*RAY, "start", *options],
        env=home | secret,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def connect(**changes: str) -> str:
        """What a process that wants to use this Ray says."""
        script = "from pipelines.raydata.cluster import cluster_resources as connect\n"
        script += "try: print(connect())\nexcept Exception as error: print(error)"
        environment = {name: value for name, value in (home | changes).items() if value}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.stdout + done.stderr

    try:
        while not listens(port):  # each process that connects imports for seconds
            assert head.poll() is None, "the head ended"
            time.sleep(0.2)
        while "no Ray answers" in (said := connect(RAY_AUTH_MODE="")):
            assert head.poll() is None, "the head ended"
        for wrong in (
            said,
            connect(RAY_AUTH_MODE="token"),
            connect(**secret | {"RAY_AUTH_TOKEN": "b" * 40}),
        ):
            assert re.fullmatch(
                rf"the Ray at [\d.]+:{port} wants its token: set RAY_AUTH_MODE=token, and put it .*\n",
                wrong,
            )
        assert "'CPU': 1.0" in connect(**secret)
    finally:
        head.terminate()
        head.wait(60)


@pytest.mark.slow
def test_a_job_on_a_busy_cluster_waits_in_plain_words_and_goes_on(
    corpus, capsys, monkeypatch, local_ray
):
    import ray

    monkeypatch.setattr(placement, "_SAID_EVERY_S", 1.0)

    @ray.remote(num_cpus=1.5)
    class Other:
        def ready(self):
            return True

    other = Other.remote()
    ray.get(other.ready.remote())
    with pytest.raises(
        JobError,
        match=r"1 CPU, one an actor, were not free within 1 s: the Ray cluster has 2 CPUs, 0",
    ):
        run_corpus("classify", **corpus, wait_for_actors_s=1)
    assert (
        "waiting for 1 CPU, one an actor, up to 1 s: the Ray cluster has 2 CPUs, 0 of them free"
        in (capsys.readouterr().err)
    )
    timer = threading.Timer(4, ray.kill, [other])
    timer.start()
    done = run_corpus("classify", **corpus)
    timer.join()
    assert (done.outcome, done.rows) == ("complete", len(TEXTS))
    assert capsys.readouterr().err.count("waiting for 1 CPU, one an actor, up to ") >= 2


@pytest.mark.slow
def test_two_jobs_at_once_on_one_cluster_both_finish(ray_head, tmp_path):
    """Each wants the whole cluster, and takes what is free."""
    job = [sys.executable, "jobs/classify_corpus.py", "--input", "jobs/demo/requests.parquet"]
    job += ["--model", "jobs/demo/intent-classifier", "--limit", "200"]
    environment = ray_head.environment
    running = [
        subprocess.Popen(
            [*job, "--output", str(tmp_path / name)],
            cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    for process in running:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        assert "rows       200: " in output
        assert "Traceback" not in output


def test_a_second_run_into_an_output_is_skipped_where_that_is_asked_for(corpus, local_ray):
    from pipelines.output.lease import LEASE, lease

    folder = Folder.at(corpus["output"])
    with lease(folder):
        with pytest.raises(UserError, match="is being written by process"):
            run_corpus("classify", **corpus)
        skipped = run_corpus("classify", **corpus, if_running="skip")
        assert (skipped.outcome, skipped.rows, skipped.failed) == ("skipped", 0, {})
        assert str(skipped).startswith(
            f"skipped: output '{folder}' is being written by process {os.getpid()}"
        )
        assert set(folder.files()) == {LEASE}
    with stages_here():
        assert run_corpus("classify", **corpus, if_running="skip").outcome == "complete"


@pytest.mark.slow
def test_a_cluster_without_gpus_is_asked_for_them_and_gives_them_back(
    corpus, tmp_path, monkeypatch, capsys
):
    """From 0 to GPU_NODES nodes and back to 0, on Ray's pretended nodes with a stand-in for the model.

    Once all actors are there, all are at work at once: each waits until the others have a shard, too.
    """
    import ray

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    corpus["rows_per_file"] = 16
    rows = 16 * 48
    pq.write_table(
        pa.table({"id": range(rows), "text": ["please wake me up " * 16] * rows}), corpus["input"]
    )
    actors = tmp_path / "actors"
    actors.mkdir()
    meeting = {standin_gpu.ACTORS: str(actors), standin_gpu.ACTORS_AT_ONCE: str(GPU_NODES)}
    with autoscaling_head(most_gpus=GPU_NODES, idle_s=5) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        ray.shutdown()
        hook = {"worker_process_setup_hook": standin_gpu.install_quick, "env_vars": meeting}
        ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env=hook)
        with pytest.raises(
            UserError,
            match="device auto: the Ray cluster has no GPU now, but its autoscaler may start",
        ):
            run_corpus("classify", **corpus)
        seen, stop = [], threading.Event()

        def count() -> None:
            while not stop.wait(1):
                seen.append(int(ray.cluster_resources().get("GPU", 0)))

        thread = threading.Thread(target=count)
        thread.start()
        try:
            done = run_corpus(
                "classify", **corpus, device="cuda", actors=f"1:{GPU_NODES}", keep_columns=["id"]
            )
        finally:
            stop.set()
            thread.join()
            ray.shutdown()
        ray.init(address, log_to_driver=False, logging_level="ERROR")  # the job's driver has ended
        for _ in range(90):
            if not ray.cluster_resources().get("GPU", 0):
                break
            time.sleep(1)
        left = ray.cluster_resources().get("GPU", 0)
        ray.shutdown()
    assert (
        "waiting for 1 GPU, one an actor, up to 10 min 0 s: the Ray cluster has 0 GPUs"
        in capsys.readouterr().err
    )
    assert (seen[0], max(seen), left) == (0, GPU_NODES, 0), seen
    assert not list(actors.glob("starved-*"))
    assert len(list((actors / "entries").iterdir())) >= GPU_NODES * standin_gpu.MEETINGS
    assert done.outcome == "complete", done
    assert pq.read_table(corpus["output"], columns=["id"])["id"].to_pylist() == list(range(rows))
