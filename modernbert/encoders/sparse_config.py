"""What sentence-transformers stores beside a sparse encoder: weights of tokens, learned by SPLADE
or looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modernbert.encoders.module_files import (
    MODULES,
    module_kinds,
    read_modules,
    read_routes,
    read_settings,
    stored_prompts,
    transformer_settings,
)
from modernbert.files import CheckpointError, read_json
from modernbert.stored import CheckpointPath

STRATEGIES = ("max", "sum")
"""How the scores of a token at all positions become its weight."""
ACTIVATIONS = ("relu", "log1p_relu")
"""relu: log(1 + max(0, x)); log1p_relu: log(1 + log(1 + max(0, x)))."""
_POOLING_SETTINGS = {  # the last three have no effect on answers
    *(
        "pooling_strategy",
        "activation_function",
        "embedding_dimension",
        "word_embedding_dimension",
        "chunk_size",
    ),
}


@dataclass(frozen=True)
class SparseConfig:
    """The content of modules.json and the files that it names; the defaults are those of a plain
    masked LM.
    """

    encoder: CheckpointPath
    """The folder with config.json, weights and tokenizer of the masked language model."""
    strategy: str = "max"
    """One of STRATEGIES."""
    activation: str = "relu"
    """One of ACTIVATIONS."""
    static: CheckpointPath | None = None
    """The folder of the weights that queries get without inference; None: queries are read as
    documents are.
    """
    max_length: int | None = None
    """The longest input in tokens; None where the checkpoint states none."""
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    """{name: text that is put before a document}."""
    default_prompt_name: str | None = None
    max_active_dims: int | None = None
    """How many of the heaviest tokens are kept; None for all."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath) -> SparseConfig:
        """Read the configuration of a sparse encoder, or that of a plain masked language model.

        Args:
            folder: a checkpoint, with modules.json if it is a sparse encoder.

        Raises:
            CheckpointError: for a checkpoint of another kind, for modules and settings that are not
                known, and a file that is not valid JSON.
        """
        modules = read_modules(folder)
        if not modules:
            return cls(folder)
        kinds = module_kinds(folder, modules)
        settings = read_settings(folder, "SparseEncoder", more=("max_active_dims",))
        static = None
        if kinds == ["Router"]:
            routes = read_routes(folder, modules[0])
            modules, queries = routes.get("document", []), routes.get("query", [])
            if module_kinds(folder, queries) != ["SparseStaticEmbedding"]:
                raise _wrong_modules(
                    folder, "query", module_kinds(folder, queries), "SparseStaticEmbedding"
                )
            static, kinds = folder / queries[0]["path"], module_kinds(folder, modules)
        if (
            len(kinds) != 2
            or kinds[0] not in ("Transformer", "MLMTransformer")
            or kinds[1] != "SpladePooling"
        ):
            raise _wrong_modules(folder, "document", kinds, "Transformer, SpladePooling")
        default_task = "fill-mask" if kinds[0] == "MLMTransformer" else "feature-extraction"
        encoder = folder / modules[0]["path"]
        return cls(
            encoder,
            **_pooling(folder / modules[1]["path"]),
            **transformer_settings(encoder, "fill-mask", "logits", default_task=default_task),
            **stored_prompts(settings),
            static=static,
            max_active_dims=settings.get("max_active_dims"),
        )

    @property
    def static_weights(self) -> CheckpointPath | None:
        """The file with the weight of each token in a query."""
        return self.static and self.static / "model.safetensors"


def _pooling(folder: CheckpointPath) -> dict[str, Any]:
    stored: Mapping[str, Any] = read_json(folder / "config.json")
    strategy, activation = (
        stored.get("pooling_strategy", "max"),
        stored.get("activation_function", "relu"),
    )
    if unknown := sorted(set(stored) - _POOLING_SETTINGS):
        raise CheckpointError(
            f"{folder / 'config.json'} has {', '.join(unknown)}: unknown settings"
        )
    if strategy not in STRATEGIES or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{folder / 'config.json'} has {strategy} of {activation}; known are "
            f"{', '.join(STRATEGIES)} of"
            f" {', '.join(ACTIVATIONS)}"
        )
    return {"strategy": strategy, "activation": activation}


def _wrong_modules(
    folder: CheckpointPath, route: str, kinds: Sequence[str], known: str
) -> CheckpointError:
    return CheckpointError(
        f"{folder / MODULES} has the modules {', '.join(kinds) or 'none'} for a {route}; weights "
        "of tokens come from"
        f" {known}"
    )
