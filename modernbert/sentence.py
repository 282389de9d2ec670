"""Sentence encoders as sentence-transformers stores them: an encoder, pooling, dense layers and normalisation.

Shapes: T packed tokens, B sequences, D hidden, E embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modernbert.checkpoint import CheckpointError, load
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch

POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""The pooling modes, with the names of sentence-transformers."""
_LEGACY_POOLINGS = {  # before version 6, a flag for each mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, nn.Module] = {
    "Tanh": nn.Tanh(), "Identity": nn.Identity(), "ReLU": nn.ReLU(), "GELU": nn.GELU(), "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
}  # fmt: skip


def encoder_folder(folder: Path) -> Path:
    """Return the folder of a checkpoint's encoder: the one that modules.json names, or `folder` itself."""
    modules = _read_json(folder / "modules.json") or []
    encoders = [folder / module["path"] for module in modules if module["type"].endswith("Transformer")]
    return encoders[0] if encoders else folder


@dataclass(frozen=True)
class Dense:
    """A dense layer after the pooling."""

    folder: Path
    activation: str
    """The name of a class in torch.nn."""
    residual: bool
    """Whether the layer's input is added to its output."""
    out_features: int


@dataclass(frozen=True)
class SentenceConfig:
    """The content of modules.json and the files that it names; the defaults are those of a plain encoder."""

    encoder: Path
    """The folder with config.json, weights and tokenizer."""
    pooling: tuple[str, ...] = ("mean",)
    """One or more of POOLINGS, whose vectors are concatenated."""
    include_prompt: bool = True
    """Whether the tokens of a prompt take part in the pooling."""
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    """Whether vectors are scaled to length 1."""
    max_length: int | None = None
    """The longest input in tokens; None where the checkpoint states none."""
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    """{name: text that is put before a document}."""
    default_prompt_name: str | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> SentenceConfig:
        """Read the configuration of a sentence encoder, or that of a plain encoder with mean pooling.

        Args:
            folder: a checkpoint, with modules.json if it is a sentence encoder.

        Raises:
            CheckpointError: for unknown modules, pooling modes and activations, and a file that is not valid JSON.
        """
        if not (folder / "modules.json").is_file():
            return cls(folder)
        values: dict[str, Any] = {"encoder": folder}
        dense: list[Dense] = []
        for module in _read_json(folder / "modules.json"):
            module_type, module_folder = module["type"].rpartition(".")[2], folder / module["path"]
            if module_type == "Transformer":
                settings = _read_json(module_folder / "sentence_bert_config.json")
                values |= {"encoder": module_folder, "max_length": settings.get("max_seq_length")}
                values["lower_case"] = bool(settings.get("do_lower_case"))
            elif module_type == "Pooling":
                settings = _read_json(module_folder / "config.json")
                values |= {"pooling": _pooling_modes(settings), "include_prompt": settings.get("include_prompt", True)}
            elif module_type == "Dense":
                settings = _read_json(module_folder / "config.json")
                dense.append(_parse_dense(module_folder, settings))
            elif module_type == "Normalize":
                values["normalize"] = True
            elif module_type != "Dropout":
                raise CheckpointError(
                    f"{folder / 'modules.json'} has a module {module['type']}; known are Transformer, Pooling, Dense,"
                    " Normalize"
                )
        settings = _read_json(folder / "config_sentence_transformers.json")
        values["prompts"] = settings.get("prompts") or {}
        return cls(**values, dense=tuple(dense), default_prompt_name=settings.get("default_prompt_name"))

    def width(self, hidden_size: int) -> int:
        """Return the width of a vector, for an encoder of `hidden_size`."""
        return self.dense[-1].out_features if self.dense else hidden_size * len(self.pooling)

    @property
    def files(self) -> list[Path]:
        """The files of the dense layers, on which vectors depend besides the encoder's."""
        return [file for dense in self.dense for file in sorted(dense.folder.iterdir()) if file.is_file()]


class SentenceEncoder(nn.Module):
    """An encoder with pooling and dense layers: a vector for each sequence.

    Example:
        >>> folder = resolve("my-org/modernbert-embed")
        >>> encoder = SentenceEncoder.load(SentenceConfig.from_folder(folder))
        >>> windows = Tokenizer.from_folder(folder).encode(["one text", "another one"])
        >>> ids, lengths = torch.from_numpy(windows.input_ids), tuple(windows.lengths.tolist())
        >>> encoder.forward_packed(PackedBatch.from_lengths(ids, lengths)).shape
        torch.Size([2, 768])
    """

    def __init__(self, encoder: ModernBertModel, config: SentenceConfig):
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.layers = nn.ModuleList(_load_dense(dense) for dense in config.dense)

    @classmethod
    def load(
        cls,
        config: SentenceConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> SentenceEncoder:
        """Load a sentence encoder for inference: in eval mode, without gradients.

        Args:
            config: the configuration, which names the folders of the weights (`SentenceConfig.from_folder`).
            device: where the weights are put.
            dtype: the dtype of the encoder; pooling and dense layers always run in fp32.
            attention: one of `modernbert.attention.BACKENDS`, or "auto" for the best one on `device`.

        Raises:
            CheckpointError: where a file or a weight is missing or does not fit.
            ConfigError: for an encoder whose configuration cannot be used.
        """
        encoder = load(ModernBertModel, config.encoder, device=device, dtype=dtype, attention=attention)
        return cls(encoder, config).to(device).eval().requires_grad_(False)

    def forward_packed(self, batch: PackedBatch, pooling: Sequence[str] = (), prompt_tokens: int = 0) -> Tensor:
        """Compute the vectors of a packed batch, before any normalisation.

        Args:
            batch: the input, on the model's device.
            pooling: modes that replace the configured ones; empty: those of the configuration.
            prompt_tokens: tokens at the start of each sequence that pooling leaves out.

        Returns:
            (B, E) fp32, in the order of the batch.
        """
        x_TD = self.encoder.forward_packed(batch)
        pooled = [
            torch.cat(
                [_POOLING_FUNCTIONS[mode](x_LD.float(), prompt_tokens) for mode in pooling or self.config.pooling]
            )
            for x_LD in x_TD.split(batch.seqlens)
        ]
        # On CPUs, one row at a time: the bits of a matrix product may depend on its number of rows.
        rows = pooled if x_TD.device.type == "cpu" else [torch.stack(pooled)]
        return torch.stack(pooled) if not self.layers else torch.cat([self._apply_dense(x) for x in rows])

    def _apply_dense(self, x: Tensor) -> Tensor:
        x = x if x.dim() == 2 else x[None]
        for layer in self.layers:
            x = layer(x)
        return x


class _Dense(nn.Module):
    """A dense layer with its activation, and its input added if it is residual: (B, D) to (B, E)."""

    def __init__(self, weights: dict[str, Tensor], activation: str, residual: bool):
        super().__init__()
        out_features, in_features = weights["linear.weight"].shape
        self.linear = nn.Linear(in_features, out_features, bias="linear.bias" in weights)
        self.activation, self.add_input = _ACTIVATIONS[activation], residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self.load_state_dict(weights)

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BE = self.activation(self.linear(x_BD))
        if not self.add_input:
            return y_BE
        return y_BE + (self.residual(x_BD) if hasattr(self, "residual") else x_BD)


def _parse_dense(folder: Path, settings: dict[str, Any]) -> Dense:
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in _ACTIVATIONS:
        raise CheckpointError(f"{folder}: activation {activation} is unknown; known are {', '.join(_ACTIVATIONS)}")
    return Dense(folder, name, settings.get("use_residual", False), settings["out_features"])


def _load_dense(dense: Dense) -> _Dense:
    file = dense.folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{dense.folder} lacks model.safetensors (pickles are never loaded)")
    try:
        weights = {name: weight.float() for name, weight in load_file(file).items()}
        return _Dense(weights, dense.activation, dense.residual)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not hold a dense layer: {str(error).splitlines()[0]}") from error


def _weighted_mean(x_LD: Tensor, skip: int) -> Tensor:
    """Compute the mean with weights that grow with the position: the n-th token has the weight n."""
    weights = torch.arange(skip + 1, len(x_LD) + 1, dtype=x_LD.dtype, device=x_LD.device)
    return weights @ x_LD[skip:] / weights.sum()


_POOLING_FUNCTIONS = {
    "cls": lambda x, skip: x[skip],
    "mean": lambda x, skip: x[skip:].mean(dim=0),
    "max": lambda x, skip: x[skip:].amax(dim=0),
    "mean_sqrt_len_tokens": lambda x, skip: x[skip:].sum(dim=0) / (len(x) - skip) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda x, skip: x[-1],  # noqa: ARG005
}


def _pooling_modes(settings: dict[str, Any]) -> tuple[str, ...]:
    """Read the modes of a Pooling module: one, several, or the flags of earlier versions."""
    configured = settings.get("pooling_mode")
    if configured is None:
        configured = [mode for flag, mode in _LEGACY_POOLINGS.items() if settings.get(flag)] or ["mean"]
    modes = (configured,) if isinstance(configured, str) else tuple(configured)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise CheckpointError(f"pooling mode {', '.join(unknown)} is unknown; known are {', '.join(POOLINGS)}")
    return modes


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
