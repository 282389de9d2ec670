"""Bodies of requests: JSON is counted before it is parsed, and every list and object has an end."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json
from starlette.exceptions import HTTPException

from pipelines.serve.http.limits import MOST_ITEMS

_MOST_IDS = 1 << 17  # in a list of token ids: some times what a model reads
_MOST_FIELDS = 50  # in an object
_MOST_CONTAINERS = 2 * MOST_ITEMS  # lists and objects in a body
_MOST_STRINGS = 8 * MOST_ITEMS  # names of fields among them; lists of words have the most
# A string without an end goes on to the end of the body.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_T = TypeVar("_T")


class Body(BaseModel):
    """An object in the body of a request: types are strict, unknown fields are refused, and null is
    absent.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    @property
    def ignored(self) -> list[str]:
        """The paths of unknown fields, here and in the objects below."""
        names = [*(self.model_extra or {})]
        for name in self.model_fields_set:
            value = getattr(self, name, None)
            # The first object of a list stands for the others.
            if isinstance(value, list):
                value = next((item for item in value if isinstance(item, Body)), None)
            if isinstance(value, Body):
                names += [f"{name}.{below}" for below in value.ignored]
        return names

    @model_validator(mode="before")
    @classmethod
    def _count_fields(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        if len(value) > _MOST_FIELDS:
            message = "has {count} fields; an object of a request may have {most}"
            numbers = {"count": len(value), "most": _MOST_FIELDS}
            raise PydanticCustomError("too_many_fields", message, numbers)
        # An unknown field stays even where it is null, to be refused or named.
        return {
            name: content
            for name, content in value.items()
            if content is not None or name not in cls.model_fields
        }


class TolerantBody(Body):
    """An object whose unknown fields are passed over, as the dialect's own server does; the
    response names them.
    """

    model_config = ConfigDict(extra="allow")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_ids(value: object) -> object:
    """Convert whole floats among ids; most lists hold none, so that no Python runs for each id."""
    if isinstance(value, list) and len(value) <= _MOST_IDS and float in set(map(type, value)):
        return [_whole(item) for item in value]
    return value


def as_flag(value: object) -> object:
    """Convert "true" and "false", as servers in Python and their clients write booleans, too."""
    words = {"true": True, "false": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def as_list(inputs: _T | list[_T]) -> list[_T]:
    """Return several inputs as they are, and a single one as a list of one."""
    return inputs if isinstance(inputs, list) else [inputs]


Many = Annotated[list[_T], Field(fail_fast=True, min_length=1, max_length=MOST_ITEMS)]
"""A list that holds something; it is checked up to its first mistake, and only so far as it is not
too long.
"""
Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number, which in JSON may be written 2.0."""
Flag = Annotated[bool, BeforeValidator(as_flag)]
"""A boolean, which some clients send as "true" or "false"."""
Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]],
    Field(fail_fast=True, min_length=1, max_length=_MOST_IDS),
    BeforeValidator(_whole_ids),
]
NonEmpty = Annotated[str, Field(min_length=1)]
Direction = Literal["Left", "Right", "left", "right"]


def _input_tag(value: object) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else None
    if isinstance(first, list):
        return "<batch>"
    return "<ids>" if isinstance(first, int | float) else "<texts>"


Inputs = Annotated[
    Annotated[NonEmpty, Tag("<text>")]
    | Annotated[Many[NonEmpty], Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[Many[Ids], Tag("<batch>")],
    Discriminator(_input_tag),
    Field(description="a text, several, or their token ids"),
]
Texts = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[Many[NonEmpty], Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<text>"),
]


def parse_json(body: bytes) -> object:
    """Parse the JSON of a body; nothing is None, as null is.

    Raises HTTPException for what is not JSON, and for more lists and objects than a request may
    hold.
    """
    strings = _count_strings(body)
    if strings > _MOST_STRINGS:
        message = f"the body holds {strings:,} texts and names of fields"
        raise HTTPException(400, f"{message}; a request may hold {_MOST_STRINGS:,}")
    # Python's garbage collector visits each of them again and again while they are made.
    count = _count_containers(body)
    if count > _MOST_CONTAINERS:
        message = f"the body holds {count:,} lists and objects"
        raise HTTPException(400, f"{message}; a request may hold {_MOST_CONTAINERS:,}")
    if not body:
        return None
    try:
        content: object = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None
    return content


def check_counts(content: object, most_inputs: int) -> None:
    """Raise HTTPException for more objects or lists in a field than a request may have inputs:
    each would be checked before they are counted.
    """
    fields = content.items() if isinstance(content, dict) else ()
    for name, value in fields:
        has_objects = isinstance(value, list) and value and isinstance(value[0], dict | list)
        if has_objects and len(value) > most_inputs:
            message = f"{name[:100]} holds {len(value):,} inputs; a request may hold"
            raise HTTPException(400, f"{message} {most_inputs:,}")


def _count_strings(body: bytes) -> int:
    """Return how many strings JSON has: half of its quotes, less those that are escaped."""
    if b"\\" not in body:
        return body.count(b'"') // 2
    without_backslashes = body.replace(b"\\\\", b"")
    return (without_backslashes.count(b'"') - without_backslashes.count(b'\\"')) // 2


def _count_containers(body: bytes) -> int:
    """Return how many lists and objects begin in JSON, less those in strings where that matters."""
    count = body.count(b"[") + body.count(b"{")
    if count <= _MOST_CONTAINERS:
        return count
    outside_strings = _STRING.sub(b"", body)
    return outside_strings.count(b"[") + outside_strings.count(b"{")
