"""JSON files: an object per line, or an array of objects; one malformed line spoils no other.

Values become text as they are written; the shapes of the columns say what they are (shapes.py).
Lines are parsed by Python's json; blocks whose columns are plain and keep their types, by Arrow's
parser, about four times as fast, with the same values.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from modernbert.stored import Json
from pipelines.input.shapes import EXACT_IN_FLOAT, Number, Shape
from pipelines.input.shards import Block, Format, Malformed, Reading, TryAgain
from pipelines.input.text import BLOCK_BYTES, TextStream, lines, restore, with_compressions

_MAX_LINE_BYTES = 512 << 20
_MAX_COLUMNS = 10_000
_DECODER = json.JSONDecoder(parse_float=Number)
_BLANKS = " \t\r\n"
_BETWEEN = _BLANKS + ","
_LONGEST_WORD = len("-Infinity")
Item = Json | tuple[str, str]
"""An object, or the reason and the raw text of what is not one."""


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the records of a JSON file in order, in blocks of about 8 MiB.

    At the second `attempt`, Python's json parses all of them, so that mixed columns have numbers as
    they are written.
    """
    shapes = reading.shapes
    stream = TextStream(reading.filesystem, reading.path, reading.options.encoding, reading.span)
    if _is_array(stream):
        for items in _elements(stream):
            yield _block(items, shapes, stream)
        return

    floats_by_arrow: set[str] = set()  # columns of which Arrow has parsed floats
    for data in lines(stream, _MAX_LINE_BYTES):
        table = None
        if not reading.attempt and not stream.invalid:
            table = _parse_plain(data, shapes)
        if table is None:
            may_be_invalid = bool(stream.invalid)
            items = [_item(line, may_be_invalid) for line in data.split(b"\n") if line.strip()]
            yield _block(items, shapes, stream)
            continue
        for name, shape in shapes.items():
            if "float" in shape.kinds:
                floats_by_arrow.add(name)
        yield Block(table, [], stream.share)
    # Arrow has written floats in its own way; a column that turns out to be text needs the file's.
    if any(pa.types.is_string(shapes[name].type) for name in floats_by_arrow):
        raise TryAgain


def _is_array(stream: TextStream) -> bool:
    """Tell whether a file is one array, not lines of which the first is an array."""
    block = stream.read(BLOCK_BYTES)
    stream.unread(block)
    head = block.lstrip()
    if not head.startswith(b"["):
        return False
    first, _, rest = head.partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        return True
    return not rest.strip()


def _item(line: bytes, may_be_invalid: bool) -> Item:
    """Parse a line; `may_be_invalid`: whether the file has bytes that are not UTF-8."""
    text = line.decode()
    if may_be_invalid:
        raw = restore(text)
        if raw != line:
            return "is not valid UTF-8", raw.decode(errors="replace")
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return f"not readable as JSON: {error.msg}", text
    except RecursionError:
        return "not readable as JSON: nested too deeply", text
    except ValueError:
        return "not readable as JSON: a number with too many digits", text
    if isinstance(row, dict):
        return row
    return _not_an_object(row), text


def _not_an_object(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number")
    return f"a row must be an object, not {name}"


def _block(items: list[Item], shapes: dict[str, Shape], stream: TextStream) -> Block:
    """Turn items into columns of text, and add what they hold to the shapes."""
    try:
        columns = _columns(items, shapes)
    except (UnicodeEncodeError, RecursionError):
        # One of them cannot be written as text: each is looked at by itself.
        items = [_writable(item) for item in items]
        columns = _columns(items, shapes)
    for name in columns:
        values = [item[name] for item in items if type(item) is dict and name in item]
        shapes.setdefault(name, Shape()).observe(values)
    if len(shapes) > _MAX_COLUMNS:
        raise ValueError(f"has more than {_MAX_COLUMNS:,} different fields")
    malformed: list[Malformed] = []
    for record, item in enumerate(items):
        if type(item) is tuple:
            reason, raw = item
            malformed.append((record, reason, raw))
    table = pa.table(columns) if columns else _rows_without_columns(len(items))
    return Block(table, malformed, stream.share, stream.note)


def _rows_without_columns(rows: int) -> pa.Table:
    structs = pa.array([{}] * rows, pa.struct([]))
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(structs)])


def _columns(items: list[Item], shapes: dict[str, Shape]) -> dict[str, pa.Array]:
    """Return the columns of earlier blocks and of these items as text, with nulls where items lack
    one.
    """
    rows: list[Json] = [item if type(item) is dict else {} for item in items]
    names = dict.fromkeys(shapes)
    for row in rows:
        names.update(dict.fromkeys(row))
    for name in names:
        name.encode()  # half a surrogate pair in it would cost the whole file
    columns: dict[str, pa.Array] = {}
    for name in names:
        columns[name] = pa.array([_text(row.get(name)) for row in rows], pa.string())
    return columns


def _text(value: object) -> str | None:
    """Return a value as it is written; a string as its characters."""
    if value is None or isinstance(value, str):
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


def _count_objects(data: bytes) -> int | None:
    """Return the number of lines where each begins and ends as an object, else None."""
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == ord("\n"))
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate(([0], ends[:-1] + 1))
    last = ends - 1
    last -= signs[last] == ord("\r")
    begins = signs[starts] == ord("{")
    closes = signs[last] == ord("}")
    are_objects = begins & (last > starts) & closes
    return len(ends) if are_objects.all() else None


def _parse_plain(data: bytes, shapes: dict[str, Shape]) -> pa.Table | None:
    """Parse lines whose values all have the plain types of earlier lines; None where some do not.

    A line that begins and ends as an object, where there are as many objects as lines, is exactly
    one object.
    """
    types: dict[str, pa.DataType] = {}
    for name, shape in shapes.items():
        type_ = _plain_type(shape)
        if type_ is None:
            return None
        types[name] = type_
    if not types:
        return None
    rows = _count_objects(data)
    if rows is None:
        return None

    in_one_block = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    of_these_types = pa_json.ParseOptions(
        explicit_schema=pa.schema(types), unexpected_field_behavior="error"
    )
    try:
        table = pa_json.read_json(io.BytesIO(data), in_one_block, of_these_types)
    except pa.ArrowInvalid:
        return None
    if len(table) != rows:
        return None

    # The shapes change only when all columns are known to be right.
    ranges = {
        name: pc.min_max(table[name]).as_py()
        for name, type_ in types.items()
        if pa.types.is_primitive(type_)
    }
    for name, type_ in types.items():
        if type_ != pa.float64():
            continue
        least = ranges[name]["min"] or 0
        most = ranges[name]["max"] or 0
        # A larger number may have been a whole one that a float64 does not hold.
        if max(abs(least), abs(most)) >= EXACT_IN_FLOAT:
            return None
    for name, type_ in types.items():
        if table[name].null_count:
            shapes[name].kinds.add("null")
        if type_ == pa.int64() and ranges[name]["min"] is not None:
            shapes[name].observe([ranges[name]["min"], ranges[name]["max"]])
    return pa.table({name: table[name].cast(pa.string()) for name in types})


def _plain_type(shape: Shape) -> pa.DataType | None:
    """Return the type that Arrow's parser can read a column as, None where Python's has to."""
    kinds = shape.kinds - {"null"}
    if not kinds:
        return pa.null()
    type_ = shape.type
    if type_ not in (pa.string(), pa.bool_(), pa.int64(), pa.float64()):
        return None
    # A column of mixed kinds is text, too, as its values are written.
    if pa.types.is_string(type_) and kinds != {"string"}:
        return None
    return type_


def _elements(stream: TextStream) -> Iterator[list[Item]]:
    """Yield the elements of an array; an element on a line of its own that is malformed costs that
    line alone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = decoder.decode(stream.read())
    at = text.index("[") + 1  # the place in the text, of which what is behind it is dropped
    done = False  # whether the text goes to the file's end
    closed = False
    while True:
        items: list[Item] = []
        while not closed:
            at = _skip(text, at)
            if at >= len(text):
                break
            if text[at] == "]":
                closed = True
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
        text = text[at:] + decoder.decode(data, final=done)
        at = 0


def _skip(text: str, at: int) -> int:
    """Return the place of the next element or bracket."""
    while at < len(text) and text[at] in _BETWEEN:
        at += 1
    return at


def _element(text: str, at: int, done: bool) -> tuple[Item, int | None]:
    """Parse an element and return it with its end.

    The end is None where more of the file is needed to tell.

    Raises ValueError for a malformed element that is not on a line of its own.
    """
    try:
        value, after = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        is_open_string = error.msg.startswith("Unterminated string")
        cut_off = is_open_string or error.pos >= len(text) - _LONGEST_WORD
        if cut_off and not done:
            return {}, None
        return _malformed_line(text, at, error.msg, error)
    except RecursionError as error:
        return _malformed_line(text, at, "nested too deeply", error)
    if after >= len(text) and not done:
        return {}, None
    if isinstance(value, dict):
        return value, after
    return (_not_an_object(value), text[at:after]), after


def _malformed_line(
    text: str, at: int, reason: str, error: Exception
) -> tuple[tuple[str, str], int]:
    """Return a malformed element with the end of its line, if it has one of its own."""
    line_end = text.find("\n", at)
    if line_end < 0 or not _begins_line(text, at):
        raise ValueError(f"is not a readable array of JSON: {reason}") from error
    raw = text[at:line_end].rstrip(",\r ")
    return (f"not readable as JSON: {reason}", raw), line_end


def _begins_line(text: str, at: int) -> bool:
    """Tell whether an element begins a line, or follows another one or the opening bracket."""
    return text[:at].rstrip(" \t").endswith(("\n", "[", ","))


JSON = Format("json", with_compressions(".jsonl", ".jsonlines", ".ndjson", ".json"), blocks=blocks)
