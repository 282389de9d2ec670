"""CSV files with a header, read as text: a record is one row, or malformed with its reason; none
spoils another.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipelines.input.shapes import INFERRED, Shape
from pipelines.input.shards import Block, Format, Malformed, Reading, TryAgain
from pipelines.input.text import (
    BLOCK_BYTES,
    TextOptions,
    TextStream,
    likely_encoding,
    restore,
    restored,
    with_compressions,
)

_MAX_ATTEMPTS = 3
"""Records of up to 8 MiB, 64 MiB and 512 MiB."""
_BACKSLASH = (
    "holds a backslash before a quote: if that is how quotes are escaped in it, give --csv-escape "
    "'\\'"
)
UNCLOSED = "has a quote that is never closed"


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the records of a CSV file in order, in blocks of about 8 MiB.

    It is always read from its start: quotes can hold line ends.
    """
    options, shapes = reading.options, reading.shapes
    # The end mark is a record of its own, unless a quote is still open there.
    end = secrets.token_hex(16)
    watched = b"" if options.csv_escape else b"\\" + options.csv_quote.encode()
    closing = f"\n{end}\n".encode()
    stream = TextStream(
        reading.filesystem,
        reading.path,
        options.encoding,
        end=closing,
        watched=watched,
        map_zeros=True,
    )
    malformed: dict[int, tuple[str, str]] = {}

    def reject(row: pa_csv.InvalidRow) -> str:
        reason, text = (
            f"has {row.actual_columns} fields where the header has {row.expected_columns}",
            row.text or "",
        )
        if text.endswith(end) and text != end:
            reason, text = UNCLOSED, text.removesuffix(f"\n{end}")
        if text != end:
            malformed[row.number - 2] = reason, text  # numbers count from 1, and the header is one
        return "skip"

    delimiter = options.csv_delimiter or (
        "\t" if reading.path.lower().endswith(with_compressions(".tsv")) else ","
    )
    reader = _open(stream, delimiter, options, reject, reading.attempt)
    names = _header(reader.schema.names, end)
    candidates = {name: list(INFERRED) for name in names} if options.csv_types == "infer" else {}
    position = 0
    for table in _tables(reader, reading.attempt):
        good, unclosed = _without_end(table, end, delimiter)
        good = good.rename_columns(names) if names else good.select([])
        block = _interleave(good, malformed, position)
        if unclosed is not None:
            malformed[position + len(block.table) + len(malformed)] = (
                UNCLOSED,
                unclosed,
            )  # the last record
        position += len(block.table)
        yield _finished(block, stream, shapes, candidates)
    if malformed:  # after the last good record
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        yield _finished(
            _interleave(empty, malformed, position, len(malformed)), stream, shapes, candidates
        )


def _open(
    stream: TextStream,
    delimiter: str,
    options: TextOptions,
    reject: Callable[[pa_csv.InvalidRow], str],
    attempt: int,
) -> pa_csv.CSVStreamingReader:
    try:
        return pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES << (3 * attempt)),
            pa_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=options.csv_quote,
                escape_char=options.csv_escape or False,
                newlines_in_values=True,
                invalid_row_handler=reject,
            ),
            pa_csv.ConvertOptions(
                default_column_type=pa.string(), check_utf8=False, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _too_long(error, attempt) from error


def _tables(reader: pa_csv.CSVStreamingReader, attempt: int) -> Iterator[pa.Table]:
    while True:
        try:
            yield pa.Table.from_batches([reader.read_next_batch()])
        except StopIteration:
            return
        except pa.ArrowInvalid as error:
            raise _too_long(error, attempt) from error


def _too_long(error: pa.ArrowInvalid, attempt: int) -> Exception:
    if "straddl" not in str(error):
        return error
    if attempt + 1 < _MAX_ATTEMPTS:
        return TryAgain()
    return ValueError(
        f"has a record of more than {BLOCK_BYTES << (3 * attempt) >> 20} MiB, or {UNCLOSED[4:]}"
    )


def _header(names: list[str], end: str) -> list[str]:
    """Check the names of the columns; an empty file has none."""
    if names == [end]:
        return []
    if any(end in name for name in names):
        raise ValueError("its header has a quote that is never closed")
    for name in names:
        if (raw := restore(name)) != name.encode():
            raise ValueError(
                f"its header is not UTF-8; it looks like {likely_encoding(raw)} (see --encoding)"
            )
    names = _named(names)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"its header has the column {twice[0]!r} twice")
    return names


def _named(names: list[str]) -> list[str]:
    """Name the columns of several blank cells, which spreadsheets leave at the end of a header, by
    their places.
    """
    if names.count("") < 2:
        return names
    named: list[str] = []
    for place, name in enumerate(names, start=1):
        blank = f"column_{place}"
        while blank in names:
            blank += "_"
        named.append(name or blank)
    return named


def _without_end(table: pa.Table, end: str, delimiter: str) -> tuple[pa.Table, str | None]:
    """Remove the end mark, and a last record whose quote is open there, which is returned as
    text.
    """
    if not len(table):
        return table, None
    last = [column[-1].as_py() for column in table.columns]
    if last == [end]:
        return table.slice(0, len(table) - 1), None
    if last[-1].endswith(f"\n{end}\n") or last[-1].endswith(f"\n{end}"):
        last[-1] = '"' + last[-1].rstrip("\n").removesuffix(f"\n{end}")
        return table.slice(0, len(table) - 1), delimiter.join(last)
    return table, None


def _interleave(
    good: pa.Table, malformed: dict[int, tuple[str, str]], position: int, extra: int = 0
) -> Block:
    """Put nulls where records are malformed: those before the last good record, and `extra`
    more.
    """
    stop, found = position + len(good), list[Malformed]()
    for record in sorted(malformed):
        if record >= stop + extra:
            break
        stop += 1
        reason, text = malformed.pop(record)
        found.append((record - position, reason, restore(text).decode(errors="replace")))
    if not found:
        return Block(good, [])
    index = np.zeros(stop - position, np.int64)
    bad = np.zeros(len(index), bool)
    bad[[record for record, _, _ in found]] = True
    index[~bad] = np.arange(len(good))
    return Block(good.take(pa.array(index, mask=bad)), found)


def _finished(
    block: Block, stream: TextStream, shapes: dict[str, Shape], candidates: dict[str, list[str]]
) -> Block:
    """Restore the file's bytes, and note what can be inferred of the columns."""
    table = block.table
    if stream.invalid or stream.seen_zeros:
        columns = {
            name: restored(column.combine_chunks())
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        table = pa.table(columns)
    for name in table.column_names:
        kinds = {"string"}
        if name in candidates:
            candidates[name] = [
                each for each in candidates[name] if _same_characters(table[name], INFERRED[each])
            ]
            kinds = set(candidates[name][:1]) or kinds
        shapes[name] = Shape(kinds)
    return Block(
        table,
        block.malformed,
        stream.share,
        stream.note or (_BACKSLASH if stream.seen_watched else None),
    )


def _same_characters(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    """Tell whether each value, read as `type_` and written again, gives the same characters."""
    values = column.filter(pc.greater(pc.binary_length(column), 0))
    try:
        return bool(
            pc.all(pc.equal(values.cast(type_).cast(values.type), values)).as_py() in (True, None)
        )
    except pa.ArrowInvalid:
        return False


CSV = Format("csv", with_compressions(".csv", ".tsv"), blocks=blocks)
