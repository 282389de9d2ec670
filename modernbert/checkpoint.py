"""Checkpoints: a local folder or a hub id, loaded strictly from safetensors; nothing in one is ever executed."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from modernbert.config import ModernBertConfig
from modernbert.linear import Linear
from modernbert.model import ModernBertModel

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {"F32", "F16", "BF16"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
# What a checkpoint may hold beyond the class that loads it: another head, left out on purpose.
_HEADS = ("head.", "classifier.", "decoder.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message says what is there and what is needed."""


def resolve(model: str | Path, revision: str | None = None) -> Path:
    """The local folder of `model`: a folder, or a Hugging Face hub id, which is downloaded or found in the hub's cache.

    Raises CheckpointError where there is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"model {str(model)!r} is a file; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(f"model folder {str(model)!r} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"model {str(model)!r} is neither a folder here nor a repository on the hub (a private one needs HF_TOKEN)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"model {str(model)!r} is no folder here, not in the hub's cache, and the hub cannot be reached: "
            f"{str(error).splitlines()[0]}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, a single one or the shards that its index names.

    Raises CheckpointError where there are none, and says how to convert a pickle if that is what lies there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error}") from error
        files = [folder / Path(name).name for name in names]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.is_file()]
    if missing and any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder} holds pytorch_model.bin, a pickle, which can run code and is never loaded. Convert it once: "
            "AutoModel….from_pretrained(folder).save_pretrained(folder, safe_serialization=True) with transformers"
        )
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}")
    return files


def load_config(folder: Path) -> ModernBertConfig:
    """The configuration in a checkpoint's folder; CheckpointError or ConfigError where it cannot be used."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} lacks config.json: it is not a checkpoint folder")
    return ModernBertConfig.from_json(folder / "config.json")


def check_weights(model_class: type[nn.Module], folder: Path, config: ModernBertConfig) -> dict[str, tuple[Path, str]]:
    """Where each weight of `model_class` lies, {name: (file, name in it)}, from the files' headers alone.

    Raises CheckpointError that lists every missing, unexpected or misshapen weight. A tied decoder may be missing, and
    heads that the class does not have are left out, which is logged.
    """
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in model_class(config).state_dict().items()}
    found: dict[str, tuple[Path, str]] = {}
    problems: list[str] = []
    left_out: list[str] = []
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 (not a dict)
                    name = _own_name(key, model_class)
                    piece = stored.get_slice(key)
                    if name not in wanted:
                        (left_out if key.startswith(_HEADS) else problems).append(f"unexpected {key}")
                    elif tuple(piece.get_shape()) != wanted[name]:
                        problems.append(f"{key} has shape {piece.get_shape()}, not {list(wanted[name])}")
                    elif piece.get_dtype() not in _STORED:
                        problems.append(f"{key} is stored as {piece.get_dtype()}, not one of {', '.join(_STORED)}")
                    found[name] = (file, key)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    if config.tie_word_embeddings and "decoder.weight" in wanted and "decoder.weight" not in found:
        found["decoder.weight"] = found.get("model.embeddings.tok_embeddings.weight", (folder, "decoder.weight"))
    problems += [f"missing {name}" for name in wanted if name not in found]
    heads = sorted({key.split()[1].split(".")[0] for key in left_out})
    if problems:
        fits = f"; it holds {' and '.join(heads)} of another task" if heads else ""
        shown = "\n  ".join(problems[:40] + [f"… and {len(problems) - 40} more"] * (len(problems) > 40))
        raise CheckpointError(f"{folder} does not fit {model_class.__name__}{fits}:\n  {shown}")
    if left_out:
        logger.info("%s: left out %s, which %s does not have", folder, ", ".join(heads), model_class.__name__)
    return {name: found[name] for name in wanted}


def load(
    model_class: type[Model],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> Model:
    """`model_class` with the weights of the checkpoint in `folder`, in eval mode, on `device` in `dtype`."""
    config = load_config(folder)
    places = check_weights(model_class, folder, config)
    with torch.device("meta"):
        model = model_class(config, attention)  # type: ignore[call-arg]
    weights: dict[str, torch.Tensor] = {}
    for file in {file for file, _ in places.values()}:
        with safe_open(file, "pt", device=str(device)) as stored:
            for name, (place, key) in places.items():
                if place == file:
                    weights[name] = stored.get_tensor(key).to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Write `model` as config.json and model.safetensors, which transformers loads unchanged."""
    weights = model.state_dict()
    if any(isinstance(module, Linear) and module.weight is None for module in model.modules()):
        raise ValueError("a prepacked model has no plain weights left; save it before prepack")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [type(model).__name__], "dtype": str(next(iter(weights.values())).dtype).split(".")[1]}
    config |= model.config.to_dict()  # type: ignore[union-attr, operator]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def fingerprint(folder: Path) -> str:
    """A digest of everything in the checkpoint that answers depend on: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder), folder / "tokenizer.json"]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _own_name(key: str, model_class: type[nn.Module]) -> str:
    """The name that `model_class` has for a stored weight: the encoder alone is saved without the prefix `model.`."""
    if issubclass(model_class, ModernBertModel):
        return key.removeprefix("model.")
    return key if key.startswith(("model.", *_HEADS)) else f"model.{key}"
