"""Checkpoints: a local folder or a hub id, loaded strictly from safetensors; nothing in one is ever executed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from modernbert.config import ModernBertConfig
from modernbert.linear import Linear

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound="PreTrained")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOADABLE_DTYPES = {"F32", "F16", "BF16"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors"]
# What a checkpoint may hold beyond the class that loads it: another head, left out on purpose.
_HEAD_PREFIXES = ("head.", "classifier.", "decoder.")


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


class PreTrained(nn.Module):
    """What the encoder and every model with a head share: reading and writing checkpoints."""

    config: ModernBertConfig
    encoder_prefix = "model."
    """What stands before the encoder's weights in this class."""

    @classmethod
    def from_pretrained(
        cls: type[Model],
        model: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        attention: str = "auto",
        **overrides: Any,
    ) -> Model:
        """The checkpoint in the folder or hub repository `model`, in eval mode, ready to be run or trained further.

        `dtype`: a torch dtype or its name. `overrides`: fields of the configuration (`num_labels=3`, …). A head that
        the checkpoint lacks is newly initialised, with a warning; everything else must be there and fit, or it is a
        CheckpointError.
        """
        if unknown := sorted(set(overrides) - {field.name for field in fields(ModernBertConfig)}):
            raise ValueError(
                f"{', '.join(unknown)}: neither an option of from_pretrained nor a field of the configuration"
            )
        if isinstance(dtype, str):
            dtype = as_dtype(dtype)
        folder = resolve(model, revision)
        config = load_config(folder)
        if overrides.get("num_labels", config.num_labels) != config.num_labels or "label2id" in overrides:
            overrides = {"id2label": {}} | overrides
        if "global_attn_every_n_layers" in overrides:
            overrides = {"layer_types": []} | overrides
        if {"num_labels", "id2label", "label2id"} & set(overrides):
            overrides = {"num_labels": 0, "label2id": {}} | overrides
        loaded_model = _load(cls, folder, replace(config, **overrides), device, dtype, attention, new_head=True)
        return loaded_model.requires_grad_(True)

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json and safetensors, which transformers loads unchanged, in files of at most `max_shard_size`.

        Raises ValueError for a prepacked model, which has no plain weights left.
        """
        from huggingface_hub import save_torch_state_dict

        if any(isinstance(module, Linear) and module.weight is None for module in self.modules()):
            raise ValueError("a prepacked model has no plain weights left; save it before prepack")
        weights = self.state_dict()
        if self.config.tie_word_embeddings:
            weights.pop("decoder.weight", None)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        config = {"architectures": [type(self).__name__], "dtype": dtype} | self.config.to_dict()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for stale in folder.glob("*.safetensors.index.json"):
            stale.unlink()
        save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
        for file in folder.glob("*.safetensors"):  # the library leaves them to their owner alone
            file.chmod((folder / "config.json").stat().st_mode)

    def tie_weights(self) -> None:
        """Share the weights that the configuration wants shared: none, but for a masked language model."""


def as_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`; ValueError for one that models do not run in."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def check_weights(
    model_class: type[PreTrained], folder: Path, config: ModernBertConfig, *, new_head: bool = False
) -> dict[str, tuple[Path, str]]:
    """Where each weight of `model_class` lies, {name: (file, name in it)}, from the files' headers alone.

    Raises CheckpointError that lists every missing, unexpected or misshapen weight. A tied decoder may be missing, with
    `new_head` the whole head too; heads that the class does not have are left out. Both are logged.
    """
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in model_class(config).state_dict().items()}
    found: dict[str, tuple[Path, str]] = {}
    problems: list[str] = []
    unused: list[str] = []
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a dict)
                    name = _parameter_name(key, model_class)
                    tensor_slice = opened.get_slice(key)
                    if name not in expected:
                        (unused if key.startswith(_HEAD_PREFIXES) else problems).append(f"unexpected {key}")
                    elif tuple(tensor_slice.get_shape()) != expected[name]:
                        problems.append(_shape_problem(key, tensor_slice.get_shape(), expected[name], config))
                    elif tensor_slice.get_dtype() not in _LOADABLE_DTYPES:
                        problems.append(
                            f"{key} is stored as {tensor_slice.get_dtype()}, not one of {', '.join(_LOADABLE_DTYPES)}"
                        )
                    found[name] = (file, key)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    embeddings = f"{model_class.encoder_prefix}embeddings.tok_embeddings.weight"
    if config.tie_word_embeddings and "decoder.weight" in expected:
        found["decoder.weight"] = found.get(embeddings, (folder, "decoder.weight"))
    missing = [name for name in expected if name not in found]
    new_weights = [name for name in missing if new_head and name.startswith(_HEAD_PREFIXES)]
    problems += [f"missing {name}" for name in missing if name not in new_weights]
    heads = sorted({key.split()[1].split(".")[0] for key in unused})
    if problems:
        hint = f"; it holds {' and '.join(heads)} of another task" if heads else ""
        listing = "\n  ".join(problems[:40] + [f"… and {len(problems) - 40} more"] * (len(problems) > 40))
        raise CheckpointError(f"{folder} does not fit {model_class.__name__}{hint}:\n  {listing}")
    if unused:
        logger.info("%s: left out %s, which %s does not have", folder, ", ".join(heads), model_class.__name__)
    if new_weights:
        logger.warning("%s lacks %s: newly initialised, train before use", folder, ", ".join(new_weights))
    return {name: found[name] for name in expected if name in found}


def load(
    model_class: type[Model],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> Model:
    """`model_class` with the weights of the checkpoint in `folder`, all of them, to be run in `dtype` on `device`."""
    return _load(model_class, folder, load_config(folder), device, dtype, attention, new_head=False)


def _load(
    model_class: type[Model],
    folder: Path,
    config: ModernBertConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    attention: str,
    new_head: bool,
) -> Model:
    locations = check_weights(model_class, folder, config, new_head=new_head)
    with torch.device("meta"):
        model = model_class(config, attention)  # type: ignore[call-arg]
    weights: dict[str, torch.Tensor] = {}
    for file in {file for file, _ in locations.values()}:
        with safe_open(file, "pt", device=str(device)) as opened:
            for name, (weight_file, key) in locations.items():
                if weight_file == file and not (name == "decoder.weight" and config.tie_word_embeddings):
                    weights[name] = opened.get_tensor(key).to(dtype)
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta:
                setattr(module, name, nn.Parameter(torch.empty_like(weight, device=device, dtype=dtype)))
    init_weights(model, [name for name, _ in model.named_parameters() if name not in weights])
    return model.eval().requires_grad_(False)


@torch.no_grad()
def init_weights(model: PreTrained, names: list[str] | None = None) -> None:
    """Fill parameters with the paper's truncated normal initialisation: smaller where a residual branch ends.

    `names`: which ones; by default those of the class itself, without those of an encoder inside it.
    """
    config = model.config
    cutoff = 3 if config.initializer_cutoff_factor is None else config.initializer_cutoff_factor
    narrow = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    stds = {"Wo": narrow, "dense": narrow, "decoder": narrow, "classifier": config.hidden_size**-0.5}
    for name, weight in model.named_parameters():
        if weight.is_meta or (name.startswith("model.") if names is None else name not in names):
            continue
        if weight.dim() == 2:
            std = stds.get(name.split(".")[-2], config.initializer_range)
            nn.init.trunc_normal_(weight, std=std, a=-cutoff * std, b=cutoff * std)
        else:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)


def fingerprint(folder: Path) -> str:
    """A digest of everything in the checkpoint that answers depend on: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder), folder / "tokenizer.json"]:
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _parameter_name(key: str, model_class: type[PreTrained]) -> str:
    """The name that `model_class` has for a stored weight: the encoder alone is saved without the prefix `model.`."""
    return key if key.startswith(_HEAD_PREFIXES) else model_class.encoder_prefix + key.removeprefix("model.")


def _shape_problem(key: str, shape: list[int], expected: tuple[int, ...], config: ModernBertConfig) -> str:
    labels = f" (id2label names {config.num_labels} labels)" if key.startswith("classifier.") else ""
    return f"{key} has shape {shape}, not {list(expected)}{labels}"
