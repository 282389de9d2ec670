"""The arguments of transformers' pipelines beside the options of a task.

Those that only steer batching or loading are passed over, those that would change answers are
followed or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PASSED_OVER = {"batch_size", "num_workers"}
_TOKENIZER_ARGUMENTS = (
    "tokenizer_kwargs",
    "tokenize_kwargs",
)  # of fill-mask, of feature-extraction
_PADDINGS = (None, True, False, "longest", "do_not_pad")
_TRUNCATIONS = {True: True, "longest_first": True, False: False, "do_not_truncate": False}
_MODEL_ARGUMENTS = {
    "attn_implementation",
    "low_cpu_mem_usage",
    "use_safetensors",
    "trust_remote_code",
}


def call_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that answers depend on, those of tokenizers among them as
    options of the task.

    Of `truncation` it is True or False: whether texts may be cut. Raises ValueError for an argument
    that would change answers in a way that is not available.
    """
    given = {name: value for name, value in arguments.items() if name not in _PASSED_OVER}
    for name in _TOKENIZER_ARGUMENTS:
        given |= given.pop(name, None) or {}
    padding, truncation = given.pop("padding", None), given.pop("truncation", None)
    if padding not in _PADDINGS:
        raise ValueError(
            f"padding {padding!r} is not available: there is no padding here; leave it out"
        )
    if truncation is None:
        return given
    if truncation not in _TRUNCATIONS:
        raise ValueError(
            f"truncation {truncation!r} is not available; it must be True, 'longest_first' or False"
        )
    if _TRUNCATIONS[truncation] and given.get("stride") is None:
        given = {"long_documents": "truncate"} | given
    return given | {"truncation": _TRUNCATIONS[truncation]}


def device_of(device: Any, device_map: Any) -> Any:
    """Return the one device that `device` and `device_map` name, None where neither does;
    ValueError for several.
    """
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    if len(places) != 1 or (device is not None and device_map is not None):
        raise ValueError(f"device_map {device_map!r}: a model lies on one device here; give device")
    return device if device_map is None or places[0] == "auto" else places[0]


def dtype_of(
    model: str, *, dtype: Any, torch_dtype: Any, model_kwargs: Mapping[str, Any] | None
) -> str:
    """Return the one dtype that these arguments name, "auto" where none does.

    Raises ValueError for what else `model_kwargs` says of `model`, and for dtypes that differ.
    """
    given = dict(model_kwargs or {})
    dtypes = [dtype, torch_dtype, given.pop("dtype", None), given.pop("torch_dtype", None)]
    if unknown := sorted(set(given) - _MODEL_ARGUMENTS):
        raise ValueError(
            f"model_kwargs {unknown[0]} is not available: model {model!r} is run as its files say"
        )
    names = {str(each).removeprefix("torch.") for each in dtypes if each is not None}
    if len(names) > 1:
        raise ValueError(f"dtype is given as {' and '.join(sorted(names))}; give it once")
    return names.pop() if names else "auto"


def check_loading(
    model: str, *, tokenizer: Any, config: Any, framework: str | None, token: Any
) -> None:
    """Raise ValueError for a tokenizer, a configuration, a framework or a token that cannot be
    taken.
    """
    for name, value in (("tokenizer", tokenizer), ("config", config)):
        if value is not None and str(value) != model:
            raise ValueError(
                f"{name} must be that of model {model!r}; put its files into a folder with the "
                "weights"
            )
    if framework not in (None, "pt"):
        raise ValueError(f"framework {framework!r} is not available; it must be 'pt'")
    if isinstance(token, str):
        raise ValueError("token is read from the environment: set HF_TOKEN")
