"""Messages name the node where there are several, and what is lost again and again is a line a reason."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError

from pipelines.corpus.execute import Execution
from pipelines.corpus.retries import LOST, MAX_LOSSES, plan_next_round
from pipelines.errors import JobError
from pipelines.input.shards import Piece, Shard
from pipelines.raydata import wire
from pipelines.raydata.cluster import on_node, this_node
from pipelines.raydata.losses import Losses
from pipelines.raydata.watch import Watch
from pipelines.storage import Folder

NODE = "w2 (10.0.0.7)"
SHARD = Shard("a-0-8", "parquet", (Piece("a", "a", "v", 0, 8),))


@pytest.fixture(params=[1, 2])
def where(request, monkeypatch):
    """What names a node at the end of a message, in a cluster of one and of two."""
    nodes = [
        {"NodeManagerAddress": f"10.0.0.{6 + number}", "NodeManagerHostname": f"w{number + 1}"}
        for number in range(request.param)
    ]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    return "" if request.param == 1 else f", on node {NODE}"


def report(**values):
    """What the commit of the shard reports."""
    none = dict.fromkeys(wire.COMMITTED.names)
    return none | {"name": SHARD.name, "stops": False, "node": NODE} | values


def test_a_shard_that_fails_names_the_node(where, tmp_path):
    run = Execution(SimpleNamespace(folder=Folder(str(tmp_path)), attempt_id="r"), [], None, list)
    log = tmp_path / "log"
    assert not run._receive(report(error="cannot be read: bad"), SHARD, log)
    assert run.failed == {SHARD.name: f"cannot be read: bad{where}"}
    with pytest.raises(JobError, match="written: full") as raised:
        run._receive(report(error="full", stops=True), SHARD, log)
    assert str(raised.value).endswith(f"full{where}")
    with pytest.raises(JobError) as raised:
        run._receive(report(error="no model\nTraceback", cause=wire.START), SHARD, log)
    assert str(raised.value) == f"no actor starts: no model{where} (details in {log})"


@pytest.mark.parametrize("raised", [None, "RuntimeError: CUDA error"])
def test_a_shard_whose_processes_end_names_the_last_node(where, raised, tmp_path):
    run = Execution(SimpleNamespace(folder=Folder(str(tmp_path)), attempt_id="r"), [], None, list)
    watch = Watch()
    for number in range(1, MAX_LOSSES + 1):
        node = NODE if number == MAX_LOSSES else "w1 (10.0.0.6)"
        watch.start(number, "actor", node)
        watch.begin(number, "actor", SHARD.name)
        if raised:
            watch.broke(number, SHARD.name, raised)
        ((name, (reason, at)),) = watch.interrupted(number).items()
        run._lose(name, reason, at, blamed=False)
    assert plan_next_round(run.retries, [SHARD]) == []
    reason = f"cannot be predicted: {raised}" if raised else LOST
    assert run.failed == {SHARD.name: reason + where}
    assert run.retried() == ([(MAX_LOSSES, f"the model raised {raised}")] if raised else [])


def test_what_a_job_loses_is_counted_by_reason_and_logged_once(where):
    memory = (
        "Task was killed due to the node running low on memory.\n"
        "Memory on the node (IP: 10.0.0.7, ID: 3f) where the task …"
    )
    errors = [
        *[OutOfMemoryError(memory)] * 300,
        *[NodeDiedError("node 3f is lost, ip: 10.0.0.7")] * 2,
        ActorUnavailableError("The actor is unavailable\n\tip: 10.0.0.7", None),
        ValueError("of a stage"),
    ]
    losses = Losses()
    logged = []
    for error in errors:
        info = (type(error), error, None)
        record = logging.LogRecord("ray.data", logging.ERROR, __file__, 1, "lost", (), info)
        if losses.filter(record):
            logged.append(type(error))
    assert logged == [OutOfMemoryError, NodeDiedError, ActorUnavailableError, ValueError]
    assert losses.described() == [
        (300, f"a process was ended, since its node had too little memory{where}"),
        (2, f"a node was lost{where}"),
        (1, f"a process ended, killed or by a fault of its own{where}"),
    ]
    losses.clear()
    assert losses.described() == []
    error = ActorUnavailableError("its process has ended", None)  # which names no node
    info = (type(error), error, None)
    losses.filter(logging.LogRecord("ray.data", 40, __file__, 1, "lost", (), info))
    (described,) = losses.described(", on node w9 (10.0.0.9)")
    assert described == (
        1,
        "a process ended, killed or by a fault of its own, on node w9 (10.0.0.9)",
    )


def test_a_node_is_called_by_its_name_and_address(where):
    assert on_node("") == on_node(None) == ""
    assert on_node(this_node()) == (f", on node {this_node()}" if where else "")
    assert Path("/etc/hostname").read_text().strip() in this_node()
