"""jobs/classify_corpus.py with shards of 512 rows, whatever the size of the corpus: run by test_memory.py."""

from __future__ import annotations

import sys

from pipelines.command import run_command

if __name__ == "__main__":
    sys.argv += ["--rows-per-file", "512"]
    sys.exit(run_command("classify"))
