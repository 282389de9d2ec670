"""Plain text files: a line is a document, in the column `text`; blank lines are rows, too."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipelines.input.shapes import Shape
from pipelines.input.shards import Block, Format, Malformed, Reading
from pipelines.input.text import TextStream, lines, restore, with_compressions

_COLUMN = "text"
_MAX_LINE_BYTES = 512 << 20


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the lines of a file in order, in blocks of about 8 MiB; one ends with LF or CR LF."""
    stream = TextStream(reading.filesystem, reading.path, reading.options.encoding, reading.span)
    for data in lines(stream, _MAX_LINE_BYTES):
        texts = data.decode().removesuffix("\n").split("\n")
        values: list[str | None] = [text.removesuffix("\r") for text in texts]
        malformed: list[Malformed] = []
        if stream.invalid:
            malformed = _take_invalid(values)
        reading.shapes.setdefault(_COLUMN, Shape()).observe(values)
        table = pa.table({_COLUMN: pa.array(values, pa.string())})
        yield Block(table, malformed, stream.share, stream.note)


def _take_invalid(values: list[str | None]) -> list[Malformed]:
    """Replace the lines that are not UTF-8 by nulls, and return them with the reason."""
    malformed: list[Malformed] = []
    for number, value in enumerate(values):
        raw = restore(value or "")
        try:
            raw.decode()
        except UnicodeDecodeError:
            malformed.append((number, "is not valid UTF-8", raw.decode(errors="replace")))
            values[number] = None
    return malformed


TXT = Format("text", with_compressions(".txt"), blocks)
