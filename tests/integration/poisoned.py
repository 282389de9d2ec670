"""A corpus job in which some documents end, or hang, the process that predicts them: run by test_deadly_documents.py.

python poisoned.py INPUT OUTPUT MODEL [broken: no actor starts]
"""

from __future__ import annotations

import os
import sys
import time

import ray

from pipelines.command import run_command
from pipelines.corpus import retries
from pipelines.raydata.cluster import _stderr_closed


def poison() -> None:
    """In every worker: token 277 ends the process, token 276 never comes back."""
    from pipelines.inference import predictor

    original = predictor.Predictor.predict

    def predict(self, input_ids, *arguments, **options):
        if 277 in input_ids:
            os._exit(1)
        if 276 in input_ids:
            time.sleep(3600)
        return original(self, input_ids, *arguments, **options)

    predictor.Predictor.predict = predict


def break_actors() -> None:
    """In every worker: the model cannot be loaded."""
    from pipelines.raydata import actor

    def fail(self, *_):
        raise RuntimeError("the device is on fire")

    actor.Predict.__init__ = fail


if __name__ == "__main__":
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    # Each attempt is a round that starts actors, and waits for the one that hangs.
    retries.MAX_ATTEMPTS = 1
    retries.MAX_ATTEMPTS_PER_ROW = 2 if "SOAK" in os.environ else 1
    source, target, model, *broken = sys.argv[1:]
    with _stderr_closed():  # as the job itself joins Ray
        ray.init(
            os.environ["RAY_ADDRESS"],
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": break_actors if broken else poison},
        )
    # Long enough for the first batch of a new process where others share the cores: it is no document's fault.
    arguments = {"input": source, "output": target, "model": model, "batch-timeout-s": "15"}
    sys.argv = [
        "classify",
        *(part for name, value in arguments.items() for part in (f"--{name}", value)),
    ]
    sys.exit(run_command("classify"))
