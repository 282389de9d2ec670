"""From the predictions of a request's windows to its response.

Shapes: D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.inference.outputs import model_outputs
from pipelines.serve.encoding import check_results, held_bytes
from pipelines.serve.protocol import PredictResponse
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs, Predictions


@dataclass(frozen=True)
class PreparedRequest:
    """The documents of a request, checked and tokenised."""

    task: Task
    documents: Sequence[Text]
    windows: Windows
    too_long: np.ndarray
    """(D,) bool: documents that would be truncated and are not answered; `documents` and `windows`
    are the others.
    """
    started: float
    """In seconds since 1970."""
    seconds: float


def response_of(
    prepared: PreparedRequest, predictions: Predictions, tokenizer: Tokenizer
) -> PredictResponse:
    """Put the answers of documents that were run in their places among those that were not.

    Raises WindowBudgetError for more results than are given in a request.
    """
    task = prepared.task
    windows = prepared.windows
    count = len(prepared.too_long)
    # The place in the request of each document that was run.
    places = np.flatnonzero(~prepared.too_long)
    outputs = model_outputs(
        task,
        tokenizer,
        prepared.documents,
        windows,
        predictions.values,
        predictions.splits,
    )
    failed: dict[int, str] = {}
    for place in np.flatnonzero(prepared.too_long).tolist():
        failed[place] = f"text has more than the {task.max_length} tokens that the model reads"
    for document, reason in windows.rejected.items():
        failed[int(places[document])] = reason
    # What has failed until here is the text's fault, the rest the model's.
    invalid = frozenset(failed)
    for window, reason in predictions.failed.items():
        document = windows.document[window]
        failed.setdefault(int(places[document]), reason)
    results = _results(task, outputs, places, failed, count)
    check_results(task, results)
    n_tokens = np.zeros(count, np.int64)
    n_tokens[places] = windows.n_tokens
    truncated = np.zeros(count, bool)
    truncated[places] = windows.truncated
    return PredictResponse(
        results=results,
        failed=failed,
        invalid=invalid,
        n_tokens=n_tokens.tolist(),
        truncated=truncated.tolist(),
        started=prepared.started,
        tokenise_s=prepared.seconds,
        queue_s=predictions.queue_s,
        forward_s=predictions.seconds,
        held_bytes=held_bytes(task, results),
    )


def _results(
    task: Task, outputs: ModelOutputs, places: np.ndarray, failed: dict[int, str], count: int
) -> list[object] | np.ndarray:
    """Put results in their places among `count` documents; failed ones are None, or zeros."""
    response = task.response(outputs)
    if isinstance(response, np.ndarray):
        rows = np.zeros((count, *response.shape[1:]), response.dtype)
        rows[places] = response
        rows[list(failed)] = 0
        return rows
    results: list[object] = [None] * count
    for place, result in zip(places.tolist(), response, strict=True):
        if place not in failed:
            results[place] = result
    return results
