"""What sentence-transformers stores beside a sentence encoder and a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modernbert.encoders.module_files import (
    MODULES,
    Module,
    TextSettings,
    TransformerSettings,
    check_module_settings,
    chosen_route,
    files_of_other_routes,
    is_stanford,
    module_kinds,
    purpose,
    read_model_settings,
    read_modules,
    refused_router,
    routed,
    stored_prompts,
    transformer_settings,
)
from modernbert.files import base_of, load_config, read_adapter, read_json, warn_once
from modernbert.stored import (
    WEIGHTS,
    CheckpointError,
    CheckpointPath,
    Json,
    Route,
    files_in,
    read_header,
)

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
DENSE_ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "SiLU", "Sigmoid")
"""The activations of dense layers: names of classes in torch.nn."""
_EMBEDDING_MODULES = (
    *("Transformer", "WeightedLayerPooling", "Pooling", "Dense", "LayerNorm", "Normalize"),
    "Dropout",
)


@dataclass(frozen=True)
class Dense:
    """A dense layer after the pooling."""

    folder: CheckpointPath
    activation: str
    """The name of a class in torch.nn."""
    residual: bool
    """Whether the layer's input is added to its output."""
    out_features: int
    beside_encoder: bool = False
    """Whether its file holds the encoder's weights, too."""


@dataclass(frozen=True)
class Norm:
    """A normalisation of vectors before another layer."""

    folder: CheckpointPath
    learned: bool
    """Whether it is a layer norm with weights; else vectors are scaled to length 1."""


@dataclass(frozen=True)
class LayerWeights:
    """A weight for each hidden state of the encoder, whose mean replaces the last one."""

    folder: CheckpointPath
    first: int
    """The first of them that counts; 0 is the embeddings."""


@dataclass(frozen=True)
class SentenceConfig(TextSettings):
    """What modules.json and its files say; the defaults are those of a plain encoder."""

    encoder: CheckpointPath
    """The folder with config.json, weights and tokenizer."""
    pooling: tuple[str, ...] = ("mean",)
    """One or more of POOLINGS, whose vectors are concatenated."""
    include_prompt: bool = True
    """Whether the tokens of a prompt take part in the pooling."""
    layer_weights: LayerWeights | None = None
    """None: the vectors of tokens are the last hidden state."""
    token_layers: tuple[Dense, ...] = ()
    """What is done to the vectors of tokens before the pooling, in order."""
    layers: tuple[Dense | Norm, ...] = ()
    """What follows the pooling, in order."""
    normalize: bool = False
    """Whether vectors are scaled to length 1 in the end."""
    truncate_dim: int | None = None
    """How many of a vector's first numbers are kept; None for all."""
    similarity: str | None = None
    """How the checkpoint compares vectors: cosine, dot, euclidean or manhattan; None where it does
    not say.
    """
    route: Route | None = None
    """The route of a Router that these modules are; None: there is none."""
    other_files: tuple[CheckpointPath, ...] = ()
    """The files of its other routes, with whose vectors these are compared."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath, route: Route | None = None) -> SentenceConfig:
        """Read the configuration of a sentence encoder, or that of a plain encoder with mean
        pooling.

        Args:
            folder: a checkpoint, with modules.json if it is a sentence encoder.
            route: what texts are read as by a model with a Router; None: its default.

        Raises:
            CheckpointError: for a checkpoint of another kind, for unknown modules, pooling modes,
                activations and settings, and a file that is not valid JSON.
        """
        modules = read_modules(folder)
        if not modules:
            if is_stanford(folder):
                raise CheckpointError(
                    f"{folder} is a checkpoint of Stanford's ColBERT: {purpose(folder)}"
                )
            if read_adapter(folder) and (base_of(folder) / MODULES).is_file():
                warn_once(
                    f"{folder} is an adapter without {MODULES}: vectors are the mean over tokens,"
                    " as in sentence-transformers, whatever its base does; copies of the base's"
                    f" {MODULES} and of what it names change that"
                )
            return cls(folder)
        module_kinds(folder, modules)
        settings = read_model_settings(folder, "SentenceTransformer")
        chosen = chosen_route(folder, modules, route)
        passed = routed(folder, modules, chosen)
        stack = _read_stack(folder, passed, "sentence_embedding")
        return cls(
            stack.encoder,
            **stack.texts,
            **stored_prompts(settings),
            pooling=stack.pooling,
            include_prompt=stack.include_prompt,
            layer_weights=stack.layer_weights,
            token_layers=stack.token_layers,
            layers=stack.layers,
            normalize=stack.normalize,
            truncate_dim=settings.get("truncate_dim"),
            similarity=settings.get("similarity_fn_name"),
            route=chosen,
            other_files=files_of_other_routes(folder, modules, passed),
        )

    def width(self, hidden_size: int) -> int:
        """Return the width of a vector, for an encoder of `hidden_size`."""
        widths = [layer.out_features for layer in self.layers if isinstance(layer, Dense)]
        if widths:
            return widths[-1]
        token_width = self.token_layers[-1].out_features if self.token_layers else hidden_size
        return token_width * len(self.pooling)

    @property
    def files(self) -> list[CheckpointPath]:
        """The files of the layers and of other routes, on which vectors, and what they are compared
        with, depend besides the encoder's.
        """
        files: list[CheckpointPath] = []
        weights = () if self.layer_weights is None else (self.layer_weights,)
        for layer in (*weights, *self.token_layers, *self.layers):
            files += files_in(layer.folder)
        return [*files, *self.other_files]


@dataclass(frozen=True)
class CrossEncoderConfig(TextSettings):
    """What is stored beside a cross-encoder; the defaults are those of a plain classifier."""

    activation: str | None = None
    """The path of the class that turns logits into scores ("torch.nn.modules.activation.Sigmoid"),
    or None.
    """
    stack: SentenceConfig | None = None
    """An encoder with pooling and layers that give the logits; None: a sequence classifier."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath, raw_config: Json) -> CrossEncoderConfig:
        """Read the configuration of a cross-encoder, or that of a sequence classifier without one.

        sentence-transformers reads config_sentence_transformers.json of cross-encoders alone, and
        first; the older places are in config.json.

        Args:
            folder: a checkpoint.
            raw_config: the content of its config.json.

        Raises:
            CheckpointError: for modules and settings that a sequence classifier does not have, and
                a file that is not valid JSON.
        """
        older = raw_config.get("sentence_transformers") or {}
        older_activation = older.get("activation_fn") or raw_config.get(
            "sbert_ce_default_activation_function"
        )
        modules = read_modules(folder)
        if not modules:
            return cls(activation=older_activation)
        kinds = module_kinds(folder, modules)
        # keep_in_fp32_modules has no effect in float32, in which answers are equal.
        settings = read_model_settings(
            folder, "CrossEncoder", "SentenceTransformer", more=("keep_in_fp32_modules",)
        )
        if "Router" in kinds:
            raise refused_router(folder, modules[kinds.index("Router")])
        if settings.get("model_type") != "CrossEncoder":
            return cls(activation=older_activation)

        prompts = stored_prompts(settings)
        activation = settings.get("activation_fn") or older_activation
        if kinds == ["Transformer"]:
            classifier = folder / modules[0]["path"]
            texts = transformer_settings(classifier, "sequence-classification", "logits")
            return cls(**texts, **prompts, activation=activation)
        stack = _read_stack(folder, modules, "scores")
        if stack.normalize:
            raise CheckpointError(
                f"{folder / MODULES} ends with Normalize, which makes every score of a pair one"
            )
        scorer = SentenceConfig(
            stack.encoder,
            **stack.texts,
            pooling=stack.pooling,
            include_prompt=stack.include_prompt,
            layer_weights=stack.layer_weights,
            token_layers=stack.token_layers,
            layers=stack.layers,
        )
        return cls(**stack.texts, **prompts, activation=activation, stack=scorer)


@dataclass(frozen=True)
class _Stack:
    """An encoder with pooling and layers, as modules.json lists them."""

    encoder: CheckpointPath
    texts: TransformerSettings
    pooling: tuple[str, ...]
    include_prompt: bool
    layer_weights: LayerWeights | None
    token_layers: tuple[Dense, ...]
    layers: tuple[Dense | Norm, ...]
    normalize: bool


def _read_stack(folder: CheckpointPath, modules: Sequence[Module], output: str) -> _Stack:
    """Read an encoder with pooling and layers; `output`: what the last layer gives."""
    kinds = module_kinds(folder, modules)
    _check_order(folder, modules, kinds)
    encoder = folder
    texts: TransformerSettings = {"max_length": None, "lower_case": False}
    pooling: tuple[str, ...] = ()
    include_prompt = True
    layer_weights: LayerWeights | None = None
    token_layers: list[Dense] = []
    layers: list[Dense | Norm] = []
    for i, (kind, module) in enumerate(zip(kinds, modules, strict=True)):
        module_folder = folder / module["path"]
        has_config = kind not in ("Transformer", "Dropout")
        stored = read_json(module_folder / "config.json") if has_config else {}
        check_module_settings(module_folder, kind, stored)
        is_last = i == len(modules) - 1
        if kind == "Dense" and not pooling:
            _check_features(module_folder, stored, "token_embeddings", "token_embeddings")
            token_layers.append(parse_dense(module_folder, stored))
            continue
        made = output if is_last else "sentence_embedding"
        _check_features(module_folder, stored, "sentence_embedding", made)
        if kind == "Transformer":
            encoder = module_folder
            texts = transformer_settings(encoder, "feature-extraction", "last_hidden_state")
        elif kind == "WeightedLayerPooling":
            layer_weights = _read_layer_weights(encoder, module_folder, stored)
        elif kind == "Pooling":
            pooling = _pooling_modes(stored)
            include_prompt = stored.get("include_prompt", True)
        elif kind == "Dense":
            layers.append(parse_dense(module_folder, stored))
        elif kind in ("LayerNorm", "Normalize"):
            layers.append(Norm(module_folder, learned=kind == "LayerNorm"))
    # A task normalises after the last layer: after it has put the windows of a document together.
    last = layers[-1] if layers else None
    normalize = isinstance(last, Norm) and not last.learned
    if normalize:
        layers.pop()
    return _Stack(
        encoder=encoder,
        texts=texts,
        pooling=pooling,
        include_prompt=include_prompt,
        layer_weights=layer_weights,
        token_layers=tuple(token_layers),
        layers=tuple(layers),
        normalize=normalize,
    )


def _read_layer_weights(
    encoder: CheckpointPath, folder: CheckpointPath, stored: Json
) -> LayerWeights | None:
    """Read a WeightedLayerPooling; None where the encoder gives it no hidden states.

    Raises CheckpointError where its weights are not one for each state.
    """
    config = load_config(encoder)
    if not config.output_hidden_states:
        warn_once(
            f"{folder} is passed over, as in sentence-transformers: {encoder / 'config.json'} has"
            " no output_hidden_states true, so that it gets the last hidden state alone"
        )
        return None
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder} lacks {WEIGHTS} (pickles are never loaded)")
    first = stored.get("layer_start", 4)
    states = range(config.num_hidden_layers + 1)
    weights = read_header(file).get("layer_weights")
    count = len(states[first:])
    if weights is None or list(weights.shape) != [count]:
        has = "none" if weights is None else f"those of shape {list(weights.shape)}"
        raise CheckpointError(
            f"{file} must hold {count} layer_weights, one for each hidden state from {first} on,"
            f" and has {has}"
        )
    return LayerWeights(folder, states[first:].start)


def parse_dense(folder: CheckpointPath, settings: Json) -> Dense:
    """Read the configuration of a dense layer; CheckpointError for an unknown activation."""
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in DENSE_ACTIVATIONS:
        known = ", ".join(DENSE_ACTIVATIONS)
        raise CheckpointError(f"{folder}: activation {activation} is unknown; known are {known}")
    return Dense(
        folder,
        activation=name,
        residual=settings.get("use_residual", False),
        out_features=settings["out_features"],
    )


def _pooling_modes(settings: Json) -> tuple[str, ...]:
    """Read the modes of a Pooling module: one, several, or the flags of earlier versions."""
    configured = settings.get("pooling_mode")
    if configured is None:
        flagged = [mode for flag, mode in _LEGACY_POOLINGS.items() if settings.get(flag)]
        configured = flagged or ["mean"]
    modes = (configured,) if isinstance(configured, str) else tuple(configured)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise CheckpointError(
            f"pooling mode {', '.join(unknown)} is unknown; known are {', '.join(POOLINGS)}"
        )
    return modes


def _check_order(folder: CheckpointPath, modules: Sequence[Module], kinds: list[str]) -> None:
    """Raise CheckpointError unless the modules are Transformer, perhaps WeightedLayerPooling, Dense
    layers on the vectors of tokens, Pooling, then layers on those of texts.
    """
    for kind, module in zip(kinds, modules, strict=True):
        if kind not in _EMBEDDING_MODULES:
            raise CheckpointError(
                f"{folder / MODULES} has a module {module['type']}; known are"
                f" {', '.join(_EMBEDDING_MODULES)}"
            )
    relevant = [kind for kind in kinds if kind != "Dropout"]
    if relevant[1:2] == ["WeightedLayerPooling"]:
        relevant.pop(1)
    pooling = relevant.index("Pooling") if "Pooling" in relevant else 0
    layers = relevant[pooling + 1 :]
    begins_well = relevant[:1] == ["Transformer"] and set(relevant[1:pooling]) <= {"Dense"}
    of_tokens = {"Transformer", "WeightedLayerPooling", "Pooling"}
    if not pooling or not begins_well or of_tokens & set(layers):
        raise CheckpointError(
            f"{folder / MODULES} has the modules {', '.join(kinds)}; a vector per text comes from"
            " Transformer, WeightedLayerPooling or none, Dense layers on tokens, Pooling, then any"
            " number of Dense, LayerNorm and Normalize"
        )


def _check_features(folder: CheckpointPath, stored: Json, input_: str, output: str) -> None:
    """Raise CheckpointError for a module that does not work on what stands at its place."""
    allowed = {"module_input_name": input_, "module_output_name": output}
    for key, known in allowed.items():
        is_unnamed = stored.get(key) is None and key == "module_input_name"
        # A module that names no input works on the vector of a text.
        if (is_unnamed and known != "sentence_embedding") or stored.get(key) not in (None, known):
            raise CheckpointError(
                f"{folder / 'config.json'} has {key} {stored.get(key)!r}; it must be {known!r}"
            )
