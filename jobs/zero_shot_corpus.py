"""Label every document of a corpus with labels of your choice, by a model of entailment (NLI).

python jobs/zero_shot_corpus.py --input articles/ --output labelled/ --model my-org/my-nli --labels
"sport,politics"
"""

from __future__ import annotations

from pipelines.command import run_command
from pipelines.signals import end_process

if __name__ == "__main__":
    end_process(run_command("zero_shot"))
