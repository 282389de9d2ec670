"""jobs/classify_corpus.py with shards of 512 rows, whatever the size of the corpus: run by test_memory.py."""

from __future__ import annotations

import sys

from pipelines.command import run_command
from pipelines.input import plan

if __name__ == "__main__":
    plan.MAX_SHARD_ROWS, plan._WANTED_SHARDS = 512, 1
    sys.exit(run_command("classify"))
