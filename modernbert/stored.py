"""The files of a checkpoint as they were when it was opened: no later change of its folder is seen.

Small files and the headers of weights are held in memory. The weights themselves are read when a
model is loaded, and compared with a digest where one is expected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import BufferedReader
from pathlib import Path
from typing import Any

COLBERT_METADATA = "artifact.metadata"
"""The settings of Stanford's ColBERT, as JSON."""
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = (
    *("config.json", "adapter_config.json", WEIGHTS_INDEX, COLBERT_METADATA),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "router_config.json",
    ),
)
"""All that is read of a checkpoint beside its weights: what is not here is not seen by any reader.
"""
_HEADER = ":header"  # behind the name of weights, for the digest of their header
_LENGTH_BYTES = 8  # of a safetensors file: the length of its header, little-endian
_MOST_HEADER_BYTES = 100_000_000  # as in the safetensors library
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


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be loaded; the message says what is there and what is
    needed.
    """


class CheckpointChanged(CheckpointError):
    """Raised where the files of a checkpoint are others than those that it was opened with."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    """As the file names it: F32, BF16, …"""
    shape: tuple[int, ...]
    start: int
    """The first byte, counted from the start of the file."""
    stop: int


class StoredFiles:
    """The files of a checkpoint, in the folders that were read (`read_folder`)."""

    def __init__(self, root: Path, expected: Mapping[str, str] | None = None):
        """`root`: the checkpoint's folder. `expected`: the digests that its files must have
        (`digests`).
        """
        self.root = root
        self._expected = expected
        self._contents: dict[Path, bytes] = {}
        self._headers: dict[Path, tuple[bytes, int]] = {}
        self._names: dict[Path, list[str]] = {}
        self._weight_digests = dict(expected or {})

    def read_folder(self, folder: Path) -> StoredPath:
        """Read the small files and the headers of weights in a folder, and return its path.

        Raises:
            CheckpointError: where a file is there and cannot be read.
        """
        try:
            self._names[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
            for name in set(_SMALL_FILES) & set(self._names[folder]):
                if (folder / name).is_file():
                    self._contents[folder / name] = (folder / name).read_bytes()
            for name in weight_names(self._contents.get(folder / WEIGHTS_INDEX)):
                if (folder / name).is_file():
                    with (folder / name).open("rb") as stream:
                        self._headers[folder / name] = raw_header(stream)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from error
        return StoredPath(folder, self)

    def check_small_files(self) -> None:
        """Raise CheckpointChanged unless the small files, and the headers of weights, are those
        that are expected.
        """
        if self._expected is None:
            return
        found = self._small_digests()
        weights = {name.removesuffix(_HEADER) for name in self._expected if name.endswith(_HEADER)}
        wanted = {name: digest for name, digest in self._expected.items() if name not in weights}
        names = {name for name in {*found, *wanted} if found.get(name) != wanted.get(name)}
        if names:
            raise self._changed(*sorted({name.removesuffix(_HEADER) for name in names}))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 digest (hexadecimal) of each file by its path in the checkpoint, the
        same on all machines.

        Weights that nobody has read yet are read for it; that of their header is beside it.
        """
        weights = {self._name(path): self.digest(path) for path in self._headers}
        return self._small_digests() | weights

    def digest(self, path: Path) -> str:
        """Return the SHA-256 digest (hexadecimal) of one file: of weights the one that was found
        first, or expected.
        """
        if path in self._contents:
            return hashlib.sha256(self._contents[path]).hexdigest()
        name = self._name(path)
        if name not in self._weight_digests:
            with self.open_weights(path) as stream:
                self._weight_digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._weight_digests[name]

    def has_digest(self, path: Path) -> bool:
        """Whether weights must have the digest that was found before, or is expected."""
        return self._name(path) in self._weight_digests

    def check_weights(self, path: Path, digest: str) -> None:
        """Raise CheckpointChanged where weights that have been read have another digest than those
        before.
        """
        if self._weight_digests.setdefault(self._name(path), digest) != digest:
            raise self._changed(self._name(path))

    def open_weights(self, path: Path) -> BufferedReader:
        """Open weights, the only files that are still on the disk; CheckpointChanged where they are
        gone.
        """
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise self._changed(self._name(path)) from error

    def content(self, path: Path) -> bytes | None:
        """Return the content of a small file; None where there is none."""
        return self._contents.get(path)

    def header(self, path: Path) -> tuple[bytes, int] | None:
        """Return the header of weights and the size of their file; None where there is none."""
        return self._headers.get(path)

    def names(self, folder: Path) -> list[str]:
        """Return the names of all files in a folder that was read."""
        return self._names.get(folder, [])

    def _small_digests(self) -> dict[str, str]:
        """Return the digests of the small files, and of the headers of weights with the size of
        their file.
        """
        digests = {self._name(path): self.digest(path) for path in self._contents}
        for path, (header, size) in self._headers.items():
            digests[self._name(path) + _HEADER] = hashlib.sha256(
                header + str(size).encode()
            ).hexdigest()
        return digests

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()

    def _changed(self, *names: str) -> CheckpointChanged:
        return CheckpointChanged(
            f"model {str(self.root)!r} has changed since the job began or the service was deployed"
            f" ({', '.join(names)}): put its files back, or begin anew with those that are there"
        )


@dataclass(frozen=True)
class StoredPath:
    """A path in a checkpoint that is held in memory, with those methods of a Path that its readers
    use.
    """

    path: Path
    files: StoredFiles = field(repr=False, compare=False)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(self.path / name, self.files)

    @property
    def name(self) -> str:
        return self.path.name

    def is_file(self) -> bool:
        return self.files.content(self.path) is not None or self.files.header(self.path) is not None

    def read_bytes(self) -> bytes:
        """The content: of a small file as it was when the checkpoint was opened, of weights as they
        are on the disk.

        Raises:
            CheckpointChanged: for weights that are others than those that were read before, or are
                expected.
        """
        content = self.files.content(self.path)
        if content is not None:
            return content
        with self.files.open_weights(self.path) as stream:
            content = stream.read()
        self.files.check_weights(self.path, hashlib.sha256(content).hexdigest())
        return content

    def read_text(self, encoding: str) -> str:
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator[StoredPath]:
        """The files of a checkpoint that are in this folder; others are passed over."""
        return (self / name for name in self.files.names(self.path) if (self / name).is_file())

    def glob(self, pattern: str) -> Iterator[StoredPath]:
        """The paths in this folder whose names fit, whether they are files of a checkpoint or
        not.
        """
        return (self / name for name in self.files.names(self.path) if fnmatch(name, pattern))


CheckpointPath = Path | StoredPath
"""A path in a checkpoint: on the disk, or held in memory."""


def weight_names(index: bytes | None) -> list[str]:
    """Return the names of the weights' files: those in the content of an index, or the usual one
    without an index.

    An index that is not valid names none; `files.weight_files` says so.
    """
    if index is None:
        return [WEIGHTS]
    try:
        return sorted({Path(name).name for name in json.loads(index)["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        return []


def files_in(folder: CheckpointPath) -> list[CheckpointPath]:
    """Return the files of a checkpoint in one of its folders, in the order of their names."""
    found: list[CheckpointPath] = [file for file in folder.iterdir() if file.is_file()]
    return sorted(found, key=str)


def file_digest(file: CheckpointPath) -> bytes:
    """Return the SHA-256 digest of a file of a checkpoint."""
    if isinstance(file, StoredPath):
        return bytes.fromhex(file.files.digest(file.path))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def read_header(file: CheckpointPath) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, in the order in which they are stored.

    Raises:
        CheckpointError: where it is not a readable safetensors file.
    """
    header = file.files.header(file.path) if isinstance(file, StoredPath) else None
    if header is None:
        with open_weights(file) as stream:
            header = raw_header(stream)
    return parse_header(file, *header)


def open_weights(file: CheckpointPath) -> BufferedReader:
    """Open a file with weights."""
    return file.files.open_weights(file.path) if isinstance(file, StoredPath) else file.open("rb")


def raw_header(stream: BufferedReader) -> tuple[bytes, int]:
    """Read the bytes before the tensors of an open safetensors file, and return them with the size
    of the file.
    """
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    return start + stream.read(min(length, _MOST_HEADER_BYTES, size)), size


def parse_header(file: CheckpointPath, header: bytes, size: int) -> dict[str, StoredTensor]:
    """Return the tensors that a header names; CheckpointError where it does not fit a file of
    `size` bytes.
    """
    try:
        length = int.from_bytes(header[:_LENGTH_BYTES], "little")
        if len(header) < _LENGTH_BYTES or len(header) != _LENGTH_BYTES + length:
            raise ValueError(f"its header has {length} bytes, the file {size}")
        stored = json.loads(header[_LENGTH_BYTES:].decode("utf-8"))
        entries = {
            name: _parse_entry(stored[name], len(header))
            for name in stored
            if name != "__metadata__"
        }
        tensors = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
        end = len(header)
        for name, tensor in tensors.items():
            if tensor.start != end or tensor.stop < end:
                raise ValueError(f"{name} does not begin where the tensor before it ends")
            end = tensor.stop
        if end != size:
            raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    return tensors


def _parse_entry(entry: Mapping[str, Any], first: int) -> StoredTensor:
    """Read what a header says of a tensor, whose offsets are counted from the end of the header,
    byte `first`.
    """
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(
        type(n) is int and n >= 0 for n in (*shape, start, stop)
    ):
        raise ValueError(f"it describes a tensor by {dict(entry)}")
    items = 1
    for n in shape:
        items *= n
    if dtype in _ITEM_BYTES and stop - start != items * _ITEM_BYTES[dtype]:
        raise ValueError(f"a tensor of {dtype} {list(shape)} has {stop - start} bytes")
    return StoredTensor(dtype, shape, first + start, first + stop)
