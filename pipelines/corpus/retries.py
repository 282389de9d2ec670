"""What becomes of a shard without an answer: it is run again, split, held, or it fails.

No Ray and no files here: what the actors report goes in, what the driver does next comes out.

A shard is *blamed* where an actor that answers the task's probe had no answer for it: the model
raised, or the process ended in its middle. Anything else, such as a lost node, is a *loss* to the
machines. Only a row that is blamed again and again, alone, is rejected, and only where some other
row of the run is answered: a model that answers no text is no fault of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from pipelines.input.shards import Shard
from pipelines.raydata.wire import Reject, reject

MAX_SHARDS_TO_SPLIT = 32
"""Where more shards are lost at once it was the machines, not the rows: all are run again whole."""
MAX_ATTEMPTS = 2
"""How often a shard is blamed before it is split."""
MAX_ATTEMPTS_PER_ROW = 3
"""How often a single row is blamed before it is rejected."""
MAX_LOSSES = 5
"""How often a shard is lost to the machines before it fails."""
MAX_ROUNDS_WITHOUT_PROGRESS = 5
"""After so many rounds in which many shards ran and none had an answer, the run gives up."""
POISON_ROW = "its process ended each time that it was predicted"
LOST = "its processes ended without an answer, again and again"


class Action(Enum):
    """What is done with a shard that has no answer."""

    RUN_AGAIN = auto()
    SPLIT = auto()
    HOLD = auto()
    """Its one row is rejected once another row of the run is answered."""
    FAIL = auto()


@dataclass
class History:
    """How often a shard has had no answer."""

    blamed: int = 0
    lost: int = 0
    reason: str | None = None
    """What the model raised the last time, in one line; None where the process ended."""
    where: str = ""
    """What names the node of the last time, at the end of a message."""

    @property
    def failure(self) -> str:
        """Why the shard fails, and where it did the last time."""
        return (self.reason or LOST) + self.where


@dataclass
class Held:
    """A shard whose rows are all rejected as soon as another row of the run is answered."""

    shard: Shard
    rejects: list[Reject]


@dataclass
class RetryState:
    """What a run knows of its shards without an answer."""

    histories: dict[str, History] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """The names of shards that failed, with the reason."""
    some_row_is_answered: bool = False
    rounds_without_progress: int = 0


def note_loss(
    state: RetryState, name: str, reason: str | None, *, blamed: bool, where: str = ""
) -> None:
    """Count that a shard has no answer.

    `reason`: what the model raised, a traceback may follow; None where the process ended. `where`:
    what names the node, at the end of a message.
    """
    history = state.histories.setdefault(name, History())
    if blamed:
        history.blamed += 1
    else:
        history.lost += 1
    first_line = reason.partition("\n")[0] if reason else None
    history.where = where
    history.reason = f"cannot be predicted: {first_line}" if first_line else None


def next_action(
    history: History,
    *,
    rows: int,
    is_part: bool,
    lost_at_once: int,
    some_row_is_answered: bool,
) -> Action:
    """Choose what is done with a shard.

    Args:
        history: that of the shard.
        rows: the rows of the shard.
        is_part: whether it is what is left of a shard that was split.
        lost_at_once: the shards that had no answer in the same round.
        some_row_is_answered: whether any row of the run is.
    """
    if history.lost >= MAX_LOSSES:
        return Action.FAIL
    if lost_at_once > MAX_SHARDS_TO_SPLIT:
        return Action.RUN_AGAIN
    most_attempts = MAX_ATTEMPTS if rows > 1 else MAX_ATTEMPTS_PER_ROW
    if history.blamed < most_attempts:
        return Action.RUN_AGAIN
    if rows == 1:
        return Action.HOLD
    if is_part and not some_row_is_answered:
        return Action.FAIL  # its neighbours were not answered either: it is the model
    return Action.SPLIT


def plan_next_round(state: RetryState, lost: Sequence[Shard]) -> list[Shard]:
    """Return the shards of the next round; those that are held or fail go into the state.

    `lost`: the shards of the last round that had no answer.
    """
    next_round: list[Shard] = []
    for shard in lost:
        history = state.histories.get(shard.name, History())
        action = next_action(
            history,
            rows=shard.count,
            is_part=shard.row_range is not None,
            lost_at_once=len(lost),
            some_row_is_answered=state.some_row_is_answered,
        )
        if action is Action.RUN_AGAIN:
            next_round.append(shard)
        elif action is Action.SPLIT:
            next_round += shard.subshards
        elif action is Action.HOLD:
            row = shard.row_range[0] if shard.row_range else 0
            rejects = [reject(row, history.reason or POISON_ROW, "predict")]
            state.held[shard.name] = Held(shard, rejects)
        else:
            state.failed[shard.name] = history.failure
    return next_round


def may_be_held(state: RetryState) -> bool:
    """Tell whether a shard of which no row was answered waits for an answer elsewhere in the run.

    Where many wait already and nothing is answered, such a shard fails: the model is broken, and
    what is held takes memory.
    """
    return state.some_row_is_answered or len(state.held) < MAX_SHARDS_TO_SPLIT


def take_held(state: RetryState) -> list[Held]:
    """Return, and hold no longer, what can be rejected now: everything, once a row is answered."""
    if not state.some_row_is_answered:
        return []
    held = list(state.held.values())
    state.held.clear()
    return held


def note_round(state: RetryState, ran: int, lost: int) -> None:
    """Count a round of `ran` shards, of which `lost` had no answer, for `gives_up`."""
    no_progress = lost > MAX_SHARDS_TO_SPLIT and lost == ran
    state.rounds_without_progress = state.rounds_without_progress + 1 if no_progress else 0


def gives_up(state: RetryState) -> bool:
    """Tell whether the machines have lost everything so often that the run ends."""
    return state.rounds_without_progress >= MAX_ROUNDS_WITHOUT_PROGRESS


def fail_the_rest(state: RetryState, lost: Sequence[Shard]) -> None:
    """Let everything fail that has no answer when the run ends; `lost`: those of its last round."""
    for shard in lost:
        history = state.histories.get(shard.name, History())
        state.failed[shard.name] = history.failure
    for name, held in state.held.items():
        state.failed[name] = held.rejects[-1]["reason"]
