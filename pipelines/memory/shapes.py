"""The shapes of calls in memory that differ from Pipeline's, and which task has which.

Arguments and results are those of transformers' pipelines for the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from modernbert.stored import Json
from modernbert.text.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.inference.predictor import Predictor
from pipelines.labels import LabelList
from pipelines.memory.arguments import Arguments, Options
from pipelines.memory.base import (
    Pipeline,
    Result,
    fields_of,
    is_stream,
    items_of,
    predict_json,
)
from pipelines.options import AnswerOptions
from pipelines.tasks.base import Task
from pipelines.tasks.candidate_labels import CandidateLabels
from pipelines.text_lists import WordList


class ClassifyPipeline(Pipeline):
    """text-classification: the best label, or with `top_k` a list of the best (of all labels, where
    it is None); with `threshold` the list of those that reach it.
    """

    own_arguments = Pipeline.own_arguments | {"return_all_scores"}

    def __call__(self, inputs: Any, **options: Any) -> Result:
        """Classify texts or {text, text_pair} dictionaries.

        Returns {label, score} per document (for a single text in a list, as transformers does), or
        with `top_k` a list of them per document. `return_all_scores`, the older name of
        `top_k=None`, lists them in the labels' order.
        """
        results = super().__call__(inputs, **options)
        return [results] if isinstance(inputs, str) and "top_k" not in options else results

    def is_document(self, inputs: object) -> bool:
        return isinstance(inputs, str | dict | tuple)

    def document(self, item: object) -> object:
        return text_or_pair(item)

    def run(
        self, documents: Sequence[Text], options: Arguments
    ) -> tuple[list[Result], dict[int, str]]:
        # The task gives all labels of each document, from the best to the worst.
        results, failed = super().run(documents, options)
        arguments = self.arguments(options)
        if "top_k" in arguments:
            return [scores[: arguments["top_k"]] for scores in results], failed
        if arguments.get("return_all_scores"):
            labels = list(self.checkpoint.config.id2label.values())
            for scores in results:
                scores.sort(key=lambda score: labels.index(score["label"]))
            return results, failed
        if arguments.get("threshold") is not None:
            return results, failed
        return [scores[0] for scores in results], failed


class ZeroShotPipeline(Pipeline):
    """zero-shot-classification: {sequence, labels, scores}, from the best label to the worst."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        task_cls: type[Task],
        options: Arguments,
        load: Callable[[Checkpoint, Task], Predictor],
    ):
        super().__init__(checkpoint, task_cls, options, load)
        if self.options.pop("labels_file", None) is not None:
            # The file has been read, and is not read again at each call.
            task = self.predictor.task
            assert isinstance(task, CandidateLabels)
            self.options["labels"] = task.labels

    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Result:  # type: ignore[override]  # as in transformers
        """Score `candidate_labels`, a list or a comma-separated text, of a text or of several.

        A text may have labels of its own: (text, labels), a list or a text with a label a line.
        Labels that are there twice, among which transformers shares a probability, are refused.
        """
        return super().__call__(sequences, **options | {"candidate_labels": candidate_labels})

    def document(self, item: object) -> object:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], list | tuple)):
            return item
        text, labels = item
        if not all(isinstance(label, str) for label in labels):
            return item  # which is refused later, with its number
        return text, LabelList.of(labels)

    def arguments(self, options: Arguments) -> Options:
        under_our_names = dict(options)
        labels = under_our_names.pop("candidate_labels", None)
        if labels is not None:
            under_our_names["labels"] = labels
        elif under_our_names.get("labels_file") is not None:
            # A file of a call comes before the labels of the pipeline.
            under_our_names.setdefault("labels", None)
        return super().arguments(under_our_names)


class AnswerPipeline(Pipeline):
    """question-answering: {score, start, end, answer}, or a list of them with a `top_k` above
    one.
    """

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Result:
        """Answer a question from its context, or several.

        Give `question` and `context`, texts or lists of texts (one context may serve all
        questions), or as `inputs` a {question, context} dictionary, a list of them or an iterator
        of them.
        """
        if inputs is None:
            inputs = question_pairs(question, context)
        return _unwrapped(super().__call__(inputs, **options), self.is_document(inputs))

    def document(self, item: object) -> object:
        return item if isinstance(item, tuple) else fields_of(item, *AnswerOptions.inputs)

    def predict_lines(self, lines: Sequence[str]) -> list[Result]:
        def predict(item: object) -> Result:
            return self.predict([self.document(item)], {})[0]

        return [predict_json(line, predict) for line in lines]


class FillPipeline(Pipeline):
    """fill-mask: [{score, token, token_str, sequence}] for a text with one mask, a list of such
    lists for several.
    """

    def __call__(self, inputs: Any, **options: Any) -> Result:
        return _unwrapped(super().__call__(inputs, **options), self.is_document(inputs))


class RerankPipeline(Pipeline):
    """rerank: [{index, score}] from the best text to the worst."""

    def __call__(  # type: ignore[override]  # a query and its texts are no inputs of equal kind
        self, query: str, texts: Iterable[str], *, return_text: bool = False, **options: Any
    ) -> list[Json]:
        """Score the relevance of each of `texts` to `query`.

        `return_text`: whether the texts are in the result.
        """
        if isinstance(texts, str | dict):
            raise ValueError(f"texts must be a list of texts, not {str(texts)[:40]!r}")
        passages = list(items_of(texts))
        scores = self.predict([(query, passage) for passage in passages], options)
        ranked: list[Json] = []
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
            entry = {"index": i, "score": scores[i]}
            if return_text:
                entry["text"] = passages[i]
            ranked.append(entry)
        return ranked

    def predict_lines(self, lines: Sequence[str]) -> list[Result]:
        def predict(item: object) -> Result:
            query, texts = fields_of(item, "query", "texts")
            return self(query, texts)

        return [predict_json(line, predict) for line in lines]


class MultiVectorPipeline(Pipeline):
    """multi-vector: an array (tokens, numbers) for each text."""

    def predict_lines(self, lines: Sequence[str]) -> list[Result]:
        results = super().predict_lines(lines)
        return [each.tolist() if isinstance(each, np.ndarray) else each for each in results]


class TagPipeline(Pipeline):
    """token-classification: the entities of each text, [{entity or entity_group, score, word,
    start, end}]; of each list of words the label of each, [{entity, score, index, word}].
    """

    def __call__(self, inputs: Any, **options: Any) -> Result:
        """Find the entities of texts, or of the second text of {text, text_pair} dictionaries.

        With `is_split_into_words` a list of texts is the words of one document, and a list of such
        lists is several.
        """
        if not self._reads_words(options):
            return super().__call__(inputs, **options)
        if is_word_list(inputs):
            return super().__call__(WordList.of(inputs), **options)
        if is_stream(inputs):
            return super().__call__(map(word_list, iter(items_of(inputs))), **options)
        return super().__call__([word_list(item) for item in items_of(inputs)], **options)

    def document(self, item: object) -> object:
        return text_or_pair(item)

    def predict_lines(self, lines: Sequence[str]) -> list[Result]:
        if not self._reads_words({}):
            return super().predict_lines(lines)

        def predict(item: object) -> Result:
            return self.predict([word_list(item)], {})[0]

        return [predict_json(line, predict) for line in lines]

    def _reads_words(self, options: Arguments) -> bool:
        return bool(self.arguments(options).get("is_split_into_words"))


class SeveralPipeline(Pipeline):
    """several: a dictionary per text, with what each model's pipeline returns by its prefix."""

    def task(self, options: Arguments) -> Task:
        """The task, whose models are opened once: a call cannot change their options."""
        if options:
            raise ValueError(f"{next(iter(options))} is of the models: give it with them")
        if self._task is None:
            self._task = super().task({})
        return self._task

    _task: Task | None = None


SHAPES: dict[str, type[Pipeline]] = {
    "classify": ClassifyPipeline,
    "zero_shot": ZeroShotPipeline,
    "tag": TagPipeline,
    "answer": AnswerPipeline,
    "fill": FillPipeline,
    "rerank": RerankPipeline,
    "multi_vector": MultiVectorPipeline,
    "several": SeveralPipeline,
}
"""The shapes of tasks that differ from Pipeline, by the names of the tasks."""


def is_word_list(item: object) -> TypeGuard[list[str] | tuple[str, ...]]:
    """Tell whether an item is a list of words."""
    if not isinstance(item, list | tuple) or not item:
        return False
    return all(isinstance(word, str) for word in item)


def word_list(item: object) -> object:
    """Return the document of an item that may be a list of words; else the item, to be refused."""
    return WordList.of(item) if is_word_list(item) else item


def text_or_pair(item: object) -> object:
    """Return the document of an item that may be a dictionary with a text and a second one."""
    if not isinstance(item, dict):
        return item
    (text,) = fields_of(item, "text")
    second = item.get("text_pair")
    return text if second is None else (text, second)


def question_pairs(question: Any, context: Any) -> list[Text]:
    """Return (question, context) for each question; one context may serve all.

    `question`, `context`: a text or a collection of texts. Raises ValueError where one is None and
    for different numbers of them.
    """
    if question is None or context is None:
        raise ValueError("give question and context, or a list of {question, context}")
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise ValueError(
            f"{len(questions)} questions have {len(contexts)} contexts; give as many, or one "
            "context for all"
        )
    return list(zip(questions, contexts, strict=True))


def _unwrapped(results: Result, of_document: bool) -> Result:
    """Return the one result of a list of one document by itself, as transformers does."""
    if of_document or not isinstance(results, list) or len(results) != 1:
        return results
    return results[0]
