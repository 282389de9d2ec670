"""Answer every question of a corpus from its context, with the place of the answer.

python jobs/answer_corpus.py --input questions/ --output answers/ --model my-org/my-reader
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("answer"))
