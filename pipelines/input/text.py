"""Text files as streams of UTF-8: decompressed, decoded, without a byte order mark."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs

from pipelines.storage import open_input

BLOCK_BYTES = 8 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
COMPRESSIONS = tuple(_CODECS)
"""The endings of compressed text files."""


def with_compressions(*suffixes: str) -> tuple[str, ...]:
    """Return the endings of plain and of compressed files."""
    return tuple(suffix + ending for suffix in suffixes for ending in ("", *COMPRESSIONS))


_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_INVALID = 0x10FF00
"""A byte b that is not UTF-8 is the character of this number + b while a file is parsed, so that
nothing is lost.
"""
_TO_CHARACTERS = {0xDC00 + byte: _INVALID + byte for byte in range(0x80, 0x100)}
_ZERO = chr(_INVALID)
"""Stands for a zero byte in a CSV: Arrow's parser loses or invents records where one lies at the
end of a block.
"""
_TO_BYTES = {character: surrogate for surrogate, character in _TO_CHARACTERS.items()} | {
    _INVALID: 0
}
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: name it .gz",
    b"(\xb5/\xfd": "compressed with zstd: name it .zst",
    b"BZh91AY&SY": "compressed with bzip2: name it .bz2",
    b"\x04\x22M\x18": "compressed with lz4: name it .lz4",
    b"PK\x03\x04": "a zip archive, or a spreadsheet (.xlsx): unpack it, or save it as CSV",
    b"%PDF-": "a PDF",
}
"""What files begin with whose names say something else."""


@dataclass(frozen=True)
class TextOptions:
    """How text files are read."""

    csv_delimiter: str | None = None
    """None: a tab for .tsv, else a comma."""
    csv_quote: str = '"'
    csv_escape: str | None = None
    csv_types: Literal["text", "infer"] = "text"
    encoding: str = "utf-8"
    limit: int | None = None
    """The rows to read of a file, None for all."""

    def changed(self) -> dict[str, Any]:
        """Return the options that are not the default."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value != getattr(TextOptions(), name)
        }


class TextStream(io.RawIOBase):
    """The bytes of a text file as UTF-8, from its start or of a range, and `end` after the last.

    `invalid` is the first block that is not UTF-8; the bytes that are none come back by `restore`.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        encoding: str = "utf-8",
        span: tuple[int, int | None] = (0, None),
        end: bytes = b"",
        watched: bytes = b"",
        map_zeros: bool = False,
    ):
        """Open the file; `span` is a range of bytes of a file that is not compressed.

        `seen_watched` tells whether the bytes `watched` were in a block. `map_zeros`: whether zero
        bytes are mapped to a character, as bytes are that are not UTF-8; `seen_zeros` tells whether
        there were any.
        """
        codec = next(
            (codec for ending, codec in _CODECS.items() if path.lower().endswith(ending)), None
        )
        self.raw = open_input(filesystem, path)
        self.raw.seek(span[0])
        self.stream = pa.CompressedInputStream(self.raw, codec) if codec else self.raw
        self.size = self.raw.size()
        self.left = None if span[1] is None else span[1] - span[0]
        self.encoding, self.end, self.started, self.invalid, self.buffer = (
            encoding,
            end,
            span[0] > 0,
            b"",
            b"",
        )
        self.watched, self.seen_watched = watched, False
        self.map_zeros, self.seen_zeros = map_zeros, False
        errors = "surrogateescape" if encoding == "utf-8" else "strict"
        self.decoder: codecs.IncrementalDecoder | None = codecs.getincrementaldecoder(encoding)(
            errors
        )

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at least one and at most about `size` bytes, none at the end."""
        wanted = BLOCK_BYTES if size is None or size < 0 else size
        while len(self.buffer) < wanted and self.decoder is not None:
            self._fill(wanted)
        piece, self.buffer = self.buffer[:wanted], self.buffer[wanted:]
        if piece.endswith(b"\r") and len(piece) > 1 and (self.buffer or self.decoder is not None):
            # Arrow drops a line feed at the start of a block after a carriage return, in quotes,
            # too.
            piece, self.buffer = piece[:-1], b"\r" + self.buffer
        return piece

    def unread(self, data: bytes) -> None:
        """Put back what was read last."""
        self.buffer = data + self.buffer

    @property
    def share(self) -> float:
        """The share of the file's bytes that were read."""
        return self.raw.tell() / self.size if self.size else 1.0

    def _fill(self, wanted: int) -> None:
        data = self.stream.read(wanted if self.left is None else min(wanted, self.left))
        if self.left is not None:
            self.left -= len(data)
        first, self.started = not self.started, True
        if first:
            check_encoding(data, self.encoding)
        assert self.decoder is not None
        try:
            text = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(f"is not {self.encoding}: {error.reason} (see --encoding)") from error
        if self.map_zeros and "\0" in text:
            self.seen_zeros = True
            text = text.replace("\0", _ZERO)
        block = self._encoded(text.removeprefix("\ufeff") if first else text)
        self.buffer += block
        self.seen_watched = self.seen_watched or (bool(self.watched) and self.watched in block)
        if not data:
            self.buffer += self.end
            self.decoder = None

    def _encoded(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.invalid = self.invalid or text.encode("utf-8", "surrogateescape")
            return text.translate(_TO_CHARACTERS).encode()

    @property
    def note(self) -> str | None:
        """A message for the user about a file that is not UTF-8 in places."""
        if not self.invalid:
            return None
        other_letters_are_utf8 = not self.invalid.decode("utf-8", "ignore").isascii()
        likely = (
            "" if other_letters_are_utf8 else f"; it looks like {likely_encoding(self.invalid)}"
        )
        return f"is not UTF-8 in places{likely} (see --encoding)"


def restore(text: str) -> bytes:
    """Return the bytes of a text that a TextStream has read, as they are in the file."""
    return text.translate(_TO_BYTES).encode("utf-8", "surrogateescape")


def restored(column: pa.Array) -> pa.Array:
    """Return a column of strings with the bytes that are in the file, where some of these are no
    UTF-8.
    """
    values = [value if value is None else restore(value) for value in column.to_pylist()]
    return pa.array(values, pa.large_binary()).cast(pa.large_string(), safe=False)


def check_encoding(data: bytes, encoding: str) -> None:
    """Raise ValueError that names what a file that begins with `data` likely is, where it is no
    text in `encoding`.
    """
    likely = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    for begins, described in _OTHER_FORMATS.items():
        if data.startswith(begins):
            raise ValueError(f"is no text, but {described}")
    sample = data[:4096]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    # A text may hold zero bytes, even many in a row; in UTF-16 it is every other one.
    if likely is None and (even + odd) * 8 > len(sample) and max(even, odd) > 8 * min(even, odd):
        likely = "utf-16-be" if even > odd else "utf-16-le"
    if likely and not codecs.lookup(encoding).name.startswith(likely[:6]):
        raise ValueError(f"is not {encoding}; it looks like {likely} (see --encoding)")


def likely_encoding(data: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8: windows-1252, where all of them are letters
    or signs of it.
    """
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1 or another"
    return "cp1252 (Windows) or latin-1"


def lines(stream: TextStream, most: int) -> Iterator[bytes]:
    """Yield a stream in blocks of whole lines, the first a small one; ValueError for a line of over
    `most` bytes.
    """
    pending: list[bytes] = []
    size, wanted = 0, BLOCK_BYTES // 32
    while block := stream.read(wanted):
        wanted = BLOCK_BYTES
        cut = block.rfind(b"\n") + 1
        if not cut:
            pending.append(block)
            size += len(block)
            if size > most:
                raise ValueError(f"has a line of more than {most >> 20} MiB")
            continue
        yield b"".join([*pending, block[:cut]])
        pending, size = [block[cut:]], len(block) - cut
    if size:
        yield b"".join(pending)


def lines_file_spans(
    filesystem: fs.FileSystem, path: str, size: int
) -> list[tuple[int, int | None]]:
    """Cut a file of lines into ranges of about `size` bytes that begin at a line; an array of JSON
    is one range.
    """
    starts = [0]
    with open_input(filesystem, path) as stream:
        if stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return [(0, None)]
        total = stream.size()
        for place in range(size, total, size):
            stream.seek(place)
            found = place
            while (block := stream.read(1 << 20)) and b"\n" not in block:
                found += len(block)
            found += block.find(b"\n") + 1
            if block and starts[-1] < found < total:
                starts.append(found)
    return list(zip(starts, [*starts[1:], None], strict=True))
