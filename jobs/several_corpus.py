"""Label every document of a corpus with several ModernBERT models, whose equal encoders run once.

python jobs/several_corpus.py --input articles/ --output labelled/ --model classify=my-org/topics
--model tag=my-org/entities
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("several"))
