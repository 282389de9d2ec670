"""Find the entities in every document of a corpus; without options, personal data in the bundled
sample messages.

python jobs/tag_corpus.py --input mails/ --output tagged/ --model my-org/my-tagger --text-column
body
"""

from __future__ import annotations

from pathlib import Path

from pipelines.command import run_command
from pipelines.signals import end_process

DEMO = Path(__file__).parent / "demo"
DEFAULTS = {
    "input": str(DEMO / "messages.parquet"),
    "model": str(DEMO / "pii-tagger"),
    "output": "output/tagged-messages",
}

if __name__ == "__main__":
    end_process(run_command("tag", DEFAULTS))
