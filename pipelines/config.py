"""A corpus job's options: one typed model behind the command line, a YAML file and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "MODERNBERT_"
Options = TypeVar("Options", bound="CorpusOptions")


class UserError(ValueError):
    """A mistake in what the user asked for; shown as one line, without a traceback, with exit code 2."""


class CorpusOptions(BaseSettings):
    """Options of every corpus job. The command line wins over the environment, which wins over the YAML file."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=())

    config: Annotated[Path | None, Field(description="YAML file with any of these options")] = None
    input: Annotated[
        str | None, Field(description="file, folder or glob of Parquet, Arrow, JSONL or CSV files; gzip is read too")
    ] = None
    output: Annotated[str | None, Field(description="folder for the labelled Parquet files")] = None
    model: Annotated[str | None, Field(description="checkpoint: a folder or a Hugging Face hub id")] = None
    text_column: Annotated[str, Field(description="column with the text")] = "text"
    keep_columns: Annotated[
        list[str] | None,
        NoDecode,
        Field(description="input columns to keep in the output, comma-separated (default: all)"),
    ] = None
    output_prefix: Annotated[str, Field(description="put before the name of each column that the job adds")] = ""
    max_length: Annotated[
        int | None, Field(ge=3, description="tokens of a document that are read (default: the model's maximum)")
    ] = None
    budget_tokens: Annotated[
        int | None, Field(ge=16, description="tokens in a packed batch (default: 4096 on CPUs, 65536 on GPUs)")
    ] = None
    actors: Annotated[
        str, Field(pattern=r"^(auto|[1-9]\d*|[1-9]\d*:[1-9]\d*)$", description="model actors: N, MIN:MAX or auto")
    ] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto takes the GPUs where there are any")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Field(description="auto: float32 on CPUs, bfloat16 on GPUs")
    ] = "auto"
    limit: Annotated[int | None, Field(ge=1, description="label only the first LIMIT rows")] = None
    dry_run: Annotated[bool, Field(description="show what would be done, and do nothing")] = False
    overwrite: Annotated[bool, Field(description="replace an earlier output of this job")] = False

    @field_validator("keep_columns", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: str) -> str:
        low, _, high = value.partition(":")
        if high and int(low) > int(high):
            raise ValueError(f"MIN {low} is above MAX {high}")
        return value

    @field_validator("actors", mode="before")
    @classmethod
    def _number_or_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

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


class ClassifyOptions(CorpusOptions):
    """Label every document of a corpus with a ModernBERT sequence classifier."""

    top_k: Annotated[
        int | None, Field(ge=1, description="add the TOP_K best labels and their scores as the lists labels, scores")
    ] = None
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="least score of a label of a multi-label model (default: 0.5)")
    ] = None
