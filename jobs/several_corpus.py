"""Label every document of a corpus with several ModernBERT models, of which equal encoders run once.

python jobs/several_corpus.py --config several.yaml

where the file names the models: models: [{model: my-org/topics, task: classify}, {model:
my-org/entities, task: tag}]
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("several"))
