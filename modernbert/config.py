"""The configuration of a model, read from every config.json that transformers writes.

transformers 4.48-4.57 writes `global_rope_theta`, `local_rope_theta` and
`global_attn_every_n_layers`; 5.x writes `rope_parameters` and `layer_types`. `ModernBertConfig`
holds `layer_types` and one theta for each type of layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modernbert.rope_scaling import RopeScaling, read_rope_scaling
from modernbert.stored import CheckpointPath, ConfigError, Json

if TYPE_CHECKING:
    from torch import Tensor

Activation = str | Callable[["Tensor"], "Tensor"]
"""The name of an activation (a key of ACTIVATIONS) or a function on tensors."""
GLOBAL, LOCAL = "full_attention", "sliding_attention"
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""The names that transformers gives activations, with the function that each means
(`modernbert.linear`).
"""


@dataclass(kw_only=True)
class ModernBertConfig:
    """The fields of config.json under their Hugging Face names; the defaults are those of
    ModernBERT-base.

    The README of this package lists the effect of each field.

    Raises:
        ConfigError: for values that are not allowed or contradict each other.

    Example:
        >>> config = ModernBertConfig(num_hidden_layers=6, id2label={0: "spam", 1: "ham"})
        >>> config.num_labels, config.window(0), config.window(1)
        (2, None, (64, 64))
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: Activation = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    initializer_cutoff_factor: float | None = 2.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    eos_token_id: int | None = 50282
    bos_token_id: int | None = 50281
    cls_token_id: int | None = 50281
    sep_token_id: int | None = 50282
    attention_bias: bool = False
    attention_dropout: float = 0.0
    global_attn_every_n_layers: int | None = 3
    """The interval of global layers, counted from the first; None where `layer_types` has no such
    interval.
    """
    layer_types: list[str] = field(default_factory=list)
    """`full_attention` or `sliding_attention` for each layer; empty: derived from
    `global_attn_every_n_layers`.
    """
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    global_rope_scaling: RopeScaling | None = None
    """How the rotary embeddings of global layers are made for longer texts; None: they are not."""
    local_rope_scaling: RopeScaling | None = None
    local_attention: int = 128
    """Width of the sliding window in tokens: half of it on each side of a token, both ends
    inclusive.
    """
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: Activation = "gelu"
    deterministic_flash_attn: bool = False
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    reference_compile: bool | None = None
    """True: torch.compile runs on embeddings, MLPs and the prediction head. None or False: nothing
    is compiled.
    """
    repad_logits_with_grad: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 0
    """Outputs of a classifier; 0: the number of labels in `id2label`, or 2 where that is empty."""
    id2label: dict[int, str] = field(default_factory=dict)
    """Names of the labels by output; empty: LABEL_0, LABEL_1, …"""
    label2id: dict[str, int] = field(default_factory=dict)
    """The inverse of `id2label`; empty: derived from it."""
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True

    def __post_init__(self) -> None:
        if self.layer_types:
            self.global_attn_every_n_layers = _global_layer_interval(self.layer_types)
        else:
            self.layer_types = _layer_pattern(
                self.num_hidden_layers, self.global_attn_every_n_layers
            )
        self._resolve_labels()
        self._validate()

    @property
    def head_dim(self) -> int:
        """The width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def window(self, layer: int) -> tuple[int, int] | None:
        """The keys that a query of layer `layer` sees on each side, both ends inclusive; None in a
        global layer.
        """
        half = self.local_attention // 2
        return (half, half) if self.layer_types[layer] == LOCAL else None

    def rope_theta(self, layer: int) -> float:
        """The base period of the rotary embedding in layer `layer`."""
        return self.local_rope_theta if self.layer_types[layer] == LOCAL else self.global_rope_theta

    def rope_scaling(self, layer: int) -> RopeScaling | None:
        """How the rotary embedding in layer `layer` differs from that of its theta alone."""
        is_local = self.layer_types[layer] == LOCAL
        return self.local_rope_scaling if is_local else self.global_rope_scaling

    def _resolve_labels(self) -> None:
        """Derive `num_labels`, `id2label` and `label2id` from those that are set."""
        if not self.id2label and self.label2id:
            self.id2label = {i: label for label, i in self.label2id.items()}
        if not self.id2label:
            self.id2label = {i: f"LABEL_{i}" for i in range(self.num_labels or 2)}
        try:
            self.id2label = {int(i): str(label) for i, label in self.id2label.items()}
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"id2label must map whole numbers to names: {error}") from error
        numbers = sorted(self.id2label)
        if not numbers or numbers != list(range(len(numbers))):
            raise ConfigError(
                f"id2label must number the labels 0, 1, 2, …; its keys are {numbers[:10]}"
            )
        if self.num_labels not in (0, len(self.id2label)):
            raise ConfigError(
                f"num_labels is {self.num_labels} but id2label names {len(self.id2label)} labels"
            )
        self.num_labels = len(self.id2label)
        self.label2id = {label: i for i, label in self.id2label.items()}

    def _validate(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"hidden_size / num_attention_heads is {self.head_dim}; rotary embeddings need an "
                "even number"
            )
        for name in ("hidden_activation", "classifier_activation"):
            activation = getattr(self, name)
            if not callable(activation) and activation not in ACTIVATIONS:
                raise ConfigError(f"{name} is {activation!r}; known are {', '.join(ACTIVATIONS)}")
        if self.classifier_pooling not in ("cls", "mean"):
            raise ConfigError(
                f"classifier_pooling is {self.classifier_pooling!r}; known are cls, mean"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ConfigError(
                f"problem_type is {self.problem_type!r}; known are {', '.join(PROBLEM_TYPES)}"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types names {len(self.layer_types)} layers but num_hidden_layers is "
                f"{self.num_hidden_layers}"
            )
        if unknown := sorted(set(self.layer_types) - {GLOBAL, LOCAL}):
            raise ConfigError(
                f"layer_types holds {', '.join(unknown)}; known are {GLOBAL}, {LOCAL}"
            )
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type is single_label_classification but id2label names one label only"
            )

    @classmethod
    def from_dict(cls, raw: Json) -> ModernBertConfig:
        """Create a configuration from a parsed config.json.

        Args:
            raw: the content of a config.json, as transformers 4.48 or later writes it. Fields
                without an effect on a model (`transformers_version`, `architectures`, …) are
                ignored.

        Raises:
            ConfigError: for another model type, a quantised or causal checkpoint, and a field with
                a value that is not allowed.
        """
        if raw.get("model_type") != "modernbert":
            raise ConfigError(
                f"model_type is {raw.get('model_type')!r}; this project runs 'modernbert' alone"
            )
        if raw.get("quantization_config"):
            raise ConfigError("quantization_config is set; quantised checkpoints cannot be loaded")
        if raw.get("is_causal"):
            # transformers 5 then hides the tokens behind each one; earlier versions do not.
            raise ConfigError(
                f"is_causal is {raw['is_causal']!r}; only false is supported: attention sees both "
                "sides of a token"
            )
        values: Json = {}  # as JSON has them; __post_init__ checks them
        for field_ in fields(cls):
            value = raw.get(field_.name)
            # null means the default, unless null is an allowed value of the field.
            if field_.name in raw and (value is not None or "None" in str(field_.type)):
                values[field_.name] = value
        values |= _read_ropes(raw)
        if raw.get("sliding_window") is not None:
            values["local_attention"] = _local_attention(raw["sliding_window"])
        if not values.get("global_attn_every_n_layers"):
            values.pop("global_attn_every_n_layers", None)
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = values["eos_token_id"][0]
        # In some fine-tuned checkpoints the two disagree; id2label counts.
        if values.get("id2label"):
            values.pop("label2id", None)
        try:
            return cls(**values)
        except TypeError as error:  # a string where a number belongs
            raise ConfigError(f"a field of config.json has the wrong type: {error}") from error

    @classmethod
    def from_json(cls, path: str | CheckpointPath) -> ModernBertConfig:
        """Create a configuration from a config.json file.

        Raises:
            ConfigError: where the file is not valid JSON, and as in `from_dict`; the message names
                the file.
            OSError: where the file cannot be read.
        """
        try:
            file = Path(path) if isinstance(path, str) else path
            raw = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        try:
            return cls.from_dict(raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> Json:
        """Return the content of a config.json that this package and transformers 4.48 and later
        read; scaled rotary embeddings transformers 5 alone.

        Raises:
            ConfigError: where an activation is a function, which JSON cannot hold.
        """
        out: Json = {"model_type": "modernbert", **asdict(self)}
        out["id2label"] = {str(i): label for i, label in self.id2label.items()}
        out["label2id"] = self.label2id
        out["rope_parameters"] = {}
        for layer_type, kind in ((GLOBAL, "global"), (LOCAL, "local")):
            out.pop(f"{kind}_rope_scaling")
            scaling = getattr(self, f"{kind}_rope_scaling")
            rope = scaling.to_dict() if scaling else {"rope_type": "default"}
            rope["rope_theta"] = getattr(self, f"{kind}_rope_theta")
            out["rope_parameters"][layer_type] = rope
        for name in ("hidden_activation", "classifier_activation"):
            if callable(out[name]):
                raise ConfigError(
                    f"{name} is a function, which config.json cannot hold; name one of ACTIVATIONS"
                )
        return out


def _global_layer_interval(layer_types: list[str]) -> int | None:
    """Return the n for which every n-th layer is global, from the first; None where no n fits."""
    layers = len(layer_types)
    for interval in range(1, layers + 1):
        if layer_types == _layer_pattern(layers, interval):
            return interval
    return None


def _layer_pattern(layers: int, interval: int | None) -> list[str]:
    """Return the types of `layers` layers: every `interval`-th is global, from the first."""
    if not isinstance(interval, int) or interval < 1:
        raise ConfigError(
            f"global_attn_every_n_layers is {interval!r}; it must be a whole number of at least 1"
        )
    return [LOCAL if i % interval else GLOBAL for i in range(layers)]


def _local_attention(sliding_window: object) -> int:
    """Return the width of which `sliding_window` is half; it counts before `local_attention`."""
    if not isinstance(sliding_window, int) or sliding_window < 1:
        raise ConfigError(
            f"sliding_window is {sliding_window!r}; it must be a whole number of at least 1"
        )
    return 2 * sliding_window


def _read_ropes(raw: Json) -> Json:
    """Read theta and scaling of both types of layers.

    `rope_parameters` counts before the older names, and `rope_scaling` before it, as in
    transformers 5.
    """
    scaling_of_all = raw.get("rope_scaling") or {}
    parameters = raw.get("rope_parameters") or {}
    if unknown := sorted(set(parameters) - {GLOBAL, LOCAL}):
        raise ConfigError(
            f"rope_parameters holds {', '.join(unknown)}; it must hold {GLOBAL} and {LOCAL}"
        )
    max_positions = raw.get("max_position_embeddings") or ModernBertConfig.max_position_embeddings
    values: Json = {}
    for layer_type, kind in ((GLOBAL, "global"), (LOCAL, "local")):
        stored = parameters.get(layer_type) or {}
        rope = {**stored, **scaling_of_all}
        place = "rope_scaling" if scaling_of_all else f"rope_parameters.{layer_type}"
        values[f"{kind}_rope_scaling"] = read_rope_scaling(rope, place, max_positions)
        name = f"{kind}_rope_theta"
        theta = rope.get("rope_theta", raw.get(name))
        # Before transformers 5, null means "as in the global layers".
        if theta is None and layer_type == LOCAL and name in raw and not stored:
            theta = values["global_rope_theta"]
        if theta is None:
            theta = getattr(ModernBertConfig, name)
        values[name] = float(theta)
    return values
