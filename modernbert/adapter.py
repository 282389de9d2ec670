"""Adapters of PEFT (LoRA, Hu et al. 2021, arXiv:2106.09685): what adapter_config.json says, and
which weights of a base model the stored tensors change.

W + scale * B @ A takes the place of a weight W. Modules that were trained as a whole
(`modules_to_save`), heads for the most part, take the place of those of the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from modernbert.header import StoredTensor
from modernbert.stored import CheckpointError, CheckpointPath, Json

PREFIX = "base_model.model."
"""What PEFT puts before the names of the modules of its base."""
_FOLLOWED = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "init_lora_weights",
}
_OF_TRAINING = {
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
}
"""Settings without an effect on a trained adapter."""
_UNSET: tuple[object, ...] = (None, False, [], {}, "none")
"""The values of other settings that say nothing; "none" is that of `bias`."""
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; the others (PiSSA) change it."""
_ARCHITECTURES = {
    "SEQ_CLS": "ModernBertForSequenceClassification",
    "TOKEN_CLS": "ModernBertForTokenClassification",
    "QUESTION_ANS": "ModernBertForQuestionAnswering",
    "FEATURE_EXTRACTION": "ModernBertModel",
}
_HEADS_BY_DEFAULT = ("classifier", "score", "qa_outputs")
"""What PEFT adds to `modules_to_save`, whether or not a model has modules of these names."""
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)"
)
_PLAIN_PATTERN = re.compile(r"\^?[\w.]+")

Shape = tuple[int, ...]
Number = TypeVar("Number", int, float)


class BaseModel(NamedTuple):
    """The model that an adapter changes."""

    model: str
    """A folder, a hub id or a location."""
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The settings of a LoRA adapter."""

    file: CheckpointPath
    """adapter_config.json."""
    base: BaseModel
    architecture: str | None
    """The class of the model that was trained; None: that of the base."""
    rank: int
    alpha: float
    ranks: dict[str, int]
    """The ranks of some modules, by their names or the ends of these."""
    alphas: dict[str, float]
    root_of_rank: bool
    """Whether the scale is alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023,
    arXiv:2312.03732).
    """
    targets: tuple[str, ...]
    """The modules with LoRA, by their names or the ends of these; empty where a pattern selects
    them, and their tensors alone say which they are.
    """
    selects_layers: bool
    """Whether other settings take modules away from `targets`."""
    saved: tuple[str, ...]
    """The modules that are stored as a whole, by their names or the ends of these."""

    @classmethod
    def parse(cls, file: CheckpointPath, stored: Json) -> Adapter:
        """Read the content of adapter_config.json.

        Raises:
            CheckpointError: for another kind of adapter, for settings that are unknown or not
                followed, and where no base is named.
        """
        if stored.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{file} has peft_type {stored.get('peft_type')!r}; LORA alone is merged. For"
                " others, save model.merge_and_unload() of PEFT, and load that folder"
            )
        for name, value in stored.items():
            if name not in _FOLLOWED | _OF_TRAINING and value not in _UNSET:
                raise CheckpointError(
                    f"{file} has {name} {value!r}, which is not followed here: save"
                    " model.merge_and_unload() of PEFT, and load that folder"
                )
        if stored.get("init_lora_weights") not in _INITIAL:
            raise CheckpointError(
                f"{file} has init_lora_weights {stored['init_lora_weights']!r}, which changes the"
                " base: save model.merge_and_unload() of PEFT, and load that folder"
            )
        base = stored.get("base_model_name_or_path")
        if not base or not isinstance(base, str):
            raise CheckpointError(
                f"{file} has base_model_name_or_path {base!r}: write the folder or the hub id of"
                " the base there"
            )
        targets = stored.get("target_modules") or ()
        mapping = stored.get("auto_mapping") or {}
        task_type = stored.get("task_type")
        try:
            return cls(
                file=file,
                base=BaseModel(base, stored.get("revision")),
                architecture=_ARCHITECTURES.get(str(task_type)) or mapping.get("base_model_class"),
                rank=int(stored.get("r", 8)),
                alpha=float(stored.get("lora_alpha", 8)),
                ranks=_read_pattern(file, "rank_pattern", stored),
                alphas=_read_pattern(file, "alpha_pattern", stored),
                root_of_rank=bool(stored.get("use_rslora")),
                targets=() if isinstance(targets, str) else tuple(targets),
                selects_layers=any(
                    stored.get(name) not in _UNSET
                    for name in ("exclude_modules", "layers_to_transform")
                ),
                saved=tuple(stored.get("modules_to_save") or ()),
            )
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} has a setting of the wrong type: {error}") from error

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return _first_that_ends(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of B @ A for a module."""
        rank = self.rank_of(module)
        alpha = _first_that_ends(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)

    def is_saved(self, name: str) -> bool:
        """Whether a weight or module is, or is in, one that is stored as a whole."""
        return any(_is_inside(name, saved) for saved in self.saved)


@dataclass(frozen=True)
class LowRank:
    """The change of a weight: scale * B @ A, by the names of the two in the adapter's file."""

    a: str
    b: str
    scale: float
    is_embedding: bool
    """Whether the product is transposed."""


@dataclass
class AdapterMatch:
    """What the tensors of an adapter are to a model class."""

    changes: dict[str, LowRank] = field(default_factory=dict)
    """By the name of the parameter."""
    saved: dict[str, str] = field(default_factory=dict)
    """{name of a parameter: name in the adapter's file, which takes the place of the base's}."""
    problems: list[str] = field(default_factory=list)
    """A line for each tensor and each setting that does not fit."""
    other_heads: list[str] = field(default_factory=list)
    """The tensors of heads that the class does not have."""


def match_adapter(
    adapter: Adapter,
    tensors: Mapping[str, StoredTensor],
    shapes: Mapping[str, Shape],
    parameter_name: Callable[[str], str],
    head_prefixes: tuple[str, ...],
) -> AdapterMatch:
    """Match the tensors of an adapter with the parameters of a model class.

    Args:
        adapter: its settings.
        tensors: the header of its file.
        shapes: the shape of each parameter of the class, by its name.
        parameter_name: gives the name that a weight of a checkpoint has in the class.
        head_prefixes: what the names of the weights of heads begin with.
    """
    match = AdapterMatch()
    adapted: dict[str, dict[str, str]] = {}  # {module: {part: name in the file}}
    stored_names = []
    for key in tensors:
        if not key.startswith(PREFIX):
            match.problems.append(f"unexpected {key}: its name does not begin with {PREFIX}")
            continue
        name = key.removeprefix(PREFIX)
        stored_names.append(name)
        if low_rank := _LOW_RANK.fullmatch(name):
            adapted.setdefault(low_rank["module"], {})[low_rank["part"]] = key
        elif not adapter.is_saved(name):
            match.problems.append(f"unexpected {key}: neither a LoRA matrix nor of modules_to_save")
        elif parameter_name(name) in shapes:
            match.saved[parameter_name(name)] = key
        elif name.startswith(head_prefixes):
            match.other_heads.append(name)
        else:
            match.problems.append(f"unexpected {key}")

    for module, parts in adapted.items():
        parameter = parameter_name(f"{module}.weight")
        if parameter in shapes:
            change = _low_rank(adapter, module, parts)
            if problem := _misfit(adapter, module, change, tensors, shapes[parameter]):
                match.problems.append(problem)
            else:
                match.changes[parameter] = change
        elif f"{module}.".startswith(head_prefixes):
            match.other_heads += [f"{module}.{part}" for part in parts]
        else:
            match.problems.append(f"unexpected {', '.join(parts.values())}")
    match.problems += _unmet_targets(adapter, adapted, shapes, parameter_name)
    match.problems += _unmet_saved(adapter, stored_names, shapes, match.saved)
    return match


def _low_rank(adapter: Adapter, module: str, parts: Mapping[str, str]) -> LowRank:
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    name_a, name_b = "lora_A.weight", "lora_B.weight"
    if is_embedding:
        name_a, name_b = "lora_embedding_A", "lora_embedding_B"
    # What is missing is named as it would be stored.
    return LowRank(
        parts.get(name_a, f"{PREFIX}{module}.{name_a}"),
        parts.get(name_b, f"{PREFIX}{module}.{name_b}"),
        adapter.scale_of(module),
        is_embedding,
    )


def _misfit(
    adapter: Adapter,
    module: str,
    change: LowRank,
    tensors: Mapping[str, StoredTensor],
    shape: Shape,
) -> str | None:
    """Say why two matrices do not fit a weight; None where they do."""
    missing = [key for key in (change.a, change.b) if key not in tensors]
    if missing:
        return f"missing {', '.join(missing)}"
    rank = adapter.rank_of(module)
    rows, columns = reversed(shape) if change.is_embedding else shape
    shapes = tensors[change.a].shape, tensors[change.b].shape
    expected = (rank, columns), (rows, rank)
    if shapes != expected:
        got = " and ".join(str(list(each)) for each in shapes)
        wanted = " and ".join(str(list(each)) for each in expected)
        return f"{change.a} and lora_B have the shapes {got}, not {wanted}"
    return None


def _unmet_targets(
    adapter: Adapter,
    adapted: Mapping[str, object],
    shapes: Mapping[str, Shape],
    parameter_name: Callable[[str], str],
) -> list[str]:
    """Return a line for each of target_modules that no module has, and each that has no tensors."""
    problems = []
    changed = {parameter_name(f"{module}.weight") for module in adapted}
    for target in adapter.targets:
        named = [module for module in adapted if _ends(module, target)]
        inside = [saved for saved in adapter.saved if _is_inside(target, saved)]
        lacking = []
        for parameter in shapes:
            module = parameter.removesuffix(".weight")
            # An encoder by itself has names without the prefix of one under a head.
            is_meant = module != parameter and (
                _ends(module, target) or _ends(f"model.{module}", target)
            )
            if is_meant and parameter not in changed and not adapter.is_saved(module):
                lacking.append(module)
        if lacking and (not adapter.selects_layers or not named):
            problems.append(f"missing the LoRA matrices of {', '.join(lacking)}")
        elif not named and not inside and not lacking:
            problems.append(f"target_modules names {target!r}, which no module is called")
    if adapter.targets:
        for module in adapted:
            if not any(_ends(module, target) for target in adapter.targets):
                problems.append(f"unexpected LoRA matrices of {module}: not in target_modules")
    return problems


def _unmet_saved(
    adapter: Adapter,
    stored_names: Sequence[str],
    shapes: Mapping[str, Shape],
    saved: Mapping[str, str],
) -> list[str]:
    """Return a line for each of modules_to_save that no module has, and each parameter in one that
    is not stored.
    """
    problems = []
    for module in dict.fromkeys(adapter.saved):
        inside = [name for name in shapes if _is_inside(name, module)]
        problems += [f"missing {PREFIX}{name}" for name in inside if name not in saved]
        is_stored = any(_is_inside(name, module) for name in stored_names)
        if not inside and not is_stored and module not in _HEADS_BY_DEFAULT:
            problems.append(f"modules_to_save names {module!r}, which no module is called")
    return problems


def _read_pattern(file: CheckpointPath, setting: str, stored: Json) -> Json:
    """Read a dictionary by patterns of modules' names; CheckpointError for other than names."""
    patterns: Json = stored.get(setting) or {}
    for pattern in patterns:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise CheckpointError(
                f"{file} has the pattern {pattern!r} in {setting}; followed are names of modules,"
                " or the ends of names"
            )
    return patterns


def _first_that_ends(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """Return the value of the first pattern that fits a module, as PEFT does."""
    for pattern, value in patterns.items():
        is_whole = pattern.startswith("^")
        if module == pattern[1:] if is_whole else _ends(module, pattern):
            return value
    return default


def _ends(module: str, name: str) -> bool:
    """Whether a module is called `name`, or ends with it, as PEFT counts it."""
    return module == name or module.endswith(f".{name}")


def _is_inside(name: str, module: str) -> bool:
    """Whether a weight or module is called `module`, or is in one that is."""
    return f".{module}." in f".{name}."
