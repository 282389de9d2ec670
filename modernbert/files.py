"""The files of a checkpoint: found, downloaded and digested, without torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modernbert.config import ModernBertConfig
from modernbert.stored import (
    COLBERT_METADATA,
    WEIGHTS_INDEX,
    CheckpointError,
    CheckpointPath,
    file_digest,
    weight_names,
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files that the tokens of a text depend on; all but the first are optional."""
_HUB_FILES = ["*.json", "*.safetensors", COLBERT_METADATA]


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model.

    Args:
        model: a folder, or a Hugging Face hub id, which is downloaded or found in the hub's cache.
        revision: a branch, tag or commit of the hub's repository.

    Raises:
        CheckpointError: where `model` is neither, or the hub cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"model {str(model)!r} is a file; give the folder that holds config.json"
        )
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"model folder {str(model)!r} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"model {str(model)!r} is neither a folder here nor a repository on the hub"
            " (a private one needs HF_TOKEN)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model {str(model)!r} is not a folder here, not in the hub's cache, and the hub cannot"
            f" be reached: {reason}"
        ) from error


def read_json(file: CheckpointPath) -> Any:
    """Return the content of a JSON file of a checkpoint, an empty dictionary if it is missing.

    Raises:
        CheckpointError: where it is not JSON.
    """
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error


def weight_files(folder: CheckpointPath) -> Sequence[CheckpointPath]:
    """Return the safetensors files of a checkpoint: a single one, or the shards that its index
    names.

    Raises:
        CheckpointError: where a file is missing; for a pickle, the message says how to convert it,
            and for an adapter, how to merge it.
    """
    _refuse_adapter(folder)
    index = folder / WEIGHTS_INDEX
    index_content = index.read_bytes() if index.is_file() else None
    names = weight_names(index_content)
    if not names:
        raise CheckpointError(
            f"{index} is not a safetensors index: it has no weight_map with names of files"
        )
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing and any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} holds pytorch_model.bin, a pickle, which can run code and is never loaded."
            " Convert it once: AutoModel….from_pretrained(folder)"
            ".save_pretrained(folder, safe_serialization=True) with transformers"
        )
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}")
    return files


def load_config(folder: CheckpointPath) -> ModernBertConfig:
    """Return the configuration of a checkpoint.

    Raises:
        CheckpointError: where config.json is missing, and for a folder with an adapter.
        ConfigError: where it cannot be used.
    """
    _refuse_adapter(folder)
    if not (folder / "config.json").is_file() and any(folder.glob("gliner_config.json")):
        raise CheckpointError(
            f"{folder} holds gliner_config.json, a checkpoint of GLiNER: no task here runs one; tag"
            " runs a ModernBertForTokenClassification"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} lacks config.json: it is not a checkpoint folder")
    return ModernBertConfig.from_json(folder / "config.json")


def fingerprint(folder: CheckpointPath) -> str:
    """Return a SHA-256 digest (hexadecimal) of all that predictions depend on.

    That is the configuration, the weights and the tokenizer.
    """
    tokenizer_files = [folder / name for name in TOKENIZER_FILES]
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder), *tokenizer_files]:
        if file.is_file():
            digest.update(file_digest(file))
    return digest.hexdigest()


def _refuse_adapter(folder: CheckpointPath) -> None:
    """Raise CheckpointError for an adapter: transformers would change the weights by it."""
    if (folder / "adapter_config.json").is_file():
        more = ""
        if (folder / "modules.json").is_file():
            more = " with copies of modules.json and of all that it names"
        raise CheckpointError(
            f"{folder} holds adapter_config.json, an adapter of PEFT, which is not loaded. Merge it"
            " once: AutoPeftModelFor….from_pretrained(folder).merge_and_unload()"
            f".save_pretrained(merged), and load that folder{more}"
        )
