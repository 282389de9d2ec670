"""A stand-in for a GPU: an actor that sleeps by tokens, and readers that can be told to wait for each other.

Ray calls `install` in each worker as it starts. Reading, tokenising and committing are real.
"""

from __future__ import annotations

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
_STARVED_S = 60.0


class StandIn:
    """Takes its time for tokens and answers zeros."""

    budget_tokens = 65536

    def __init__(self, task):
        self.task, self.device = task, threading.Lock()

    def answer(self, documents):  # noqa: ARG002
        return None, {}

    def predict(self, input_ids, cu_seqlens, done):
        from pipelines.tasks.outputs import Predictions

        seconds = len(input_ids) / GPU_TOKENS_S
        with self.device:  # it does one thing at a time, as a GPU does for two threads
            time.sleep(seconds)
        done(len(cu_seqlens) - 1, len(input_ids))
        splits = np.concatenate(([0], np.cumsum(self.task.rows(input_ids, cu_seqlens))))
        return Predictions(
            np.zeros((splits[-1], self.task.width), np.float32), splits, {}, 1, seconds
        )


def install() -> None:
    """Put the stand-in into this worker, and readers that leave word of each other."""
    from pipelines.raydata import wire

    tokenised_row = wire.tokenised_row

    def beside_others(*arguments):
        note_reader(Path(os.environ[READERS]))
        return tokenised_row(*arguments)

    wire.tokenised_row = beside_others
    install_quick()


def note_reader(folder: Path) -> None:
    """Note that a reader is at work, and how many are; wait until its group of GPU_READERS is there, if they meet.

    None leaves before its group is whole, so that a whole group was at work at one time.
    """
    (folder / "inside").mkdir(exist_ok=True)
    (folder / "entries").mkdir(exist_ok=True)
    inside = folder / "inside" / str(os.getpid())
    inside.touch()
    at_once = len(list(inside.parent.iterdir()))
    (folder / f"at-once-{at_once}").touch()
    entries = folder / "entries"
    number = len(list(entries.iterdir()))
    while True:  # the first number that no other reader takes
        with suppress(FileExistsError):
            (entries / f"{number:04}").touch(exist_ok=False)
            break
        number += 1
    last_of_group = number - number % GPU_READERS + GPU_READERS - 1
    deadline = time.monotonic() + _STARVED_S
    while (folder / MEET).exists() and not (entries / f"{last_of_group:04}").exists():
        if time.monotonic() > deadline:
            (folder / f"starved-{number}").touch()
            break
        time.sleep(0.02)
    inside.unlink()


def install_quick() -> None:
    """Put the stand-in into this worker, and leave the readers as they are."""
    from pipelines.raydata import actor

    def load(self):
        self.predictor = StandIn(self.run.task)

    actor.Predict._load = load
