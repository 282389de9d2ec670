"""What config.json says of a GLiClass on a ModernBERT: a model that reads the labels to choose from
together with the text.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from modernbert.config import ACTIVATIONS, ModernBertConfig
from modernbert.stored import ConfigError, Json

MODEL_TYPE = "GLiClass"
"""The model_type of config.json."""
LABEL, SEP, EXAMPLE = "<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>"
"""The tokens before each label, behind the last one, and before examples, which are not read here.
"""
POOLINGS = ("first", "last", "avg", "sum", "max", "rms", "abs_max", "abs_avg")
"""How the vectors of a text's tokens become one."""
NO_POOLING = "pass"
"""The pooling of a scorer that reads the tokens themselves."""
CROSS_ATTENTION = "cross-attn"
SCORERS = ("simple", "weighted-dot", "mlp", "hopfield", CROSS_ATTENTION)
_RUN: dict[str, tuple[object, ...]] = {
    "architecture_type": ("uni-encoder",),
    "multimodal": (False,),
    "squeeze_layers": (False,),
    "encoder_layer_id": (-1,),
    "pooling_strategy": (*POOLINGS, NO_POOLING),
    "class_token_pooling": ("first", "average"),
    "scorer_type": SCORERS,
    "projector_hidden_act": tuple(ACTIVATIONS),
}
"""The values of fields that are run; others are refused."""


@dataclass(kw_only=True)
class GLiClassConfig(ModernBertConfig):
    """The fields of GLiClass's config.json that answers depend on, and those of its encoder.

    Raises:
        ConfigError: for values that are not allowed or contradict each other.
    """

    class_token_index: int = -1
    """The id of LABEL; -1: the file has none."""
    text_token_index: int = -1
    """The id of SEP."""
    example_token_index: int = -1
    """The id of EXAMPLE."""
    projection_size: int
    """The width inside the projectors: the file's `hidden_size`, which here is the encoder's."""
    prompt_first: bool = False
    """Whether the labels stand before the text."""
    embed_class_token: bool = True
    """Whether a label's vector is that of its LABEL; else that of the token behind it."""
    class_token_pooling: str = "first"
    """"average": a label's vector is the mean of its tokens."""
    extract_text_features: bool = False
    """Whether pooling reads the tokens from SEP on alone."""
    pooling_strategy: str = "first"
    """One of POOLINGS, or NO_POOLING."""
    scorer_type: str = "simple"
    """One of SCORERS."""
    scorer_num_heads: int = 16
    scorer_mlp_hidden_size: int = 1024
    projector_hidden_act: str = "gelu"
    normalize_features: bool = False
    """Whether vectors have the length one, and scores are scaled."""
    use_lstm: bool = False
    """Whether an LSTM reads the text's vectors before they are pooled."""
    use_segment_embeddings: bool = False
    """Whether tokens from SEP on have another embedding added than those before."""
    use_calibrator: bool = False
    """Whether scores are scaled by a temperature for each text and label."""
    calibrator_hidden_size: int = 256
    calibrator_beta_max: float = 3.0
    calibrator_use_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        reads_tokens = self.scorer_type == CROSS_ATTENTION
        if reads_tokens != (self.pooling_strategy == NO_POOLING):
            raise ConfigError(
                f"scorer_type {self.scorer_type} with pooling_strategy {self.pooling_strategy} is "
                f"not run: {CROSS_ATTENTION} and {NO_POOLING} need each other"
            )
        if reads_tokens and (self.use_calibrator or self.use_lstm):
            raise ConfigError(
                f"scorer_type {CROSS_ATTENTION} with use_calibrator or use_lstm is not run"
            )
        if reads_tokens and self.hidden_size % self.scorer_num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by scorer_num_heads "
                f"{self.scorer_num_heads}"
            )
        has_one_width = self.projection_size == self.hidden_size
        if not has_one_width and (self.scorer_type != "simple" or self.use_lstm):
            raise ConfigError(
                f"hidden_size is {self.projection_size}, that of the encoder {self.hidden_size}: "
                "only scorer_type simple without use_lstm is run with two widths"
            )

    @classmethod
    def from_dict(cls, raw: Json) -> Self:
        """Create a configuration from a parsed config.json of GLiClass.

        Raises:
            ConfigError: for a form of GLiClass that is not run, and for an encoder that is not a
                ModernBERT or has a value that is not allowed.
        """
        for name, run in _RUN.items():
            value = raw.get(name)
            if value is not None and value not in run:
                known = " or ".join(str(each) for each in run)
                raise ConfigError(f"{name} is {value!r}; a GLiClass with {known} is run")
        slots = raw.get("max_labels_alloc") or "dynamic"
        if raw.get("scorer_type") == "hopfield" and slots != "dynamic":
            # Its softmax then takes in labels that are not there.
            raise ConfigError(
                f"max_labels_alloc is {slots!r}; with scorer_type hopfield, dynamic is run"
            )
        stored = raw.get("encoder_config") or {}
        if stored.get("model_type") != "modernbert":
            raise ConfigError(
                f"encoder_config has model_type {stored.get('model_type')!r}; a GLiClass on a "
                "'modernbert' is run"
            )
        # The embeddings may have been resized after the encoder's configuration was stored.
        vocab_size = raw.get("vocab_size") or stored.get("vocab_size")
        encoder = ModernBertConfig.from_dict(stored | {"vocab_size": vocab_size})
        names = {field.name for field in fields(cls)} - {field.name for field in fields(encoder)}
        own: Json = {name: raw[name] for name in names if raw.get(name) is not None}
        own["projection_size"] = raw.get("hidden_size") or encoder.hidden_size
        of_encoder = {field.name: getattr(encoder, field.name) for field in fields(encoder)}
        return cls(**of_encoder, **own)
