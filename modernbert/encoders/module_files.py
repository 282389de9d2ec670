"""Reads the files of sentence-transformers beside a model: modules.json,
config_sentence_transformers.json, their kin.

Every setting in these files is followed, harmless, or refused by its name: none is passed over in
silence.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from modernbert.files import read_json
from modernbert.stored import (
    CheckpointError,
    CheckpointPath,
    Json,
    Route,
    StoredFiles,
    StoredPath,
    files_in,
)

logger = logging.getLogger(__name__)
MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
PYLATE_DENSE = ("pylate.models.Dense.Dense", "pylate.models.Dense")
"""PyLate's names of a dense layer on the vectors of tokens."""
_STANFORD = "HF_ColBERT"  # the architecture that ColBERT's own library writes, without modules
_KNOWN_SETTINGS = {  # of SETTINGS: followed, or without an effect on answers
    "prompts",
    "default_prompt_name",
    "truncate_dim",
    "activation_fn",
    "model_type",
    "__version__",
    "similarity_fn_name",
    "requirements",
}
_TRANSFORMER_SETTINGS = {  # of sentence_bert_config.json
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "unpad_inputs",
    "model_args",
    "config_args",
    "tokenizer_args",
}
_LOADING_ARGUMENTS = {  # of *_args in sentence_bert_config.json: without an effect on answers
    "trust_remote_code",
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "revision",
}
_MODULE_SETTINGS = {  # of the config.json of a module, by its class: followed, or without an effect
    "Pooling": {
        *("pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"),
        *("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"),
        *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"),
        "pooling_mode_lasttoken",
    },
    "Dense": {
        *("in_features", "out_features", "bias", "activation_function", "use_residual"),
        *("module_input_name", "module_output_name"),
    },
    "LayerNorm": {"dimension"},
    "Normalize": {"module_input_name", "module_output_name"},
    "WeightedLayerPooling": {
        *("embedding_dimension", "word_embedding_dimension", "layer_start", "num_hidden_layers"),
    },
}
_ROUTES = ("query", "document")
_UNSET: tuple[object, ...] = (None, [], {})
"""The values of settings that say nothing."""
_PER_TOKEN = "it gives a vector per token, which is for multi_vector, or for rerank"
_DOES = {
    "SentenceTransformer": "it gives a vector per text, which is for embed",
    "CrossEncoder": "it scores pairs, which is for rerank, or for classify",
    "SparseEncoder": "it gives weights of tokens, which is for sparse",
    "MultiVectorEncoder": _PER_TOKEN,
    "ColBERT": _PER_TOKEN,
}
"""What the kinds of models (`model_type`) give, and the task that runs them."""


class Module(TypedDict):
    """An entry of modules.json."""

    path: str
    """The module's folder, from that of the checkpoint."""
    type: str
    """The name of its class, with its Python module."""


class TransformerSettings(TypedDict):
    """What sentence_bert_config.json says of the texts that an encoder reads."""

    max_length: int | None
    lower_case: bool


class Prompts(TypedDict):
    """What config_sentence_transformers.json says of prompts."""

    prompts: dict[str, str]
    default_prompt_name: str | None


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a checkpoint says of the texts that it reads, whichever kind of model it is."""

    max_length: int | None = None
    """The longest input in tokens; None where the checkpoint states none."""
    lower_case: bool = False
    """Whether texts are lower-cased, all but special tokens."""
    prompts: dict[str, str] = field(default_factory=dict)
    """{name: text that is put before a document, or before the first text of a pair}."""
    default_prompt_name: str | None = None


def open_folder(folder: Path, expected: Mapping[str, str] | None = None) -> StoredPath:
    """Open a checkpoint: read all its small files, in its folder and in those that modules.json
    names.

    Args:
        folder: the checkpoint.
        expected: the digest of each of its files, as `StoredFiles.digests` gives them; None: any
            files will do.

    Returns:
        The path of the folder as it is now, which readers and loaders take in place of `folder`.

    Raises:
        CheckpointError: where a file cannot be read, and for modules.json that is not valid.
        CheckpointChanged: where the files are not those that are expected.
    """
    files = StoredFiles(folder, expected)
    opened = files.read_folder(folder)
    # Where files are expected, nothing is parsed before it is compared.
    if expected is not None:
        for subfolder in sorted({str(Path(name).parent) for name in expected}):
            files.read_folder(folder / subfolder)
        files.check_small_files()
        return opened
    modules = read_modules(opened)
    while modules:
        module = modules.pop(0)
        files.read_folder(folder / module["path"])
        if _is_router(module):
            for route in read_routes(opened, module).values():
                modules += route
    return opened


def encoder_folder(folder: CheckpointPath, route: Route | None = None) -> CheckpointPath:
    """Return the folder of a checkpoint's encoder: as modules.json says, or `folder` itself.

    `route`: which of the encoders of a Router; None: that of its default route. Where there is one
    for all routes, it is that one.

    Raises:
        CheckpointError: for a Router without the route.
    """
    modules = read_modules(folder)
    for router in filter(_is_router, modules):
        encoders: set[str] = set()
        for of_route in read_routes(folder, router).values():
            encoders.update(module["path"] for module in of_route if _is_encoder(module))
        if len(encoders) == 1:
            return folder / encoders.pop()
    passed = routed(folder, modules, chosen_route(folder, modules, route))
    paths = [module["path"] for module in passed if _is_encoder(module)]
    return folder / paths[0] if paths else folder


def purpose(folder: CheckpointPath) -> str | None:
    """Say what a checkpoint of sentence-transformers or SetFit gives, and the task for it; None for
    a plain one.
    """
    if any(folder.glob("config_setfit.json")) or any(folder.glob("model_head.pkl")):
        return (
            "it is one of SetFit, whose classifier, model_head.pkl, is a pickle and never loaded;"
            " embed runs its encoder"
        )
    if not read_modules(folder):
        return _DOES["ColBERT"] if is_stanford(folder) else None
    return _DOES.get(_model_type(read_json(folder / SETTINGS)))


def is_stanford(folder: CheckpointPath) -> bool:
    """Whether a checkpoint was written by Stanford's ColBERT."""
    config = read_json(folder / "config.json")
    # Whatever else is wrong with this file is said where the model's configuration is read.
    architectures = config.get("architectures") if isinstance(config, dict) else None
    is_of_colbert = isinstance(architectures, list) and _STANFORD in architectures
    return is_of_colbert and not read_modules(folder)


def read_modules(folder: CheckpointPath) -> list[Module]:
    """Read modules.json; a checkpoint without one has no modules."""
    modules: list[Module] = read_json(folder / MODULES) or []
    for module in modules:
        if not _is_module(module):
            raise CheckpointError(
                f"{folder / MODULES} must list modules with a path and a type, not {module!r}"
            )
    if not modules and (folder / SETTINGS).is_file():
        logger.warning(
            "%s is not read: without modules.json, sentence-transformers does not read it either",
            folder,
        )
    return modules


def read_routes(folder: CheckpointPath, router: Module) -> dict[Route, list[Module]]:
    """Read the modules of each route of a Router, with a path and a type as in modules.json."""
    file = _router_file(folder, router)
    stored = read_json(file)
    types = stored.get("types") or {}
    structure = stored.get("structure") or {}
    parameters = stored.get("parameters") or {}
    if not set(structure) <= set(_ROUTES) or parameters.get("route_mappings"):
        raise CheckpointError(
            f"{file} has the routes {', '.join(structure)}; known are query and document, without"
            " route_mappings"
        )
    base = f"{router['path']}/" if router["path"] else ""
    routes: dict[Route, list[Module]] = {}
    for route, names in structure.items():
        routes[route] = [{"path": base + name, "type": types.get(name, name)} for name in names]
    return routes


def chosen_route(
    folder: CheckpointPath, modules: Sequence[Module], route: Route | None
) -> Route | None:
    """Return the route that texts take through the Router among some modules: `route`, or its
    default one; None where there is no Router.

    Raises:
        CheckpointError: for a Router without the route.
    """
    router = next(filter(_is_router, modules), None)
    if router is None:
        return None
    file = _router_file(folder, router)
    routes = read_routes(folder, router)
    if route is None:
        parameters = read_json(file).get("parameters") or {}
        route = parameters.get("default_route")
        if route is None and parameters.get("allow_empty_key", True):
            route = next(iter(routes), None)
    if route is None:
        raise CheckpointError(
            f"{file} has no default_route: say what texts are read as, query or document (--as,"
            " as_query)"
        )
    if route not in routes:
        raise CheckpointError(
            f"{file} has no route {route!r}; it has {', '.join(routes) or 'none'}"
        )
    return route


def routed(folder: CheckpointPath, modules: Sequence[Module], route: Route | None) -> list[Module]:
    """Return the modules that a text goes through, with those of its route (`chosen_route`) in
    place of a Router.
    """
    passed: list[Module] = []
    for module in modules:
        if _is_router(module) and route is not None:
            passed += read_routes(folder, module)[route]
        else:
            passed.append(module)
    return passed


def files_of_other_routes(
    folder: CheckpointPath, modules: Sequence[Module], passed: Sequence[Module]
) -> tuple[CheckpointPath, ...]:
    """Return the files of the modules of a Router that are not among those that texts pass."""
    others: set[str] = set()
    for router in filter(_is_router, modules):
        for of_route in read_routes(folder, router).values():
            others.update(module["path"] for module in of_route)
    others -= {module["path"] for module in passed}
    files: list[CheckpointPath] = []
    for path in sorted(others):
        files += files_in(folder / path)
    return tuple(files)


def refused_router(folder: CheckpointPath, router: Module) -> CheckpointError:
    """The error of a Router where queries and documents are read together."""
    return CheckpointError(
        f"{folder / MODULES} has a module {router['type']}, which sends queries and documents"
        " through modules of their own; a cross-encoder reads them together, and cannot be loaded"
    )


def check_module_settings(folder: CheckpointPath, kind: str, stored: Json) -> None:
    """Raise CheckpointError for a setting of a module that is neither followed nor harmless."""
    known = _MODULE_SETTINGS.get(kind)
    if known is None:
        return
    unknown = [key for key in sorted(set(stored) - known) if stored[key] not in _UNSET]
    if unknown:
        raise _unknown_settings(folder / "config.json", unknown, known)


def module_kinds(folder: CheckpointPath, modules: Sequence[Module]) -> list[str]:
    """Return the class names of modules; CheckpointError for other than sentence-transformers'."""
    kinds = []
    for module in modules:
        type_ = module["type"]
        if type_ not in PYLATE_DENSE and not type_.startswith("sentence_transformers."):
            raise CheckpointError(
                f"{folder / MODULES} has a module {type_}, which cannot be run; known are the"
                " modules of sentence_transformers"
            )
        kinds.append(type_.rpartition(".")[2])
    return kinds


def read_model_settings(
    folder: CheckpointPath, *model_types: str, more: Collection[str] = ()
) -> Json:
    """Read config_sentence_transformers.json, and check its keys.

    Args:
        folder: the checkpoint.
        model_types: the kinds of models that the caller runs, the usual one first.
        more: keys that these have beside the usual ones.

    Raises:
        CheckpointError: for a model of another kind, and for unknown settings.
    """
    file = folder / SETTINGS
    settings: Json = read_json(file)
    known = _KNOWN_SETTINGS.union(more)
    unknown = [key for key in sorted(set(settings) - known) if settings[key] not in _UNSET]

    # Older libraries write no kind of model: what else only multi-vector encoders have shows it.
    model_type = _model_type(settings)
    evidence = f"model_type {model_type}"
    if model_type == "SentenceTransformer":
        similarity = str(settings.get("similarity_fn_name") or "")
        module_types = [module["type"] for module in read_modules(folder)]
        if similarity.lower() in ("maxsim", "meanmaxsim"):
            model_type = "MultiVectorEncoder"
            evidence = f"similarity_fn_name {similarity}"
        elif of_pylate := sorted(set(PYLATE_DENSE) & set(module_types)):
            model_type = "MultiVectorEncoder"
            evidence = f"a module {of_pylate[0]} in {MODULES}"

    if model_type in _DOES and model_type not in model_types:
        raise CheckpointError(f"{file} has {evidence}: {_DOES[model_type]}")
    if unknown:
        raise _unknown_settings(file, unknown, known)
    if model_type not in _DOES:
        raise CheckpointError(f"{file} has {evidence}: no task here runs such a checkpoint")
    return settings


def transformer_settings(
    folder: CheckpointPath,
    task: str,
    output: str,
    *,
    default_task: str | None = None,
    more: Collection[str] = (),
) -> TransformerSettings:
    """Read sentence_bert_config.json: the longest input and lower-casing.

    Args:
        folder: the folder of the encoder.
        task: the transformer_task that it must have.
        output: what its modality_config must give for texts.
        default_task: what it means where it names none, if that is not `task`.
        more: keys that the caller follows.

    Raises:
        CheckpointError: for other settings.
    """
    file = folder / "sentence_bert_config.json"
    settings = {key: value for key, value in read_json(file).items() if value not in _UNSET}
    if unknown := sorted(set(settings) - _TRANSFORMER_SETTINGS.union(more)):
        raise _unknown_settings(file, unknown, _TRANSFORMER_SETTINGS)
    stored_task = settings.get("transformer_task", default_task or task)
    if stored_task != task:
        raise CheckpointError(f"{file} has transformer_task {stored_task!r}; it must be {task!r}")
    modalities = settings.get("modality_config", {})
    if modalities and modalities.get("text", {}).get("method_output_name") != output:
        raise CheckpointError(
            f"{file} has modality_config {modalities}; its text must give {output!r}"
        )
    for key in ("model_args", "config_args", "tokenizer_args"):
        if changing := sorted(set(settings.get(key, {})) - _LOADING_ARGUMENTS):
            raise CheckpointError(
                f"{file} has {key} {', '.join(changing)}: put them into the checkpoint's own files"
            )
    max_length = _processing_length(folder, settings.get("processing_kwargs", {}))
    return {
        "max_length": max_length or settings.get("max_seq_length"),
        "lower_case": bool(settings.get("do_lower_case")),
    }


def _processing_length(folder: CheckpointPath, stored: Json) -> int | None:
    """Return the longest input in processing_kwargs, which counts before max_seq_length.

    Raises CheckpointError for settings of texts that are not followed, and for a length that
    tokenizer_config.json cuts.
    """
    file = folder / "sentence_bert_config.json"
    length = None
    for place in ("text", "common", "chat_template"):
        for key, value in (stored.get(place) or {}).items():
            is_length = key == "max_length" and isinstance(value, int) and place != "chat_template"
            is_default = key == "truncation" and value in (True, "longest_first")
            is_harmless = key in ("padding", "return_tensors") and place != "chat_template"
            if is_length:
                length = value
            elif not is_default and not is_harmless:
                raise CheckpointError(
                    f"{file} has processing_kwargs {place}.{key} {value!r}; followed are"
                    " text.max_length and truncation of the longest first"
                )
    longest = read_json(folder / "tokenizer_config.json").get("model_max_length")
    if length is not None and longest is not None and length > longest:
        raise CheckpointError(
            f"{file} has processing_kwargs of max_length {length}, above the model_max_length"
            f" {longest} in tokenizer_config.json: make both the same"
        )
    return length


def stored_prompts(settings: Json) -> Prompts:
    """Read the prompts and the name of the default one; a prompt of null is an empty one."""
    stored = settings.get("prompts") or {}
    return {
        "prompts": {name: prompt or "" for name, prompt in stored.items()},
        "default_prompt_name": settings.get("default_prompt_name"),
    }


def _unknown_settings(
    file: CheckpointPath, unknown: Sequence[str], known: Collection[str]
) -> CheckpointError:
    return CheckpointError(
        f"{file} has {', '.join(unknown)}: unknown settings, which may change answers; known are"
        f" {', '.join(sorted(known))}"
    )


def _model_type(settings: Json) -> str:
    return settings.get("model_type") or "SentenceTransformer"


def _is_module(module: object) -> bool:
    if not isinstance(module, dict):
        return False
    return isinstance(module.get("path"), str) and isinstance(module.get("type"), str)


def _router_file(folder: CheckpointPath, router: Module) -> CheckpointPath:
    return folder / router["path"] / "router_config.json"


def _is_router(module: Module) -> bool:
    return module["type"].endswith("Router")


def _is_encoder(module: Module) -> bool:
    return module["type"].endswith("Transformer")
