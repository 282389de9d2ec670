"""What becomes of shards without an answer, as the table in pipelines/README.md says, without Ray."""

from __future__ import annotations

import pytest

from pipelines.corpus.retries import (
    LOST,
    MAX_ATTEMPTS,
    MAX_ATTEMPTS_PER_ROW,
    MAX_LOSSES,
    MAX_ROUNDS_WITHOUT_PROGRESS,
    MAX_SHARDS_TO_SPLIT,
    POISON_ROW,
    Action,
    Held,
    History,
    RetryState,
    fail_the_rest,
    gives_up,
    may_be_held,
    next_action,
    note_loss,
    note_round,
    plan_next_round,
    take_held,
)
from pipelines.input.shards import Piece, Shard

MANY = MAX_SHARDS_TO_SPLIT + 1
ROWS = 64


def make_shard(name: str, rows: int) -> Shard:
    return Shard(name, "parquet", (Piece("in", "in", "00000000", 0, rows),))


def shard(number: int = 0) -> Shard:
    return make_shard(f"in-{number}-000000000-000000064", ROWS)


# What the shard has been through, its rows, whether it is a part, how many were lost with it, and
# whether any row of the run is answered.
ACTIONS = [
    # the process of an actor is killed, or the model raises, once: the shard is run again, whole
    (History(blamed=1), ROWS, False, 1, True, Action.RUN_AGAIN),
    (History(blamed=1), ROWS, False, 1, False, Action.RUN_AGAIN),
    # a document ends its process each time: its shard is cut up until the row is found
    (History(blamed=MAX_ATTEMPTS), ROWS, False, 1, True, Action.SPLIT),
    (History(blamed=MAX_ATTEMPTS), ROWS, False, 1, False, Action.SPLIT),
    (History(blamed=MAX_ATTEMPTS), 4, True, 1, True, Action.SPLIT),
    (History(blamed=MAX_ATTEMPTS), 1, True, 1, True, Action.RUN_AGAIN),
    (History(blamed=MAX_ATTEMPTS_PER_ROW), 1, True, 1, True, Action.HOLD),
    (History(blamed=MAX_ATTEMPTS_PER_ROW), 1, True, 1, False, Action.HOLD),
    (History(blamed=MAX_ATTEMPTS_PER_ROW), 1, False, 1, True, Action.HOLD),
    # no row of a run is answered, but the probe is: it is the model, and nothing is split further
    (History(blamed=MAX_ATTEMPTS), 4, True, 1, False, Action.FAIL),
    # a node is lost: its shards are run again, whole, however often they were blamed
    (History(lost=1), ROWS, False, 1, True, Action.RUN_AGAIN),
    (History(lost=1), ROWS, False, MANY, True, Action.RUN_AGAIN),
    (History(blamed=9), ROWS, False, MANY, True, Action.RUN_AGAIN),
    (History(blamed=9), 1, True, MANY, True, Action.RUN_AGAIN),
    (History(blamed=9), ROWS, False, MAX_SHARDS_TO_SPLIT, True, Action.SPLIT),
    # a shard is lost to the machines again and again: it fails, and is not split
    (History(lost=MAX_LOSSES - 1), ROWS, False, 1, True, Action.RUN_AGAIN),
    (History(lost=MAX_LOSSES), ROWS, False, 1, True, Action.FAIL),
    (History(lost=MAX_LOSSES), ROWS, False, MANY, True, Action.FAIL),
    (History(lost=MAX_LOSSES, blamed=9), 1, True, 1, True, Action.FAIL),
]


@pytest.mark.parametrize(
    ("history", "rows", "is_part", "lost_at_once", "answered", "action"), ACTIONS
)
def test_what_is_done_with_a_shard(history, rows, is_part, lost_at_once, answered, action):
    got = next_action(
        history,
        rows=rows,
        is_part=is_part,
        lost_at_once=lost_at_once,
        some_row_is_answered=answered,
    )
    assert got is action


def test_a_shard_that_ends_its_process_is_split_down_to_the_row():
    """The whole number of attempts: of a shard, its parts and a row."""
    whole, poison = shard(), 50
    state = RetryState(some_row_is_answered=True)
    lost, runs = [whole], [whole.count]
    while lost:
        for each in lost:
            note_loss(state, each.name, None, blamed=True)
        again = plan_next_round(state, lost)
        ranges = [(each, each.row_range or (0, ROWS)) for each in again]
        lost = [each for each, (first, stop) in ranges if first <= poison < stop]
        runs += [each.count for each in lost]
    assert runs == [64, 64, 4, 4, 1, 1, 1]
    (held,) = take_held(state)
    assert held.shard.row_range == (poison, poison + 1)
    assert [(each["row"], each["reason"]) for each in held.rejects] == [(poison, POISON_ROW)]
    assert state.failed == {}


def test_a_row_that_raises_is_rejected_with_what_the_model_said():
    whole = make_shard("in-0-000000000-000000001", 1)
    state = RetryState(some_row_is_answered=True)
    for _ in range(MAX_ATTEMPTS_PER_ROW):
        note_loss(state, whole.name, "IndexError: 99\nTraceback", blamed=True)
    assert plan_next_round(state, [whole]) == []
    (held,) = take_held(state)
    assert held.rejects[0]["reason"] == "cannot be predicted: IndexError: 99"
    assert take_held(state) == []


def test_a_shard_that_is_lost_to_the_machines_again_and_again_fails_and_is_not_split():
    whole, state = shard(), RetryState(some_row_is_answered=True)
    for _ in range(MAX_LOSSES - 1):
        note_loss(state, whole.name, "RuntimeError: CUDA error\nTraceback", blamed=False)
        assert plan_next_round(state, [whole]) == [whole]
    note_loss(state, whole.name, "RuntimeError: CUDA error\nTraceback", blamed=False)
    assert plan_next_round(state, [whole]) == []
    assert state.failed == {whole.name: "cannot be predicted: RuntimeError: CUDA error"}


def test_the_last_reason_counts():
    whole, state = shard(), RetryState()
    note_loss(state, whole.name, "RuntimeError: CUDA error", blamed=True)
    note_loss(state, whole.name, None, blamed=False)
    fail_the_rest(state, [whole])
    assert state.failed == {whole.name: LOST}


def test_rows_are_rejected_only_once_another_row_is_answered():
    row = shard()
    state = RetryState(held={row.name: Held(row, [{"row": 0, "reason": "it raised"}])})
    assert take_held(state) == []
    state.some_row_is_answered = True
    assert [held.shard for held in take_held(state)] == [row]
    assert state.held == {}


def test_what_is_held_fails_where_no_row_is_answered_to_the_end():
    row = shard()
    state = RetryState(held={row.name: Held(row, [{"row": 0, "reason": "it raised"}])})
    fail_the_rest(state, [])
    assert state.failed == {row.name: "it raised"}


def test_few_shards_are_held_while_no_row_is_answered():
    names = map(str, range(MAX_SHARDS_TO_SPLIT - 1))
    state = RetryState(held={name: Held(shard(), []) for name in names})
    assert may_be_held(state)
    state.held["one more"] = Held(shard(), [])
    assert not may_be_held(state)
    state.some_row_is_answered = True
    assert may_be_held(state)


def test_a_run_gives_up_where_the_machines_lose_everything_in_each_round():
    state = RetryState()
    for _ in range(MAX_ROUNDS_WITHOUT_PROGRESS - 1):
        note_round(state, ran=MANY, lost=MANY)
    assert not gives_up(state)
    note_round(state, ran=MANY, lost=MANY - 1)  # one was answered
    assert state.rounds_without_progress == 0
    for _ in range(MAX_ROUNDS_WITHOUT_PROGRESS):
        note_round(state, ran=MANY, lost=MANY)
    assert gives_up(state)
    note_round(state, ran=1, lost=1)  # few are found by splitting, however long it takes
    assert not gives_up(state)
