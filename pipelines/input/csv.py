"""CSV files with a header, read as text: a record is a row, or malformed; none spoils another."""

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
_Malformed = dict[int, tuple[str, str]]
"""(reason, raw text) of malformed records, by their numbers in the file."""


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the records of a CSV file in order, in blocks of about 8 MiB.

    It is always read from its start: quotes can hold line ends.
    """
    options = reading.options
    # The end mark is a record of its own, unless a quote is still open there.
    end = secrets.token_hex(16)
    watched = b"" if options.csv_escape else b"\\" + options.csv_quote.encode()
    stream = TextStream(
        reading.filesystem,
        reading.path,
        options.encoding,
        end=f"\n{end}\n".encode(),
        watched=watched,
        map_zeros=True,
    )
    malformed: _Malformed = {}

    def reject(row: pa_csv.InvalidRow) -> str:
        """Keep what Arrow could not parse, but for the end mark."""
        reason = f"has {row.actual_columns} fields where the header has {row.expected_columns}"
        text = row.text or ""
        if text == end:
            return "skip"
        if text.endswith(end):
            reason = UNCLOSED
            text = text.removesuffix(f"\n{end}")
        malformed[row.number - 2] = (reason, text)  # numbers count from 1, and the header is one
        return "skip"

    delimiter = options.csv_delimiter or _usual_delimiter(reading.path)
    reader = _open(stream, delimiter, options, reject, reading.attempt)
    names = _header(reader.schema.names, end)
    # The types that the values so far, where written again, give the same characters in.
    candidates: dict[str, list[str]] = {}
    if options.csv_types == "infer":
        candidates = {name: list(INFERRED) for name in names}

    position = 0  # the number of the next record
    for table in _tables(reader, reading.attempt):
        good, unclosed = _without_end(table, end, delimiter)
        good = good.rename_columns(names) if names else good.select([])
        block = _interleave(good, malformed, position)
        position += len(block.table)
        if unclosed is not None:  # the last record; the malformed ones that are left precede it
            malformed[position + len(malformed)] = (UNCLOSED, unclosed)
        yield _finished(block, stream, reading.shapes, candidates)
    if malformed:  # after the last good record
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        block = _interleave(empty, malformed, position, extra=len(malformed))
        yield _finished(block, stream, reading.shapes, candidates)


def _usual_delimiter(path: str) -> str:
    is_tsv = path.lower().endswith(with_compressions(".tsv"))
    return "\t" if is_tsv else ","


def _open(
    stream: TextStream,
    delimiter: str,
    options: TextOptions,
    reject: Callable[[pa_csv.InvalidRow], str],
    attempt: int,
) -> pa_csv.CSVStreamingReader:
    how_to_read = pa_csv.ReadOptions(use_threads=False, block_size=_block_bytes(attempt))
    how_to_parse = pa_csv.ParseOptions(
        delimiter=delimiter,
        quote_char=options.csv_quote,
        escape_char=options.csv_escape or False,
        newlines_in_values=True,
        invalid_row_handler=reject,
    )
    as_text = pa_csv.ConvertOptions(
        default_column_type=pa.string(), check_utf8=False, strings_can_be_null=False
    )
    try:
        return pa_csv.open_csv(stream, how_to_read, how_to_parse, as_text)
    except pa.ArrowInvalid as error:
        raise _too_long(error, attempt) from error


def _tables(reader: pa_csv.CSVStreamingReader, attempt: int) -> Iterator[pa.Table]:
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except pa.ArrowInvalid as error:
            raise _too_long(error, attempt) from error
        yield pa.Table.from_batches([batch])


def _block_bytes(attempt: int) -> int:
    return BLOCK_BYTES << (3 * attempt)


def _too_long(error: Exception, attempt: int) -> Exception:
    """Return what to raise for an error of Arrow's: a record longer than a block is tried again."""
    if "straddl" not in str(error):
        return error
    if attempt + 1 < _MAX_ATTEMPTS:
        return TryAgain()
    most_mib = _block_bytes(attempt) >> 20
    unclosed = UNCLOSED.removeprefix("has ")
    return ValueError(f"has a record of more than {most_mib} MiB, or {unclosed}")


def _header(names: list[str], end: str) -> list[str]:
    """Check the names of the columns; an empty file has none."""
    if names == [end]:
        return []
    if any(end in name for name in names):
        raise ValueError(f"its header {UNCLOSED}")
    for name in names:
        raw = restore(name)
        if raw != name.encode():
            likely = likely_encoding(raw)
            raise ValueError(f"its header is not UTF-8; it looks like {likely} (see --encoding)")
    names = _named(names)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"its header has the column {name!r} twice")
        seen.add(name)
    return names


def _named(names: list[str]) -> list[str]:
    """Name columns without a name by their places, where there are several.

    Spreadsheets leave such blank cells at the end of a header.
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
    """Remove the end mark from a block.

    A last record whose quote is open there is removed, too, and returned as text.
    """
    if not len(table):
        return table, None
    rows_before = len(table) - 1
    last = [column[-1].as_py() for column in table.columns]
    if last == [end]:
        return table.slice(0, rows_before), None
    if last[-1].endswith((f"\n{end}\n", f"\n{end}")):
        text = last[-1].rstrip("\n").removesuffix(f"\n{end}")
        last[-1] = f'"{text}'
        return table.slice(0, rows_before), delimiter.join(last)
    return table, None


def _interleave(good: pa.Table, malformed: _Malformed, position: int, extra: int = 0) -> Block:
    """Put nulls where records are malformed, and take these out of `malformed`.

    Args:
        good: the good records that follow in the file.
        malformed: the malformed records that are not in a block yet.
        position: the number of the block's first record.
        extra: how many of them to take after the last good record.
    """
    stop = position + len(good)
    in_block: list[Malformed] = []
    for record in sorted(malformed):
        if record >= stop + extra:
            break
        stop += 1  # it lies among the good ones, and moves those after it
        reason, text = malformed.pop(record)
        raw = restore(text).decode(errors="replace")
        in_block.append((record - position, reason, raw))
    if not in_block:
        return Block(good, [])
    is_malformed = np.zeros(stop - position, bool)
    is_malformed[[record for record, _, _ in in_block]] = True
    source_rows = np.zeros(len(is_malformed), np.int64)
    source_rows[~is_malformed] = np.arange(len(good))
    rows = pa.array(source_rows, mask=is_malformed)
    return Block(good.take(rows), in_block)


def _finished(
    block: Block, stream: TextStream, shapes: dict[str, Shape], candidates: dict[str, list[str]]
) -> Block:
    """Restore the file's bytes, and note what can be inferred of the columns."""
    table = block.table
    if stream.invalid or stream.seen_zeros:
        columns: dict[str, pa.Array] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            columns[name] = restored(column.combine_chunks())
        table = pa.table(columns)
    for name in table.column_names:
        kind = "string"
        if name in candidates:
            column = table[name]
            candidates[name] = [
                each for each in candidates[name] if _same_characters(column, INFERRED[each])
            ]
            if candidates[name]:
                kind = candidates[name][0]
        shapes[name] = Shape({kind})
    note = stream.note
    if note is None and stream.seen_watched:
        note = _BACKSLASH
    return Block(table, block.malformed, stream.share, note)


def _same_characters(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    """Tell whether each value, read as `type_` and written again, gives the same characters."""
    values = column.filter(pc.greater(pc.binary_length(column), 0))
    try:
        written_again = values.cast(type_).cast(values.type)
        are_same = pc.all(pc.equal(written_again, values)).as_py()
    except pa.ArrowInvalid:
        return False
    return are_same is not False  # None: there is no value at all


CSV = Format("csv", with_compressions(".csv", ".tsv"), blocks=blocks)
