"""pipeline: a task in memory, texts in and plain Python values out, in the shapes of transformers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from modernbert.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.predictor import Predictor
from pipelines.tasks.base import Task, check_documents, make_task, task_class

TASKS = {
    "fill-mask": "fill",
    "text-classification": "classify",
    "sentiment-analysis": "classify",
    "token-classification": "tag",
    "ner": "tag",
    "question-answering": "answer",
    "feature-extraction": "features",
    "sentence-embedding": "embed",
    "rerank": "rerank",
}
"""The names of pipelines, and the tasks behind them."""
_OURS = {  # what transformers calls some of our options
    "aggregation_strategy": "aggregation",
    "function_to_apply": "function",
    "handle_impossible_answer": "no_answer",
    "max_answer_len": "max_answer_length",
    "max_seq_len": "max_length",
    "doc_stride": "stride",
}
_ANY_CASE = ("aggregation_strategy", "function_to_apply")


def pipeline(
    task: str,
    model: str,
    *,
    revision: str | None = None,
    device: int | str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    budget_tokens: int | None = None,
    **options: Any,
) -> Pipeline:
    """A pipeline for `task`, one of TASKS or a task's own name, on the checkpoint `model`, a folder or hub repository.

    `device`: a GPU's number, -1 for the CPU, or a torch device; by default a GPU where there is one. `dtype` (or
    `torch_dtype`): by default float32 on CPUs, bfloat16 on GPUs. `budget_tokens`: in a packed batch. `options`: those
    of the task, under our names or transformers'; a call can override them. Raises ValueError for what does not fit.
    """
    name = TASKS.get(task, task)
    if name not in TASKS.values():
        raise ValueError(f"task {task!r} is unknown; known are {', '.join(TASKS)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif isinstance(device, int):
        device = f"cuda:{device}" if device >= 0 else "cpu"
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown: {str(error).splitlines()[0]}") from error
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device}: torch sees no GPU here")
    kind = dtype if dtype is not None else torch_dtype if torch_dtype is not None else "auto"
    placement = {"device": str(device), "dtype": str(kind).removeprefix("torch."), "budget_tokens": budget_tokens}
    shape = {"classify": ClassifyPipeline, "answer": AnswerPipeline, "rerank": RerankPipeline, "fill": FillPipeline}
    return shape.get(name, Pipeline)(Checkpoint.open(model, revision), name, options, placement)


class Pipeline:
    """A checkpoint loaded for one task: call it with a text or a list of texts."""

    def __init__(self, checkpoint: Checkpoint, name: str, options: dict[str, Any], placement: dict[str, Any]):
        self.checkpoint, self.kind = checkpoint, task_class(name)
        self.kind.check(checkpoint)
        self.options = ({"aggregation": "none"} if name == "tag" else {}) | _renamed(options)
        self.predictor = Predictor(checkpoint, self.task({}), **placement)

    def __call__(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """The result for a text, or a list of them for a list; ValueError where a text cannot be answered."""
        if isinstance(inputs, str):
            return self.answered([inputs], options)[0]
        return self.answered(list(inputs), options)

    def predict_lines(self, lines: Sequence[str]) -> list[Any]:
        """A result for each line of text, or {"error": reason} where there is none."""
        results, failed = self.run(lines, {})
        return [{"error": failed[i]} if i in failed else result for i, result in enumerate(results)]

    def task(self, options: dict[str, Any]) -> Task:
        """The task with the pipeline's own options, overridden by those of a call."""
        return make_task(self.kind, self.checkpoint, self.options | _renamed(options))

    def run(self, documents: Sequence[Text], options: dict[str, Any]) -> tuple[list[Any], dict[int, str]]:
        """A result for each document, and those whose result has no meaning with the reason."""
        check_documents(self.kind, documents)
        task = self.task(options)
        made, failed = self.predictor.answer(documents, task)
        return task.results(made), failed

    def answered(self, documents: Sequence[Text], options: dict[str, Any]) -> list[Any]:
        """A result for each document; ValueError that names one without."""
        results, failed = self.run(documents, options)
        for document, reason in failed.items():
            raise ValueError(f"input {document}: {reason}")
        return results


class FillPipeline(Pipeline):
    """fill-mask: of a list of one text, transformers gives that text's result."""

    def __call__(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """[{score, token, token_str, sequence}] for a text with one mask, a list of such lists for several masks."""
        results = super().__call__(inputs, **options)
        return results[0] if not isinstance(inputs, str) and len(inputs) == 1 else results


class ClassifyPipeline(Pipeline):
    """text-classification: the best label, or with `top_k` a list of the best (of all labels, where it is None)."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """{label, score} of each text or {text, text_pair}, in a list for a single text; lists of them with `top_k`."""
        many = isinstance(inputs, list)
        results = self.answered([_pair(item) for item in (inputs if many else [inputs])], options)
        return results if many or (isinstance(inputs, str) and "top_k" not in options) else results[0]

    def run(self, documents: Sequence[Text], options: dict[str, Any]) -> tuple[list[Any], dict[int, str]]:
        """As of every pipeline."""
        given = self.options | options
        results, failed = super().run(documents, options)
        if "top_k" in given:
            return [scores[: given["top_k"]] for scores in results], failed
        return [scores[0] for scores in results], failed

    def task(self, options: dict[str, Any]) -> Task:
        """As of every pipeline; a single output without a problem_type is a probability to transformers."""
        config = self.checkpoint.config
        one = {"function": "sigmoid"} if config.num_labels == 1 and config.problem_type is None else {}
        return super().task(one | self.options | options | {"top_k": None})


class AnswerPipeline(Pipeline):
    """question-answering: {score, start, end, answer}, or a list of them with a `top_k` above one."""

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Of a question and its context, lists of both (one context may serve all), or {question, context} dicts."""
        if inputs is None:
            if question is None or context is None:
                raise ValueError("give question and context, or a list of {question, context}")
            questions = [question] if isinstance(question, str) else list(question)
            contexts = [context] * len(questions) if isinstance(context, str) else list(context)
            if len(questions) != len(contexts):
                raise ValueError(
                    f"{len(questions)} questions have {len(contexts)} contexts; give as many, or one context for all"
                )
            documents: list[Text] = list(zip(questions, contexts, strict=True))
        else:
            documents = [
                _fields(item, *self.kind.inputs) for item in (inputs if isinstance(inputs, list) else [inputs])
            ]
        results = self.answered(documents, options)
        return results[0] if len(documents) == 1 else results

    def predict_lines(self, lines: Sequence[str]) -> list[Any]:
        """A result for each line of {"question", "context"} as JSON."""
        return [_line(line, lambda item: self.answered([_fields(item, *self.kind.inputs)], {})[0]) for line in lines]


class RerankPipeline(Pipeline):
    """rerank: [{index, score}] from the best text to the worst."""

    def __call__(self, query: str, texts: Sequence[str], *, return_text: bool = False, **options: Any) -> Any:  # type: ignore[override]
        """How well each of `texts` answers `query`; with `return_text`, the texts too."""
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ValueError(f"texts must be a list of texts, not {str(texts)[:40]!r}")
        scores = self.answered([(query, text) for text in texts], options)
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return [{"index": i, "score": scores[i]} | ({"text": texts[i]} if return_text else {}) for i in order]

    def predict_lines(self, lines: Sequence[str]) -> list[Any]:
        """A result for each line of {"query", "texts"} as JSON."""
        return [_line(line, lambda item: self(*_fields(item, "query", "texts"))) for line in lines]


def _line(line: str, answer: Callable[[Any], Any]) -> Any:
    """The answer to a line of JSON, or {"error": reason}."""
    try:
        return answer(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return {"error": f"not valid JSON: {error}"}
    except ValueError as error:
        return {"error": str(error)}


def _fields(item: Any, *names: str) -> Any:
    if not isinstance(item, dict) or not set(names) <= set(item):
        raise ValueError(f"input must hold {' and '.join(names)}, not {str(item)[:60]!r}")
    return tuple(item[name] for name in names)


def _renamed(options: dict[str, Any]) -> dict[str, Any]:
    lower = {name: options[name].lower() for name in _ANY_CASE if isinstance(options.get(name), str)}
    return {_OURS.get(name, name): value for name, value in (options | lower).items()}


def _pair(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    (text,) = _fields(item, "text")
    return (text, item["text_pair"]) if item.get("text_pair") is not None else text
