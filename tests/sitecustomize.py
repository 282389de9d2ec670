"""Python imports this when a process starts that has tests/ on its PYTHONPATH: Ray's processes and the commands.

When it ends, Python collects garbage once more. With the modules of torch and Ray Data that takes more than half a
second, to free what the system frees at once, and a run of all tests ends hundreds of processes.
"""

import atexit
import gc

atexit.register(gc.freeze)  # the first one that is registered is called last
