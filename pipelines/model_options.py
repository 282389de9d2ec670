"""The options of a model and of how it is run, beside those of its task; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from pipelines.errors import UserError
from pipelines.option_types import Commas, Words, marker, plain_message, split_at_commas
from pipelines.options import TASKS

Options = TypeVar("Options", bound=BaseModel)


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
        Literal["auto", "float32", "bfloat16", "float16", "float8", "int8"],
        Field(
            description="auto: float32, on GPUs bfloat16; float8 on GPUs, int8 on CPUs: less exact"
        ),
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
            # Of several options together, a message names them itself.
            place = f"{each['loc'][0]} {each['input']!r}: " if each["loc"] else ""
            mistakes.append(f"{place}{message}")
        raise ValueError("; ".join(mistakes)) from None
