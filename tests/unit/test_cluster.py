"""A Ray that cannot be started or joined is one line, whatever Ray raises."""

from __future__ import annotations

import pytest
from ray.exceptions import RaySystemError

from pipelines.errors import JobError
from pipelines.raydata import cluster

ERRORS = [
    Exception("The current node timed out during startup.\nThe GCS is overloaded."),
    RuntimeError("The current node timed out during startup.\nThe GCS is overloaded."),
    ValueError("The current node timed out during startup.\nThe GCS is overloaded."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_ray_raises_as_it_starts_is_one_line(error, monkeypatch):
    def start(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    with pytest.raises(JobError) as caught:
        cluster.cluster_resources()
    assert str(caught.value) == (
        "Ray cannot be used: The current node timed out during startup. The GCS is overloaded."
    )


def test_an_error_of_ray_is_one_line(monkeypatch):
    def start(**_):
        raise RaySystemError("broken pipe")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    with pytest.raises(JobError, match=r"^Ray cannot be used: .*broken pipe"):
        cluster.cluster_resources()


@pytest.mark.parametrize(("address", "keeps_processes"), [("local", True), ("1.2.3.4:6379", False)])
def test_only_a_ray_that_is_started_here_is_given_settings(monkeypatch, address, keeps_processes):
    """Ray refuses them for one that is joined."""
    passed = {}
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: passed.update(settings))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(cluster, "_answers", lambda *_: True)
    assert cluster.cluster_resources() == {"CPU": 2.0}
    assert ("_system_config" in passed) == keeps_processes
