"""Score every pair of query and passage of a corpus with a cross-encoder.

python jobs/rerank_corpus.py --input candidates/ --output scored/ --model my-org/my-cross-encoder
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("rerank"))
