"""The options of every task, without torch: one class per task, in one registry.

The command line, YAML, the environment, `pipeline`, the corpus job (job_options.py) and the served
model are all made from TASKS. Rules that need no checkpoint are validated here, the others by the
task's `from_checkpoint`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from pipelines.errors import UserError

Options = TypeVar("Options", bound=BaseModel)
Marker = TypeVar("Marker")
LongDocuments = Literal["truncate", "windows"]
LONG_DOCUMENTS = Field(description="what is longer is cut off, or read in windows that overlap")
Merge = Literal["mean", "max"]
Function = Literal["softmax", "sigmoid", "none"]
Aggregation = Literal["none", "simple", "first", "average", "max"]
Precision = Literal["float32", "float16", "int8", "binary", "ubinary"]
Prompt = Annotated[str | None, Field(description="text to put before each document")]
PromptName = Annotated[
    str | None, Field(description="name of a prompt of the model's to put there")
]


@dataclass(frozen=True)
class Commas:
    """Marks a list that command line, environment and YAML give as one comma-separated text."""

    strip: bool = True
    """Whether blanks around a name are dropped: " cat" is a token of its own."""


@dataclass(frozen=True)
class Words:
    """Marks an option that has another name, and words for its values, outside Python."""

    name: str
    """Its name on the command line, in the environment and in YAML."""
    values: dict[str, Any]
    """What the words stand for: any value that the option takes."""


Names = Annotated[Sequence[str] | None, NoDecode, Commas()]
Tokens = Annotated[Sequence[str] | None, NoDecode, Commas(strip=False)]
_AS = Words("as", {"query": True, "document": False})
AsQuery = Annotated[bool, Field(description="what texts are read as (default: document)"), _AS]


class TaskOptions(BaseModel):
    """The options of a task, and what the faces need to know of it before torch is loaded.

    A subclass adds the task's own options as fields and describes the task in class variables. An
    option that is None has its default.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    task: ClassVar[str]
    """The name of the task: in `task:` of a served model and in messages."""
    implementation: ClassVar[str]
    """Where its Task lies, as "module:class"."""
    purpose: ClassVar[str]
    """What its corpus job does, in a sentence."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Its names in transformers and on the command line."""
    inputs: ClassVar[dict[str, str]] = {"text": "text"}
    """The names of a document's texts, and what they hold; each has a column option in a job."""
    optional_inputs: ClassVar[dict[str, str]] = {}
    """A text that a document may have beside those; then it is a pair."""
    list_inputs: ClassVar[frozenset[str]] = frozenset()
    """The inputs that are several texts: a list, or one text, which `split_labels` splits."""
    fits: ClassVar[dict[str, str]] = {}
    """The architectures whose checkpoints it runs, and what a message then names as the task."""
    transformers_names: ClassVar[dict[str, str]] = {}
    """What transformers calls some of the options, and their names here."""
    online: ClassVar[bool] = True
    """Whether a model can be served for it."""

    max_length: Annotated[
        int | None, Field(ge=3, description="tokens read at a time (default: the model's maximum)")
    ] = None
    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "truncate"
    stride: Annotated[
        int | None, Field(ge=0, description="tokens that windows share (default: 128 or half)")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _none_is_the_default(cls, values: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Return the options `values`, by name, as Python code gives them.

        Raises ValueError that begins with the name of an option which the task does not have, or
        whose value is not of its very type or out of its range.
        """
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            names = ", ".join(cls.model_fields)
            raise ValueError(f"{unknown[0]} is not an option of {cls.task}; it has {names}")
        try:
            return cls.model_validate(dict(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "greater_than_equal":
                least = first["ctx"]["ge"]
                raise ValueError(f"{name} {first['input']} must be at least {least}") from error
            raise ValueError(f"{name} {values[name]!r}: {plain_message(first['msg'])}") from error

    @classmethod
    def input_names(cls, count: int | None = None) -> tuple[str, ...]:
        """Return the names of the texts of a document that has `count` of them, by default all."""
        return (*cls.inputs, *cls.optional_inputs)[:count]

    def check_inputs(self, names: Collection[str]) -> None:
        """Raise ValueError where documents with the texts `names` lack what these options need.

        Its message begins with the name of an option.
        """

    def override(self, values: Mapping[str, object]) -> TaskOptions:
        """Return the options with `values` in place of some; ValueError as `parse` raises it."""
        cls = TASKS[self.task]
        own = {name: getattr(self, name) for name in cls.model_fields}
        return cls.parse(own | dict(values))


class ClassifyOptions(TaskOptions):
    """A label, several labels or a number for each text."""

    task = "classify"
    implementation = "pipelines.tasks.classify:Classify"
    purpose = "Label every document of a corpus with a ModernBERT sequence classifier."
    aliases = ("text-classification", "sentiment-analysis")
    optional_inputs = {"text_pair": "second text of a pair (default: none)"}
    fits = {"ModernBertForSequenceClassification": "classify"}
    transformers_names = {"function_to_apply": "function"}

    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            description="add the TOP_K best labels and their scores as the lists labels, scores",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least score in a multi-label model (default: 0.5)"),
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
        "entailment (NLI)."
    )
    aliases = ("zero-shot-classification",)
    optional_inputs = {
        "labels": (
            "labels of each row: a list, or a text, one per line or comma-separated (default: "
            "--labels for all)"
        )
    }
    list_inputs = frozenset({"labels"})
    fits = {"ModernBertForSequenceClassification": "zero_shot with a label of entailment"}

    labels: Annotated[Names, Field(description="labels to choose from, comma-separated")] = None
    labels_file: Annotated[str | None, Field(description="text file with a label per line")] = None
    hypothesis_template: Annotated[
        str, Field(description="sentence that says of a text that label {} fits")
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
        float | None,
        Field(ge=0, le=1, description="least score of a label in the lists (default: 0)"),
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
    fits = {"ModernBertForTokenClassification": "tag"}
    transformers_names = {"aggregation_strategy": "aggregation"}

    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "windows"
    aggregation: Annotated[Aggregation, Field(description="how tokens become entities")] = "simple"
    ignore_labels: Annotated[
        Names, Field(description="labels to leave out, comma-separated (default: O)")
    ] = None


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
        _AS,
    ] = None
    normalize: Annotated[
        bool, Field(description="make vectors of length one, after --dimensions")
    ] = False
    precision: Annotated[Precision, Field(description="how vectors are stored")] = "float32"
    prompt: Prompt = None
    prompt_name: PromptName = None


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


_TASKS = (
    *(ClassifyOptions, ZeroShotOptions, TagOptions, AnswerOptions, FillOptions),
    *(EmbedOptions, SparseOptions, MultiVectorOptions, RerankOptions, FeaturesOptions),
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


class ModelOptions(BaseModel):
    """A model and how it is run."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[
        str | None, Field(description="checkpoint: a folder, a URI or a Hugging Face hub id")
    ] = None
    budget_tokens: Annotated[
        int | None, Field(ge=16, description="tokens in a packed batch (default: 4096; GPUs 65536)")
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="auto: GPUs where there are any")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "float8"],
        Field(description="auto: float32, on GPUs bfloat16; float8: less exact"),
    ] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _as_in_python(cls, values: Mapping[str, object]) -> dict[str, object]:
        return {name: cls._list(name, value) for name, value in cls.own_names(values).items()}

    @classmethod
    def own_names(cls, values: Mapping[str, object]) -> dict[str, object]:
        """Return options under the names of fields, with the values that `Words` stand for.

        Raises UserError for a word that is not known, and for an option under both its names.
        """
        named = dict(values)
        for name, field in cls.model_fields.items():
            words = marker(field, Words)
            if words is None or words.name not in named:
                continue
            word = named.pop(words.name)
            if name in named:
                raise UserError(
                    f"--{words.name} {word!r} and {name} are the same option: give --{words.name} "
                    "alone"
                )
            if not isinstance(word, str) or word not in words.values:
                raise UserError(f"--{words.name} {word!r}: must be {' or '.join(words.values)}")
            named[name] = words.values[word]
        return named

    @classmethod
    def _list(cls, name: str, value: object) -> object:
        """Return the list that a text stands for, where the option is marked with `Commas`."""
        if name not in cls.model_fields or not isinstance(value, str):
            return value
        commas = marker(cls.model_fields[name], Commas)
        if commas is None:
            return value
        return split_at_commas(value, strip=commas.strip)


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return the Commas or Words of an option, if it has one."""
    for each in field.metadata:
        if isinstance(each, kind):
            return each
    return None


class LabelList(str):
    """The labels of a document in one text, a JSON array.

    Its type says that it is one: no text of a user's is read as JSON, and `split_labels` gives back
    these very labels, whatever characters they hold.

    Example: `LabelList.of(["New\\nYork", "a, b"])` returns the text `["New\\nYork", "a, b"]`.
    """

    @classmethod
    def of(cls, labels: Iterable[str]) -> Self:
        """Return the text of `labels`."""
        return cls(json.dumps(list(labels), ensure_ascii=False))


def split_labels(text: str) -> list[str]:
    """Return the labels in a text: those of a LabelList; else one per line, or in a single line
    comma-separated.
    """
    if isinstance(text, LabelList):
        labels: list[str] = json.loads(text)
        return labels
    # str.splitlines would split at characters, too, that end no line of a file.
    lines = re.split(r"\r\n|\r|\n", text)
    if len(lines) == 1:
        return split_at_commas(text)
    return [line.strip() for line in lines if line.strip()]


def split_at_commas(text: str, *, strip: bool = True) -> list[str]:
    """Return the parts of a comma-separated text that are not blank.

    Without `strip`, they keep the blanks around them.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not strip:
        return parts
    return [part.strip() for part in parts]


def label_mistake(labels: Sequence[str]) -> str | None:
    """Return what is wrong with labels to choose from, the end of a sentence on them, or None.

    transformers scores a label that is there twice as two, which share its probability.
    """
    if not labels:
        return "must name at least one label"
    counts = Counter(labels)
    if "" in counts:
        return "must not hold an empty label"
    label, count = counts.most_common(1)[0]
    if count > 1:
        return f"must name each label once; {label[:40]!r} is there {count} times"
    return None


def column_option(name: str) -> str:
    """Return the option that names the column of the input `name` of a task."""
    return f"{name}_column"


@cache
def model_options(task: str) -> type[ModelOptions]:
    """Return the options of a task and of how its model is run, which come from the call alone."""
    options = TASKS[task]
    bases: Any = (options, ModelOptions)  # create_model's types know one base
    created: type[ModelOptions] = create_model(
        f"Model{options.__name__}", __base__=bases, __doc__=options.__doc__
    )
    return created


def from_call(options_class: type[Options], values: Mapping[str, object]) -> Options:
    """Return the options `values`, which Python code gives by name.

    Raises ValueError that names each wrong one.
    """
    unknown = sorted(set(values) - set(options_class.model_fields))
    if unknown:
        names = ", ".join(options_class.model_fields)
        raise ValueError(f"{unknown[0]} is not an option; there are {names}")
    try:
        return options_class.model_validate(values)
    except ValidationError as error:
        mistakes: list[str] = []
        for each in error.errors():
            message = plain_message(each["msg"])
            mistakes.append(f"{each['loc'][0]} {each['input']!r}: {message}")
        raise ValueError("; ".join(mistakes)) from None


def plain_message(message: str) -> str:
    """Return a message of pydantic's in our words: what is allowed, without a preamble."""
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
