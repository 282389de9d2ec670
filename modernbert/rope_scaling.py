"""Rotary embeddings of models that read longer texts than they were first trained on.

transformers 5 writes them into `rope_parameters` of config.json, for each type of layer; before,
`rope_scaling` was that of all layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from modernbert.stored import ConfigError, Json

_BASE = {"rope_type", "type", "rope_theta"}
_SETTINGS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "proportional": {"factor", "partial_rotary_factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
    },
}
"""The settings that each type follows."""
_OF_YARN_ALONE = {"mscale", "mscale_all_dim", "truncate"}  # read here, not kept
_UNREAD = {"original_max_position_embeddings"}  # transformers passes over it but in yarn


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the angles of a rotary embedding differ from those of its theta alone."""

    rope_type: str
    """linear: all angles are divided by `factor`; proportional: only the first pairs of a head
    turn, their angles divided by `factor`; yarn: pairs that turn slowly are divided by `factor`,
    fast ones are not (Peng et al. 2023, arXiv:2309.00071); dynamic: none, up to
    max_position_embeddings.
    """
    factor: float = 1.0
    partial_rotary_factor: float = 1.0
    """The share of pairs that turn, of a proportional embedding."""
    original_max_position_embeddings: int = 0
    """The positions that the model was first trained on, of yarn."""
    attention_factor: float = 1.0
    """What queries and keys are multiplied by."""
    beta_fast: float = 32.0
    """Turns over the first positions from which on yarn leaves a pair as it is."""
    beta_slow: float = 1.0
    """Turns over the first positions below which yarn divides by the whole `factor`."""

    def to_dict(self) -> Json:
        """Return the settings as transformers 5 writes them."""
        return {"rope_type": self.rope_type} | {
            name: getattr(self, name) for name in sorted(_SETTINGS[self.rope_type])
        }


def read_rope_scaling(rope: Json, place: str, max_positions: int) -> RopeScaling | None:
    """Read the rotary embedding of a type of layers; None for the default one.

    Args:
        rope: the settings; values of null are not set.
        place: where they are, for messages.
        max_positions: the model's max_position_embeddings.

    Raises:
        ConfigError: for types and settings that are not known, and values that are not allowed.
    """
    rope_type = rope.get("rope_type") or "default"
    if rope_type not in _SETTINGS:
        raise ConfigError(
            f"{place} has rope_type {rope_type!r}; known are {', '.join(sorted(_SETTINGS))}"
        )
    if rope.get("type") not in (None, rope_type):
        raise ConfigError(
            f"{place} has type {rope['type']!r}, which transformers 5 passes over; name it"
            " rope_type"
        )
    rope = {name: value for name, value in rope.items() if value is not None}
    known = _SETTINGS[rope_type] | _UNREAD
    known |= _OF_YARN_ALONE if rope_type == "yarn" else set()
    unknown = set(rope) - known - _BASE
    if rope.get("partial_rotary_factor") == 1:
        unknown -= {"partial_rotary_factor"}
    if unknown:
        raise ConfigError(
            f"{place} has {', '.join(sorted(unknown))}; {rope_type} has {', '.join(sorted(known))}"
        )
    if rope_type == "default":
        return None
    settings = {name: rope[name] for name in _SETTINGS[rope_type] if name in rope}
    if rope_type == "yarn":
        settings |= _read_yarn(rope, place, max_positions)
    elif rope_type != "proportional" and "factor" not in rope:
        raise ConfigError(f"{place} has no factor, which a {rope_type} rotary embedding needs")
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"{place} has {name} {value!r}; it must be a number above 0")
    if settings.get("partial_rotary_factor", 1) > 1:
        raise ConfigError(
            f"{place} has partial_rotary_factor {settings['partial_rotary_factor']}; it must be at"
            " most 1"
        )
    return RopeScaling(rope_type=rope_type, **settings)


def _read_yarn(rope: Json, place: str, max_positions: int) -> dict[str, Any]:
    """Return the settings of yarn that depend on others."""
    if not rope.get("truncate", True):
        # It stands in the settings of a type of layers, where transformers 5 does not look.
        raise ConfigError(f"{place} has truncate false; only true, the default, is supported")
    original = rope.get("original_max_position_embeddings", max_positions)
    factor = rope.get("factor", max_positions / original)
    attention = rope.get("attention_factor")
    if attention is None:
        mscale = rope.get("mscale")
        mscale_all_dim = rope.get("mscale_all_dim")
        if mscale and mscale_all_dim:
            attention = _attention_factor(factor, mscale) / _attention_factor(
                factor, mscale_all_dim
            )
        else:
            attention = _attention_factor(factor, 1.0)
    return {
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def _attention_factor(factor: float, mscale: float) -> float:
    """Compute equation 22 of Peng et al., with the slope times `mscale`."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
