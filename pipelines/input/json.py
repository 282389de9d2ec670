"""JSON files: an object a line, or an array of objects; one malformed line spoils no other.

Values become text as they are written; the shapes of the columns say what they are (shapes.py).
Lines are parsed by Python's json; blocks whose columns are plain and keep their types, by Arrow's
parser, about four times as fast, with the same values.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from pipelines.input.shapes import EXACT_IN_FLOAT, Number, Shape
from pipelines.input.shards import Block, Format, Malformed, Reading, TryAgain
from pipelines.input.text import BLOCK_BYTES, TextStream, lines, restore, with_compressions

_MAX_LINE_BYTES = 512 << 20
_MAX_COLUMNS = 10_000
_DECODER = json.JSONDecoder(parse_float=Number)
_BLANKS = " \t\r\n"
_BETWEEN = _BLANKS + ","
_LONGEST_WORD = len("-Infinity")
Item = dict[str, Any] | tuple[str, str]
"""An object, or the reason and the raw text of what is none."""


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the records of a JSON file in order, in blocks of about 8 MiB.

    At the second `attempt`, Python's json parses all of them, so that mixed columns have numbers as
    they are written.
    """
    shapes = reading.shapes
    stream = TextStream(reading.filesystem, reading.path, reading.options.encoding, reading.span)
    if _is_array(stream):
        yield from (_block(items, shapes, stream) for items in _elements(stream))
        return
    by_arrow: set[str] = set()
    for data in lines(stream, _MAX_LINE_BYTES):
        table = None if reading.attempt or stream.invalid else _parse_plain(data, shapes)
        if table is None:
            yield _block(
                [_item(line, bool(stream.invalid)) for line in data.split(b"\n") if line.strip()],
                shapes,
                stream,
            )
        else:
            by_arrow |= {name for name, shape in shapes.items() if "float" in shape.kinds}
            yield Block(table, [], stream.share)
    if any(pa.types.is_string(shapes[name].type) for name in by_arrow):
        raise TryAgain


def _is_array(stream: TextStream) -> bool:
    """Tell whether a file is one array: its first line is no value of its own with others after
    it.
    """
    head = stream.read(BLOCK_BYTES)
    stream.unread(head)
    if not head.lstrip().startswith(b"["):
        return False
    first, _, rest = head.lstrip().partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        return True
    return not rest.strip()


def _item(line: bytes, may_be_invalid: bool) -> Item:
    text = line.decode()
    if may_be_invalid and (raw := restore(text)) != line:
        return "is not valid UTF-8", raw.decode(errors="replace")
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return f"not readable as JSON: {error.msg}", text
    except RecursionError:
        return "not readable as JSON: nested too deeply", text
    except ValueError:
        return "not readable as JSON: a number with too many digits", text
    return row if isinstance(row, dict) else (_not_an_object(row), text)


def _not_an_object(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return f"a row must be an object, not {names.get(type(value), 'a number')}"


def _block(items: list[Item], shapes: dict[str, Shape], stream: TextStream) -> Block:
    """Turn items into columns of text, and add what they hold to the shapes."""
    try:
        columns = _columns(items, shapes)
    except (UnicodeEncodeError, RecursionError):
        items = [_writable(item) for item in items]
        columns = _columns(items, shapes)
    for name in columns:
        shapes.setdefault(name, Shape()).observe(
            [item[name] for item in items if type(item) is dict and name in item]
        )
    if len(shapes) > _MAX_COLUMNS:
        raise ValueError(f"has more than {_MAX_COLUMNS:,} different fields")
    malformed: list[Malformed] = [(i, *item) for i, item in enumerate(items) if type(item) is tuple]
    return Block(
        pa.table(columns) if columns else _rows_without_columns(len(items)),
        malformed,
        stream.share,
        stream.note,
    )


def _rows_without_columns(rows: int) -> pa.Table:
    return pa.Table.from_batches(
        [pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))]
    )


def _columns(items: list[Item], shapes: dict[str, Shape]) -> dict[str, pa.Array]:
    rows = [item if type(item) is dict else {} for item in items]
    names = dict.fromkeys([*shapes, *(name for row in rows for name in row)])
    for name in names:
        name.encode()  # half a surrogate pair in it would cost the whole file
    return {name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names}


def _text(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    if type(value) is Number:
        return value.written
    return json.dumps(value, ensure_ascii=False)


def _writable(item: Item) -> Item:
    """Return an item, or why it is malformed where it cannot be written as text."""
    if type(item) is tuple:
        return item
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which is no text", json.dumps(item)
    except RecursionError:
        return "not readable as JSON: nested too deeply", repr(list(item))
    return item


def _objects(data: bytes) -> int | None:
    """Return the number of lines where each begins and ends as an object, else None."""
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == ord("\n"))
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate(([0], ends[:-1] + 1))
    last = ends - 1
    last -= signs[last] == ord("\r")
    whole = (signs[starts] == ord("{")) & (last > starts) & (signs[last] == ord("}"))
    return len(ends) if whole.all() else None


def _parse_plain(data: bytes, shapes: dict[str, Shape]) -> pa.Table | None:
    """Parse lines whose values all have the plain types of earlier lines; None where some do not.

    A line that begins and ends as an object, where there are as many objects as lines, is exactly
    one object.
    """
    types = {name: _plain_type(shape) for name, shape in shapes.items()}
    if not types or None in types.values() or (rows := _objects(data)) is None:
        return None
    try:
        table = pa_json.read_json(
            io.BytesIO(data),
            pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pa_json.ParseOptions(
                explicit_schema=pa.schema(types), unexpected_field_behavior="error"
            ),
        )
    except pa.ArrowInvalid:
        return None
    if len(table) != rows:
        return None
    ranges = {
        name: pc.min_max(table[name]).as_py()
        for name, type_ in types.items()
        if pa.types.is_primitive(type_)
    }
    for name, found in ranges.items():
        # A larger number may have been a whole one that a float64 does not hold.
        if (
            types[name] == pa.float64()
            and max(abs(found["min"] or 0), abs(found["max"] or 0)) >= EXACT_IN_FLOAT
        ):
            return None
    for name in types:
        if table[name].null_count:
            shapes[name].kinds.add("null")
        if types[name] == pa.int64() and ranges[name]["min"] is not None:
            shapes[name].observe([ranges[name]["min"], ranges[name]["max"]])
    return pa.table({name: table[name].cast(pa.string()) for name in types})


def _plain_type(shape: Shape) -> pa.DataType | None:
    kinds = shape.kinds - {"null"}
    if not kinds:
        return pa.null()
    plain = (pa.string(), pa.bool_(), pa.int64(), pa.float64())
    return (
        shape.type
        if shape.type in plain and (kinds == {"string"} or not pa.types.is_string(shape.type))
        else None
    )


def _elements(stream: TextStream) -> Iterator[list[Item]]:
    """Yield the elements of an array; an element on a line of its own that is malformed costs that
    line alone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, done, closed = decoder.decode(stream.read()), False, False
    at = text.index("[") + 1
    while True:
        items: list[Item] = []
        while not closed and (at := _skip(text, at)) < len(text):
            if closed := text[at] == "]":
                at += 1
                break
            item, after = _element(text, at, done)
            if after is None:
                break
            items.append(item)
            at = after
        if items:
            yield items
        if closed and text[at:].strip(_BLANKS):
            raise ValueError(
                "is not a readable array of JSON: something follows its closing bracket"
            )
        if done and not closed:
            raise ValueError("is an array of JSON that is cut off: it has no closing bracket")
        if done:
            return
        data = stream.read()
        done = not data
        text, at = text[at:] + decoder.decode(data, final=done), 0


def _skip(text: str, at: int) -> int:
    """Return the place of the next element or bracket."""
    while at < len(text) and text[at] in _BETWEEN:
        at += 1
    return at


def _element(text: str, at: int, done: bool) -> tuple[Item, int | None]:
    """Parse an element and return it with its end; None for the end where more of the file is
    needed to tell.
    """
    try:
        value, after = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        cut_off = (
            error.msg.startswith("Unterminated string") or error.pos >= len(text) - _LONGEST_WORD
        )
        if cut_off and not done:
            return {}, None
        line_end = text.find("\n", at)
        if line_end < 0 or not _begins_line(text, at):
            raise ValueError(f"is not a readable array of JSON: {error.msg}") from error
        return (f"not readable as JSON: {error.msg}", text[at:line_end].rstrip(",\r ")), line_end
    except RecursionError as error:
        line_end = text.find("\n", at)
        if line_end < 0 or not _begins_line(text, at):
            raise ValueError("is not a readable array of JSON: nested too deeply") from error
        return (
            "not readable as JSON: nested too deeply",
            text[at:line_end].rstrip(",\r "),
        ), line_end
    if after >= len(text) and not done:
        return {}, None
    return value if isinstance(value, dict) else (_not_an_object(value), text[at:after]), after


def _begins_line(text: str, at: int) -> bool:
    """Tell whether an element begins a line, or follows another one or the opening bracket."""
    return text[:at].rstrip(" \t").endswith(("\n", "[", ","))


JSON = Format("json", with_compressions(".jsonl", ".jsonlines", ".ndjson", ".json"), blocks=blocks)
