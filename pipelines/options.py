"""The options of every task, without torch: one class per task, in one registry.

The command line, YAML, the environment, `pipeline`, the corpus job (job_options.py) and the served
model are all made from TASKS. Rules that need no checkpoint are validated here, the others by the
task's `from_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Self

import yaml
from pydantic import Field, field_validator, model_validator

from modernbert.stored import Route
from pipelines.labels import label_mistake
from pipelines.option_types import (
    AS_WORDS,
    LONG_DOCUMENTS,
    Aggregation,
    AsQuery,
    Function,
    LongDocuments,
    Merge,
    ModelEntries,
    Names,
    Precision,
    Prompt,
    PromptName,
    Tokens,
    split_at_commas,
)
from pipelines.task_options import TaskOptions
from pipelines.thresholds import Threshold


class ClassifyOptions(TaskOptions):
    """A label, several labels or a number for each text."""

    task = "classify"
    implementation = "pipelines.tasks.classify:Classify"
    purpose = "Label every document of a corpus with a ModernBERT sequence classifier."
    aliases = ("text-classification", "sentiment-analysis")
    optional_inputs = {"text_pair": "second text of a pair (default: none)"}
    fits = {"ModernBertForSequenceClassification": "classify"}
    gold = "right label of each row, or the list of them"
    transformers_names = {"function_to_apply": "function"}

    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            description="add the TOP_K best labels and their scores as the lists labels, scores",
        ),
    ] = None
    threshold: Annotated[
        Threshold,
        Field(
            description=(
                "least score in a multi-label model: a number, a file with one for each label, or "
                "best-f1, which finds them on gold (default: 0.5)"
            )
        ),
    ] = None
    merge: Annotated[Merge, Field(description="logits of windows become one by")] = "mean"
    function: Annotated[
        Function | None,
        Field(description="from logits to scores (default: as the model's problem_type says)"),
    ] = None


class ZeroShotOptions(TaskOptions):
    """Which of some labels fit each text, without training for them."""

    task = "zero_shot"
    implementation = "pipelines.tasks.zero_shot:ZeroShot"
    purpose = (
        "Label every document of a corpus with labels of your choice, by a ModernBERT model of "
        "entailment (NLI) or a GLiClass."
    )
    aliases = ("zero-shot-classification",)
    optional_inputs = {
        "labels": (
            "labels of each row: a list, or a text, one per line or comma-separated (default: "
            "--labels for all)"
        )
    }
    list_inputs = frozenset({"labels"})
    gold = "right label of each row, or the list of them"
    fits = {
        "ModernBertForSequenceClassification": "zero_shot with a label of entailment",
        "GLiClassModel": "zero_shot",
    }

    labels: Annotated[Names, Field(description="labels to choose from, comma-separated")] = None
    labels_file: Annotated[str | None, Field(description="text file with a label per line")] = None
    hypothesis_template: Annotated[
        str,
        Field(
            description="sentence that says of a text that label {} fits, for models of entailment"
        ),
    ] = "This example is {}."
    multi_label: Annotated[
        bool, Field(description="score each label by itself: several may fit, or none")
    ] = False
    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            description="keep the TOP_K best labels in the lists labels, scores (default: all)",
        ),
    ] = None
    threshold: Annotated[
        Threshold,
        Field(
            description=(
                "least score of a label in the lists: a number, a file with one for each label, or "
                "best-f1, which finds them on gold (default: 0)"
            )
        ),
    ] = None
    merge: Annotated[Merge, Field(description="scores of a document's windows become one by")] = (
        "max"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        return split_at_commas(value) if isinstance(value, str) else value

    @field_validator("labels")
    @classmethod
    def _distinct_labels(cls, value: Sequence[str] | None) -> Sequence[str] | None:
        mistake = None if value is None else label_mistake(value)
        if mistake:
            raise ValueError(mistake)
        return value

    @field_validator("hypothesis_template")
    @classmethod
    def _with_a_place(cls, value: str) -> str:
        rest = value.replace("{}", "")
        if rest == value or "{" in rest or "}" in rest:
            raise ValueError("must have {} where the label stands, and no other braces")
        return value

    def check_inputs(self, names: Collection[str]) -> None:
        sources: list[str] = []
        if self.labels is not None:
            sources.append("labels")
        if self.labels_file is not None:
            sources.append("labels_file")
        if "labels" in names:
            sources.append("labels_column")
        if len(sources) == 1:
            return
        came = f"{' and '.join(sources)} are" if sources else "none of them is"
        raise ValueError(
            f"labels come from labels, labels_file or labels_column; {came} given: give one"
        )


class TagOptions(TaskOptions):
    """The entities in each text."""

    task = "tag"
    implementation = "pipelines.tasks.tag:Tag"
    purpose = "Find the entities in every document of a corpus with a ModernBERT token classifier."
    aliases = ("token-classification", "ner")
    optional_inputs = {
        "text_pair": "second text of a pair, in which entities are then found (default: none)"
    }
    fits = {"ModernBertForTokenClassification": "tag"}
    gold = "right entities of each row ({start, end, label}), or labels of its words"
    transformers_names = {"aggregation_strategy": "aggregation"}

    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "windows"
    aggregation: Annotated[Aggregation, Field(description="how tokens become entities")] = "simple"
    ignore_labels: Annotated[
        Names, Field(description="labels to leave out, comma-separated (default: O)")
    ] = None
    is_split_into_words: Annotated[
        bool, Field(description="texts are lists of words, each of which gets a label")
    ] = False

    @property
    def reads_words(self) -> bool:
        return self.is_split_into_words

    def check_inputs(self, names: Collection[str]) -> None:
        if self.is_split_into_words and "text_pair" in names:
            raise ValueError(
                "is_split_into_words is for lists of words, which have no second text: leave "
                "text_pair_column out"
            )


class AnswerOptions(TaskOptions):
    """The span of a context that answers a question."""

    task = "answer"
    implementation = "pipelines.tasks.answer:Answer"
    purpose = (
        "Answer every question of a corpus from its context with a ModernBERT question answering "
        "model."
    )
    aliases = ("question-answering",)
    inputs = {"question": "question", "context": "text that holds the answer"}
    fits = {"ModernBertForQuestionAnswering": "answer"}
    gold = "right answers of each row"
    transformers_names = {
        "handle_impossible_answer": "no_answer",
        "max_answer_len": "max_answer_length",
        "max_seq_len": "max_length",
        "doc_stride": "stride",
    }

    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "windows"
    top_k: Annotated[
        int | None, Field(ge=1, description="add the TOP_K best spans as the list answers")
    ] = None
    max_answer_length: Annotated[int, Field(ge=1, description="tokens in an answer at most")] = 15
    no_answer: Annotated[
        bool, Field(description="let no answer, an empty one, compete with the spans")
    ] = False
    align_to_words: Annotated[
        bool,
        Field(description="let answers begin and end with whole words, if the tokenizer has any"),
    ] = True


class FillOptions(TaskOptions):
    """The likeliest tokens for each mask in a text."""

    task = "fill"
    implementation = "pipelines.tasks.fill:Fill"
    purpose = (
        "Find the likeliest tokens for each mask in a corpus with a ModernBERT masked language "
        "model."
    )
    aliases = ("fill-mask",)
    fits = {"ModernBertForMaskedLM": "fill"}

    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "windows"
    top_k: Annotated[int, Field(ge=1, description="tokens for each mask")] = 5
    targets: Annotated[
        Tokens, Field(description="the only tokens to choose from, comma-separated")
    ] = None

    @field_validator("targets", mode="before")
    @classmethod
    def _one_target(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class EmbedOptions(TaskOptions):
    """A vector for each text."""

    task = "embed"
    implementation = "pipelines.tasks.embed:Embed"
    purpose = (
        "Embed every document of a corpus with a ModernBERT encoder or a sentence-transformers "
        "model on one."
    )
    aliases = ("sentence-embedding",)
    fits = {"ModernBertForMaskedLM": "embed", "ModernBertModel": "embed"}

    pooling: Annotated[
        Literal["cls", "mean"] | None,
        Field(description="how token vectors become one (default: the model's, or mean)"),
    ] = None
    dimensions: Annotated[
        int | None, Field(ge=1, description="keep only the first DIMENSIONS numbers")
    ] = None
    as_query: Annotated[
        bool | None,
        Field(description="what texts are read as (default: as the model's default prompt says)"),
        AS_WORDS,
    ] = None
    normalize: Annotated[
        bool, Field(description="make vectors of length one, after --dimensions")
    ] = False
    precision: Annotated[Precision, Field(description="how vectors are stored")] = "float32"
    prompt: Prompt = None
    prompt_name: PromptName = None
    chunk_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description=(
                "read texts whole, cut at ends of sentences into chunks of at most CHUNK_TOKENS, "
                "and give the list chunks, with a vector for each"
            ),
        ),
    ] = None
    chunk_overlap: Annotated[
        int, Field(ge=0, description="tokens that a chunk shares with the one before, at most")
    ] = 0
    late: Annotated[
        bool, Field(description="pool the tokens of chunks after a pass over the whole text")
    ] = False

    @property
    def route(self) -> Route | None:
        return None if self.as_query is None else _route(self.as_query)


class SparseOptions(TaskOptions):
    """A weight for each token of the vocabulary that fits a text: a sparse vector."""

    task = "sparse"
    implementation = "pipelines.tasks.sparse:Sparse"
    purpose = (
        "Weigh the tokens of the vocabulary for every document of a corpus with a sparse encoder "
        "(SPLADE)."
    )
    aliases = ("sparse-embedding",)

    as_query: AsQuery = False
    top_k: Annotated[
        int | None,
        Field(ge=1, description="keep the TOP_K heaviest tokens (default: the model's, or all)"),
    ] = None
    min_weight: Annotated[float, Field(ge=0, description="least weight of a token")] = 0.0
    prompt: Prompt = None
    prompt_name: PromptName = None

    @property
    def route(self) -> Route | None:
        return _route(self.as_query)


class MultiVectorOptions(TaskOptions):
    """A vector for each token of a text, for late interaction (ColBERT)."""

    task = "multi_vector"
    implementation = "pipelines.tasks.multi_vector:MultiVector"
    purpose = "Embed every token of a corpus with a multi-vector encoder (ColBERT)."
    aliases = ("multi-vector",)

    as_query: AsQuery = False
    pool_factor: Annotated[
        float,
        Field(ge=1, description="keep one vector for so many tokens of a document, by clustering"),
    ] = 1.0
    precision: Annotated[Precision, Field(description="how vectors are stored")] = "float32"
    prompt: Prompt = None
    prompt_name: PromptName = None


class RerankOptions(TaskOptions):
    """How well a passage answers a query."""

    task = "rerank"
    implementation = "pipelines.tasks.rerank:Rerank"
    purpose = "Score every pair of query and passage of a corpus with a ModernBERT cross-encoder."
    aliases = ("rerank",)
    inputs = {"query": "query", "passage": "passage"}
    fits = {"ModernBertForSequenceClassification": "rerank with one label"}
    gold = "relevance of each pair, 0 or more"

    merge: Annotated[Merge, Field(description="logits of a passage's windows become one by")] = (
        "max"
    )
    raw_scores: Annotated[
        bool | None,
        Field(
            description="give the model's numbers, not their sigmoid (default: as the model says)"
        ),
    ] = None
    prompt: Annotated[str | None, Field(description="text to put before each query")] = None
    prompt_name: PromptName = None


class FeaturesOptions(TaskOptions):
    """A vector for each token of a text."""

    task = "features"
    implementation = "pipelines.tasks.features:Features"
    purpose = "Keep the encoder's last hidden state of every token of a corpus."
    aliases = ("feature-extraction",)
    online = False


class ModelEntry(NamedTuple):
    """One of the models of SeveralOptions."""

    model: str
    prefix: str
    options: TaskOptions


class SeveralOptions(TaskOptions):
    """The answers of several models to each text, which is read once."""

    task = "several"
    implementation = "pipelines.tasks.several:Several"
    purpose = (
        "Label every document of a corpus with several ModernBERT models at once; those with equal "
        "encoders share its work."
    )
    online = False

    long_documents: Annotated[LongDocuments | None, LONG_DOCUMENTS] = None  # type: ignore[assignment]
    models: Annotated[
        ModelEntries,
        Field(
            description=(
                "task and model, for each of several; in YAML and Python also a mapping of model, "
                "task, prefix (of its columns; default: the model's last name) and task options"
            )
        ),
    ] = ()

    @field_validator("models", mode="before")
    @classmethod
    def _parse_yaml(cls, value: object) -> object:
        return yaml.safe_load(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if not self.models:
            raise ValueError("models is missing: a list of models, each with model and task")
        self.entries  # noqa: B018 (raises for a mistake)
        return self

    @property
    def route(self) -> Route | None:
        return self.entries[0].options.route

    def model_named(self, model: str | None) -> str:
        if model is not None:
            raise ValueError(f"model {model!r} must be one of models, where several are named")
        return self.entries[0].model

    @property
    def entries(self) -> list[ModelEntry]:
        """The models, with the options of their tasks.

        Raises ValueError, whose message begins with "models", for a mistake in one.
        """
        shared = {name: getattr(self, name) for name in TaskOptions.model_fields}
        entries: list[ModelEntry] = []
        for number, values in enumerate(self.models):
            try:
                entry = _model_entry(values, shared)
            except ValueError as error:
                raise ValueError(f"models[{number}]: {error}") from error
            for other in entries:
                if other.prefix == entry.prefix:
                    raise ValueError(
                        f"models[{number}]: prefix {entry.prefix!r} is that of another model; give "
                        "each its own"
                    )
            entries.append(entry)
        return entries


def _route(as_query: bool) -> Route:
    return "query" if as_query else "document"


def _model_entry(values: Mapping[str, object] | str, shared: Mapping[str, object]) -> ModelEntry:
    """Return one of several models; `shared`: the options that all of them have."""
    if isinstance(values, str):
        named_task, _, named_model = values.partition("=")
        values = {"task": named_task, "model": named_model or None}
    options = {**shared, **values}
    model = options.pop("model", None)
    if not isinstance(model, str):
        raise ValueError("model is missing: task=model, or a mapping that has it")
    name = options.pop("task", None)
    if not isinstance(name, str):
        raise ValueError(f"task is missing: what the model does, one of {', '.join(TASKS)}")
    options_class = task_named(name)
    if set(options_class.inputs) != {"text"} or options_class is SeveralOptions:
        raise ValueError(f"task {name} does not read a text alone, as several models do")
    folder = model.rstrip("/").rpartition("/")[2]
    prefix = options.pop("prefix", f"{folder}_")
    if not isinstance(prefix, str):
        raise ValueError(f"prefix {prefix!r} must be a text")
    parsed = options_class.parse(options)
    parsed.check_inputs(("text",))
    if parsed.reads_words:
        raise ValueError("is_split_into_words is for a model alone: several models read texts")
    if isinstance(parsed, EmbedOptions) and parsed.chunk_tokens is not None:
        raise ValueError("chunk_tokens is for a model alone: several models read texts whole")
    return ModelEntry(model, prefix, parsed)


_TASKS = (
    *(ClassifyOptions, ZeroShotOptions, TagOptions, AnswerOptions, FillOptions),
    *(EmbedOptions, SparseOptions, MultiVectorOptions, RerankOptions, FeaturesOptions),
    SeveralOptions,
)
TASKS: dict[str, type[TaskOptions]] = {options.task: options for options in _TASKS}
"""Every task by its name."""


def task_named(name: str) -> type[TaskOptions]:
    """Return the task called `name`, here or in transformers; ValueError where there is none."""
    by_alias: dict[str, type[TaskOptions]] = {}
    for options in TASKS.values():
        for alias in options.aliases:
            by_alias[alias] = options
    if name in by_alias:
        return by_alias[name]
    if name in TASKS:
        return TASKS[name]
    raise ValueError(f"task {name!r} is unknown; known are {', '.join(by_alias)}")
