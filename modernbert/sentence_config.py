"""The configuration of sentence encoders as sentence-transformers stores them: modules.json and what it names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modernbert.files import CheckpointError

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
ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "SiLU", "Sigmoid")
"""The activations of dense layers: names of classes in torch.nn."""


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


def _parse_dense(folder: Path, settings: dict[str, Any]) -> Dense:
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise CheckpointError(f"{folder}: activation {activation} is unknown; known are {', '.join(ACTIVATIONS)}")
    return Dense(folder, name, settings.get("use_residual", False), settings["out_features"])


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
