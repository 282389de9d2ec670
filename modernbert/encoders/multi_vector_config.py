"""What sentence-transformers and PyLate store beside a multi-vector encoder (ColBERT): a vector for
each token.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modernbert.encoders.module_files import (
    MODULES,
    SETTINGS,
    is_stanford,
    module_kinds,
    read_modules,
    read_settings,
    stored_prompts,
    transformer_settings,
)
from modernbert.encoders.sentence_config import Dense, parse_dense
from modernbert.files import COLBERT_METADATA, CheckpointError, read_json, weight_files
from modernbert.stored import CheckpointPath, files_in, read_header

_KNOBS = {
    "query_length",
    "document_length",
    "query_expansion",
}  # sentence-transformers has them in the encoder's file
_PYLATE_SETTINGS = _KNOBS | {
    *("do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens"),
    *("query_prefix", "document_prefix", "skiplist_words"),
}
_MASK_SETTINGS = {"skiplist_words", "skiplist_tasks", "keep_only_token_ids"}
_EXPANSION_SETTINGS = {"strategy", "attend", "token", "length"}


@dataclass(frozen=True)
class Expansion:
    """Tokens that are put behind a query, and scored like its own."""

    length: int
    """The tokens of a query with them."""
    cut: bool
    """Whether longer queries are cut to `length`."""
    attend: bool
    """Whether other tokens see them."""
    token: str | None
    """None: the mask token."""


@dataclass(frozen=True)
class MultiVectorConfig:
    """The content of modules.json and the files that it names."""

    encoder: CheckpointPath
    """The folder with config.json, weights and tokenizer."""
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    """Whether each vector is scaled to length 1."""
    max_length: int | None = None
    """The longest input in tokens where the two below say nothing; None where the checkpoint states
    none.
    """
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    """Tokens that have no vector in the texts of `skipped_in`."""
    skipped_in: tuple[str, ...] = ("document",)
    """Some of query and document."""
    only_ids: tuple[int, ...] | None = None
    """The only tokens that have a vector in a document; None: all."""
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    prefixes: tuple[str, ...] = ()
    """The prompts that PyLate puts before texts as tokens."""
    mean: bool = False
    """Whether the score of a pair is divided by the tokens of the query."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath) -> MultiVectorConfig:
        """Read the configuration of a multi-vector encoder.

        Args:
            folder: a checkpoint of sentence-transformers' MultiVectorEncoder, of PyLate, or of
                Stanford's ColBERT.

        Raises:
            CheckpointError: for a checkpoint of another kind, for modules and settings that are not
                known, and a file that is not valid JSON.
        """
        modules = read_modules(folder)
        if not is_multi_vector(folder):
            raise CheckpointError(
                f"{folder} is no multi-vector encoder (ColBERT): its {SETTINGS} has no model_type "
                "MultiVectorEncoder,"
                " and no settings of PyLate"
            )
        if not modules:
            return cls(folder, **_stanford_settings(folder))
        kinds = module_kinds(folder, modules)
        settings = read_settings(
            folder, "MultiVectorEncoder", "ColBERT", "SentenceTransformer", more=_PYLATE_SETTINGS
        )
        pylate = bool(_PYLATE_SETTINGS & set(settings)) or settings.get("model_type") == "ColBERT"
        _check_order(folder, kinds)
        encoder = folder / modules[0]["path"]
        values = transformer_settings(
            encoder, "feature-extraction", "last_hidden_state", more=_KNOBS
        )
        stored = {
            name: value
            for name, value in read_json(encoder / "sentence_bert_config.json").items()
            if name in _KNOBS
        }
        if pylate:
            stored = _pylate_knobs(settings) | stored
            prefixed = settings.get("model_type") == "ColBERT" or {
                "query_prefix",
                "document_prefix",
            } & set(settings)
            words = settings.get("skiplist_words")
            usual = string.punctuation if prefixed else ()
            values |= {"normalize": True, "skipped": tuple(usual if words is None else words)}
        dense: list[Dense] = []
        for kind, module in zip(kinds[1:], modules[1:], strict=True):
            module_folder = folder / module["path"]
            content = read_json(module_folder / "config.json")
            _check_features(module_folder, content, pylate)
            if kind == "Dense":
                dense.append(parse_dense(module_folder, content))
            elif kind == "Normalize":
                values["normalize"] = True
            elif kind == "MultiVectorMask":
                values |= _mask(module_folder, content)
        prompts = stored_prompts(settings)
        for key, name in (("query_prefix", "query"), ("document_prefix", "document")):
            if key in settings:
                prefix = settings[key] or ""
                prompts["prompts"][name] = prefix + prompts["prompts"].get(name, "").removeprefix(
                    prefix
                )
        expansion = _expansion(folder, stored.get("query_expansion"))
        if expansion and not pylate and "MultiVectorMask" not in kinds:
            raise CheckpointError(
                f"{folder / MODULES} has query_expansion without a MultiVectorMask, which scores it"
            )
        return cls(
            encoder,
            **values,
            **prompts,
            dense=tuple(dense),
            query_length=stored.get("query_length"),
            document_length=stored.get("document_length"),
            expansion=expansion,
            prefixes=tuple(
                settings[key] for key in ("query_prefix", "document_prefix") if settings.get(key)
            ),
            mean=str(settings.get("similarity_fn_name")).lower() == "meanmaxsim",
        )

    def width(self, hidden_size: int) -> int:
        """Return the width of a vector, for an encoder of `hidden_size`."""
        return self.dense[-1].out_features if self.dense else hidden_size

    @property
    def files(self) -> list[CheckpointPath]:
        """The files of the dense layers, on which vectors depend besides the encoder's."""
        folders = [dense.folder for dense in self.dense if not dense.beside_encoder]
        return [file for folder in folders for file in files_in(folder)]


def is_multi_vector(folder: CheckpointPath) -> bool:
    """Whether a checkpoint is a multi-vector encoder of sentence-transformers, of PyLate or of
    Stanford's ColBERT.
    """
    if is_stanford(folder):
        return True
    settings = read_json(folder / SETTINGS) if read_modules(folder) else {}
    similarity = str(settings.get("similarity_fn_name") or "").lower()
    types = settings.get("model_type") in ("MultiVectorEncoder", "ColBERT")
    pylate = any(settings.get(name) is not None for name in _PYLATE_SETTINGS)
    return types or pylate or similarity in ("maxsim", "meanmaxsim")


def _stanford_settings(folder: CheckpointPath) -> dict[str, Any]:
    """Read what Stanford's ColBERT stores, with its defaults, as fields of MultiVectorConfig."""
    stored = read_json(folder / COLBERT_METADATA)
    prefixes = {
        "query": f"{stored.get('query_token_id') or '[unused0]'} ",
        "document": f"{stored.get('doc_token_id') or '[unused1]'} ",
    }
    file = weight_files(folder)[0]
    last = read_header(file).get("linear.weight")
    if last is None or len(last.shape) != 2:
        raise CheckpointError(
            f"{file} does not hold linear.weight, a matrix: the last layer of a ColBERT"
        )
    return {
        "dense": (Dense(folder, "Identity", False, last.shape[0], beside_encoder=True),),
        "normalize": True,
        "document_length": stored.get("doc_maxlen"),
        "expansion": Expansion(
            stored.get("query_maxlen") or 32,
            cut=True,
            attend=bool(stored.get("attend_to_mask_tokens")),
            token=None,
        ),
        "skipped": tuple(string.punctuation) if stored.get("mask_punctuation", True) else (),
        "prompts": prefixes,
        "prefixes": tuple(prefixes.values()),
    }


def _pylate_knobs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What PyLate's settings mean, in the words of sentence-transformers."""
    knobs = {
        name: settings[name]
        for name in ("query_length", "document_length")
        if settings.get(name) is not None
    }
    if "query_expansion" in settings:
        return knobs | {"query_expansion": settings["query_expansion"]}
    if settings.get("do_query_expansion") is False:
        return knobs
    attend = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
    length = knobs.pop("query_length", None) or 32
    return knobs | {
        "query_expansion": {"strategy": "fixed", "attend": bool(attend), "length": length}
    }


def _expansion(folder: CheckpointPath, stored: Any) -> Expansion | None:
    if stored is None:
        return None
    if (
        not isinstance(stored, dict)
        or set(stored) - _EXPANSION_SETTINGS
        or stored.get("strategy") not in ("fixed", "min")
    ):
        raise CheckpointError(
            f"{folder} has query_expansion {stored}; its strategy must be fixed or min"
        )
    return Expansion(
        stored["length"],
        stored["strategy"] == "fixed",
        bool(stored.get("attend")),
        stored.get("token"),
    )


def _mask(folder: CheckpointPath, stored: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(stored) - _MASK_SETTINGS):
        raise CheckpointError(
            f"{folder / 'config.json'} has {', '.join(unknown)}: unknown settings"
        )
    tasks, only = stored.get("skiplist_tasks"), stored.get("keep_only_token_ids")
    return {
        "skipped": tuple(stored.get("skiplist_words") or ()),
        "skipped_in": tuple(
            ["document"] if tasks is None else [tasks] if isinstance(tasks, str) else tasks
        ),
        "only_ids": tuple(only) if only else None,
    }


def _check_order(folder: CheckpointPath, kinds: Sequence[str]) -> None:
    """Raise CheckpointError unless the modules are Transformer, Dense layers, then Normalize; a
    mask lies anywhere.
    """
    relevant = [kind for kind in kinds if kind not in ("Dropout", "MultiVectorMask")]
    layers = relevant[1:-1] if relevant[-1:] == ["Normalize"] else relevant[1:]
    if relevant[:1] != ["Transformer"] or kinds[0] != "Transformer" or set(layers) - {"Dense"}:
        raise CheckpointError(
            f"{folder / MODULES} has the modules {', '.join(kinds)}; a vector a token comes from "
            "Transformer, any"
            " number of Dense, MultiVectorMask, and Normalize"
        )


def _check_features(folder: CheckpointPath, stored: Mapping[str, Any], pylate: bool) -> None:
    """Raise CheckpointError for a layer that works on something other than the vectors of
    tokens.
    """
    for key in ("module_input_name", "module_output_name"):
        default = "token_embeddings"
        if stored.get(key, default) not in (None, default) and not pylate:
            raise CheckpointError(
                f"{folder / 'config.json'} has {key} {stored[key]!r}; it must be {default!r}"
            )
