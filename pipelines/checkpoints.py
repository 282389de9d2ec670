"""A checkpoint by its name: where it lies, how it is fetched, and which task it fits."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

from pyarrow import fs

from modernbert.config import ModernBertConfig
from modernbert.encoders.module_files import encoder_folder, open_folder
from modernbert.files import load_config, resolve
from modernbert.stored import COLBERT_METADATA, CheckpointChanged, CheckpointPath, Json, StoredPath
from modernbert.text.tokenizer import Tokenizer
from pipelines.errors import UserError
from pipelines.storage import Folder, Location, redact, redact_credentials

logger = logging.getLogger(__name__)
_MODEL_FILES = (".json", ".safetensors", COLBERT_METADATA)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by its name; each process finds its files where it runs, and reads them once.

    What it was opened with it keeps, whatever becomes of the folder; opened anew, it has the files
    of then. Sent to another process it takes the digests of its files along: there, other files
    raise CheckpointChanged.

    Example: `Checkpoint.open("answerdotai/ModernBERT-base").tokenizer`
    """

    model: str
    """A folder, a hub id, or a location with its credentials: `name` is for people."""
    revision: str | None
    """The commit of the hub, or a digest of the listing in object storage, in all processes."""
    digests: tuple[tuple[str, str], ...] | None = field(default=None, repr=False, compare=False)
    """(path, digest) of each file in the process that opened the checkpoint; None in that one."""

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def name(self) -> str:
        """The model's name for messages and records, without credentials."""
        return str(Location(self.model))

    @classmethod
    def open(cls, model: str | Path, revision: str | None = None) -> Checkpoint:
        """Find the checkpoint `model`, fetched if need be, and read its files, except for its
        weights.

        Raises CheckpointError or UserError if it is missing or cannot be read.
        """
        name = str(model)
        if "://" in name:
            checkpoint = cls(name, download_checkpoint(name).name)
        else:
            folder = resolve(name, revision).absolute()
            is_local = Path(name).expanduser().is_dir()
            checkpoint = cls(str(folder), None) if is_local else cls(name, folder.name)
        checkpoint.folder  # noqa: B018 (now, not when it is used first)
        return checkpoint

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[object, ...]]:
        """Take the digests of all files along, those of the weights if need be taken now."""
        digests = self.digests
        if not digests:
            digests = tuple(sorted(self.folder.files.digests().items()))
        return _received, (self.model, self.revision, digests)

    @cached_property
    def folder(self) -> StoredPath:
        """The checkpoint's folder on this machine, fetched if need be, with its files of then.

        Raises CheckpointChanged if they are not those of the process that opened the checkpoint.
        """
        digests = None if self.digests is None else dict(self.digests)
        return open_folder(_folder(self.model, self.revision), digests)

    @cached_property
    def encoder(self) -> CheckpointPath:
        """The folder with config.json, weights and tokenizer, which modules.json may name."""
        return encoder_folder(self.folder)

    @cached_property
    def config(self) -> ModernBertConfig:
        """The configuration in config.json."""
        return load_config(self.encoder)

    @cached_property
    def raw_config(self) -> Json:
        """The content of config.json as it is stored, JSON with keys that `config` may lack."""
        self.config  # noqa: B018 (names the file where it is missing or wrong)
        text = (self.encoder / "config.json").read_text(encoding="utf-8")
        content: Json = json.loads(text)
        return content

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once per process; it rejects texts that the model has no embeddings
        for.
        """
        return Tokenizer.from_folder(self.encoder, self.config.vocab_size)

    def check_tokenizer(self) -> None:
        """Warn if the tokenizer has more ids than the model.

        Raises ValueError if the model has no embedding for a token that is put around each text.
        """
        tokenizer = self.tokenizer
        embeddings = self.config.vocab_size
        largest = max(tokenizer.special_ids, default=0)
        if largest >= embeddings:
            raise ValueError(
                f"tokenizer.json puts {tokenizer.token(largest)!r} around each text, whose id is "
                f"{largest}: the model has embeddings for {embeddings} ids"
            )
        if tokenizer.vocab_size > embeddings:
            logger.warning(
                "model %r: tokenizer.json has %d tokens, the model embeddings for %d: texts with "
                "others are refused",
                self.name,
                tokenizer.vocab_size,
                embeddings,
            )


def download_checkpoint(location: str) -> Path:
    """Copy a checkpoint from object storage to a folder of this machine, once.

    Returns the folder, whose name holds a digest of the listing (paths, sizes, times), so that a
    changed checkpoint is copied again. Raises UserError if no checkpoint is there.
    """
    shown = redact_credentials(location)
    filesystem, path = Folder.at(location).filesystem_and_path
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    try:
        infos = filesystem.get_file_info(selector)
    except OSError as error:
        reason = redact(str(error).splitlines()[0])
        raise UserError(f"model {shown!r} cannot be read: {reason}") from error
    files = {info.path: info for info in infos if info.is_file and info.path.endswith(_MODEL_FILES)}
    if not files:
        raise UserError(
            f"model {shown!r} holds no checkpoint: no *.json and *.safetensors files are there"
        )

    listing = sorted(f"{info.path} {info.size} {info.mtime_ns}" for info in files.values())
    digest = sha256(repr([shown, *listing]).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", path.rpartition("/")[2])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "modernbert-ray")
    copy = cache / f"{name}-{digest}"
    if copy.is_dir():
        return copy
    cache.mkdir(parents=True, exist_ok=True)
    # It has its name when it is whole: other processes look for that.
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as temporary:
        for source in files:
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
        raise CheckpointChanged(
            f"model {redact_credentials(model)!r} has changed since the job began or the service "
            "was deployed"
        )
    return folder


@lru_cache(maxsize=8)
def _received(model: str, revision: str | None, digests: tuple[tuple[str, str], ...]) -> Checkpoint:
    """Return a checkpoint that another process has opened; the same each time, to load it once."""
    return Checkpoint(model, revision, digests)
