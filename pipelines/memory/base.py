"""Pipeline: a task in memory, texts in and plain Python values out.

Tasks whose calls have another shape extend it in shapes.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar

from modernbert.text.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.inference.documents import check_documents
from pipelines.inference.predictor import Predictor
from pipelines.memory.arguments import Arguments, Options, call_arguments
from pipelines.tasks.base import Task

Result = Any
"""What a task says of a document: a number, a dictionary, a list or an array."""
_CHUNK_DOCUMENTS = 256  # of an iterator, that are answered together


class Pipeline:
    """A checkpoint loaded for one task: call it with a text, texts, or an iterator of texts."""

    own_arguments: ClassVar[frozenset[str]] = frozenset({"truncation"})
    """The arguments of a call that are not options of the task."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task_cls: type[Task],
        options: Arguments,
        load: Callable[[Checkpoint, Task], Predictor],
    ):
        """Check the options, then load the model.

        `options`: those of all calls. `load(checkpoint, task)` returns the predictor. Raises
        ValueError for options that do not fit.
        """
        self.checkpoint = checkpoint
        self.task_cls = task_cls
        self.options: Options = {}
        self.options = self.arguments(options)
        self.predictor = load(checkpoint, self.task({}))

    # A call in memory has another shape for some tasks, as in transformers: see shapes.py.
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
            self.task(options)  # wrong options are an error of the call, not of the first item
            return self._stream(inputs, options)
        documents = [self.document(item) for item in items_of(inputs)]
        return self.predict(documents, options)

    def is_document(self, inputs: object) -> bool:
        """Whether the inputs of a call are a single document, not several."""
        return isinstance(inputs, str | dict)

    def document(self, item: object) -> object:
        """The document that an item of the inputs describes; its type is not checked yet."""
        return item

    def predict_lines(self, lines: Sequence[str]) -> list[Result]:
        """The result for each line of text, or {"error": reason} where it has none."""
        check_documents(self.task_cls, lines)
        results, failed = self.run(lines, {})
        for i, reason in failed.items():
            results[i] = {"error": reason}
        return results

    def task(self, options: Arguments) -> Task:
        """The task with the pipeline's options, overridden by those of a call."""
        arguments = self.arguments(options)
        of_task = {
            name: value for name, value in arguments.items() if name not in self.own_arguments
        }
        parsed = self.task_cls.options_class.parse(of_task)
        return self.task_cls.for_pipeline(self.checkpoint, parsed)

    def arguments(self, options: Arguments) -> Options:
        """The pipeline's arguments, overridden by those of a call, under our names."""
        return self.options | call_arguments(self._own_names(options))

    def run(
        self, documents: Sequence[Text], options: Arguments
    ) -> tuple[list[Result], dict[int, str]]:
        """A result for each document, and the documents whose result has no meaning with the
        reason.
        """
        task = self.task(options)
        outputs, failed = self.predictor.answer(documents, task)
        if self.arguments(options).get("truncation") is False:
            reason = f"longer than {task.max_length} tokens, and truncation is False"
            cut_documents = outputs.windows.truncated.nonzero()[0].tolist()
            failed |= dict.fromkeys(cut_documents, reason)
        return task.results(outputs), failed

    def predict(
        self, documents: Sequence[object], options: Arguments, first: int = 0
    ) -> list[Result]:
        """A result for each document; ValueError that names a document without one.

        `first`: the number of the first of `documents` in the call.
        """
        texts = check_documents(self.task(options), documents, first)
        results, failed = self.run(texts, options)
        for document, reason in failed.items():
            raise ValueError(f"input {first + document}: {reason}")
        return results

    def _stream(self, inputs: object, options: Arguments) -> Iterator[Result]:
        """Yield the result of each item in order; a chunk of items is in memory at a time."""
        items = iter(items_of(inputs))
        first = 0
        while chunk := [self.document(item) for item in islice(items, _CHUNK_DOCUMENTS)]:
            yield from self.predict(chunk, options, first)
            first += len(chunk)

    def _own_names(self, options: Arguments) -> Options:
        """Options under our names, whatever the case of a value that has a name in transformers."""
        renamed = self.task_cls.options_class.transformers_names
        own: Options = {}
        for name, value in options.items():
            is_name = name in renamed and isinstance(value, str)
            own[renamed.get(name, name)] = value.lower() if is_name else value
        return own


def is_stream(inputs: object) -> bool:
    """Whether inputs are an iterator, or a dataset of torch's kind, which has items but no iterator
    of its own.
    """
    if isinstance(inputs, Iterable):
        return isinstance(inputs, Iterator)
    return hasattr(inputs, "__getitem__")


def items_of(inputs: object) -> Iterable[object]:
    """The items of inputs; ValueError where they have none."""
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        return (inputs[i] for i in range(len(inputs)))
    raise ValueError(f"inputs must be a text or an iterable of texts, not {str(inputs)[:40]!r}")


def fields_of(item: object, *names: str) -> tuple[Any, ...]:
    """The values of a dictionary under `names`; ValueError where it lacks one."""
    if not isinstance(item, dict) or any(name not in item for name in names):
        raise ValueError(f"input must hold {' and '.join(names)}, not {str(item)[:60]!r}")
    return tuple(item[name] for name in names)


def predict_json(line: str, predict: Callable[[object], Result]) -> Result:
    """The result for a line of JSON, or {"error": reason}."""
    try:
        return predict(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return {"error": f"not valid JSON: {error}"}
    except ValueError as error:
        return {"error": str(error)}
