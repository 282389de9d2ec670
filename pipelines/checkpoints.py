"""A checkpoint by its name: where it lies, how it is fetched, and which task it fits."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pyarrow import fs

from modernbert.config import ModernBertConfig
from modernbert.encoders.module_files import encoder_folder, open_folder
from modernbert.files import (
    check_base,
    load_config,
    missing_base,
    raw_config,
    read_adapter,
    resolve,
    tokenizer_folder,
)
from modernbert.stored import (
    COLBERT_METADATA,
    CheckpointChanged,
    CheckpointError,
    CheckpointPath,
    Json,
    Route,
    StoredPath,
)
from modernbert.text.tokenizer import Tokenizer
from pipelines.errors import UserError
from pipelines.storage import Folder, Location, redact, redact_credentials

logger = logging.getLogger(__name__)
_MODEL_FILES = (".json", ".safetensors", COLBERT_METADATA)
Digests: TypeAlias = tuple[tuple[str, str], ...]
"""(path, digest) of each file of a checkpoint."""


class Sent(NamedTuple):
    """A checkpoint as it travels to other processes; the fields are those of `Checkpoint`."""

    model: str
    revision: str | None
    digests: Digests
    sent_base: Sent | None
    route: Route | None


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
    digests: Digests | None = field(default=None, repr=False, compare=False)
    """Those in the process that opened the checkpoint; None in that one."""
    sent_base: Sent | None = field(default=None, repr=False, compare=False)
    """The base of an adapter in the process that opened the checkpoint."""
    route: Route | None = None
    """What texts are read as by a model with a Router, whose encoder for them is taken; None: its
    default.
    """

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def name(self) -> str:
        """The model's name for messages and records, without credentials."""
        return str(Location(self.model))

    @classmethod
    def open(
        cls, model: str | Path, revision: str | None = None, route: Route | None = None
    ) -> Checkpoint:
        """Find the checkpoint `model`, fetched if need be, and read its files, except for its
        weights.

        `route`: what texts are read as (`TaskOptions.route`). Raises CheckpointError or UserError
        if it is missing or cannot be read.
        """
        checkpoint = replace(cls._find(model, revision), route=route)
        checkpoint.folder  # noqa: B018 (now, not when it is used first)
        return checkpoint

    @classmethod
    def _find(cls, model: str | Path, revision: str | None) -> Checkpoint:
        """Find a checkpoint, and read nothing yet."""
        name = str(model)
        if "://" in name:
            return cls(name, download_checkpoint(name).name)
        folder = resolve(name, revision).absolute()
        is_local = Path(name).expanduser().is_dir()
        return cls(str(folder), None) if is_local else cls(name, folder.name)

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[object, ...]]:
        """Take the digests of all files along, those of the weights if need be taken now."""
        return _received, tuple(self._sent)

    @property
    def _sent(self) -> Sent:
        digests = self.digests
        if not digests:
            digests = tuple(sorted(self.folder.files.digests().items()))
        sent_base = self.base._sent if self.base else None
        return Sent(self.model, self.revision, digests, sent_base, self.route)

    @property
    def folder(self) -> StoredPath:
        """The checkpoint's folder on this machine, fetched if need be, with its files of then.

        Raises CheckpointChanged if they are not those of the process that opened the checkpoint.
        """
        return self._opened[0]

    @property
    def base(self) -> Checkpoint | None:
        """The model that an adapter changes; None for a whole model."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[StoredPath, Checkpoint | None]:
        """The folder, and the base of an adapter in it."""
        digests = None if self.digests is None else dict(self.digests)
        folder = open_folder(_folder(self.model, self.revision), digests)
        adapter = read_adapter(encoder_folder(folder, self.route))
        if not adapter:
            return folder, None
        if self.sent_base:
            base = _received(*self.sent_base)
        else:
            try:
                base = Checkpoint._find(*adapter.base)
            except (CheckpointError, UserError) as error:
                raise missing_base(adapter, error) from error
            # An adapter that named itself would be opened without an end.
            check_base(adapter, _folder(base.model, base.revision))
        folder.files.base = base.folder
        return folder, base

    @cached_property
    def encoder(self) -> CheckpointPath:
        """The folder with config.json, weights and tokenizer, which modules.json may name."""
        return encoder_folder(self.folder, self.route)

    @cached_property
    def config(self) -> ModernBertConfig:
        """The configuration in config.json."""
        return load_config(self.encoder)

    @cached_property
    def raw_config(self) -> Json:
        """The content of config.json as it is stored, JSON with keys that `config` may lack."""
        self.config  # noqa: B018 (names the file where it is missing or wrong)
        return raw_config(self.encoder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded once per process; it rejects texts that the model has no embeddings
        for.
        """
        return Tokenizer.from_folder(tokenizer_folder(self.encoder), self.config.vocab_size)

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
def _received(
    model: str,
    revision: str | None,
    digests: Digests,
    sent_base: Sent | None,
    route: Route | None,
) -> Checkpoint:
    """Return a checkpoint that another process has opened; the same each time, to load it once."""
    return Checkpoint(model, revision, digests, sent_base, route)
