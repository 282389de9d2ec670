"""Find the likeliest tokens for each mask in a corpus; without options, the bundled sample
sentences.

python jobs/fill_mask_corpus.py --input sentences/ --output filled/ --model
answerdotai/ModernBERT-base
"""

from __future__ import annotations

from pathlib import Path

from pipelines.command import run_command
from pipelines.signals import end_process

DEMO = Path(__file__).parent / "demo"
DEFAULTS = {
    "input": str(DEMO / "masked.parquet"),
    "model": str(DEMO / "masked-lm"),
    "output": "output/filled-sentences",
}

if __name__ == "__main__":
    end_process(run_command("fill", DEFAULTS))
