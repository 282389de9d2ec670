"""Answer every question of a corpus from its context, with the place of the answer.

python jobs/answer_corpus.py --input questions/ --output answers/ --model my-org/my-reader
"""

from __future__ import annotations

import sys

from pipelines.command import run_command

if __name__ == "__main__":
    sys.exit(run_command("answer"))
