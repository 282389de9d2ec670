"""The weights of a checkpoint, matched with the parameters of a model class by name and shape.

Only the headers of the files are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from modernbert.adapter import LowRank, match_adapter
from modernbert.files import adapter_weights, read_adapter, weight_files
from modernbert.header import StoredTensor
from modernbert.stored import CheckpointPath, read_header
from modernbert.tensors import STORED_DTYPES

Location = tuple[CheckpointPath, str]
"""A file with weights, and the name of a weight in it."""
Shape = tuple[int, ...]
HEAD_PREFIXES = ("head.", "classifier.", "decoder.", "linear.")
"""What the names of the weights of heads begin with; a class without a head leaves them out."""
# What no forward pass reads: computed buffers, and the weights of losses.
_UNREAD_BUFFER = r"(.*\.)?(position_ids|\w*inv_freq|cos_cached|sin_cached)"
_UNREAD_LOSS = r"(model\.)?(loss|loss_fct|loss_fn|loss_function|criterion)\..*"
_UNREAD = re.compile(f"{_UNREAD_BUFFER}|{_UNREAD_LOSS}")
_WRAPPERS = {
    "_orig_mod.": "it was saved while compiled; save it again with"
    " model._orig_mod.save_pretrained(folder)",
    "module.": "it was saved while wrapped for training in parallel; save it again with"
    " model.module.save_pretrained(folder)",
    "base_model.model.": "it was saved with PEFT's adapters; save it again with"
    " model.merge_and_unload().save_pretrained(folder)",
    "model.encoder_model.": "as GLiClass stores them, whose models are for zero_shot",
}
"""What is put before the names of weights, by wrappers of a model and by other libraries, and what
to do.
"""


@dataclass
class Match:
    """What the weights of a checkpoint are to a model class; weights have their stored names."""

    locations: dict[str, Location] = field(default_factory=dict)
    """Where each parameter of the class is stored, as far as it is."""
    changes: dict[str, LowRank] = field(default_factory=dict)
    """What an adapter adds to parameters."""
    adapted: set[str] = field(default_factory=set)
    """The parameters that an adapter changes or replaces."""
    problems: list[str] = field(default_factory=list)
    """A line for each weight that is unexpected, or of another shape or dtype."""
    unexpected: list[str] = field(default_factory=list)
    """The weights that are neither the class's nor left out for a reason."""
    other_heads: list[str] = field(default_factory=list)
    """The weights of heads that the class does not have."""
    unread: list[str] = field(default_factory=list)
    """The weights that no forward pass reads."""

    @property
    def wrapper(self) -> str | None:
        """Say which wrapper of a model was saved with it, and what to do; None for none."""
        for prefix, how_to in _WRAPPERS.items():
            if any(key.startswith(prefix) for key in self.unexpected):
                return f"names begin with {prefix!r}, {how_to}"
        return None


def match_weights(
    folder: CheckpointPath, shapes: Mapping[str, Shape], encoder_prefix: str, num_labels: int
) -> Match:
    """Match the weights of a checkpoint with parameters; those of an adapter with its base's.

    Args:
        folder: the checkpoint.
        shapes: the shape of each parameter of a model class, by its name.
        encoder_prefix: what the names of the encoder's parameters begin with in that class.
        num_labels: the labels of the configuration, for messages.

    Raises:
        CheckpointError: for files that are missing or not readable.
    """
    match = Match()
    for file in weight_files(folder):
        for key, stored in read_header(file).items():
            name = _parameter_name(key, encoder_prefix, shapes)
            if name in shapes:
                match.locations[name] = (file, key)
                if problem := _misfit(key, stored, shapes[name], num_labels):
                    match.problems.append(problem)
            elif _UNREAD.fullmatch(key):
                match.unread.append(key)
            elif key.startswith(HEAD_PREFIXES):
                match.other_heads.append(key)
            else:
                match.unexpected.append(key)
                match.problems.append(f"unexpected {key}")
    _add_adapter(match, folder, shapes, encoder_prefix, num_labels)
    return match


def _add_adapter(
    match: Match,
    folder: CheckpointPath,
    shapes: Mapping[str, Shape],
    encoder_prefix: str,
    num_labels: int,
) -> None:
    """Add what an adapter in `folder` changes to what was matched of its base."""
    adapter = read_adapter(folder)
    if not adapter:
        return
    file = adapter_weights(folder)
    tensors = read_header(file)
    adapted = match_adapter(
        adapter,
        tensors,
        shapes,
        lambda key: _parameter_name(key, encoder_prefix, shapes),
        HEAD_PREFIXES,
    )
    # A head of the base that is replaced need not fit.
    replaced = {match.locations[name][1] for name in adapted.saved if name in match.locations}
    match.problems = [line for line in match.problems if line.partition(" ")[0] not in replaced]
    for name, key in adapted.saved.items():
        match.locations[name] = (file, key)
        if problem := _misfit(key, tensors[key], shapes[name], num_labels):
            match.problems.append(problem)
    for change in adapted.changes.values():
        for key in (change.a, change.b):
            if tensors[key].dtype not in STORED_DTYPES:
                match.problems.append(f"{key} is stored as {tensors[key].dtype}")
    match.changes = adapted.changes
    match.adapted = {*adapted.changes, *adapted.saved}
    match.problems += adapted.problems
    match.other_heads += adapted.other_heads


def _parameter_name(key: str, encoder_prefix: str, shapes: Mapping[str, Shape]) -> str:
    """Return the parameter that a weight is; an encoder alone is saved without "model."."""
    if key in shapes or key.startswith(HEAD_PREFIXES):
        return key
    return encoder_prefix + key.removeprefix("model.")


def _misfit(key: str, stored: StoredTensor, shape: Shape, num_labels: int) -> str | None:
    """Say why a stored weight does not fit a parameter; None where it does."""
    if stored.shape != shape:
        problem = f"{key} has shape {list(stored.shape)}, not {list(shape)}"
        if key.startswith("classifier."):
            problem += f" (id2label names {num_labels} labels)"
        return problem
    if stored.dtype not in STORED_DTYPES:
        return f"{key} is stored as {stored.dtype}, not one of {', '.join(STORED_DTYPES)}"
    return None
