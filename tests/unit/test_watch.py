"""What the watch of a job knows of its model actors, and how far ahead of their commits they may be."""

from types import SimpleNamespace

import pytest
import torch

from modernbert import gpu
from modernbert.tiles import Fusions, tiles_for
from pipelines.raydata import watch as module
from pipelines.raydata.actor import Predict
from pipelines.raydata.watch import GO_ON, MAX_WAIT_S, SHORT_S, STOP, WAIT, Watch


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def watch():
    watch = Watch()
    watch.start(1, "a")
    watch.start(1, "b")
    return watch


def begin(watch, clock, actor, shards, seconds=SHORT_S):
    answers = []
    for shard in shards:
        answers.append(watch.begin(1, actor, shard))
        clock.now += seconds
    return answers


def test_an_actor_has_two_shards_that_are_not_committed(watch, clock):
    assert begin(watch, clock, "a", "123") == [GO_ON, GO_ON, WAIT]
    assert watch.begun(1) == {"1", "2"}
    watch.committed(1, "2")  # in whatever order
    assert begin(watch, clock, "a", "34") == [GO_ON, WAIT]
    assert begin(watch, clock, "b", "567") == [GO_ON, GO_ON, WAIT]  # each has its own


def test_shards_of_milliseconds_may_be_more_for_a_while(watch, clock):
    shards = [str(number) for number in range(300)]
    answers = begin(watch, clock, "a", shards, seconds=0.01)
    went_on = answers.count(GO_ON)
    assert answers == [GO_ON] * went_on + [WAIT] * (300 - went_on)
    assert went_on == pytest.approx(SHORT_S / 0.01, abs=2)


def test_a_commit_that_is_never_reported_holds_its_actor_for_a_while(watch, clock):
    assert begin(watch, clock, "a", "123") == [GO_ON, GO_ON, WAIT]
    clock.now += MAX_WAIT_S - 2 * SHORT_S
    assert watch.begin(1, "a", "3") == WAIT
    clock.now += 2 * SHORT_S
    assert begin(watch, clock, "a", "345") == [GO_ON, GO_ON, WAIT]
    watch.committed(1, "1")  # one that was forgotten frees nothing
    assert watch.begin(1, "a", "5") == WAIT


def test_an_actor_whose_process_starts_again_waits_for_nothing_of_its_last_one(watch, clock):
    assert begin(watch, clock, "a", "123") == [GO_ON, GO_ON, WAIT]
    watch.start(1, "a")
    assert begin(watch, clock, "a", "34") == [GO_ON, GO_ON]


def test_a_new_round_waits_for_nothing_of_the_last_one(watch, clock):
    assert begin(watch, clock, "a", "12") == [GO_ON, GO_ON]
    watch.start(2, "a")
    assert watch.begin(2, "a", "3") == GO_ON
    watch.committed(1, "3")  # of the last round: another shard of that name
    assert watch.begin(2, "a", "4") == GO_ON
    clock.now += 2 * SHORT_S
    assert watch.begin(2, "a", "5") == WAIT


def test_nothing_begins_where_the_job_stops(watch, clock):
    assert begin(watch, clock, "a", "12") == [GO_ON, GO_ON]
    watch.stop()
    assert begin(watch, clock, "a", "3") == [STOP]  # a waiting actor, too


def test_an_actor_gives_up_only_where_no_other_one_starts():
    watch = Watch()
    assert [watch.start(1, "a"), watch.start(1, "b"), watch.start(1, "a")] == [1, 1, 2]
    assert not watch.start_failed(1, "a")  # b may start yet
    watch.started(1, "b")
    assert not watch.start_failed(1, "a")
    assert watch.start(1, "b") == 1  # its process has ended since it was ready
    assert not watch.start_failed(1, "a")
    assert watch.start_failed(1, "b")


def test_what_an_actor_notes_after_its_round_is_passed_over():
    watch = Watch()
    assert watch.start(1, "a") == 1
    watch.begin(1, "a", "shard")
    assert watch.interrupted(1) == {"shard": (None, "")}
    assert watch.interrupted(2) == {}
    watch.start(1, "a")
    watch.begin(1, "a", "shard")
    watch.broke(1, "shard", "CUDA error")
    assert not watch.start_failed(1, "a")
    assert watch.interrupted(2) == {}
    assert not watch.any_start(2)


def test_actors_are_ready_from_the_answer_to_the_probe_until_they_start_again():
    watch = Watch()
    for actor in "ab":
        watch.start(1, actor)
    assert watch.ready() == 0
    for actor in "aba":
        watch.started(1, actor)
    assert watch.ready() == 2
    watch.start(1, "a")
    assert watch.ready() == 1
    watch.started(0, "a")  # of a past round
    assert watch.ready() == 1
    watch.start(2, "c")
    assert watch.ready() == 0


def test_the_time_that_actors_hold_their_places(clock):
    watch = Watch()
    watch.start(1, "a")
    clock.now += 10
    watch.start(1, "b")
    clock.now += 5
    watch.start(1, "a")  # its process starts again, in the same place
    assert watch.held_s() == 15 + 5
    watch.start(2, "c")
    clock.now += 3
    assert watch.held_s() == 20 + 3


class OneGpu:
    """What an actor reports to, and its predictor, on a GPU that was timed."""

    def __init__(self, monkeypatch, watch: Watch, fastest: Fusions, backend: str = "torch_varlen"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
        monkeypatch.setattr(gpu, "compute_capability", lambda _: (9, 0))
        self.used = fastest
        predictor = SimpleNamespace(
            device="cuda:0", attention_backend=backend, fusions=str(fastest), fuse=self.fuse
        )
        Predict._report_gpu(SimpleNamespace(reports=watch), predictor)

    def fuse(self, chosen: Fusions) -> None:
        self.used = chosen


def test_actors_on_one_kind_of_gpu_agree_and_so_does_a_later_attempt(monkeypatch, caplog):
    first, second = tiles_for((9, 0))
    watch = Watch()
    slow = OneGpu(monkeypatch, watch, Fusions(), f"torch_varlen, {gpu.NO_KERNELS}")
    assert slow.used == Fusions()
    assert not watch.fusions()  # an actor without kernels does not choose for the others
    assert OneGpu(monkeypatch, watch, Fusions(first)).used == Fusions(first)
    assert OneGpu(monkeypatch, watch, Fusions(second, second)).used == Fusions(first)
    later = Watch(fusions=watch.fusions())
    assert OneGpu(monkeypatch, later, Fusions()).used == Fusions(first)
    other_version = Watch(fusions={"NVIDIA H100": "all in one kernel"})
    assert OneGpu(monkeypatch, other_version, Fusions(first)).used == Fusions(first)
    assert "where another run of the job had all in one kernel" in caplog.text
