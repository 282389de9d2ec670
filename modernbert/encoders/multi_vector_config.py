"""What sentence-transformers and PyLate store beside a multi-vector encoder (ColBERT): a vector for
each token.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from modernbert.encoders.module_files import (
    MODULES,
    SETTINGS,
    Module,
    Prompts,
    TextSettings,
    is_stanford,
    module_kinds,
    read_model_settings,
    read_modules,
    stored_prompts,
    transformer_settings,
)
from modernbert.encoders.sentence_config import Dense, parse_dense
from modernbert.files import read_json, weight_files
from modernbert.stored import (
    COLBERT_METADATA,
    CheckpointError,
    CheckpointPath,
    Json,
    files_in,
    read_header,
)

_LENGTH_SETTINGS = {"query_length", "document_length", "query_expansion"}
"""sentence-transformers has them in the encoder's file, PyLate beside its own settings."""
_PREFIXES = {"query_prefix": "query", "document_prefix": "document"}
"""PyLate's settings of prefixes, and the prompts that they are."""
_PYLATE_SETTINGS = {
    *_LENGTH_SETTINGS,
    *_PREFIXES,
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "skiplist_words",
}
_MASK_SETTINGS = {"skiplist_words", "skiplist_tasks", "keep_only_token_ids"}
_EXPANSION_SETTINGS = {"strategy", "attend", "token", "length"}
_COLBERT_QUERY_TOKENS = 32  # where a checkpoint of PyLate or Stanford's ColBERT names no length


class Mask(TypedDict, total=False):
    """Which tokens have a vector, as fields of MultiVectorConfig."""

    skipped: tuple[str, ...]
    skipped_in: tuple[str, ...]
    only_ids: tuple[int, ...] | None


class Layers(NamedTuple):
    """What the modules behind the encoder do."""

    dense: tuple[Dense, ...]
    normalize: bool
    mask: Mask


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
class MultiVectorConfig(TextSettings):
    """The content of modules.json and the files that it names.

    `max_length` counts where `query_length` or `document_length` says nothing.
    """

    encoder: CheckpointPath
    """The folder with config.json, weights and tokenizer."""
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    """Whether each vector is scaled to length 1."""
    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    """Tokens that have no vector in the texts of `skipped_in`."""
    skipped_in: tuple[str, ...] = ("document",)
    """Some of query and document."""
    only_ids: tuple[int, ...] | None = None
    """The only tokens that have a vector in a document; None: all."""
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
                f"{folder} is not a multi-vector encoder (ColBERT): its {SETTINGS} has no"
                " model_type MultiVectorEncoder, and no settings of PyLate"
            )
        if not modules:
            return _read_stanford(folder)
        kinds = module_kinds(folder, modules)
        settings = read_model_settings(
            folder, "MultiVectorEncoder", "ColBERT", "SentenceTransformer", more=_PYLATE_SETTINGS
        )
        _check_order(folder, kinds)
        encoder = folder / modules[0]["path"]
        texts = transformer_settings(
            encoder, "feature-extraction", "last_hidden_state", more=_LENGTH_SETTINGS
        )

        is_of_pylate = _is_of_pylate(settings)
        lengths = _read_lengths(encoder, settings, is_of_pylate)
        layers = _read_layers(folder, kinds, modules, settings, is_of_pylate)
        expansion = _read_expansion(folder, lengths.get("query_expansion"))
        if expansion and not is_of_pylate and "MultiVectorMask" not in kinds:
            raise CheckpointError(
                f"{folder / MODULES} has query_expansion without a MultiVectorMask, which scores it"
            )
        return cls(
            encoder,
            **texts,
            **_read_prompts(settings),
            **layers.mask,
            dense=layers.dense,
            normalize=layers.normalize,
            query_length=lengths.get("query_length"),
            document_length=lengths.get("document_length"),
            expansion=expansion,
            prefixes=tuple(settings[setting] for setting in _PREFIXES if settings.get(setting)),
            mean=_similarity(settings) == "meanmaxsim",
        )

    def width(self, hidden_size: int) -> int:
        """Return the width of a vector, for an encoder of `hidden_size`."""
        return self.dense[-1].out_features if self.dense else hidden_size

    @property
    def files(self) -> list[CheckpointPath]:
        """The files of the dense layers, on which vectors depend besides the encoder's."""
        files = []
        for dense in self.dense:
            if not dense.beside_encoder:
                files += files_in(dense.folder)
        return files


def is_multi_vector(folder: CheckpointPath) -> bool:
    """Whether a checkpoint is a multi-vector encoder of sentence-transformers, of PyLate or of
    Stanford's ColBERT.
    """
    if is_stanford(folder):
        return True
    settings = read_json(folder / SETTINGS) if read_modules(folder) else {}
    if settings.get("model_type") in ("MultiVectorEncoder", "ColBERT"):
        return True
    if any(settings.get(name) is not None for name in _PYLATE_SETTINGS):
        return True
    return _similarity(settings) in ("maxsim", "meanmaxsim")


def _similarity(settings: Json) -> str:
    return str(settings.get("similarity_fn_name") or "").lower()


def _read_stanford(folder: CheckpointPath) -> MultiVectorConfig:
    """Read what Stanford's ColBERT stores, with its defaults."""
    stored = read_json(folder / COLBERT_METADATA)
    query_prefix = f"{stored.get('query_token_id') or '[unused0]'} "
    document_prefix = f"{stored.get('doc_token_id') or '[unused1]'} "
    skips_punctuation = stored.get("mask_punctuation", True)
    file = weight_files(folder)[0]
    last_layer = read_header(file).get("linear.weight")
    if last_layer is None or len(last_layer.shape) != 2:
        raise CheckpointError(
            f"{file} does not hold linear.weight, a matrix: the last layer of a ColBERT"
        )
    dense = Dense(
        folder,
        activation="Identity",
        residual=False,
        out_features=last_layer.shape[0],
        beside_encoder=True,
    )
    expansion = Expansion(
        stored.get("query_maxlen") or _COLBERT_QUERY_TOKENS,
        cut=True,
        attend=bool(stored.get("attend_to_mask_tokens")),
        token=None,
    )
    return MultiVectorConfig(
        folder,
        dense=(dense,),
        normalize=True,
        document_length=stored.get("doc_maxlen"),
        expansion=expansion,
        skipped=tuple(string.punctuation) if skips_punctuation else (),
        prompts={"query": query_prefix, "document": document_prefix},
        prefixes=(query_prefix, document_prefix),
    )


def _is_of_pylate(settings: Json) -> bool:
    return bool(_PYLATE_SETTINGS & set(settings)) or settings.get("model_type") == "ColBERT"


def _pylate_skipped(settings: Json) -> tuple[str, ...]:
    """Return the words that PyLate skips in documents: without a list, punctuation in a ColBERT."""
    words = settings.get("skiplist_words")
    if words is not None:
        return tuple(words)
    is_colbert = settings.get("model_type") == "ColBERT" or bool(set(_PREFIXES) & set(settings))
    return tuple(string.punctuation) if is_colbert else ()


def _pylate_lengths(settings: Json) -> Json:
    """Return what PyLate's settings mean, in the words of sentence-transformers."""
    lengths: Json = {}
    for name in ("query_length", "document_length"):
        if settings.get(name) is not None:
            lengths[name] = settings[name]
    if "query_expansion" in settings:
        lengths["query_expansion"] = settings["query_expansion"]
    elif settings.get("do_query_expansion") is not False:
        # Without a word about it, queries are filled up to their length.
        attend = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
        lengths["query_expansion"] = {
            "strategy": "fixed",
            "attend": bool(attend),
            "length": lengths.pop("query_length", None) or _COLBERT_QUERY_TOKENS,
        }
    return lengths


def _read_lengths(encoder: CheckpointPath, settings: Json, is_of_pylate: bool) -> Json:
    """Return what is stored of lengths; what the encoder's file says counts before PyLate's
    settings.
    """
    lengths = _pylate_lengths(settings) if is_of_pylate else {}
    stored_texts = read_json(encoder / "sentence_bert_config.json")
    if stored_texts.get("processing_kwargs"):
        raise CheckpointError(
            f"{encoder / 'sentence_bert_config.json'} has processing_kwargs, which a"
            " multi-vector encoder cannot have here; its lengths are query_length and"
            " document_length"
        )
    for name, value in stored_texts.items():
        if name in _LENGTH_SETTINGS:
            lengths[name] = value
    return lengths


def _read_layers(
    folder: CheckpointPath,
    kinds: Sequence[str],
    modules: Sequence[Module],
    settings: Json,
    is_of_pylate: bool,
) -> Layers:
    """Read the modules behind the encoder."""
    # PyLate has no modules for what it always does: normalising, and skipping some words.
    normalize = is_of_pylate
    mask: Mask = {"skipped": _pylate_skipped(settings) if is_of_pylate else ()}
    dense: list[Dense] = []
    for kind, module in zip(kinds[1:], modules[1:], strict=True):
        module_folder = folder / module["path"]
        stored = read_json(module_folder / "config.json")
        if not is_of_pylate:
            _check_features(module_folder, stored)
        if kind == "Dense":
            dense.append(parse_dense(module_folder, stored))
        elif kind == "Normalize":
            normalize = True
        elif kind == "MultiVectorMask":
            mask = _read_mask(module_folder, stored)
    return Layers(tuple(dense), normalize, mask)


def _read_prompts(settings: Json) -> Prompts:
    """Read the prompts; a prefix of PyLate's is the beginning of its side's prompt, whether or not
    the prompt repeats it.
    """
    prompts = stored_prompts(settings)
    for setting, name in _PREFIXES.items():
        if setting in settings:
            prefix = settings[setting] or ""
            rest = prompts["prompts"].get(name, "").removeprefix(prefix)
            prompts["prompts"][name] = prefix + rest
    return prompts


def _read_expansion(folder: CheckpointPath, stored: object) -> Expansion | None:
    if stored is None:
        return None
    is_known = (
        isinstance(stored, dict)
        and set(stored) <= _EXPANSION_SETTINGS
        and stored.get("strategy") in ("fixed", "min")
    )
    if not isinstance(stored, dict) or not is_known:
        raise CheckpointError(
            f"{folder} has query_expansion {stored}; its strategy must be fixed or min"
        )
    return Expansion(
        stored["length"],
        cut=stored["strategy"] == "fixed",
        attend=bool(stored.get("attend")),
        token=stored.get("token"),
    )


def _read_mask(folder: CheckpointPath, stored: Json) -> Mask:
    if unknown := sorted(set(stored) - _MASK_SETTINGS):
        raise CheckpointError(
            f"{folder / 'config.json'} has {', '.join(unknown)}: unknown settings"
        )
    tasks = stored.get("skiplist_tasks")
    if tasks is None:
        tasks = ["document"]
    elif isinstance(tasks, str):
        tasks = [tasks]
    only_ids = stored.get("keep_only_token_ids")
    return {
        "skipped": tuple(stored.get("skiplist_words") or ()),
        "skipped_in": tuple(tasks),
        "only_ids": tuple(only_ids) if only_ids else None,
    }


def _check_order(folder: CheckpointPath, kinds: Sequence[str]) -> None:
    """Raise CheckpointError unless the modules are Transformer, Dense layers, then Normalize; a
    mask lies anywhere behind the first.
    """
    relevant = [kind for kind in kinds if kind not in ("Dropout", "MultiVectorMask")]
    layers = relevant[1:-1] if relevant[-1:] == ["Normalize"] else relevant[1:]
    if relevant[:1] != ["Transformer"] or kinds[0] != "Transformer" or set(layers) - {"Dense"}:
        raise CheckpointError(
            f"{folder / MODULES} has the modules {', '.join(kinds)}; a vector per token comes from"
            " Transformer, any number of Dense, MultiVectorMask, and Normalize"
        )


def _check_features(folder: CheckpointPath, stored: Json) -> None:
    """Raise CheckpointError for a layer that does not work on the vectors of tokens."""
    known = "token_embeddings"
    for key in ("module_input_name", "module_output_name"):
        if stored.get(key) not in (None, known):
            raise CheckpointError(
                f"{folder / 'config.json'} has {key} {stored[key]!r}; it must be {known!r}"
            )
