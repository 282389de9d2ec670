"""Models loaded from checkpoints, strictly and from safetensors alone; no code in a checkpoint is
executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Container, Iterator
from dataclasses import fields, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from modernbert.config import ModernBertConfig
from modernbert.files import CheckpointError, load_config, resolve, weight_files
from modernbert.linear import Linear
from modernbert.stored import (
    CheckpointPath,
    StoredPath,
    StoredTensor,
    open_weights,
    parse_header,
    raw_header,
    read_header,
)

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound="PreTrained")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that models run in, by name."""
_STORED_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
_HASHED_BYTES = 1 << 20  # read at a time of what only counts for a digest
_HEAD_PREFIXES = (
    "head.",
    "classifier.",
    "decoder.",
    "linear.",
)  # weights that a class without this head leaves out
_LEFTOVER = re.compile(  # what no forward pass reads: computed buffers, and the weights of losses
    r"(.*\.)?(position_ids|\w*inv_freq|cos_cached|sin_cached)|(model\.)?(loss|loss_fct|loss_fn|loss_function|criterion)\..*"
)
_WRAPPERS = {
    "_orig_mod.": "it was saved while compiled; save it again with "
    "model._orig_mod.save_pretrained(folder)",
    "module.": "it was saved while wrapped for training in parallel; save it again with"
    " model.module.save_pretrained(folder)",
    "base_model.model.": "it was saved with PEFT's adapters; save it again with"
    " model.merge_and_unload().save_pretrained(folder)",
}
"""Prefixes that wrappers of a model put before the names of its weights, and how it is saved
without them.
"""


class PreTrained(nn.Module):
    """The base of all models: reads and writes checkpoints."""

    config: ModernBertConfig
    encoder_prefix = "model."
    """The prefix of the encoder's weights in this class."""

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
        """Load a checkpoint, in eval mode; the model can be run or trained further.

        A head that the checkpoint lacks is newly initialised, with a warning. All other weights
        must be there and fit.

        Args:
            model: a folder, or a Hugging Face hub id, which is downloaded or found in the hub's
                cache.
            revision: a branch, tag or commit of the hub's repository.
            device: where the weights are put.
            dtype: float32, bfloat16 or float16, as a torch dtype or by name, whatever dtype the
                file has.
            attention: one of `modernbert.attention.BACKENDS`, or "auto" for the best one on
                `device`.
            overrides: fields of the configuration that replace those of the checkpoint.

        Raises:
            CheckpointError: where there is no such checkpoint, and for weights that are missing,
                unexpected or of another shape; the message lists all of them.
            ConfigError: for a configuration that cannot be used.
            ValueError: for an argument that is not a field of the configuration, and an unknown
                `dtype`.

        Example:
            >>> name = "answerdotai/ModernBERT-base"
            >>> model = ModernBertForSequenceClassification.from_pretrained(name, num_labels=3)
        """
        if unknown := sorted(set(overrides) - {field.name for field in fields(ModernBertConfig)}):
            raise ValueError(
                f"{', '.join(unknown)}: neither an option of from_pretrained nor a field of the "
                "configuration"
            )
        if isinstance(dtype, str):
            dtype = as_dtype(dtype)
        folder = resolve(model, revision)
        config = load_config(folder)
        if (
            overrides.get("num_labels", config.num_labels) != config.num_labels
            or "label2id" in overrides
        ):
            overrides = {"id2label": {}} | overrides
        if "global_attn_every_n_layers" in overrides:
            overrides = {"layer_types": []} | overrides
        if {"num_labels", "id2label", "label2id"} & set(overrides):
            overrides = {"num_labels": 0, "label2id": {}} | overrides
        loaded_model = _load(
            cls, folder, replace(config, **overrides), device, dtype, attention, new_head=True
        )
        return loaded_model.requires_grad_(True)

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write config.json and the weights as safetensors, which transformers loads, too.

        Args:
            folder: created if it does not exist; earlier weights in it are replaced.
            max_shard_size: the largest file, in bytes or as a text ("5GB"); larger models are split
                into several files.

        Raises:
            ValueError: for a prepacked model, which has no plain weights left.
            ConfigError: where an activation is a function, which JSON cannot hold.

        Example:
            >>> model.save_pretrained("trained")
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
        for file in folder.glob(
            "*.safetensors"
        ):  # the library makes them readable by their owner alone
            file.chmod((folder / "config.json").stat().st_mode)

    def tie_weights(self) -> None:
        """Share the weights that the configuration ties; only a masked language model has any."""


def as_dtype(name: str) -> torch.dtype:
    """Return the torch dtype called `name`.

    Raises:
        ValueError: for a name that is not in DTYPES.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def check_weights(
    model_class: type[PreTrained],
    folder: CheckpointPath,
    config: ModernBertConfig,
    *,
    new_head: bool = False,
) -> dict[str, tuple[CheckpointPath, str]]:
    """Check that a checkpoint has the weights of a model class; only the headers of its files are
    read.

    Heads that the class does not have are left out, as is what no forward pass reads (position_ids,
    buffers of rotary embeddings, weights of losses); both are logged. A tied decoder may be
    missing.

    Args:
        model_class: the class that is to be loaded.
        folder: the checkpoint.
        config: its configuration.
        new_head: whether the head may be missing, too, which is logged as a warning.

    Returns:
        {name of a parameter: (file, name in the file)}.

    Raises:
        CheckpointError: listing all weights that are missing, unexpected or of another shape or
            dtype.
    """
    with torch.device("meta"):
        expected = {
            name: tuple(weight.shape) for name, weight in model_class(config).state_dict().items()
        }
    found: dict[str, tuple[CheckpointPath, str]] = {}
    problems: list[str] = []
    unused: list[str] = []
    leftovers: list[str] = []
    for file in weight_files(folder):
        for key, stored in read_header(file).items():
            name = _parameter_name(key, model_class)
            if name not in expected and _LEFTOVER.fullmatch(key):
                leftovers.append(key)
            elif name not in expected:
                (unused if key.startswith(_HEAD_PREFIXES) else problems).append(f"unexpected {key}")
            elif stored.shape != expected[name]:
                problems.append(_shape_problem(key, list(stored.shape), expected[name], config))
            elif stored.dtype not in _STORED_DTYPES:
                problems.append(
                    f"{key} is stored as {stored.dtype}, not one of {', '.join(_STORED_DTYPES)}"
                )
            found[name] = (file, key)
    embeddings = f"{model_class.encoder_prefix}embeddings.tok_embeddings.weight"
    if config.tie_word_embeddings and "decoder.weight" in expected:
        found["decoder.weight"] = found.get(embeddings, (folder, "decoder.weight"))
    missing = [name for name in expected if name not in found]
    new_weights = [name for name in missing if new_head and name.startswith(_HEAD_PREFIXES)]
    problems += [f"missing {name}" for name in missing if name not in new_weights]
    heads = sorted({key.split()[1].split(".")[0] for key in unused})
    if problems:
        for prefix, how_to in _WRAPPERS.items():
            if any(problem.startswith(f"unexpected {prefix}") for problem in problems):
                raise CheckpointError(
                    f"{folder} does not fit {model_class.__name__}: names begin with {prefix!r}, "
                    f"{how_to}"
                )
        hint = f"; it holds {' and '.join(heads)} of another task" if heads else ""
        listing = "\n  ".join(
            problems[:40] + [f"… and {len(problems) - 40} more"] * (len(problems) > 40)
        )
        raise CheckpointError(f"{folder} does not fit {model_class.__name__}{hint}:\n  {listing}")
    if leftovers:
        logger.warning("%s: left out %s, which no answer depends on", folder, ", ".join(leftovers))
    if unused:
        logger.info(
            "%s: left out %s, which %s does not have",
            folder,
            ", ".join(heads),
            model_class.__name__,
        )
    if new_weights:
        logger.warning(
            "%s lacks %s: newly initialised, train before use", folder, ", ".join(new_weights)
        )
    return {name: found[name] for name in expected if name in found}


def load(
    model_class: type[Model],
    folder: CheckpointPath,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> Model:
    """Load a complete checkpoint for inference: in eval mode, without gradients.

    The checkpoint's `reference_compile` is not acted on: a machine that runs inference may have no
    C++ compiler.

    Args:
        model_class: the class of the model.
        folder: the checkpoint, which must hold all weights of the class.
        device: where the weights are put.
        dtype: the dtype that the encoder runs in, whatever dtype the file has; heads always run in
            fp32.
        attention: one of `modernbert.attention.BACKENDS`, or "auto" for the best one on `device`.

    Raises:
        CheckpointError: where a file or a weight is missing or does not fit.
        ConfigError: for a configuration that cannot be used.
    """
    config = replace(load_config(folder), reference_compile=False)
    return _load(model_class, folder, config, device, dtype, attention, head_dtype=torch.float32)


def _load(
    model_class: type[Model],
    folder: CheckpointPath,
    config: ModernBertConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    attention: str,
    *,
    head_dtype: torch.dtype | None = None,
    new_head: bool = False,
) -> Model:
    """Load a model; `head_dtype` is the dtype of what is not the encoder, `dtype` by default."""
    locations = check_weights(model_class, folder, config, new_head=new_head)
    with torch.device("meta"):
        model = model_class(config, attention)  # type: ignore[call-arg]
    weights: dict[str, torch.Tensor] = {}
    tied = config.tie_word_embeddings and head_dtype in (
        None,
        dtype,
    )  # a decoder of another dtype has its own weight
    parameters: dict[CheckpointPath, dict[str, list[str]]] = {}
    for name, (file, key) in locations.items():
        if not (name == "decoder.weight" and tied):
            parameters.setdefault(file, {}).setdefault(key, []).append(name)
    for file, names in parameters.items():
        for key, weight in read_tensors(file, names):
            for name in names[key]:
                in_head = head_dtype and not name.startswith(model_class.encoder_prefix)
                weights[name] = weight.to(device).to(head_dtype if in_head else dtype)
    model.load_state_dict(weights, assign=True, strict=False)
    if tied:
        model.tie_weights()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta:
                setattr(
                    module, name, nn.Parameter(torch.empty_like(weight, device=device, dtype=dtype))
                )
    init_weights(model, [name for name, _ in model.named_parameters() if name not in weights])
    return model.eval().requires_grad_(False)


def read_tensors(
    file: CheckpointPath, names: Container[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a safetensors file with their names, in the order in which they are
    stored.

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
    digest = None
    if isinstance(file, StoredPath) and file.files.has_digest(file.path):
        digest = hashlib.sha256()
    with open_weights(file) as stream:
        header, size = raw_header(stream)
        if digest:
            digest.update(header)
        for name, stored in parse_header(file, header, size).items():
            if names is None or name in names:
                yield name, _read_tensor(file, stream, name, stored, digest)
            else:
                _skip(file, stream, stored.stop, digest)
    if digest and isinstance(file, StoredPath):
        file.files.check_weights(file.path, digest.hexdigest())


def _read_tensor(
    file: CheckpointPath, stream: BufferedReader, name: str, stored: StoredTensor, digest: Any
) -> torch.Tensor:
    """Read the tensor at the position of `stream`, and add its bytes to `digest`, if there is
    one.
    """
    if stored.dtype not in _STORED_DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {stored.dtype}, not one of {', '.join(_STORED_DTYPES)}"
        )
    tensor = torch.empty(stored.shape, dtype=_STORED_DTYPES[stored.dtype])
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    if stream.readinto(content) != len(content):
        raise _shorter(file)
    if digest:
        digest.update(content)
    return tensor


def _skip(file: CheckpointPath, stream: BufferedReader, stop: int, digest: Any) -> None:
    """Move `stream` on to byte `stop`, and add the bytes before it to `digest`, if there is one."""
    while digest and stream.tell() < stop:
        content = stream.read(min(stop - stream.tell(), _HASHED_BYTES))
        if not content:
            raise _shorter(file)
        digest.update(content)
    stream.seek(stop)


def _shorter(file: CheckpointPath) -> CheckpointError:
    return CheckpointError(f"{file} became shorter while it was read")


@torch.no_grad()
def init_weights(model: PreTrained, names: list[str] | None = None) -> None:
    """Initialise parameters from a truncated normal distribution, narrower at the end of a residual
    branch.

    This is the Megatron initialisation of the paper (Warner et al. 2024, section 2.3), as
    transformers has it.

    Args:
        model: the model whose parameters are filled in place.
        names: the parameters; None: those of the class itself, without those of an encoder inside
            it.
    """
    config = model.config
    cutoff = 3 if config.initializer_cutoff_factor is None else config.initializer_cutoff_factor
    narrow = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    stds = {
        "Wo": narrow,
        "dense": narrow,
        "decoder": narrow,
        "classifier": config.hidden_size**-0.5,
    }
    for name, weight in model.named_parameters():
        if weight.is_meta or (name.startswith("model.") if names is None else name not in names):
            continue
        if weight.dim() == 2:
            std = stds.get(name.split(".")[-2], config.initializer_range)
            nn.init.trunc_normal_(weight, std=std, a=-cutoff * std, b=cutoff * std)
        else:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)


def _parameter_name(key: str, model_class: type[PreTrained]) -> str:
    """Return the name of a stored weight in `model_class`; an encoder without a head is saved
    without "model.".
    """
    return (
        key
        if key.startswith(_HEAD_PREFIXES)
        else model_class.encoder_prefix + key.removeprefix("model.")
    )


def _shape_problem(
    key: str, shape: list[int], expected: tuple[int, ...], config: ModernBertConfig
) -> str:
    labels = (
        f" (id2label names {config.num_labels} labels)" if key.startswith("classifier.") else ""
    )
    return f"{key} has shape {shape}, not {list(expected)}{labels}"
