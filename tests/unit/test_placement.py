"""The CPU cores that GPUs want, what each stage takes of those that there are, and the warning where they are few."""

from __future__ import annotations

import logging

import pytest

from modernbert.config import ModernBertConfig
from pipelines import run_corpus
from pipelines.corpus import staging
from pipelines.errors import JobError
from pipelines.raydata import placement

BASE = ModernBertConfig()
LARGE = ModernBertConfig(
    hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16
)
SMALL = ModernBertConfig(
    hidden_size=384, intermediate_size=576, num_hidden_layers=6, num_attention_heads=6
)


@pytest.fixture
def resources(monkeypatch):
    """resources(cpus, gpus): what the Ray cluster has."""

    def resources(cpus: float, gpus: float) -> None:
        monkeypatch.setattr(placement, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})

    return resources


def test_a_job_waits_for_the_nodes_of_a_cluster_that_starts(monkeypatch, capsys):
    """Until nothing more joins; a cluster that grows is asked for nodes later."""
    monkeypatch.setattr(placement, "_STEADY_S", 0.01)
    found = iter([{}, {"CPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}])
    monkeypatch.setattr(placement, "cluster_resources", lambda: next(found))
    monkeypatch.setattr(placement, "is_fixed", lambda: False)
    placement.wait_for_nodes()
    monkeypatch.setattr(placement, "is_fixed", lambda: True)
    placement.wait_for_nodes()
    assert capsys.readouterr().err == ""
    found = iter([{}, {}, *found])
    placement.wait_for_nodes()
    assert list(found) == []
    assert capsys.readouterr().err.count("waiting for nodes to join the Ray cluster") == 1


@pytest.mark.parametrize(
    ("joined", "gpus", "device"), [(True, 2, "cuda"), (True, 0, "cpu"), (False, 2, "cpu")]
)
def test_auto_is_about_the_cluster_that_the_program_has_joined(
    joined, gpus, device, resources, monkeypatch
):
    """However it has: by RAY_ADDRESS or by ray.init."""
    resources(8, gpus)
    monkeypatch.setattr(placement, "gpu_is_here", lambda: False)
    monkeypatch.setattr(placement, "is_fixed", lambda: True)
    monkeypatch.setattr("ray.is_initialized", lambda: joined)
    assert placement.device_of_actors("auto") == device


@pytest.mark.parametrize(
    ("config", "plain", "details"), [(BASE, 5, 7), (LARGE, 3, 4), (SMALL, 5, 7)]
)
def test_a_gpu_wants_cores_by_its_tokens_a_second(config, plain, details):
    assert placement.cores_per_gpu(config, details=False) == plain
    assert placement.cores_per_gpu(config, details=True) == details


def test_few_cores_are_said_in_one_line(resources, caplog):
    resources(40, 8)
    placement.warn_of_few_cores(8, 5)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        placement.warn_of_few_cores(8, 7)
    assert [record.getMessage() for record in caplog.records] == [
        "the Ray cluster has 40 CPUs for 8 GPUs; to keep as many H100s busy with this model and task takes 56, 7 each: "
        "GPUs may wait for texts to be read and tokenised. Add CPUs, or nodes without GPUs"
    ]


@pytest.mark.parametrize(
    ("cpus", "gpus", "each"),
    [
        (96, 8, 1),
        (4, 1, 1),
        (8, 8, 0.25),
        (1, 1, 0.25),
        (0, 0, 1),
    ],
)
def test_actors_leave_cores_to_what_feeds_them(resources, cpus, gpus, each):
    """And commits never wait for a core, on nodes that have any."""
    resources(cpus, gpus)
    read, actor, commit = placement.stage_cpus("cuda")
    assert (read, actor) == (each, each)
    assert 0 < commit < 0.01
    assert gpus * actor + read <= cpus or not gpus


def test_on_cpus_an_actor_takes_most_of_a_core():
    read, actor, commit = placement.stage_cpus("cpu")
    assert (read, actor) == (0.09, 0.9)
    assert 0 < commit < 1 - read - actor


def test_a_cluster_that_stays_without_cores_is_waited_for_once(monkeypatch, capsys):
    monkeypatch.setattr(placement, "_JOIN_S", 0.0)
    monkeypatch.setattr(placement, "is_fixed", lambda: True)
    monkeypatch.setattr(placement, "cluster_resources", dict)
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {}}])
    with pytest.raises(JobError) as raised:
        placement.wait_for_nodes()
    assert str(raised.value) == (
        "no node with CPUs or GPUs has joined within 0 s: the Ray cluster has 0 CPUs and 0 GPUs; start workers "
        "(ray start --address=…), or the head with --num-cpus"
    )
    assert capsys.readouterr().err.count("\n") == 1


def test_files_are_staged_once_there_are_nodes(tmp_path, checkpoint, in_process, monkeypatch):
    """Else their tasks would wait in silence."""
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}')
    waited = []
    run_tasks = staging._run_tasks

    def run_after_waiting(*arguments):
        assert waited == ["for nodes"]
        return run_tasks(*arguments)

    monkeypatch.setattr(staging, "wait_for_nodes", lambda: waited.append("for nodes"))
    monkeypatch.setattr(staging, "_run_tasks", run_after_waiting)
    source, output = str(tmp_path / "a.jsonl"), str(tmp_path / "out")
    assert run_corpus("classify", input=source, output=output, model=str(checkpoint)).rows == 1
    assert waited


def test_nodes_are_described_by_what_they_have(monkeypatch):
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 1.0}, {}]
    monkeypatch.setattr(
        "ray.nodes", lambda: [{"Alive": bool(each), "Resources": each} for each in nodes]
    )
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 17.0, "GPU": 2.0})
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 0.5, "GPU": 1.0})
    kinds = "2 nodes of 8 CPUs and 1 GPU, 1 node of 1 CPU"
    assert placement.describe_nodes() == f"the Ray cluster has 17 CPUs and 2 GPUs ({kinds})"
    assert placement.describe_room("GPU") == f"the Ray cluster has 2 GPUs, 1 of them free ({kinds})"
    assert (
        placement.describe_room("CPU") == f"the Ray cluster has 17 CPUs, 0 of them free ({kinds})"
    )
