"""The arguments of transformers' pipelines beside the options of a task.

Those that only steer batching or loading are passed over, those that would change answers are
followed or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch

Arguments = Mapping[str, Any]
"""Keyword arguments of a user's call, of any type until they are checked."""
Options = dict[str, Any]
"""Those of them that are options of the task, under its names."""
_PASSED_OVER = {"batch_size", "num_workers"}
_TOKENIZER_ARGUMENTS = ("tokenizer_kwargs", "tokenize_kwargs")
"""Dictionaries of more arguments: of fill-mask, of feature-extraction."""
_PADDINGS = (None, True, False, "longest", "do_not_pad")
_TRUNCATIONS = {True: True, "longest_first": True, False: False, "do_not_truncate": False}
_MODEL_ARGUMENTS = {
    "attn_implementation",
    "low_cpu_mem_usage",
    "use_safetensors",
    "trust_remote_code",
}


class LoadingArguments(TypedDict, total=False):
    """What transformers' `pipeline` takes to load a model, beside its task, model and device."""

    torch_dtype: str | torch.dtype | None
    """The old name of `dtype`."""
    device_map: str | int | torch.device | Mapping[str, str | int | torch.device] | None
    """One device, as `device`, or "auto"."""
    model_kwargs: Arguments | None
    """`dtype`, and what only steers loading (`attn_implementation`, …)."""
    tokenizer: object
    """The model's own, by the same name as `model`."""
    config: object
    """The model's own, by the same name as `model`."""
    framework: str | None
    """Must be "pt"."""
    token: str | bool | None
    """None; a private repository of the hub needs HF_TOKEN in the environment."""
    use_fast: bool
    """Without an effect: tokenizers are fast ones."""
    trust_remote_code: bool | None
    """Without an effect: no code of a checkpoint runs."""


def split_arguments(arguments: Arguments) -> tuple[LoadingArguments, Options]:
    """Separate what loading takes from the options of the task."""
    loading = LoadingArguments()
    options: Options = {}
    for name, value in arguments.items():
        if name in LoadingArguments.__annotations__:
            loading[name] = value  # type: ignore[literal-required]  # one of its names
        else:
            options[name] = value
    return loading, options


def check_loading(model: str, loading: LoadingArguments) -> None:
    """Raise ValueError for a tokenizer, a configuration, a framework or a token that cannot be
    taken.
    """
    for name in ("tokenizer", "config"):
        value = loading.get(name)
        if value is not None and str(value) != model:
            raise ValueError(
                f"{name} must be that of model {model!r}; put its files into a folder with the "
                "weights"
            )
    framework = loading.get("framework")
    if framework not in (None, "pt"):
        raise ValueError(f"framework {framework!r} is not available; it must be 'pt'")
    if isinstance(loading.get("token"), str):
        raise ValueError("token is read from the environment: set HF_TOKEN")


def device_of(
    device: int | str | torch.device | None, loading: LoadingArguments
) -> int | str | torch.device | None:
    """Return the one device that `device` and `device_map` name, None where neither does.

    Raises ValueError for several.
    """
    device_map = loading.get("device_map")
    if device_map is None:
        return device
    devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if len(devices) != 1 or device is not None:
        raise ValueError(f"device_map {device_map!r}: a model lies on one device here; give device")
    return None if devices[0] == "auto" else devices[0]


def dtype_of(model: str, dtype: str | torch.dtype | None, loading: LoadingArguments) -> str:
    """Return the one dtype that `dtype` and its other names say, "auto" where none does.

    Raises ValueError for dtypes that differ, and for what else `model_kwargs` says of `model`.
    """
    model_kwargs = dict(loading.get("model_kwargs") or {})
    dtypes = [
        dtype,
        loading.get("torch_dtype"),
        model_kwargs.pop("dtype", None),
        model_kwargs.pop("torch_dtype", None),
    ]
    unknown = sorted(set(model_kwargs) - _MODEL_ARGUMENTS)
    if unknown:
        raise ValueError(
            f"model_kwargs {unknown[0]} is not available: model {model!r} is run as its files say"
        )
    names = {str(each).removeprefix("torch.") for each in dtypes if each is not None}
    if len(names) > 1:
        raise ValueError(f"dtype is given as {' and '.join(sorted(names))}; give it once")
    return names.pop() if names else "auto"


def call_arguments(arguments: Arguments) -> Options:
    """Return the arguments of a call that answers depend on, those of tokenizers among them as
    options of the task.

    Of `truncation` it is True or False: whether texts may be cut. Raises ValueError for an argument
    that would change answers in a way that is not available.
    """
    kept = {name: value for name, value in arguments.items() if name not in _PASSED_OVER}
    for name in _TOKENIZER_ARGUMENTS:
        kept |= kept.pop(name, None) or {}
    # Batches are packed: an argument that only says how to pad them changes nothing.
    padding = kept.pop("padding", None)
    if padding not in _PADDINGS:
        raise ValueError(
            f"padding {padding!r} is not available: there is no padding here; leave it out"
        )
    truncation = kept.pop("truncation", None)
    if truncation is None:
        return kept
    if truncation not in _TRUNCATIONS:
        raise ValueError(
            f"truncation {truncation!r} is not available; it must be True, 'longest_first' or False"
        )
    may_cut = _TRUNCATIONS[truncation]
    if may_cut and kept.get("stride") is None:
        # Texts are cut also by tasks that read long ones in windows, unless the call says how.
        kept.setdefault("long_documents", "truncate")
    kept["truncation"] = may_cut
    return kept
