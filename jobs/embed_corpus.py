"""Embed every document of a corpus; without options, the bundled sample corpus.

python jobs/embed_corpus.py --input articles/ --output vectors/ --model my-org/my-encoder
--text-column body
"""

from __future__ import annotations

from pathlib import Path

from pipelines.command import run_command
from pipelines.signals import end_process

DEMO = Path(__file__).parent / "demo"
DEFAULTS = {
    "input": str(DEMO / "requests.parquet"),
    "model": str(DEMO / "sentence-encoder"),
    "output": "output/embedded-requests",
}

if __name__ == "__main__":
    end_process(run_command("embed", DEFAULTS))
