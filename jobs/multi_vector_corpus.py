"""Embed every token of a corpus with a multi-vector encoder (ColBERT), for late interaction.

python jobs/multi_vector_corpus.py --input articles/ --output vectors/ --model my-org/my-colbert
--pool-factor 2
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("multi_vector"))
