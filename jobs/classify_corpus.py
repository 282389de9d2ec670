"""Label every document of a corpus with a ModernBERT sequence classifier; without options, the
bundled sample corpus.

python jobs/classify_corpus.py --input articles/ --output labelled/ --model my-org/my-modernbert
--text-column body
"""

from __future__ import annotations

from pathlib import Path

from pipelines.command import run_command
from pipelines.signals import end_process

DEMO = Path(__file__).parent / "demo"
DEFAULTS = {
    "input": str(DEMO / "requests.parquet"),
    "model": str(DEMO / "intent-classifier"),
    "output": "output/classified-requests",
}

if __name__ == "__main__":
    end_process(run_command("classify", DEFAULTS))
