"""A corpus job in which some documents end, or hang, the process that predicts them: run by test_deadly_documents.py.

python poisoned.py INPUT OUTPUT MODEL
"""

from __future__ import annotations

import os
import sys
import time

import ray

from pipelines.corpus.run import run_corpus
from pipelines.options import corpus_options


def poison() -> None:
    """In every worker: token 277 ends the process, token 276 never comes back."""
    from pipelines import predictor

    original = predictor.Predictor.predict

    def predict(self, input_ids, *arguments, **options):
        if 277 in input_ids:
            os._exit(1)
        if 276 in input_ids:
            time.sleep(3600)
        return original(self, input_ids, *arguments, **options)

    predictor.Predictor.predict = predict


if __name__ == "__main__":
    ray.init(
        "local",
        num_cpus=2,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": poison},
    )
    source, target, model = sys.argv[1:]
    options = corpus_options("classify")(input=source, output=target, model=model, batch_timeout_s=4)
    sys.exit(run_corpus(options, "classify"))
