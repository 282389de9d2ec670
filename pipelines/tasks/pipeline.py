"""Pipeline: a task in memory, texts in and plain Python values out. Tasks whose calls have another shape extend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modernbert.windows import Text
from pipelines.checkpoints import Checkpoint

if TYPE_CHECKING:
    from pipelines.predictor import Predictor
    from pipelines.tasks.base import Task


class Pipeline:
    """A checkpoint loaded for one task: call it with a text or a list of texts."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task_cls: type[Task],
        options: Mapping[str, Any],
        load: Callable[[Checkpoint, Task], Predictor],
    ):
        """`load(checkpoint, task)` gives the predictor, once the options are found to fit."""
        self.checkpoint, self.task_cls = checkpoint, task_cls
        self.options = self._own_names(options)
        self.predictor = load(checkpoint, self.task({}))

    def __call__(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """The result for a text, or the list of results for a list of texts.

        `options`: those of the task, in place of the pipeline's own for this call. Raises ValueError for a text without
        a result.
        """
        if isinstance(inputs, str):
            return self.predict([inputs], options)[0]
        return self.predict(list(inputs), options)

    def predict_lines(self, lines: Sequence[str]) -> list[Any]:
        """The result for each line of text, or {"error": reason} where it has none."""
        results, failed = self.run(lines, {})
        return [{"error": failed[i]} if i in failed else result for i, result in enumerate(results)]

    def task(self, options: Mapping[str, Any]) -> Task:
        """The task with the pipeline's options, overridden by those of a call."""
        parsed = self.task_cls.options_class.parse(self.options | self._own_names(options))
        return self.task_cls.for_pipeline(self.checkpoint, parsed)

    def run(self, documents: Sequence[Text], options: Mapping[str, Any]) -> tuple[list[Any], dict[int, str]]:
        """A result for each document, and the documents whose result has no meaning with the reason."""
        self.task_cls.check_documents(documents)
        task = self.task(options)
        outputs, failed = self.predictor.answer(documents, task)
        return task.results(outputs), failed

    def predict(self, documents: Sequence[Text], options: Mapping[str, Any]) -> list[Any]:
        """A result for each document; ValueError that names a document without one."""
        results, failed = self.run(documents, options)
        for document, reason in failed.items():
            raise ValueError(f"input {document}: {reason}")
        return results

    def _own_names(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options under our names; values that have a name of transformers' are taken in any case of letters."""
        renamed = self.task_cls.options_class.transformers_names
        lower = {name: options[name].lower() for name in renamed if isinstance(options.get(name), str)}
        return {renamed.get(name, name): value for name, value in {**options, **lower}.items()}


def fields_of(item: Any, *names: str) -> Any:
    """The values of a dictionary under `names`; ValueError where it lacks one."""
    if not isinstance(item, dict) or not set(names) <= set(item):
        raise ValueError(f"input must hold {' and '.join(names)}, not {str(item)[:60]!r}")
    return tuple(item[name] for name in names)


def predict_json(line: str, predict: Callable[[Any], Any]) -> Any:
    """The result for a line of JSON, or {"error": reason}."""
    try:
        return predict(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return {"error": f"not valid JSON: {error}"}
    except ValueError as error:
        return {"error": str(error)}
