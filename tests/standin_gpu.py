"""A stand-in for a GPU: an actor that sleeps by tokens, and readers that can be told to wait for each other.

Ray calls `install` in each worker as it starts. Reading, tokenising and committing are real.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

GPU_TOKENS_S = 1000.0
GPU_READERS = 4
"""The readers that wait for each other, where they do: a machine of two cores can have as many."""
READERS = "STANDIN_READERS"
"""The environment variable with the folder in which readers leave word of each other."""
MEET = "meet"
"""The file in that folder that lets them wait."""
ACTORS = "STANDIN_ACTORS"
"""The environment variable with the folder in which actors leave word of each other, where they meet."""
ACTORS_AT_ONCE = "STANDIN_ACTORS_AT_ONCE"
"""The environment variable with the number of actors that wait for each other."""
MEETINGS = 8
"""How often they do: after that the shards run out, and one actor may have the last of them."""
_STARVED_S = 240.0
"""Long enough for another node to start where others use the cores, too: what is starved waits in vain anyway."""


class StandIn:
    """Takes its time for tokens and answers zeros."""

    budget_tokens = 65536

    def __init__(self, task):
        self.task, self.device = task, threading.Lock()

    def answer(self, documents):  # noqa: ARG002
        return None, {}

    def predict_windows(self, windows, done):
        from pipelines.tasks.outputs import Predictions

        input_ids, cu_seqlens = windows.input_ids, windows.cu_seqlens
        seconds = len(input_ids) / GPU_TOKENS_S
        with self.device:  # it does one thing at a time, as a GPU does for two threads
            if ACTORS in os.environ and all_actors_are_there():
                meet_actors(Path(os.environ[ACTORS]), int(os.environ[ACTORS_AT_ONCE]))
            else:
                time.sleep(seconds)
        done()
        splits = np.concatenate(([0], np.cumsum(self.task.rows(input_ids, cu_seqlens))))
        return Predictions(
            np.zeros((splits[-1], self.task.width), np.float32), splits, {}, 1, seconds
        )


def install() -> None:
    """Put the stand-in into this worker, and readers that leave word of each other."""
    from pipelines.raydata import wire

    tokenised_row = wire.tokenised_row

    def beside_others(*arguments, **stored):
        note_reader(Path(os.environ[READERS]))
        return tokenised_row(*arguments, **stored)

    wire.tokenised_row = beside_others
    install_quick()


def note_reader(folder: Path) -> None:
    """Note that a reader is at work, and how many are; wait until its group of GPU_READERS is there, if they meet.

    None leaves before its group is whole, so that a whole group was at work at one time.
    """
    (folder / "inside").mkdir(exist_ok=True)
    inside = folder / "inside" / str(os.getpid())
    inside.touch()
    at_once = len(list(inside.parent.iterdir()))
    (folder / f"at-once-{at_once}").touch()
    number = _enter(folder)
    if (folder / MEET).exists():
        _wait_for_group(folder, number, GPU_READERS)
    inside.unlink()


def all_actors_are_there() -> bool:
    """Note that this actor is there, and tell whether those that meet are: until then, none waits.

    Ray Data asks for another actor only while the first ones have something to do.
    """
    actors = Path(os.environ[ACTORS]) / "actors"
    actors.mkdir(exist_ok=True)
    (actors / str(os.getpid())).touch()
    return len(list(actors.iterdir())) >= int(os.environ[ACTORS_AT_ONCE])


def meet_actors(folder: Path, at_once: int) -> None:
    """Note that an actor is at work, and wait until so many are, MEETINGS times.

    An actor has one shard at a time, so that a whole group is as many actors, each with a shard.
    """
    number = _enter(folder)
    if number < MEETINGS * at_once:
        _wait_for_group(folder, number, at_once)


def _enter(folder: Path) -> int:
    """Take the first number that no other process has taken."""
    entries = folder / "entries"
    entries.mkdir(exist_ok=True)
    number = len(list(entries.iterdir()))
    while True:
        with suppress(FileExistsError):
            (entries / f"{number:04}").touch(exist_ok=False)
            return number
        number += 1


def _wait_for_group(folder: Path, number: int, size: int) -> None:
    """Wait until the last number of the group that `number` is in is taken, or note that it is not."""
    last_of_group = number - number % size + size - 1
    deadline = time.monotonic() + _STARVED_S
    while not (folder / "entries" / f"{last_of_group:04}").exists():
        if time.monotonic() > deadline:
            (folder / f"starved-{number}").touch()
            break
        time.sleep(0.02)


def install_quick() -> None:
    """Put the stand-in into this worker, and leave the readers as they are."""
    from pipelines.raydata import actor

    def load(self):
        self.predictor = StandIn(self.run.task)

    actor.Predict._load = load


def install_instant() -> None:
    """The same where no test looks at how long a GPU takes: it takes no time for tokens."""
    global GPU_TOKENS_S
    GPU_TOKENS_S = math.inf
    install_quick()
