"""The options of commands and corpus jobs: from the command line, the environment or YAML.

A task's own options are in options.py; the classes here add what every job and command has.
"""

from __future__ import annotations

import codecs
import difflib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, create_model, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.model_options import ModelOptions
from pipelines.option_types import Names, Words, column_option, marker
from pipelines.options import TASKS
from pipelines.task_options import TaskOptions

ENV_PREFIX = "MODERNBERT_"
OTHER_VARIABLES = frozenset({"api_key", "ray_dashboard"})
"""Variables with ENV_PREFIX that are not options: the service's key, and in jobs/schedules the
address of a cluster.
"""
_ONLINE_OPTIONS = (
    "pipelines.serve.config:ServiceOptions",
    "pipelines.serve.config:ServedModel",
    "pipelines.serve.http.limits:HttpLimits",
)
"""The options of the service, which it does not read from the environment, as "module:class"."""


class CorpusOptions(TaskOptions, ModelOptions):
    """The options that every corpus job has beside its task's."""

    input: Annotated[
        str | None,
        Field(
            description=(
                "file, folder or glob of Parquet, Arrow, JSON or CSV files; text also as gz, zst, "
                "bz2, lz4"
            )
        ),
    ] = None
    output: Annotated[
        str | None, Field(description="folder or URI for the labelled Parquet files")
    ] = None
    keep_columns: Annotated[
        Names, Field(description="input columns to keep, comma-separated (default: all)")
    ] = None
    output_prefix: Annotated[
        str, Field(description="put before the name of each column that the job adds")
    ] = ""
    actors: Annotated[
        str,
        Field(
            pattern=r"^(auto|[1-9]\d*|[1-9]\d*:[1-9]\d*)$",
            description="model actors: N, MIN:MAX or auto",
        ),
    ] = "auto"
    wait_for_actors_s: Annotated[
        float, Field(ge=0, description="seconds to wait for a place for them")
    ] = 600.0
    if_running: Annotated[
        Literal["fail", "skip"], Field(description="exit code beside another run: 2 or 0")
    ] = "fail"
    max_rejected: Annotated[
        str | None,
        Field(
            pattern=r"^\d+$|^\d+(\.\d+)?%$",
            description="stop when more rows, or a larger share, are rejected",
        ),
    ] = None
    max_characters: Annotated[int, Field(ge=1, description="longer texts are cut or rejected")] = (
        5_000_000
    )
    batch_timeout_s: Annotated[
        float, Field(gt=0, description="seconds for a packed batch, then its actor is replaced")
    ] = 600.0
    csv_delimiter: Annotated[
        str | None, Field(description="field separator (default: a comma, in .tsv a tab)")
    ] = None
    csv_quote: Annotated[str, Field(description="quote character of CSV")] = '"'
    csv_escape: Annotated[
        str | None, Field(description="escape character of CSV (default: none)")
    ] = None
    csv_types: Annotated[
        Literal["text", "infer"], Field(description="columns of CSV stay text, or get types")
    ] = "text"
    encoding: Annotated[str, Field(description="encoding of text files")] = "utf-8"
    rows_per_file: Annotated[
        int | None,
        Field(ge=1, description="most rows in a part"),
    ] = None
    limit: Annotated[int | None, Field(ge=1, description="label only the first LIMIT rows")] = None
    notify: Annotated[
        str | None,
        Field(description="http(s) URL that gets the status as JSON, once, when the job has ended"),
    ] = None
    price_per_hour: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="of a GPU, on CPUs of a core: for the cost"),
    ] = None
    overwrite: Annotated[bool, Field(description="replace an earlier output of this job")] = False

    def required(self) -> tuple[str, str, str]:
        """Return input, model and output; UserError if one is missing."""
        if self.input is None:
            raise UserError("--input is missing")
        model = self.model_named(self.model)
        if self.output is None:
            raise UserError("--output is missing")
        return self.input, model, self.output

    @property
    def text_columns(self) -> dict[str, str]:
        """The column of each text of a document by its name, in the order of the task's inputs."""
        columns: dict[str, str] = {}
        for name in self.input_names():
            column = getattr(self, column_option(name))
            if column is not None:  # an optional text that the corpus does not have
                columns[name] = column
        return columns

    @property
    def checked_column(self) -> str | None:
        """The column that answers are compared with; None where there is none."""
        column: str | None = getattr(self, "gold_column", None)  # of tasks that have gold
        return column

    @property
    def review_rows(self) -> int | None:
        """How many rows are written for review; None for no such file."""
        rows: int | None = getattr(self, "review", None)  # as above
        return rows

    @property
    def read_columns(self) -> list[str]:
        """The columns that the job reads: those of texts, and that of gold."""
        gold = [] if self.checked_column is None else [self.checked_column]
        return [*self.text_columns.values(), *gold]

    @field_validator("actors")
    @classmethod
    def _ordered(cls, value: str) -> str:
        low, _, high = value.partition(":")
        if high and int(low) > int(high):
            raise ValueError(f"MIN {low} is above MAX {high}")
        return value

    @field_validator("csv_delimiter", "csv_quote", "csv_escape")
    @classmethod
    def _one_sign(cls, value: str | None) -> str | None:
        if value in ("\\t", "tab"):
            return "\t"
        if value is None:
            return None
        is_one_ascii = len(value) == 1 and value.isascii()
        if not is_one_ascii or value.isalnum() or value in "\r\n":
            raise ValueError(
                "must be one ASCII character, not a letter, digit or line end (tab for a tab)"
            )
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "a".encode(value)  # raises for a codec of bytes, such as base64
            return codecs.lookup(value).name
        except LookupError as error:
            raise ValueError("is not an encoding that Python knows") from error

    @field_validator("actors", "max_rejected", mode="before")
    @classmethod
    def _number_or_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value


@cache
def corpus_options(task: str) -> type[CorpusOptions]:
    """Return the options of a task's corpus job: its own, a column for each input, every job's.

    Example:
        >>> corpus_options("classify")(input="in/", output="out/", model="my-org/my-model")
    """
    options = TASKS[task]
    columns: Json = {}  # as create_model takes fields: (annotation, default)
    for name, content in options.inputs.items():
        described = Field(description=f"column with the {content}")
        columns[column_option(name)] = (Annotated[str, described], name)
    for name, content in options.optional_inputs.items():
        described = Field(description=f"column with the {content}")
        columns[column_option(name)] = (Annotated[str | None, described], None)
    if options.gold:
        described = Field(description=f"check answers: column with the {options.gold}")
        columns["gold_column"] = (Annotated[str | None, described], None)
        described = Field(ge=1, description="write the REVIEW least sure rows to _review.parquet")
        columns["review"] = (Annotated[int | None, described], None)
    # The task's class comes first: its defaults win. (create_model's types know one base alone.)
    bases: Any = (options, CorpusOptions)
    created: type[CorpusOptions] = create_model(
        f"Corpus{options.__name__}", __base__=bases, __doc__=options.purpose, **columns
    )
    return created


class CommandOptions(ModelOptions, BaseSettings):
    """The options of a command: command line wins over environment, and environment over YAML."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", protected_namespaces=()
    )

    config: Annotated[Path | None, Field(description="YAML file with any of these options")] = None

    @classmethod
    def from_command_line(cls, flags: Mapping[str, object]) -> Self:
        """Make the options of `flags`, values by name; the environment and YAML give the others.

        pydantic-settings reads these when an instance is made (`settings_customise_sources`).

        Raises:
            UserError: for an unknown environment variable, and a YAML file that holds no options.
            pydantic.ValidationError: for values that an option does not take.
        """
        values: Json = dict(flags)
        return cls(**values)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        command_line = init_settings()
        environment = _Environment(settings_cls)()
        path = command_line.get("config") or environment.get("config")
        file = read_yaml(path) if path else {}
        # A source may call an option by either of its names (`Words`). They are made one here, so
        # that one source wins over another whatever name it uses.
        sources: list[PydanticBaseSettingsSource] = []
        for values in (command_line, environment, file):
            sources.append(InitSettingsSource(settings_cls, cls.own_names(values)))
        return tuple(sources)


class _Environment(EnvSettingsSource):
    """The options in environment variables, under either of their names (`Words`)."""

    def __call__(self) -> Json:
        check_variables(self.settings_cls, os.environ)
        values = super().__call__()
        for field in self.settings_cls.model_fields.values():
            words = marker(field, Words)
            if words is None:
                continue
            word = self.env_vars.get(f"{ENV_PREFIX}{words.name}".lower())
            if word is not None:
                values[words.name] = word
        return values


@cache
def command_options(task: str) -> type[CommandOptions]:
    """Return the options of `python -m pipelines` for a task: its own, and those of its model."""
    options = TASKS[task]
    bases: Any = (options, CommandOptions)
    created: type[CommandOptions] = create_model(
        f"Command{options.__name__}", __base__=bases, __doc__=options.__doc__
    )
    return created


@cache
def corpus_command_options(task: str) -> type[CommandOptions]:
    """Return the options of the command of a corpus job: those of the job, and `dry_run`."""
    options = corpus_options(task)
    described = Field(description="show what would be done, and do nothing")
    dry_run: Any = (Annotated[bool, described], False)
    bases: Any = (options, CommandOptions)
    created: type[CommandOptions] = create_model(
        f"Command{options.__name__}", __base__=bases, __doc__=options.__doc__, dry_run=dry_run
    )
    return created


def read_yaml(path: str | Path) -> Json:
    """Return the options in a YAML file, a mapping whose names have hyphens or underscores.

    Raises UserError for a file that cannot be read, and for another content.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path}: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold options as 'name: value' lines")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def check_variables(options_class: type[BaseModel], variables: Iterable[str]) -> None:
    """Refuse environment variables with ENV_PREFIX that are options of nothing.

    An environment may serve several commands: options of other tasks, and of the service, are
    passed over.

    Args:
        options_class: the options of the command that reads the environment.
        variables: the names of all variables.

    Raises:
        UserError: for unknown ones. It names each, the option that is most like it, and the
            options of the command.
    """
    own = option_names(options_class)
    variable_of: dict[str, str] = {}  # by the name of the option that it would be
    for variable in variables:
        if variable.upper().startswith(ENV_PREFIX):
            variable_of[variable.lower().removeprefix(ENV_PREFIX.lower())] = variable
    others = variable_of.keys() - OTHER_VARIABLES - set(own)
    if not others:
        return  # the usual case; what all commands know takes the service's modules

    known = [*own, *_options_of_all()]
    mistakes: list[str] = []
    for option in sorted(others - set(known)):
        # An option of this very command is the likelier guess.
        similar = difflib.get_close_matches(option, own, n=1)
        if not similar:
            similar = difflib.get_close_matches(option, known, n=1)
        hint = f" (did you mean {ENV_PREFIX}{similar[0].upper()}?)" if similar else ""
        mistakes.append(f"{variable_of[option]} in the environment is not an option{hint}")
    if mistakes:
        allowed = ", ".join(name.upper() for name in own)
        raise UserError(
            f"{'; '.join(mistakes)}: correct it or unset it; after {ENV_PREFIX} stands one of "
            f"{allowed}"
        )


def option_names(options_class: type[BaseModel]) -> list[str]:
    """Return the names of a class's options: of its fields, then the other names of some."""
    names = list(options_class.model_fields)
    for field in options_class.model_fields.values():
        words = marker(field, Words)
        if words is not None:
            names.append(words.name)
    return names


def _options_of_all() -> list[str]:
    """Return the names of the options of all commands, of all tasks, and of the service."""
    classes: list[type[BaseModel]] = [resolve_name(path) for path in _ONLINE_OPTIONS]
    for task in TASKS:
        classes += [corpus_command_options(task), command_options(task)]
    names: dict[str, None] = {}  # each once, in order: hints depend on it
    for options_class in classes:
        names |= dict.fromkeys(option_names(options_class))
    return list(names)
