"""Python imports this when a process starts that has tests/ on its PYTHONPATH: Ray's processes and the commands.

A run of all tests starts and ends hundreds of processes, each of which imports Ray Data or torch. Collections of
garbage take a tenth of that time, as modules are none. When a process ends, Python collects once more: more than half a
second, to free what the system frees at once.
"""

import atexit
import gc

gc.set_threshold(
    50_000, 20, 100
)  # the usual 700, 10, 10 collect hundreds of times while modules are imported
atexit.register(gc.freeze)  # the first one that is registered is called last
