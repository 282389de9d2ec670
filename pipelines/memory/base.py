"""Pipeline: a task in memory, texts in and plain Python values out. Tasks whose calls have another
shape extend it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from modernbert.text.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.memory.arguments import call_arguments

if TYPE_CHECKING:
    from pipelines.inference.predictor import Predictor
    from pipelines.tasks.base import Task

_CHUNK_DOCUMENTS = 256  # of an iterator, that are answered together


class Pipeline:
    """A checkpoint loaded for one task: call it with a text, texts, or an iterator of texts."""

    own_arguments: ClassVar[frozenset[str]] = frozenset({"truncation"})
    """The arguments of a call that are no options of the task."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task_cls: type[Task],
        options: Mapping[str, Any],
        load: Callable[[Checkpoint, Task], Predictor],
    ):
        """`load(checkpoint, task)` gives the predictor, once the options are found to fit."""
        self.checkpoint, self.task_cls = checkpoint, task_cls
        self.options: dict[str, Any] = {}
        self.options = self.arguments(options)
        self.predictor = load(checkpoint, self.task({}))

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The result for a text, the list of results for several, an iterator of them for an
        iterator.

        `inputs`: a text, a list or another collection of texts (a column of a dataset), or an
        iterator or a dataset without an iterator of its own, of which some texts at a time are read
        and answered. `options`: those of the task, in place of the pipeline's own for this call.
        Raises ValueError for a text without a result.
        """
        if self.is_document(inputs):
            return self.predict([self.document(inputs)], options)[0]
        if is_stream(inputs):
            self.task(options)
            return self._stream(inputs, options)
        return self.predict([self.document(item) for item in items_of(inputs)], options)

    def is_document(self, inputs: Any) -> bool:
        """Whether the inputs of a call are a single document, not several."""
        return isinstance(inputs, str | dict)

    def document(self, item: Any) -> Any:
        """The document that an item of the inputs describes."""
        return item

    def predict_lines(self, lines: Sequence[str]) -> list[Any]:
        """The result for each line of text, or {"error": reason} where it has none."""
        self.task_cls.check_documents(lines)
        results, failed = self.run(lines, {})
        return [{"error": failed[i]} if i in failed else result for i, result in enumerate(results)]

    def task(self, options: Mapping[str, Any]) -> Task:
        """The task with the pipeline's options, overridden by those of a call."""
        given = {
            name: value
            for name, value in self.arguments(options).items()
            if name not in self.own_arguments
        }
        return self.task_cls.for_pipeline(self.checkpoint, self.task_cls.options_class.parse(given))

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments, overridden by those of a call, under our names."""
        return self.options | call_arguments(self._own_names(options))

    def run(
        self, documents: Sequence[Text], options: Mapping[str, Any]
    ) -> tuple[list[Any], dict[int, str]]:
        """A result for each document, and the documents whose result has no meaning with the
        reason.
        """
        task = self.task(options)
        outputs, failed = self.predictor.answer(documents, task)
        if self.arguments(options).get("truncation") is False:
            reason = f"longer than {task.max_length} tokens, and truncation is False"
            failed |= dict.fromkeys(outputs.windows.truncated.nonzero()[0].tolist(), reason)
        return task.results(outputs), failed

    def predict(
        self, documents: Sequence[Text], options: Mapping[str, Any], first: int = 0
    ) -> list[Any]:
        """A result for each document; ValueError that names a document without one, whose numbers
        begin at `first`.
        """
        self.task_cls.check_documents(documents, first)
        results, failed = self.run(documents, options)
        for document, reason in failed.items():
            raise ValueError(f"input {first + document}: {reason}")
        return results

    def _stream(self, inputs: Any, options: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the result of each item in order; a chunk of items is in memory at a time."""
        items, first = iter(items_of(inputs)), 0
        while chunk := [self.document(item) for item in islice(items, _CHUNK_DOCUMENTS)]:
            yield from self.predict(chunk, options, first)
            first += len(chunk)

    def _own_names(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options under our names; values that have a name of transformers' are taken in any case
        of letters.
        """
        renamed = self.task_cls.options_class.transformers_names
        lower = {
            name: options[name].lower() for name in renamed if isinstance(options.get(name), str)
        }
        return {renamed.get(name, name): value for name, value in {**options, **lower}.items()}


def is_stream(inputs: Any) -> bool:
    """Whether inputs are an iterator, or a dataset of torch's kind, which has items but no iterator
    of its own.
    """
    return isinstance(inputs, Iterator) or (
        hasattr(inputs, "__getitem__") and not isinstance(inputs, Iterable)
    )


def items_of(inputs: Any) -> Iterable[Any]:
    """The items of inputs; ValueError where they have none."""
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    raise ValueError(f"inputs must be a text or an iterable of texts, not {str(inputs)[:40]!r}")


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
