"""What sentence-transformers stores beside a sparse encoder: weights of tokens, learned by SPLADE
or looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modernbert.encoders.module_files import (
    MODULES,
    TextSettings,
    chosen_route,
    files_of_other_routes,
    module_kinds,
    read_model_settings,
    read_modules,
    read_routes,
    routed,
    stored_prompts,
    transformer_settings,
)
from modernbert.files import read_json
from modernbert.stored import CheckpointError, CheckpointPath, Route

STRATEGIES = ("max", "sum")
"""How the scores of a token at all positions become its weight."""
SCORE_ACTIVATIONS = ("relu", "log1p_relu")
"""relu: log(1 + max(0, x)); log1p_relu: log(1 + log(1 + max(0, x)))."""
_POOLING_SETTINGS = {
    "pooling_strategy",
    "activation_function",
    # without an effect on answers
    "embedding_dimension",
    "word_embedding_dimension",
    "chunk_size",
}


@dataclass(frozen=True)
class SparseConfig(TextSettings):
    """What modules.json and its files say; the defaults are those of a plain masked LM."""

    encoder: CheckpointPath
    """The folder with config.json, weights and tokenizer of the masked language model."""
    strategy: str = "max"
    """One of STRATEGIES."""
    activation: str = "relu"
    """One of SCORE_ACTIVATIONS."""
    static: CheckpointPath | None = None
    """The folder of the weights that queries get without inference; None: queries are read as
    documents are.
    """
    route: Route | None = None
    """The route of a Router with a model for each; None: there is one model."""
    other_files: tuple[CheckpointPath, ...] = ()
    """The files of its other route, with whose weights these are compared."""
    max_active_dims: int | None = None
    """How many of the heaviest tokens are kept; None for all."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath, route: Route | None = None) -> SparseConfig:
        """Read the configuration of a sparse encoder, or that of a plain masked language model.

        Args:
            folder: a checkpoint, with modules.json if it is a sparse encoder.
            route: what texts are read as by a model with a Router; None: its default.

        Raises:
            CheckpointError: for a checkpoint of another kind, for modules and settings that are not
                known, and a file that is not valid JSON.
        """
        modules = read_modules(folder)
        if not modules:
            return cls(folder)
        kinds = module_kinds(folder, modules)
        settings = read_model_settings(folder, "SparseEncoder", more=("max_active_dims",))

        # A Router leads queries past the model, to weights that are stored for each token, or to a
        # model of their own.
        static = None
        chosen = None
        other_files: tuple[CheckpointPath, ...] = ()
        if kinds == ["Router"]:
            routes = read_routes(folder, modules[0])
            query_modules = routes.get("query", [])
            if module_kinds(folder, query_modules) == ["SparseStaticEmbedding"]:
                static = folder / query_modules[0]["path"]
                modules = routes.get("document", [])
            else:
                chosen = chosen_route(folder, modules, route)
                passed = routed(folder, modules, chosen)
                other_files = files_of_other_routes(folder, modules, passed)
                modules = passed
            kinds = module_kinds(folder, modules)

        model_kinds = ("Transformer", "MLMTransformer")
        if len(kinds) != 2 or kinds[0] not in model_kinds or kinds[1] != "SpladePooling":
            raise _wrong_modules(folder, chosen or "document", kinds, "Transformer, SpladePooling")
        encoder = folder / modules[0]["path"]
        default_task = "fill-mask" if kinds[0] == "MLMTransformer" else "feature-extraction"
        texts = transformer_settings(encoder, "fill-mask", "logits", default_task=default_task)
        strategy, activation = _read_pooling(folder / modules[1]["path"])
        return cls(
            encoder,
            **texts,
            **stored_prompts(settings),
            strategy=strategy,
            activation=activation,
            static=static,
            route=chosen,
            other_files=other_files,
            max_active_dims=settings.get("max_active_dims"),
        )

    @property
    def static_weights(self) -> CheckpointPath | None:
        """The file with the weight of each token in a query."""
        return self.static and self.static / "model.safetensors"


def _read_pooling(folder: CheckpointPath) -> tuple[str, str]:
    """Read the strategy and the activation of a SpladePooling."""
    file = folder / "config.json"
    stored = read_json(file)
    if unknown := sorted(set(stored) - _POOLING_SETTINGS):
        raise CheckpointError(f"{file} has {', '.join(unknown)}: unknown settings")
    strategy = stored.get("pooling_strategy", "max")
    activation = stored.get("activation_function", "relu")
    if strategy not in STRATEGIES or activation not in SCORE_ACTIVATIONS:
        raise CheckpointError(
            f"{file} has {strategy} of {activation}; known are {', '.join(STRATEGIES)} of"
            f" {', '.join(SCORE_ACTIVATIONS)}"
        )
    return strategy, activation


def _wrong_modules(
    folder: CheckpointPath, route: str, kinds: Sequence[str], known: str
) -> CheckpointError:
    return CheckpointError(
        f"{folder / MODULES} has the modules {', '.join(kinds) or 'none'} for a {route}; weights of"
        f" tokens come from {known}"
    )
