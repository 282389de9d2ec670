"""Reads the files of sentence-transformers beside a model: modules.json,
config_sentence_transformers.json, their kin.

Every setting in these files is followed, harmless, or refused by its name: none is passed over in
silence.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from modernbert.files import CheckpointError, read_json
from modernbert.stored import CheckpointPath, StoredFiles, StoredPath

logger = logging.getLogger(__name__)
MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
PYLATE_DENSE = "pylate.models.Dense.Dense"
"""PyLate's name of a dense layer on the vectors of tokens."""
_STANFORD = "HF_ColBERT"  # the architecture that ColBERT's own library writes, without modules
_KNOWN_SETTINGS = {  # of SETTINGS: followed, or without an effect on answers
    *("prompts", "default_prompt_name", "truncate_dim", "activation_fn", "model_type"),
    *("__version__", "similarity_fn_name", "requirements"),
}
_TRANSFORMER_SETTINGS = {  # of sentence_bert_config.json
    *(
        "max_seq_length",
        "do_lower_case",
        "transformer_task",
        "modality_config",
        "module_output_name",
    ),
    *("unpad_inputs", "model_args", "config_args", "tokenizer_args"),
}
_LOADING_ARGUMENTS = {
    "trust_remote_code",
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "revision",
}


_DOES = {
    "SentenceTransformer": "it gives a vector a text, which is for embed",
    "CrossEncoder": "it scores pairs, which is for rerank, or for classify",
    "SparseEncoder": "it gives weights of tokens, which is for sparse",
    "MultiVectorEncoder": "it gives a vector a token, which is for multi_vector, or for rerank",
    "ColBERT": "it gives a vector a token, which is for multi_vector, or for rerank",
}


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
    if expected is not None:  # nothing is parsed before it is compared
        for name in sorted({str(Path(name).parent) for name in expected}):
            files.read_folder(folder / name)
        files.check_small_files()
        return opened
    modules = read_modules(opened)
    while modules:
        module = modules.pop(0)
        files.read_folder(folder / module["path"])
        if module["type"].endswith("Router"):
            modules += [inner for route in read_routes(opened, module).values() for inner in route]
    return opened


def encoder_folder(folder: CheckpointPath) -> CheckpointPath:
    """Return the folder of a checkpoint's encoder: the one that modules.json names, or `folder`
    itself.

    Raises:
        CheckpointError: for a Router with an encoder for each kind of text.
    """
    modules = read_modules(folder)
    for module in modules:
        if module["type"].endswith("Router"):
            routes = read_routes(folder, module)
            encoders = {
                each["path"]
                for route in routes.values()
                for each in route
                if _is_encoder(each["type"])
            }
            if len(encoders) != 1:
                raise refused_router(folder, module)
            return folder / encoders.pop()
    paths = [module["path"] for module in modules if _is_encoder(module["type"])]
    return folder / paths[0] if paths else folder


def purpose(folder: CheckpointPath) -> str | None:
    """Say what a checkpoint of sentence-transformers gives and which task runs it; None for a plain
    one.
    """
    if not read_modules(folder):
        return _DOES["ColBERT"] if is_stanford(folder) else None
    return _DOES.get(read_json(folder / SETTINGS).get("model_type") or "SentenceTransformer")


def is_stanford(folder: CheckpointPath) -> bool:
    """Whether a checkpoint was written by Stanford's ColBERT."""
    config = read_json(folder / "config.json")
    stored = (
        config.get("architectures") if isinstance(config, dict) else None
    )  # what else is wrong is said elsewhere
    return isinstance(stored, list) and _STANFORD in stored and not read_modules(folder)


def read_routes(
    folder: CheckpointPath, router: Mapping[str, str]
) -> dict[str, list[dict[str, str]]]:
    """Read the modules of each route of a Router, with a path and a type as in modules.json."""
    file = folder / router["path"] / "router_config.json"
    stored = read_json(file)
    types, structure, parameters = (
        stored.get(name) or {} for name in ("types", "structure", "parameters")
    )
    if not set(structure) <= {"query", "document"} or parameters.get("route_mappings"):
        raise CheckpointError(
            f"{file} has the routes {', '.join(structure)}; known are query and document"
        )
    base = f"{router['path']}/" if router["path"] else ""
    return {
        route: [{"path": base + name, "type": types.get(name, name)} for name in names]
        for route, names in structure.items()
    }


def refused_router(folder: CheckpointPath, router: Mapping[str, str]) -> CheckpointError:
    """The error of a Router that cannot be loaded."""
    return CheckpointError(
        f"{folder / MODULES} has a module {router['type']}, which sends queries and documents "
        "through modules of their"
        " own; such a checkpoint cannot be loaded. Save the branch that you need as a model of its "
        "own"
    )


def _is_encoder(type_: str) -> bool:
    return type_.endswith("Transformer")


def read_modules(folder: CheckpointPath) -> list[dict[str, str]]:
    """Read modules.json; a checkpoint without one has no modules."""
    modules = read_json(folder / MODULES) or []
    for module in modules:
        if not isinstance(module, dict) or not all(
            isinstance(module.get(key), str) for key in ("path", "type")
        ):
            raise CheckpointError(
                f"{folder / MODULES} must list modules with a path and a type, not {module!r}"
            )
    if not modules and (folder / SETTINGS).is_file():
        logger.warning(
            "%s is not read: without modules.json, sentence-transformers does not read it either",
            folder,
        )
    return modules


def read_settings(
    folder: CheckpointPath, *model_types: str, more: Collection[str] = ()
) -> dict[str, Any]:
    """Read config_sentence_transformers.json, and check its keys.

    `model_types`: the kinds of models that the caller runs, the usual one first; `more`: keys that
    these have.
    """
    file = folder / SETTINGS
    settings = read_json(file)
    known = _KNOWN_SETTINGS.union(more)
    unknown = sorted(key for key in set(settings) - known if settings[key] not in (None, [], {}))
    stored_type = settings.get("model_type") or "SentenceTransformer"
    found = f"model_type {stored_type}"
    similarity = str(settings.get("similarity_fn_name") or "")
    if similarity.lower() in ("maxsim", "meanmaxsim") and stored_type == "SentenceTransformer":
        stored_type, found = "MultiVectorEncoder", f"similarity_fn_name {similarity}"
    if (
        PYLATE_DENSE in [module["type"] for module in read_modules(folder)]
        and stored_type == "SentenceTransformer"
    ):
        stored_type, found = "MultiVectorEncoder", f"a module {PYLATE_DENSE} in {MODULES}"
    if stored_type in _DOES and stored_type not in model_types:
        raise CheckpointError(f"{file} has {found}: {_DOES[stored_type]}")
    if unknown:
        raise CheckpointError(
            f"{file} has {', '.join(unknown)}: unknown settings, which may change answers; known "
            "are"
            f" {', '.join(sorted(known))}"
        )
    if stored_type not in _DOES:
        raise CheckpointError(f"{file} has {found}: no task here runs such a checkpoint")
    return settings


def module_kinds(folder: CheckpointPath, modules: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the class names of modules; CheckpointError for one that is not of
    sentence-transformers.
    """
    for module in modules:
        if module["type"] != PYLATE_DENSE and not module["type"].startswith(
            "sentence_transformers."
        ):
            raise CheckpointError(
                f"{folder / MODULES} has a module {module['type']}, which cannot be run; known are "
                "the modules of"
                " sentence_transformers"
            )
    return [module["type"].rpartition(".")[2] for module in modules]


def transformer_settings(
    folder: CheckpointPath,
    task: str,
    output: str,
    *,
    default_task: str | None = None,
    more: Collection[str] = (),
) -> dict[str, Any]:
    """Read sentence_bert_config.json: the longest input and lower-casing; CheckpointError for other
    settings.

    `default_task`: what it means where it names none, if that is not `task`; `more`: keys that the
    caller follows.
    """
    file = folder / "sentence_bert_config.json"
    settings = {key: value for key, value in read_json(file).items() if value not in (None, [], {})}
    if unknown := sorted(set(settings) - _TRANSFORMER_SETTINGS.union(more)):
        raise CheckpointError(
            f"{file} has {', '.join(unknown)}: unknown settings, which may change answers;"
            f" known are {', '.join(sorted(_TRANSFORMER_SETTINGS))}"
        )
    if (found := settings.get("transformer_task", default_task or task)) != task:
        raise CheckpointError(f"{file} has transformer_task {found!r}; it must be {task!r}")
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
    return {
        "max_length": settings.get("max_seq_length"),
        "lower_case": bool(settings.get("do_lower_case")),
    }


def stored_prompts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the prompts and the name of the default one; a prompt of null is an empty one."""
    prompts = {name: prompt or "" for name, prompt in (settings.get("prompts") or {}).items()}
    return {"prompts": prompts, "default_prompt_name": settings.get("default_prompt_name")}
