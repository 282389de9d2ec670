"""A checkpoint by its name: where it lies, how it is fetched, and which task it fits."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyarrow import fs

from modernbert.config import ModernBertConfig
from modernbert.files import COLBERT_METADATA, TOKENIZER_FILES, load_config, resolve
from modernbert.module_files import encoder_folder
from modernbert.tokenizer import Tokenizer
from pipelines.errors import UserError
from pipelines.storage import Folder, redact_credentials

_MODEL_FILES = (".json", ".safetensors", COLBERT_METADATA)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by its name; each process finds its files on the machine where it runs.

    Example: `Checkpoint.open("answerdotai/ModernBERT-base").tokenizer`
    """

    model: str
    """A folder, a hub id, or a location in object storage."""
    revision: str | None
    """The commit of the hub, or a digest of the files' listing in object storage: the same in all processes."""

    @classmethod
    def open(cls, model: str | Path, revision: str | None = None) -> Checkpoint:
        """Find the checkpoint `model`, fetched if need be; CheckpointError or UserError if it is missing."""
        name = str(model)
        if "://" in name:
            return cls(name, download_checkpoint(name).name)
        folder = resolve(name, revision).absolute()
        return cls(str(folder), None) if Path(name).expanduser().is_dir() else cls(name, folder.name)

    @property
    def folder(self) -> Path:
        """The checkpoint's folder on this machine, fetched first where it is missing."""
        return _folder(self.model, self.revision)

    @property
    def encoder(self) -> Path:
        """The folder with config.json, weights and tokenizer: the checkpoint's own, or one that modules.json names."""
        return encoder_folder(self.folder)

    @property
    def config(self) -> ModernBertConfig:
        """The configuration in config.json."""
        return load_config(self.encoder)

    @property
    def raw_config(self) -> dict[str, Any]:
        """The content of config.json as it is stored, with keys that the configuration does not know."""
        load_config(self.encoder)  # names the file where it is missing or wrong
        return json.loads((self.encoder / "config.json").read_text(encoding="utf-8"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once per process."""
        files = [self.encoder / name for name in TOKENIZER_FILES]
        return _tokenizer(self.encoder, tuple(file.stat().st_mtime_ns for file in files if file.is_file()))

    def check_tokenizer(self) -> None:
        """Raise ValueError if the tokenizer has more ids than the model."""
        tokenizer = self.tokenizer
        if tokenizer.vocab_size > self.config.vocab_size:
            raise ValueError(
                f"tokenizer.json has {tokenizer.vocab_size} tokens, the model only {self.config.vocab_size}"
            )


def download_checkpoint(location: str) -> Path:
    """Copy a checkpoint from object storage to a folder of this machine, once, and return the folder.

    The folder's name holds a digest of the listing (paths, sizes, times), so that a changed checkpoint is copied again.
    Raises UserError if no checkpoint is there.
    """
    filesystem, path = Folder.at(location).filesystem_and_path
    try:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    except OSError as error:
        raise UserError(
            f"model {redact_credentials(location)!r} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    found = {info.path: info for info in infos if info.is_file and info.path.endswith(_MODEL_FILES)}
    if not found:
        raise UserError(
            f"model {redact_credentials(location)!r} holds no checkpoint: no *.json and *.safetensors files are there"
        )
    listing = [
        redact_credentials(location),
        *sorted(f"{info.path} {info.size} {info.mtime_ns}" for info in found.values()),
    ]
    name = re.sub(r"[^\w.-]", "_", path.rpartition("/")[2])
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "modernbert-ray")
    copy = kept / f"{name}-{sha256(repr(listing).encode()).hexdigest()[:16]}"
    if copy.is_dir():
        return copy
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, ignore_cleanup_errors=True) as temporary:
        for source in found:
            target = Path(temporary, source[len(path) + 1 :])
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(source, str(target), source_filesystem=filesystem)
        try:
            os.rename(temporary, copy)
        except OSError:  # another process of this machine was quicker
            if not copy.is_dir():
                raise
    return copy


@lru_cache(maxsize=8)
def _folder(model: str, revision: str | None) -> Path:
    if "://" not in model:
        return resolve(model, revision)
    folder = download_checkpoint(model)
    if folder.name != revision:
        raise ValueError(f"model {redact_credentials(model)!r} has changed since the job began")
    return folder


@lru_cache(maxsize=8)
def _tokenizer(folder: Path, _changed: tuple[int, ...]) -> Tokenizer:
    return Tokenizer.from_folder(folder)
