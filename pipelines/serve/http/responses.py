"""Responses of JSON, of which long ones are made and sent in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeGuard

from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

_PART_BYTES = 1 << 16  # of a response that is made at once, and of the parts of a longer one


def json_response(content: object, headers: dict[str, str] | None = None) -> Response:
    """Make a response of JSON; floats have the digits that give the same number again.

    Iterators in `content` are lists whose items are made as they are sent. Of a large answer no
    more than a part is made at a time, and all but the first one in a thread, so that the event
    loop answers others meanwhile.
    """
    parts = _joined(_pieces(content))
    first = next(parts, b"")
    second = next(parts, None)
    if second is None:
        return Response(first, headers=headers, media_type="application/json")
    all_parts = chain((first, second), parts)
    return StreamingResponse(all_parts, headers=headers, media_type="application/json")


def _pieces(content: object) -> Iterator[bytes]:
    """Yield the JSON of a value in pieces, each of an item that holds no list of objects."""
    if isinstance(content, dict) and any(map(_is_container, content.values())):
        opening = b"{"
        for name, value in content.items():
            yield opening + to_json(name) + b":"
            yield from _pieces(value)
            opening = b","
        yield b"}"
    elif isinstance(content, Iterator) or _is_nested(content):
        opening = b"["
        for item in content:
            yield opening
            yield from _pieces(item)
            opening = b","
        # An iterator without items has not even the opening bracket yet.
        yield b"[]" if opening == b"[" else b"]"
    else:
        yield to_json(content)


def _is_container(value: object) -> bool:
    return isinstance(value, list | dict | Iterator)


def _is_nested(content: object) -> TypeGuard[list[object]]:
    """Tell a list of lists, objects or texts from one of numbers, which is one piece."""
    if not isinstance(content, list) or not content:
        return False
    return isinstance(content[0], list | dict | str)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to parts of about _PART_BYTES."""
    part = bytearray()
    for piece in pieces:
        part += piece
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)
