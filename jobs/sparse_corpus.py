"""Weigh the tokens of the vocabulary for every document of a corpus, with a sparse encoder
(SPLADE).

python jobs/sparse_corpus.py --input articles/ --output weights/ --model my-org/my-splade --top-k
256
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("sparse"))
