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
from typing import Any, Literal, TypeAlias

from modernbert.header import StoredTensor, parse_tensors, raw_header

Json: TypeAlias = dict[str, Any]
"""An object of JSON, whose values are of any type that JSON has."""

Route: TypeAlias = Literal["query", "document"]
"""What texts are read as by a model with a Router, which has modules of its own for each."""

COLBERT_METADATA = "artifact.metadata"
"""The settings of Stanford's ColBERT, as JSON."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The two files of an adapter of PEFT."""
_SMALL_FILES = {
    "config.json",
    ADAPTER_CONFIG,
    WEIGHTS_INDEX,
    COLBERT_METADATA,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "router_config.json",
}
"""All that is read of a checkpoint beside its weights: no reader sees any other file."""
_HEADER = ":header"  # behind the name of weights, for the digest of their header


class ConfigError(ValueError):
    """A config.json cannot be used; the message names the field, its value and what is allowed."""


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message says what is there and what is needed."""


class CheckpointChanged(CheckpointError):
    """The files of a checkpoint are others than those that it was opened with."""


class StoredFiles:
    """The files of a checkpoint, in the folders that were read (`read_folder`)."""

    def __init__(self, root: Path, expected: Mapping[str, str] | None = None):
        """Hold nothing yet.

        Args:
            root: the checkpoint's folder.
            expected: the digests that its files must have (`digests`); None: any files will do.
        """
        self.root = root
        self.base: StoredPath | None = None
        """The folder of the model that an adapter among the files changes."""
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
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            self._names[folder] = names
            for name in _SMALL_FILES.intersection(names):
                file = folder / name
                if file.is_file():
                    self._contents[file] = file.read_bytes()
            weights = weight_names(self._contents.get(folder / WEIGHTS_INDEX))
            if ADAPTER_CONFIG in names:
                weights.append(ADAPTER_WEIGHTS)
            for name in weights:
                file = folder / name
                if file.is_file():
                    with file.open("rb") as stream:
                        self._headers[file] = raw_header(stream)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from error
        return StoredPath(folder, self)

    def check_small_files(self) -> None:
        """Compare the small files and the headers of weights with those that are expected.

        Raises:
            CheckpointChanged: naming the files that differ, that are missing and that are new.
        """
        if self._expected is None:
            return
        # The weights are not compared here: they are read, and digested, when a model is loaded.
        weights = {name.removesuffix(_HEADER) for name in self._expected if name.endswith(_HEADER)}
        expected = {name: digest for name, digest in self._expected.items() if name not in weights}
        present = self._small_digests()
        changed = set()
        for name in {*present, *expected}:
            if present.get(name) != expected.get(name):
                changed.add(name.removesuffix(_HEADER))
        if changed:
            raise self._changed(*sorted(changed))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 digest (hexadecimal) of each file by its path in the checkpoint.

        They are the same on all machines. Weights that nobody has read yet are read for it; the
        digest of their header is beside theirs.
        """
        weights = {self._name(path): self.digest(path) for path in self._headers}
        return self._small_digests() | weights

    def digest(self, path: Path) -> str:
        """Return the SHA-256 digest (hexadecimal) of one file.

        That of weights is the one that they had first, or that is expected of them.
        """
        if path in self._contents:
            return hashlib.sha256(self._contents[path]).hexdigest()
        name = self._name(path)
        if name not in self._weight_digests:
            with self.open_weights(path) as stream:
                self._weight_digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._weight_digests[name]

    def has_digest(self, path: Path) -> bool:
        """Whether weights must have a digest: one that they had before, or that is expected."""
        return self._name(path) in self._weight_digests

    def check_weights(self, path: Path, digest: str) -> None:
        """Compare weights that have been read with those that were there before.

        Raises:
            CheckpointChanged: where they had another digest.
        """
        if self._weight_digests.setdefault(self._name(path), digest) != digest:
            raise self._changed(self._name(path))

    def open_weights(self, path: Path) -> BufferedReader:
        """Open weights, the only files that are still read from the disk.

        Raises:
            CheckpointChanged: where they are gone.
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
        """Return the digests of the small files, and of each header with the size of its file."""
        digests = {self._name(path): self.digest(path) for path in self._contents}
        for path, (header, file_bytes) in self._headers.items():
            content = header + str(file_bytes).encode()
            digests[self._name(path) + _HEADER] = hashlib.sha256(content).hexdigest()
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
    """A path in a checkpoint that is held in memory; its methods are those of a Path."""

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
        """Return the content: of a small file as it was when the checkpoint was opened, of weights
        as they are on the disk.

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
        """The paths in this folder whose names fit, be they files of a checkpoint or not."""
        return (self / name for name in self.files.names(self.path) if fnmatch(name, pattern))


CheckpointPath = Path | StoredPath
"""A path in a checkpoint: on the disk, or held in memory."""


def weight_names(index: bytes | None) -> list[str]:
    """Return the names of the weights' files, as an index says; the usual one without an index.

    An index that is not valid names none; `files.weight_files` says so.
    """
    if index is None:
        return [WEIGHTS]
    try:
        stored_in = json.loads(index)["weight_map"].values()
        return sorted({Path(name).name for name in stored_in})
    except (ValueError, KeyError, AttributeError, TypeError):
        return []


def files_in(folder: CheckpointPath) -> list[CheckpointPath]:
    """Return the files of a checkpoint in one of its folders, in the order of their names."""
    files: list[CheckpointPath] = [file for file in folder.iterdir() if file.is_file()]
    return sorted(files, key=str)


def file_digest(file: CheckpointPath) -> bytes:
    """Return the SHA-256 digest of a file of a checkpoint."""
    if isinstance(file, StoredPath):
        return bytes.fromhex(file.files.digest(file.path))
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def open_weights(file: CheckpointPath) -> BufferedReader:
    """Open a file with weights."""
    if isinstance(file, StoredPath):
        return file.files.open_weights(file.path)
    return file.open("rb")


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


def parse_header(file: CheckpointPath, header: bytes, file_bytes: int) -> dict[str, StoredTensor]:
    """Return the tensors that the header of `file` names, as `read_header`."""
    try:
        return parse_tensors(header, file_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
