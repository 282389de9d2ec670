"""The header of a safetensors file: which tensors it holds, and where they lie.

A file is the length of its header (8 bytes, little-endian), the header as JSON, and then the bytes
of the tensors, one after the other without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # as in the safetensors library
_METADATA = "__metadata__"
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    """As the file names it: F32, BF16, …"""
    shape: tuple[int, ...]
    start: int
    """The first byte, counted from the start of the file."""
    stop: int


def raw_header(stream: BufferedReader) -> tuple[bytes, int]:
    """Read the bytes before the tensors of an open file; return them and the size of the file."""
    file_bytes = os.fstat(stream.fileno()).st_size
    length_field = stream.read(_LENGTH_BYTES)
    length = int.from_bytes(length_field, "little")
    # A broken file may claim any length: no more is read than a file of its size can have.
    header = stream.read(min(length, _MOST_HEADER_BYTES, file_bytes))
    return length_field + header, file_bytes


def parse_tensors(header: bytes, file_bytes: int) -> dict[str, StoredTensor]:
    """Return the tensors that a header names, in the order in which they are stored.

    Args:
        header: what `raw_header` read.
        file_bytes: the size of the file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: where the header is not
            valid, or does not fit a file of this size.
    """
    length = int.from_bytes(header[:_LENGTH_BYTES], "little")
    if len(header) < _LENGTH_BYTES or len(header) != _LENGTH_BYTES + length:
        raise ValueError(f"its header has {length} bytes, the file {file_bytes}")
    entries = json.loads(header[_LENGTH_BYTES:].decode("utf-8"))
    tensors = {}
    for name in entries:
        if name != _METADATA:
            tensors[name] = _parse_entry(entries[name], first_byte=len(header))
    in_file_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    # Every byte behind the header belongs to exactly one tensor, as the format demands.
    end = len(header)
    for name, tensor in in_file_order:
        if tensor.start != end or tensor.stop < end:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        end = tensor.stop
    if end != file_bytes:
        raise ValueError(f"its tensors end at byte {end}, the file at {file_bytes}")
    return dict(in_file_order)


def _parse_entry(entry: Mapping[str, Any], first_byte: int) -> StoredTensor:
    """Read a tensor's entry, whose offsets are counted from `first_byte` of the file."""
    dtype = entry["dtype"]
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    # A bool is an int as well, but neither a size nor an offset.
    numbers = (*shape, start, stop)
    are_counts = all(type(number) is int and number >= 0 for number in numbers)
    if not isinstance(dtype, str) or not are_counts:
        raise ValueError(f"it describes a tensor by {dict(entry)}")
    # A dtype that is not known here is refused when the tensor is read.
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is not None and stop - start != math.prod(shape) * item_bytes:
        raise ValueError(f"a tensor of {dtype} {list(shape)} has {stop - start} bytes")
    return StoredTensor(dtype, shape, first_byte + start, first_byte + stop)
