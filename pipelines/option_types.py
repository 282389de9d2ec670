"""The types of options that tasks share, and how an option is written outside Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

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


@dataclass(frozen=True)
class Repeated:
    """Marks a list of which each element has a flag of its own on the command line."""

    flag: str
    metavar: str


Names = Annotated[Sequence[str] | None, NoDecode, Commas()]
Tokens = Annotated[Sequence[str] | None, NoDecode, Commas(strip=False)]
ModelEntries = Annotated[
    Sequence[Mapping[str, Any] | str], NoDecode, Repeated("model", "TASK=MODEL")
]
"""Several models: a mapping of options each, or a text, "classify=my-org/my-model"."""
AS_WORDS = Words("as", {"query": True, "document": False})
AsQuery = Annotated[bool, Field(description="what texts are read as (default: document)"), AS_WORDS]


def marker(field: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return the Commas or Words of an option, if it has one."""
    for each in field.metadata:
        if isinstance(each, kind):
            return each
    return None


def split_at_commas(text: str, *, strip: bool = True) -> list[str]:
    """Return the parts of a comma-separated text that are not blank.

    Without `strip`, they keep the blanks around them.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not strip:
        return parts
    return [part.strip() for part in parts]


def column_option(name: str) -> str:
    """Return the option that names the column of the input `name` of a task."""
    return f"{name}_column"


def plain_message(message: str) -> str:
    """Return a message of pydantic's in our words: what is allowed, without a preamble."""
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
