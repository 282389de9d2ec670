"""A stand-in for a GPU: an actor that sleeps by tokens, and readers as slow against it as cores against an H100.

Ray calls `install` in each worker as it starts. Reading, tokenising and committing are real; a reader then sleeps, so
that a machine of two cores can have many.
"""

from __future__ import annotations

import threading
import time

import numpy as np

READER_TOKENS_S = 250.0
GPU_READERS = 4
"""The readers whose tokens the stand-in takes."""


class StandIn:
    """Takes its time for tokens and answers zeros."""

    budget_tokens = 65536

    def __init__(self, task):
        self.task, self.device = task, threading.Lock()

    def answer(self, documents):  # noqa: ARG002
        return None, {}

    def predict(self, input_ids, cu_seqlens, done):
        from pipelines.tasks.outputs import Predictions

        seconds = len(input_ids) / (GPU_READERS * READER_TOKENS_S)
        with self.device:  # it does one thing at a time, as a GPU does for two threads
            time.sleep(seconds)
        done(len(cu_seqlens) - 1, len(input_ids))
        splits = np.concatenate(([0], np.cumsum(self.task.rows(input_ids, cu_seqlens))))
        return Predictions(
            np.zeros((splits[-1], self.task.width), np.float32), splits, {}, 1, seconds
        )


def install() -> None:
    """Put the stand-in and the slow readers into this worker."""
    from pipelines.raydata import wire

    tokenised_row = wire.tokenised_row

    def slowly(shard, windows, *arguments):
        time.sleep(len(windows.input_ids) / READER_TOKENS_S)
        return tokenised_row(shard, windows, *arguments)

    wire.tokenised_row = slowly
    install_quick()


def install_quick() -> None:
    """Put the stand-in into this worker, and leave the readers as quick as they are."""
    from pipelines.raydata import actor

    def load(self):
        self.predictor = StandIn(self.run.task)

    actor.Predict._load = load
