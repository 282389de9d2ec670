"""Paths below /models/{name}: there every dialect's routes are for one model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipelines.serve.http.errors import ApiError

_MODELS = "/models/"
_AZURE = "/openai/deployments/"
_HUB = "/pipeline/feature-extraction/"
_PREFIXES = (_MODELS, _AZURE, _HUB)
"""What stands before a model's name: here, on Azure, and on the hub as LangChain4j asks it."""
UNSPECIFIED = "default/not-specified"
"""The model in a request of Infinity's client that names none."""


@dataclass(frozen=True)
class ModelPaths:
    """The models of a service under all of their names."""

    models: Mapping[str, str]
    """The model of each name and other name."""
    dialect_paths: Collection[str]
    """The paths of the dialects' routes that are there for each model, too."""

    def resolve(self, path: str) -> tuple[str | None, str]:
        """Return the model that a path is for, None for any, and the path of its route."""
        prefix = next((each for each in _PREFIXES if path.startswith(each)), None)
        if prefix is None:
            return None, path
        tail = path.removeprefix(prefix)
        # Names may hold slashes: of two that fit the longer one is meant.
        fitting = [name for name in self.models if tail == name or tail.startswith(f"{name}/")]
        if not fitting:
            return None, path
        name = max(fitting, key=len)
        model = self.models[name]
        rest = tail.removeprefix(name)
        if prefix == _HUB and rest == "":
            return model, f"{_MODELS}{model}"
        if prefix != _HUB and rest in self.dialect_paths:
            return model, rest
        return (model, f"{_MODELS}{model}{rest}") if prefix == _MODELS else (None, path)

    def check(self, model: str, content: object) -> None:
        """Raise ApiError where a body names another model than the path."""
        named = content.get("model") if isinstance(content, dict) else None
        if not isinstance(named, str) or named == UNSPECIFIED:
            return
        if self.models.get(named) != model:
            message = f"model {named[:60]!r} is not here; this is {model}"
            raise ApiError("unknown_model", message, field="model")
