"""Tensors read from safetensors files, whose bytes are digested on the way where that is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from io import BufferedReader

import torch

from modernbert.header import StoredTensor, raw_header
from modernbert.stored import (
    CheckpointError,
    CheckpointPath,
    StoredPath,
    open_weights,
    parse_header,
)

STORED_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
"""The dtypes of stored weights that are loaded, by their names in the file."""
_SKIPPED_BYTES = 1 << 20  # read at a time of what only counts for a digest


def read_tensors(
    file: CheckpointPath, names: Container[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a safetensors file with their names, in the order of the file.

    The file is read, and not mapped as the safetensors library does it: what is written into a file
    later would change tensors that are mapped, and end the process where the file becomes shorter.

    Args:
        file: the file; one of a checkpoint that is held in memory must have the digest that is
            expected of it.
        names: the tensors that are wanted; None: all.

    Raises:
        CheckpointError: where it is not a readable safetensors file, and for a dtype that is not
            loaded.
        CheckpointChanged: at the end, where it has another digest.
    """
    has_digest = isinstance(file, StoredPath) and file.files.has_digest(file.path)
    with open_weights(file) as stream:
        reader = _Reader(file, stream, has_digest)
        for name, stored in reader.read_header().items():
            if names is None or name in names:
                yield name, reader.read_tensor(name, stored)
            else:
                reader.skip_to(stored.stop)
    digest = reader.hexdigest()
    if isinstance(file, StoredPath) and digest is not None:
        file.files.check_weights(file.path, digest)


class _Reader:
    """Reads a file from its start to its end, and digests all of it if `has_digest`."""

    def __init__(self, file: CheckpointPath, stream: BufferedReader, has_digest: bool):
        self._file = file
        self._stream = stream
        self._digest = hashlib.sha256() if has_digest else None

    def read_header(self) -> dict[str, StoredTensor]:
        header, file_bytes = raw_header(self._stream)
        if self._digest:
            self._digest.update(header)
        return parse_header(self._file, header, file_bytes)

    def read_tensor(self, name: str, stored: StoredTensor) -> torch.Tensor:
        """Read the tensor at the position of the stream."""
        if stored.dtype not in STORED_DTYPES:
            known = ", ".join(STORED_DTYPES)
            raise CheckpointError(
                f"{self._file}: {name} is stored as {stored.dtype}, not one of {known}"
            )
        tensor = torch.empty(stored.shape, dtype=STORED_DTYPES[stored.dtype])
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        if self._stream.readinto(content) != len(content):
            raise self._became_shorter()
        if self._digest:
            self._digest.update(content)
        return tensor

    def skip_to(self, stop: int) -> None:
        """Move on to byte `stop`; bytes that count for a digest are read."""
        while self._digest and self._stream.tell() < stop:
            content = self._stream.read(min(stop - self._stream.tell(), _SKIPPED_BYTES))
            if not content:
                raise self._became_shorter()
            self._digest.update(content)
        self._stream.seek(stop)

    def hexdigest(self) -> str | None:
        return self._digest.hexdigest() if self._digest else None

    def _became_shorter(self) -> CheckpointError:
        return CheckpointError(f"{self._file} became shorter while it was read")
