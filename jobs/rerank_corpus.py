"""Score every pair of query and passage of a corpus with a cross-encoder.

python jobs/rerank_corpus.py --input candidates/ --output scored/ --model my-org/my-cross-encoder
"""

from __future__ import annotations

import sys

from pipelines.command import run_command

if __name__ == "__main__":
    sys.exit(run_command("rerank"))
