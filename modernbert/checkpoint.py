"""Models loaded from checkpoints, strictly and from safetensors alone; no code in a checkpoint is
executed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from modernbert.adapter import LowRank
from modernbert.config import ModernBertConfig
from modernbert.files import adapter_weights, load_config, resolve
from modernbert.linear import Linear
from modernbert.matching import HEAD_PREFIXES, Location, match_weights
from modernbert.stored import CheckpointError, CheckpointPath
from modernbert.tensors import read_tensors

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound="PreTrained")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that models run in, by name."""
_DECODER = "decoder.weight"  # of a masked language model; the embeddings, where the two are tied
_MOST_LISTED_PROBLEMS = 40


class StoredWeights(NamedTuple):
    """Where the parameters of a model are stored."""

    locations: dict[str, Location]
    """{name of a parameter: (file, name in the file)}."""
    changes: dict[str, LowRank]
    """What an adapter adds to some of them."""


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
            attention: one of `modernbert.attention_kernels.BACKENDS`, or "auto" for the best one on
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
        known = {field.name for field in fields(ModernBertConfig)}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(
                f"{', '.join(unknown)}: neither an option of from_pretrained nor a field of the "
                "configuration"
            )
        if isinstance(dtype, str):
            dtype = as_dtype(dtype)
        folder = resolve(model, revision)
        config = _with_overrides(load_config(folder), overrides)
        loaded = _load(cls, folder, config, device, dtype, attention, new_head=True)
        return loaded.requires_grad_(True)

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
            weights.pop(_DECODER, None)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        first_weight = next(iter(weights.values()))
        dtype = str(first_weight.dtype).removeprefix("torch.")
        config = {"architectures": [type(self).__name__], "dtype": dtype} | self.config.to_dict()
        config_file = folder / "config.json"
        config_file.write_text(json.dumps(config, indent=2) + "\n")
        # An index of earlier weights would send readers to files that are replaced.
        for stale_index in folder.glob("*.safetensors.index.json"):
            stale_index.unlink()
        save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
        # The library makes its files readable by their owner alone.
        for weights_file in folder.glob("*.safetensors"):
            weights_file.chmod(config_file.stat().st_mode)

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


def _with_overrides(config: ModernBertConfig, overrides: Mapping[str, Any]) -> ModernBertConfig:
    """Replace fields of a configuration; fields that follow from them are derived anew."""
    derived: dict[str, Any] = {}
    has_other_labels = overrides.get("num_labels", config.num_labels) != config.num_labels
    if has_other_labels or "label2id" in overrides:
        derived["id2label"] = {}
    if "global_attn_every_n_layers" in overrides:
        derived["layer_types"] = []
    if {"num_labels", "id2label", "label2id"} & set(overrides):
        derived["num_labels"] = 0
        derived["label2id"] = {}
    return replace(config, **{**derived, **overrides})


def check_weights(
    model_class: type[PreTrained],
    folder: CheckpointPath,
    config: ModernBertConfig,
    *,
    new_head: bool = False,
) -> StoredWeights:
    """Check that a checkpoint has the weights of a model class, by the headers of its files alone.

    Heads that the class does not have are left out, as is what no forward pass reads (position_ids,
    buffers of rotary embeddings, weights of losses); both are logged. A tied decoder may be
    missing.

    Args:
        model_class: the class that is to be loaded.
        folder: the checkpoint.
        config: its configuration.
        new_head: whether the head may be missing, too, which is logged as a warning.

    Returns:
        Where each parameter is stored, and what an adapter adds to it.

    Raises:
        CheckpointError: listing all weights that are missing, unexpected or of another shape or
            dtype.
    """
    with torch.device("meta"):
        state = model_class(config).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    match = match_weights(folder, shapes, model_class.encoder_prefix, config.num_labels)
    locations = match.locations

    # A tied decoder is the embeddings, whether or not the file has a weight of its name.
    tied = _DECODER if config.tie_word_embeddings and _DECODER in shapes else None
    embeddings_name = f"{model_class.encoder_prefix}embeddings.tok_embeddings.weight"
    embeddings = locations.get(embeddings_name)
    if tied and embeddings:
        locations[tied] = embeddings
    if tied and {tied, embeddings_name} & match.adapted:
        # PEFT's own answers differ before and after merging.
        match.problems.append(
            "its adapter changes embeddings or decoder, which tie_word_embeddings makes one: merge"
            " it with PEFT"
        )

    # A head may be new, for training; all other weights must be there.
    missing = [name for name in shapes if name not in locations and name != tied]
    new = [name for name in missing if new_head and name.startswith(HEAD_PREFIXES)]
    problems = match.problems + [f"missing {name}" for name in missing if name not in new]

    class_name = model_class.__name__
    other_heads = sorted({key.partition(".")[0] for key in match.other_heads})
    if problems:
        misfit = f"{folder} does not fit {class_name}"
        if match.wrapper:
            raise CheckpointError(f"{misfit}: {match.wrapper}")
        if other_heads:
            misfit += f"; it holds {' and '.join(other_heads)} of another task"
        listed = problems[:_MOST_LISTED_PROBLEMS]
        if len(problems) > len(listed):
            listed.append(f"… and {len(problems) - len(listed)} more")
        raise CheckpointError("\n  ".join([f"{misfit}:", *listed]))
    if match.unread:
        unread = ", ".join(match.unread)
        logger.warning("%s: left out %s, which no answer depends on", folder, unread)
    if other_heads:
        heads = ", ".join(other_heads)
        logger.info("%s: left out %s, which %s does not have", folder, heads, class_name)
    if new:
        logger.warning("%s lacks %s: newly initialised, train before use", folder, ", ".join(new))
    ordered = {name: locations[name] for name in shapes if name in locations}
    return StoredWeights(ordered, match.changes)


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
        attention: one of `modernbert.attention_kernels.BACKENDS`, or "auto" for the best one on
            `device`.

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
    head_dtype = head_dtype or dtype
    locations, changes = check_weights(model_class, folder, config, new_head=new_head)
    matrices = _read_matrices(folder, changes)
    # A decoder of another dtype than the embeddings has a weight of its own.
    tied = config.tie_word_embeddings and head_dtype == dtype
    if tied:
        locations.pop(_DECODER, None)

    # Nothing is allocated, nor drawn, for weights that the files have.
    with torch.device("meta"):
        model = model_class(config, attention)
    weights = {}
    for name, weight in _read_weights(locations):
        if change := changes.get(name):
            weight = _add_low_rank(weight, change, matrices)
        in_encoder = name.startswith(model_class.encoder_prefix)
        weights[name] = weight.to(device).to(dtype if in_encoder else head_dtype)
    model.load_state_dict(weights, assign=True, strict=False)
    if tied:
        model.tie_weights()

    # What is still on the meta device is new: it is allocated here, and drawn.
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta:
                allocated = torch.empty_like(weight, device=device, dtype=dtype)
                setattr(module, name, nn.Parameter(allocated))
    new = [name for name, _ in model.named_parameters() if name not in weights]
    init_weights(model, new)
    return model.eval().requires_grad_(False)


def _read_weights(locations: Mapping[str, Location]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter's weight, in the order of each file; every weight is read once."""
    names_in: dict[CheckpointPath, dict[str, list[str]]] = {}
    for name, (file, key) in locations.items():
        names_of = names_in.setdefault(file, {})
        names_of.setdefault(key, []).append(name)
    for file, names_of in names_in.items():
        for key, weight in read_tensors(file, names_of):
            for name in names_of[key]:
                yield name, weight


def _read_matrices(
    folder: CheckpointPath, changes: Mapping[str, LowRank]
) -> dict[str, torch.Tensor]:
    """Return the matrices of an adapter's changes, by their names in its file."""
    names = {key for change in changes.values() for key in (change.a, change.b)}
    return dict(read_tensors(adapter_weights(folder), names)) if names else {}


def _add_low_rank(
    weight: torch.Tensor, change: LowRank, matrices: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return a weight with what an adapter adds, computed in fp32 whatever the files have."""
    product = matrices[change.b].float() @ matrices[change.a].float()
    if change.is_embedding:
        product = product.T
    return weight.float() + change.scale * product


@torch.no_grad()
def init_weights(model: PreTrained, names: list[str] | None = None) -> None:
    """Draw parameters from a truncated normal distribution, narrower where a residual branch ends.

    This is the Megatron initialisation of the paper (Warner et al. 2024, section 2.3), as
    transformers has it.

    Args:
        model: the model whose parameters are filled in place.
        names: the parameters; None: those of the class itself, without those of an encoder inside
            it.
    """
    config = model.config
    cutoff = 3 if config.initializer_cutoff_factor is None else config.initializer_cutoff_factor
    branch_end = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    stds = {
        "Wo": branch_end,
        "dense": branch_end,
        "decoder": branch_end,
        "classifier": config.hidden_size**-0.5,
    }
    for name, weight in model.named_parameters():
        is_meant = name in names if names is not None else not name.startswith("model.")
        if weight.is_meta or not is_meant:
            continue
        if weight.dim() == 2:
            layer = name.split(".")[-2]
            std = stds.get(layer, config.initializer_range)
            nn.init.trunc_normal_(weight, std=std, a=-cutoff * std, b=cutoff * std)
        else:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
