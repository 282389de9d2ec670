"""Text files as streams of UTF-8: decompressed, decoded, without a byte order mark."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import fs

from modernbert.stored import Json
from pipelines.storage import open_input

BLOCK_BYTES = 8 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
COMPRESSIONS = tuple(_CODECS)
"""The endings of compressed text files."""
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_INVALID = 0x10FF00
"""While a file is parsed, a byte b that is not UTF-8 is the character of this number + b."""
_SURROGATE = 0xDC00
"""Python's surrogateescape decodes such a byte to the character of this number + b."""
_ZERO = chr(_INVALID)
"""Stands for a zero byte in a CSV: one at the end of a block makes Arrow's parser lose records, or
invent some.
"""
_TO_CHARACTERS = {_SURROGATE + byte: _INVALID + byte for byte in range(0x80, 0x100)}
_TO_BYTES = {character: surrogate for surrogate, character in _TO_CHARACTERS.items()}
_TO_BYTES[_INVALID] = 0
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: name it .gz",
    b"(\xb5/\xfd": "compressed with zstd: name it .zst",
    b"BZh91AY&SY": "compressed with bzip2: name it .bz2",
    b"\x04\x22M\x18": "compressed with lz4: name it .lz4",
    b"PK\x03\x04": "a zip archive, or a spreadsheet (.xlsx): unpack it, or save it as CSV",
    b"%PDF-": "a PDF",
}
"""What files begin with whose names say something else."""


def with_compressions(*suffixes: str) -> tuple[str, ...]:
    """Return the endings of plain and of compressed files."""
    endings: list[str] = []
    for suffix in suffixes:
        endings += [suffix, *(suffix + compression for compression in COMPRESSIONS)]
    return tuple(endings)


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

    def changed(self) -> Json:
        """Return the options that are not the default."""
        defaults = asdict(TextOptions())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


class TextStream(io.RawIOBase):
    """The bytes of a text file as UTF-8, from its start or of a range, and `end` after the last.

    `restore` gives back the bytes that were not UTF-8.
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
        """Open a file.

        Args:
            filesystem: where it lies.
            path: its path there, whose ending says how it is compressed.
            encoding: the encoding of its text.
            span: a range of bytes [first, stop) of a file that is not compressed; None for its end.
            end: bytes to put after the last.
            watched: bytes to look for; `seen_watched` tells whether a block has them.
            map_zeros: whether zero bytes become a character, as bytes do that are not UTF-8;
                `seen_zeros` tells whether there are any.
        """
        first, stop = span
        self.raw = open_input(filesystem, path)
        self.raw.seek(first)
        self.size = self.raw.size()
        self.stream = self.raw
        for ending, codec in _CODECS.items():
            if path.lower().endswith(ending):
                self.stream = pa.CompressedInputStream(self.raw, codec)
        self.left = None if stop is None else stop - first
        """The bytes of the range that are not read yet."""
        self.started = first > 0
        """Whether the start of the file, with its byte order mark, is behind."""
        self.buffer = b""
        """What is decoded and not returned yet."""
        self.end = end
        self.watched = watched
        self.seen_watched = False
        self.map_zeros = map_zeros
        self.seen_zeros = False
        self.invalid = b""
        """The first block that is not UTF-8."""
        self.encoding = encoding
        errors = "surrogateescape" if encoding == "utf-8" else "strict"
        new_decoder = codecs.getincrementaldecoder(encoding)
        self.decoder: codecs.IncrementalDecoder | None = new_decoder(errors)
        """None when all is decoded."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at least one and at most about `size` bytes, none at the end."""
        wanted = BLOCK_BYTES if size is None or size < 0 else size
        while len(self.buffer) < wanted and self.decoder is not None:
            self._fill(wanted)
        piece = self.buffer[:wanted]
        self.buffer = self.buffer[wanted:]
        goes_on = bool(self.buffer) or self.decoder is not None
        if piece.endswith(b"\r") and len(piece) > 1 and goes_on:
            # Arrow drops a line feed at the start of a block after one that ends with a carriage
            # return, even in quotes: the two stay together.
            self.buffer = b"\r" + self.buffer
            piece = piece[:-1]
        return piece

    def unread(self, data: bytes) -> None:
        """Put back what was read last."""
        self.buffer = data + self.buffer

    @property
    def share(self) -> float:
        """The share of the file's bytes that were read."""
        return self.raw.tell() / self.size if self.size else 1.0

    def _fill(self, wanted: int) -> None:
        """Read, decode and encode about `wanted` bytes more, or what stands at the end."""
        if self.left is None:
            data = self.stream.read(wanted)
        else:
            data = self.stream.read(min(wanted, self.left))
            self.left -= len(data)
        is_start = not self.started
        self.started = True
        if is_start:
            check_encoding(data, self.encoding)
        assert self.decoder is not None
        try:
            text = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(f"is not {self.encoding}: {error.reason} (see --encoding)") from error
        if self.map_zeros and "\0" in text:
            self.seen_zeros = True
            text = text.replace("\0", _ZERO)
        if is_start:
            text = text.removeprefix("\ufeff")
        block = self._encoded(text)
        self.buffer += block
        if self.watched and self.watched in block:
            self.seen_watched = True
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
        if other_letters_are_utf8:  # then it is UTF-8 with damage, in no other encoding
            return "is not UTF-8 in places (see --encoding)"
        likely = likely_encoding(self.invalid)
        return f"is not UTF-8 in places; it looks like {likely} (see --encoding)"


def restore(text: str) -> bytes:
    """Return the bytes of a text that a TextStream has read, as they are in the file."""
    return text.translate(_TO_BYTES).encode("utf-8", "surrogateescape")


def restored(column: pa.Array) -> pa.Array:
    """Return a column of strings with the bytes that are in the file, UTF-8 or not."""
    values = [value if value is None else restore(value) for value in column.to_pylist()]
    return pa.array(values, pa.large_binary()).cast(pa.large_string(), safe=False)


def check_encoding(data: bytes, encoding: str) -> None:
    """Raise ValueError where a file that begins with `data` is not a text in `encoding`.

    Its message names what the file likely is.
    """
    for beginning, description in _OTHER_FORMATS.items():
        if data.startswith(beginning):
            raise ValueError(f"is not text, but {description}")
    likely = _unicode_encoding(data)
    if likely is None:
        return
    family = likely[:6]  # "utf-16" of either order of bytes
    if not codecs.lookup(encoding).name.startswith(family):
        raise ValueError(f"is not {encoding}; it looks like {likely} (see --encoding)")


def _unicode_encoding(data: bytes) -> str | None:
    """Guess the Unicode encoding that the first bytes of a file show; None where they show none."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return name
    # A text may hold zero bytes, even many in a row; in UTF-16 it is every other one.
    sample = data[:4096]
    even = sample[::2].count(0)
    odd = sample[1::2].count(0)
    are_many = (even + odd) * 8 > len(sample)
    are_on_one_side = max(even, odd) > 8 * min(even, odd)
    if not (are_many and are_on_one_side):
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def likely_encoding(data: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8: windows-1252 where it has all of them."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1 or another"
    return "cp1252 (Windows) or latin-1"


def lines(stream: TextStream, most: int) -> Iterator[bytes]:
    """Yield a stream in blocks of whole lines, the first block a small one.

    Raises ValueError for a line of over `most` bytes.
    """
    pending: list[bytes] = []  # the beginning of a line whose end is not read yet
    pending_bytes = 0
    wanted = BLOCK_BYTES // 32
    while block := stream.read(wanted):
        wanted = BLOCK_BYTES
        whole_bytes = block.rfind(b"\n") + 1
        if not whole_bytes:
            pending.append(block)
            pending_bytes += len(block)
            if pending_bytes > most:
                raise ValueError(f"has a line of more than {most >> 20} MiB")
            continue
        yield b"".join([*pending, block[:whole_bytes]])
        pending = [block[whole_bytes:]]
        pending_bytes = len(block) - whole_bytes
    if pending_bytes:
        yield b"".join(pending)


def lines_file_spans(
    filesystem: fs.FileSystem, path: str, size: int
) -> list[tuple[int, int | None]]:
    """Cut a file of lines into ranges of about `size` bytes that begin at a line.

    An array of JSON, whose elements may be on any lines, is one range.
    """
    starts = [0]
    with open_input(filesystem, path) as stream:
        head = stream.read(4096)
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return [(0, None)]
        total = stream.size()
        for place in range(size, total, size):
            # The next range begins after the first line end from here on.
            stream.seek(place)
            start = place
            block = stream.read(1 << 20)
            while block and b"\n" not in block:
                start += len(block)
                block = stream.read(1 << 20)
            start += block.find(b"\n") + 1
            if block and starts[-1] < start < total:
                starts.append(start)
    stops = [*starts[1:], None]
    return list(zip(starts, stops, strict=True))
