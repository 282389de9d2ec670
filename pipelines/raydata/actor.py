"""The model actor of the faces on Ray: packed windows in, the model's values out."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
import traceback
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError

from modernbert.stored import CheckpointChanged
from pipelines.errors import UserError
from pipelines.inference.loading import ModelRun
from pipelines.raydata import wire
from pipelines.raydata.cluster import this_node
from pipelines.raydata.watch import GO_ON, WAIT, WatchHandle, Way
from pipelines.storage import one_line, redact

if TYPE_CHECKING:
    from pipelines.inference.predictor import Predictor

logger = logging.getLogger(__name__)
START_PAUSES_S = (1.0, 3.0, 9.0, 27.0)
"""The pauses between attempts to start an actor.

After the last one it is tried on, as long as other actors start.
"""
MAX_STARTS = 20
"""How often the process of an actor may end while it starts, before it is started no more."""
_ASK_AGAIN_S = 0.05
"""The pause after which an actor that waits for its commits asks again."""


class Predict:
    """The model actor: a tokenised shard in, the same with the model's values out.

    A shard that raises is no row's fault until the same actor answers the task's probe: an actor
    that does not ends its process, and Ray starts another in its place.
    """

    def __init__(self, run: ModelRun, watch: WatchHandle | None = None, round_number: int = 0):
        """Load the model on this actor's device, on one thread where that is a CPU.

        `watch` is the handle of the job's Watch; without one, the first failure to start is final.
        """
        self.run = run
        self.reports = Reports(watch, round_number)
        self.predictor: Predictor | None = None
        self.time_limit = TimeLimit(run.batch_timeout_s)
        self.has_answered = False
        self.lock = threading.Lock()  # of what calls share: a GPU's actor has two at a time
        self.start_error = self._start()
        self.idle_since = time.perf_counter()
        self.calls = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the model's values to a shard, or the error and its cause."""
        if self.start_error:
            return wire.unpredicted_row(table, self.start_error, wire.START)
        with self.lock:
            idle_s = 0.0 if self.calls else time.perf_counter() - self.idle_since
            self.calls += 1
        try:
            return self._predict(table, idle_s)
        except RayError:  # what watches the actors is lost: the shard is run again
            raise
        except Exception as error:  # else Ray would lose the shard without a reason
            return wire.unpredicted_row(table, _with_traceback(error), wire.RAISED)
        finally:
            with self.lock:
                self.calls -= 1
                self.idle_since = time.perf_counter()

    def _predict(self, table: pa.Table, idle_s: float) -> pa.Table:
        assert self.predictor is not None
        shard = wire.shard_of(table).name
        windows = wire.windows_of(table)
        # First, so that the watch knows of the shard even if the process ends in its middle.
        if not self.reports.begin(shard):
            return wire.unpredicted_row(table, "the job stops", wire.STOPPED)
        try:
            with self.time_limit:
                # The next batch has all the time, too.
                predictions = self.predictor.predict_windows(windows, self.time_limit.restart)
        except Exception as error:  # whatever the model raises
            reason = _with_traceback(error)
            self._check_health(shard, reason)
            self.reports.end(shard)
            return wire.unpredicted_row(table, reason, wire.RAISED)

        # A document fails with the first of its windows that does.
        failed: dict[int, str] = {}
        for window, reason in sorted(predictions.failed.items()):
            failed.setdefault(int(windows.document[window]), reason)
        if failed:
            self._check_health(shard, next(iter(failed.values())))
        self.reports.end(shard)

        rows = wire.array_of(table, "rows")
        rejects = wire.rejects_of(table)
        rejected_rows = {reject["row"] for reject in rejects}
        for document, reason in failed.items():
            row = int(rows[document])
            if row not in rejected_rows:  # by another reading of it
                rejected_rows.add(row)
                rejects.append(wire.reject(row, reason, "predict"))
        documents = len(np.unique(windows.document))
        if len(failed) < documents:
            self.has_answered = True
        if failed and not self.has_answered:
            # It may be the model that answers nothing: the driver knows of the other actors.
            first_reason = next(iter(failed.values()))
            return wire.unpredicted_row(table, first_reason, wire.NONE_ANSWERED, rejects)
        return wire.predicted_row(
            table, predictions, rejects, idle_s, budget_tokens=self.predictor.budget_tokens
        )

    def _start(self) -> str | None:
        """Load the model and let it answer the probe, again and again where that fails.

        Returns the reason, with the traceback, where no other actor starts either.
        """
        starts = self.reports.start()
        failures = 0
        while True:
            try:
                if starts > MAX_STARTS:
                    raise RuntimeError(
                        f"its process ended {MAX_STARTS} times in a row while it started"
                    )
                self._load()
                self.reports.started()
                return None
            except (CheckpointChanged, UserError) as error:
                # No later attempt finds the old files, which must not be mixed, or what the
                # processor lacks.
                return _with_traceback(error)
            except Exception as error:  # a slow or busy server or file system, a device
                reason = _with_traceback(error)
            failures += 1
            has_tried_enough = failures >= len(START_PAUSES_S)
            if has_tried_enough and self.reports.no_other_actor_starts():
                return reason
            if not self.reports.watch:
                return reason
            time.sleep(START_PAUSES_S[min(failures, len(START_PAUSES_S)) - 1])

    def _load(self) -> None:
        # With torch, which readers and committers of a job go without.
        from pipelines.inference.predictor import Predictor

        run = self.run
        self.predictor = Predictor(
            run.model,
            run.task,
            device=run.device,
            dtype=run.dtype,
            budget_tokens=run.budget_tokens,
            threads=1,
        )
        if run.device == "cpu":
            self._agree_on_attention(self.predictor)
        else:
            self._report_gpu(self.predictor)
        self._answer_probe()

    def _agree_on_attention(self, predictor: Predictor) -> None:
        """Compute attention as the other actors do on this kind of processor: what is fastest may
        be a tie, and answers are to be equal to the last bit.
        """
        from modernbert.cpu import processor
        from modernbert.torch_attention import CpuWay

        if predictor.attention is None:  # there is one way
            return
        fastest = predictor.encoders[0].cpu_way
        agreed = self.reports.agree(processor(), (fastest.product, fastest.tile))
        for encoder in predictor.encoders:
            encoder.cpu_way = CpuWay(*agreed)

    def _report_gpu(self, predictor: Predictor) -> None:
        """Report how a GPU computes attention, and where its node lacks what the kernels need;
        run layers as the other actors do on this kind of GPU.
        """
        import torch

        from modernbert import gpu
        from modernbert.tiles import fusions_named

        gpu_name = torch.cuda.get_device_name(predictor.device)
        backend, _, lack = predictor.attention_backend.partition(", ")
        self.reports.agree(f"{gpu_name} {lack}".strip(), (backend, 0))
        if lack:
            return
        assert predictor.fusions is not None
        agreed = self.reports.agree_on_fusions(gpu_name, predictor.fusions)
        if agreed == predictor.fusions:
            return
        fusions = fusions_named(agreed, gpu.compute_capability(predictor.device))
        if fusions is None:  # of another version of this package
            logger.warning(
                "layers run here with %s, where another run of the job had %s: answers may differ "
                "in the last bits",
                predictor.fusions,
                agreed,
            )
        else:
            predictor.fuse(fusions)

    def _answer_probe(self) -> None:
        """Raise an exception if the model does not answer the task's probe."""
        assert self.predictor is not None
        with self.time_limit:
            _, failed = self.predictor.answer([self.run.task.probe])
        if failed:
            raise RuntimeError(f"the text {self.run.task.probe!r} has no answer: {failed[0]}")

    def _check_health(self, shard: str, reason: str) -> None:
        """End this process if the model, which has no answer for a shard, has none for the probe.

        Why the shard has no answer is noted first, since the probe, too, may end the process.
        """
        self.reports.broke(shard, reason)
        try:
            self._answer_probe()
        except Exception:  # whatever it is: another process is to try the shard
            os._exit(1)


class Reports:
    """What an actor reports to the watch of its job: nothing where there is none.

    A report of a start or a shard is waited for, since the process may end right after.
    """

    def __init__(self, watch: WatchHandle | None, round_number: int):
        self.watch = watch
        self.round_number = round_number
        self._actor = ray.get_runtime_context().get_actor_id() if watch else None

    def start(self) -> int:
        """Report that the actor starts; return how often it has since it was last ready."""
        if not self.watch:
            return 1
        starts: int = ray.get(self.watch.start.remote(self.round_number, self._actor, this_node()))
        return starts

    def started(self) -> None:
        """Report that the actor is ready."""
        if self.watch:
            ray.get(self.watch.started.remote(self.round_number, self._actor))

    def no_other_actor_starts(self) -> bool:
        """Report that the actor fails to start, and tell whether all the others do, too."""
        if not self.watch:
            return True
        all_fail: bool = ray.get(self.watch.start_failed.remote(self.round_number, self._actor))
        return all_fail

    def agree(self, processor: str, way: Way) -> Way:
        """Report how attention is fastest on a processor; return how it is computed there."""
        if not self.watch:
            return way
        agreed: Way = ray.get(self.watch.agree.remote(processor, way))
        return agreed

    def agree_on_fusions(self, gpu: str, fusions: str) -> str:
        """Report how layers are fastest on a GPU; return how they run there."""
        if not self.watch:
            return fusions
        agreed: str = ray.get(self.watch.agree_on_fusions.remote(gpu, fusions))
        return agreed

    def begin(self, shard: str) -> bool:
        """Report that the actor begins a shard, once its last ones are committed; False if the job
        stops instead.
        """
        if not self.watch:
            return True
        while True:
            begin = self.watch.begin.remote(self.round_number, self._actor, shard)
            answer = ray.get(begin)
            if answer != WAIT:
                return bool(answer == GO_ON)
            time.sleep(_ASK_AGAIN_S)

    def end(self, shard: str) -> None:
        """Report that the actor has come to the end of a shard."""
        if self.watch:
            ray.get(self.watch.end.remote(self.round_number, shard))

    def broke(self, shard: str, reason: str) -> None:
        """Report why a shard has no answer."""
        if self.watch:
            ray.get(self.watch.broke.remote(self.round_number, shard, reason))


class TimeLimit:
    """A context that ends the process, with tracebacks, where it makes no progress for too long.

    Several threads may be in it at once: the progress of each counts for all, since they share a
    device.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._inside = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                faulthandler.cancel_dump_traceback_later()

    def restart(self) -> None:
        """Give the next batch all the time."""
        with self._lock:
            if self._inside:
                faulthandler.dump_traceback_later(self._seconds, exit=True)


def _with_traceback(error: Exception) -> str:
    """Give an error in one line, as `one_line` does, and its traceback in those that follow."""
    return redact("\n".join([one_line(error), *traceback.format_exception(error)]))
