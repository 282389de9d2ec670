"""Options of tasks and of corpus jobs: one typed model behind the command line, a YAML file and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipelines.errors import UserError

ENV_PREFIX = "MODERNBERT_"
Options = TypeVar("Options", bound="TaskOptions")


Commas = Annotated[list[str] | None, NoDecode]
LISTS = ("keep_columns", "ignore_labels", "targets")
"""Options that are lists: comma-separated on the command line and in the environment."""


class TaskOptions(BaseSettings):
    """A model and how it is run. The command line wins over the environment, which wins over the YAML file."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=())
    task_options: ClassVar[tuple[str, ...]] = ()
    """The options of the task itself, beside those on long documents."""

    config: Annotated[Path | None, Field(description="YAML file with any of these options")] = None
    model: Annotated[
        str | None,
        Field(description="checkpoint: a folder, a URI or a Hugging Face hub id"),
    ] = None
    max_length: Annotated[
        int | None, Field(ge=3, description="tokens read at a time (default: the model's maximum)")
    ] = None
    long_documents: Annotated[
        Literal["truncate", "windows"] | None,
        Field(description="what is longer than --max-length: cut off, or read in overlapping windows"),
    ] = None
    stride: Annotated[
        int | None, Field(ge=0, description="tokens that two windows share (default: 128, at most half of a window)")
    ] = None
    budget_tokens: Annotated[
        int | None, Field(ge=16, description="tokens in a packed batch (default: 4096, GPUs 65536)")
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto takes the GPUs where there are any")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Field(description="auto: float32 on CPUs, bfloat16 on GPUs")
    ] = "auto"

    def task_kwargs(self) -> dict[str, Any]:
        """What the task is made with: the options that were given."""
        names = ("max_length", "long_documents", "stride", *self.task_options)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @field_validator(*LISTS, mode="before", check_fields=False)
    @classmethod
    def _split_commas(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        names = [name for name in value.split(",") if name.strip()]
        return names if info.field_name == "targets" else [name.strip() for name in names]  # " cat" is a token

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code (the command line), then the environment, then the YAML file."""
        path = init_settings().get("config") or os.environ.get(f"{ENV_PREFIX}CONFIG")
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_yaml(path) if path else {})


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file, a mapping of names with hyphens or underscores; UserError where it is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold options as 'name: value' lines")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


class CorpusOptions(TaskOptions):
    """What every corpus job has beside the task."""

    text_options: ClassVar[tuple[str, ...]] = ("text_column",)
    """The options that name the columns of a document's texts."""

    input: Annotated[
        str | None, Field(description="file, folder or glob of Parquet, Arrow, JSONL or CSV files; gzip is read too")
    ] = None
    output: Annotated[str | None, Field(description="folder or URI for the labelled Parquet files")] = None
    keep_columns: Annotated[
        Commas, Field(description="input columns to keep in the output, comma-separated (default: all)")
    ] = None
    output_prefix: Annotated[str, Field(description="put before the name of each column that the job adds")] = ""
    actors: Annotated[
        str, Field(pattern=r"^(auto|[1-9]\d*|[1-9]\d*:[1-9]\d*)$", description="model actors: N, MIN:MAX or auto")
    ] = "auto"
    max_rejected: Annotated[
        str | None,
        Field(pattern=r"^\d+$|^\d+(\.\d+)?%$", description="stop when more rows, or a larger share, are rejected"),
    ] = None
    max_characters: Annotated[int, Field(ge=1, description="longer texts are cut, those read in windows rejected")] = (
        5_000_000
    )
    batch_timeout_s: Annotated[
        float, Field(gt=0, description="seconds for a packed batch, then its actor is replaced")
    ] = 600.0
    limit: Annotated[int | None, Field(ge=1, description="label only the first LIMIT rows")] = None
    dry_run: Annotated[bool, Field(description="show what would be done, and do nothing")] = False
    overwrite: Annotated[bool, Field(description="replace an earlier output of this job")] = False

    @property
    def text_columns(self) -> list[str]:
        """The columns of a document's texts."""
        return [getattr(self, name) for name in self.text_options]

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: str) -> str:
        low, _, high = value.partition(":")
        if high and int(low) > int(high):
            raise ValueError(f"MIN {low} is above MAX {high}")
        return value

    @field_validator("actors", "max_rejected", mode="before")
    @classmethod
    def _number_or_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class TextOptions(CorpusOptions):
    """A job over single texts."""

    text_column: Annotated[str, Field(description="column with the text")] = "text"


class ClassifyTask(TaskOptions):
    """A label, several labels or a number for each text."""

    task_options = ("top_k", "threshold", "merge")

    top_k: Annotated[
        int | None, Field(ge=1, description="add the TOP_K best labels and their scores as the lists labels, scores")
    ] = None
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="least score of a label of a multi-label model (default: 0.5)")
    ] = None
    merge: Annotated[
        Literal["mean", "max"] | None, Field(description="logits of a document's windows become one by (default: mean)")
    ] = None


class TagTask(TaskOptions):
    """The entities in each text."""

    task_options = ("aggregation", "ignore_labels")

    aggregation: Annotated[
        Literal["none", "simple", "first", "average", "max"],
        Field(description="none: tokens; simple: neighbours of one label; the others: words first, by that score"),
    ] = "simple"
    ignore_labels: Annotated[Commas, Field(description="labels to leave out, comma-separated (default: O)")] = None


class AnswerTask(TaskOptions):
    """The span of a context that answers a question."""

    task_options = ("top_k", "max_answer_length", "no_answer", "align_to_words")

    top_k: Annotated[int | None, Field(ge=1, description="add the TOP_K best spans as the list answers")] = None
    max_answer_length: Annotated[int, Field(ge=1, description="tokens in an answer at most")] = 15
    no_answer: Annotated[bool, Field(description="let no answer, an empty one, compete with the spans")] = False
    align_to_words: Annotated[bool, Field(description="let answers begin and end with whole words")] = True


class FillTask(TaskOptions):
    """The likeliest tokens for each mask in a text."""

    task_options = ("top_k", "targets")

    top_k: Annotated[int, Field(ge=1, description="tokens for each mask")] = 5
    targets: Annotated[Commas, Field(description="the only tokens to choose from, comma-separated")] = None


class EmbedTask(TaskOptions):
    """A vector for each text."""

    task_options = ("pooling", "dimensions", "normalize", "precision", "prompt", "prompt_name")

    pooling: Annotated[
        Literal["cls", "mean"] | None, Field(description="how token vectors become one (default: the model's, or mean)")
    ] = None
    dimensions: Annotated[int | None, Field(ge=1, description="keep only the first DIMENSIONS numbers")] = None
    normalize: Annotated[bool, Field(description="make vectors of length one, after --dimensions")] = False
    precision: Annotated[
        Literal["float32", "float16", "int8", "binary", "ubinary"], Field(description="how vectors are stored")
    ] = "float32"
    prompt: Annotated[str | None, Field(description="text to put before each document")] = None
    prompt_name: Annotated[str | None, Field(description="name of a prompt of the model's to put there")] = None


class RerankTask(TaskOptions):
    """How well a passage answers a query."""

    task_options = ("merge", "raw_scores")

    merge: Annotated[
        Literal["mean", "max"] | None, Field(description="logits of a passage's windows become one by (default: max)")
    ] = None
    raw_scores: Annotated[
        bool | None, Field(description="give the model's numbers, not their sigmoid (default: as the model says)")
    ] = None


class ClassifyOptions(ClassifyTask, TextOptions):
    """Label every document of a corpus with a ModernBERT sequence classifier."""


class TagOptions(TagTask, TextOptions):
    """Find the entities in every document of a corpus with a ModernBERT token classifier."""


class AnswerOptions(AnswerTask, CorpusOptions):
    """Answer every question of a corpus from its context with a ModernBERT question answering model."""

    text_options = ("question_column", "context_column")

    question_column: Annotated[str, Field(description="column with the question")] = "question"
    context_column: Annotated[str, Field(description="column with the text that holds the answer")] = "context"


class FillOptions(FillTask, TextOptions):
    """Find the likeliest tokens for each mask in a corpus with a ModernBERT masked language model."""


class EmbedOptions(EmbedTask, TextOptions):
    """Embed every document of a corpus with a ModernBERT encoder or a sentence-transformers model on one."""


class RerankOptions(RerankTask, CorpusOptions):
    """Score every pair of query and passage of a corpus with a ModernBERT cross-encoder."""

    text_options = ("query_column", "passage_column")

    query_column: Annotated[str, Field(description="column with the query")] = "query"
    passage_column: Annotated[str, Field(description="column with the passage")] = "passage"
