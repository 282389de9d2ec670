"""What breaks in Ray's workers while a corpus job runs: the file that FAULT names says what, and keeps what was.

Ray calls `install` in each worker as it starts; the tests import this module for FAULT alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

FAULT = "FAULT_FOLDER"
"""The environment variable that names a folder; the file `fault` in it holds the name of one of the faults below."""
PROBE_TOKENS = 3


def install() -> None:
    """Put the faults into this worker, without loading torch: readers and committers go without."""
    from pipelines.raydata import actor
    from pipelines.tasks.base import Task

    actor.START_PAUSES_S, actor.MAX_STARTS = (0.1, 0.1, 0.1), 2
    load, forward = Task.load, Task.forward
    folder = Path(os.environ[FAULT])
    broken = False

    def faulty_load(self, *arguments):
        fault = (folder / "fault").read_text()
        if fault == "the first two loads fail" and (
            _first(folder / "load 1") or _first(folder / "load 2")
        ):
            raise OSError("429 Client Error: Too Many Requests")
        if fault == "no load succeeds":
            raise OSError("429 Client Error: Too Many Requests")
        if fault == "a load ends the process":
            os._exit(1)
        return load(self, *arguments)

    def faulty_forward(self, model, batch, ids):
        nonlocal broken
        fault, probe = (folder / "fault").read_text(), len(ids) == PROBE_TOKENS
        if fault == "the device of one process breaks" and not probe and _first(folder / "broken"):
            broken = True
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered\nwith more lines")
        if fault == "every text raises" or (
            fault == "every text but the probe raises" and not probe
        ):
            raise RuntimeError("Failed to find C++ compiler")
        if fault == "one text raises" and 277 in ids:
            raise IndexError("index 99 is out of bounds")
        values = forward(self, model, batch, ids)
        return (
            values * np.nan
            if fault == "no answer but the probe's is finite" and not probe
            else values
        )

    Task.load, Task.forward = faulty_load, faulty_forward


def _first(file: Path) -> bool:
    """Tell whether no process has asked for this file before."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
