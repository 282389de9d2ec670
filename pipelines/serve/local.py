"""LocalModelClient: models in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.checkpoints import Checkpoint
from pipelines.serve.config import ServedModel
from pipelines.serve.model import ModelServer
from pipelines.serve.protocol import Info, PredictRequest, PredictResponse, ServeError, Tokens


class LocalModelClient:
    """Models in this process, without Ray."""

    def __init__(
        self, models: Sequence[ServedModel], checkpoints: Mapping[str, Checkpoint] | None = None
    ):
        """Load the models; `checkpoints`: those that the service was deployed with, by the models'
        names.
        """
        opened = checkpoints or {}
        self.models = {
            options.name: ModelServer(options, opened.get(options.name)) for options in models
        }
        self.tasks = {options.name: options.task for options in models}
        self.aliases = {
            alias: options.name for options in models for alias in options.model_aliases
        }

    async def predict(self, model: str, request: PredictRequest) -> PredictResponse:
        return await self._named(model).predict(request)

    async def info(self, model: str) -> Info:
        return await self._named(model).info()

    async def tokenize(
        self, model: str, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        return await self._named(model).tokenize(texts, special, client)

    async def decode(
        self,
        model: str,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        return await self._named(model).decode(ids, skip_special_tokens, client)

    async def unready(self) -> dict[str, str]:
        found = {}
        for name, model in self.models.items():
            try:
                await model.check_health()
            except ServeError as error:
                found[name] = str(error)
        return found

    def close(self) -> None:
        """Answer what is in the queues and end their threads."""
        for model in self.models.values():
            model.close()

    def _named(self, model: str) -> ModelServer:
        if model not in self.models:
            raise ServeError(
                "unknown_model",
                f"model {model[:80]!r} is unknown; known are {', '.join(self.models)}",
            )
        return self.models[model]
