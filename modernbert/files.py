"""The files of a checkpoint: found, downloaded and digested, without torch."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modernbert.adapter import PREFIX, Adapter
from modernbert.config import ModernBertConfig
from modernbert.encoders import gliclass_config
from modernbert.stored import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COLBERT_METADATA,
    WEIGHTS,
    WEIGHTS_INDEX,
    CheckpointError,
    CheckpointPath,
    ConfigError,
    Json,
    StoredPath,
    file_digest,
    read_header,
    weight_names,
)

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files that the tokens of a text depend on; all but the first are optional."""
_ARCHITECTURES = {
    "feature-extraction": "ModernBertModel",
    "fill-mask": "ModernBertForMaskedLM",
    "sequence-classification": "ModernBertForSequenceClassification",
}
"""The classes of the tasks of a Transformer of sentence-transformers."""
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
    names; of an adapter those of its base.

    Raises:
        CheckpointError: where a file is missing; for a pickle, the message says how to convert it.
    """
    if read_adapter(folder):
        return weight_files(base_of(folder))
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
    """Return the configuration of a checkpoint; that of a GLiClass is a GLiClassConfig.

    Raises:
        CheckpointError: where config.json is missing or not valid JSON.
        ConfigError: where it cannot be used.
    """
    raw = raw_config(folder)
    is_gliclass = raw.get("model_type") == gliclass_config.MODEL_TYPE
    config_class = gliclass_config.GLiClassConfig if is_gliclass else ModernBertConfig
    try:
        return config_class.from_dict(raw)
    except ConfigError as error:
        raise ConfigError(f"{_config_file(folder)}: {error}") from error


def raw_config(folder: CheckpointPath) -> Json:
    """Return the content of config.json as it is stored.

    That of an adapter is its base's, with the architecture and the number of labels that were
    trained; a config.json beside an adapter comes before its base's.

    Raises:
        CheckpointError: where config.json is missing or not valid JSON.
    """
    raw: Json = read_json(_config_file(folder))
    adapter = read_adapter(folder)
    if not adapter:
        return raw
    if architecture := _architecture(folder, adapter):
        raw["architectures"] = [architecture]
    classifier = read_header(adapter_weights(folder)).get(f"{PREFIX}classifier.weight")
    if (folder / "config.json").is_file() or classifier is None or not classifier.shape:
        return raw
    labels = classifier.shape[0]
    if labels != ModernBertConfig.from_dict(raw).num_labels:
        warn_once(
            f"{folder} has {labels} labels, for which neither it nor its base has names; a"
            " config.json with id2label beside it names them"
        )
        unnamed = {key: raw[key] for key in raw if key not in ("id2label", "label2id")}
        raw = unnamed | {"num_labels": labels}
    return raw


def read_adapter(folder: CheckpointPath) -> Adapter | None:
    """Return the settings of a folder that holds an adapter of PEFT; None for any other folder.

    Raises:
        CheckpointError: for settings that cannot be followed, and for a folder that holds a whole
            model, too.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    for whole in (WEIGHTS, WEIGHTS_INDEX):
        if (folder / whole).is_file():
            raise CheckpointError(
                f"{folder} holds {ADAPTER_CONFIG} and {whole}: an adapter and a whole model. Put"
                " the adapter into a folder of its own to merge it, or remove it to leave it out"
            )
    stored = read_json(file)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{file} must hold the settings of an adapter, not {stored!r}")
    return Adapter.parse(file, stored)


def base_of(folder: CheckpointPath) -> CheckpointPath:
    """Return the folder of the model that an adapter changes, downloaded if need be.

    Raises:
        CheckpointError: where it is missing, or is an adapter, too.
    """
    adapter = read_adapter(folder)
    assert adapter is not None
    base: CheckpointPath | None = folder.files.base if isinstance(folder, StoredPath) else None
    if base is None:
        try:
            base = resolve(*adapter.base)
        except CheckpointError as error:
            raise missing_base(adapter, error) from error
    check_base(adapter, base)
    return base


def check_base(adapter: Adapter, base: CheckpointPath) -> None:
    """Raise CheckpointError for a base that is an adapter, too."""
    if (base / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{adapter.file} has base_model_name_or_path {adapter.base.model!r}, which holds an"
            " adapter itself: merge that one first"
        )


def missing_base(adapter: Adapter, error: Exception) -> CheckpointError:
    """The error of an adapter whose base is not found, from that of the base."""
    return CheckpointError(
        f"{adapter.file} names its base by base_model_name_or_path: {error}. Write the folder or"
        " the hub id of the base there"
    )


def adapter_weights(folder: CheckpointPath) -> CheckpointPath:
    """Return the file with the tensors of an adapter; CheckpointError where it is missing."""
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(
            f"{folder} lacks {ADAPTER_WEIGHTS} (adapter_model.bin is a pickle, which can run code"
            " and is never loaded: save the adapter again with a PEFT of 2023 or later)"
        )
    return file


def tokenizer_folder(folder: CheckpointPath) -> CheckpointPath:
    """Return the folder with the tokenizer: an adapter without one has that of its base."""
    has_own = (folder / TOKENIZER_FILES[0]).is_file()
    return folder if has_own or not read_adapter(folder) else base_of(folder)


def fingerprint(folder: CheckpointPath) -> str:
    """Return a SHA-256 digest (hexadecimal) of all that predictions depend on.

    That is the configuration, the weights and the tokenizer; of an adapter its own and its base's.
    """
    files = [_config_file(folder), *weight_files(folder)]
    files += [tokenizer_folder(folder) / name for name in TOKENIZER_FILES]
    if read_adapter(folder):
        files += [folder / ADAPTER_CONFIG, adapter_weights(folder)]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file_digest(file))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def warn_once(message: str) -> None:
    """Warn of what a checkpoint says, however often a process reads it."""
    logger.warning("%s", message)


def _config_file(folder: CheckpointPath) -> CheckpointPath:
    """Return config.json; an adapter without one has that of its base."""
    file = folder / "config.json"
    if file.is_file():
        return file
    if read_adapter(folder):
        return _config_file(base_of(folder))
    if any(folder.glob("gliner_config.json")):
        raise CheckpointError(
            f"{folder} holds gliner_config.json, a checkpoint of GLiNER: no task here runs one; tag"
            " runs a ModernBertForTokenClassification"
        )
    raise CheckpointError(f"{folder} lacks config.json: it is not a checkpoint folder")


def _architecture(folder: CheckpointPath, adapter: Adapter) -> str | None:
    """Return the class that an adapter was trained in; None where neither it nor
    sentence-transformers says.
    """
    # sentence-transformers does not look at the adapter's task_type.
    task = read_json(folder / "sentence_bert_config.json").get("transformer_task")
    return _ARCHITECTURES.get(task, adapter.architecture)
