"""LocalModelClient: models in this process, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.checkpoints import Checkpoint
from pipelines.serve.config import ServedModel, aliases_of, tasks_of
from pipelines.serve.model import ModelServer
from pipelines.serve.protocol import ModelClient


class LocalModelClient(ModelClient):
    """Models in this process, without Ray."""

    models: dict[str, ModelServer]

    def __init__(
        self, models: Sequence[ServedModel], checkpoints: Mapping[str, Checkpoint] | None = None
    ):
        """Load the models.

        `checkpoints`: those that the service was deployed with, by the models' names; None: what
        the models' options name, as it is now.
        """
        opened = checkpoints or {}
        servers: dict[str, ModelServer] = {}
        for options in models:
            servers[options.name] = ModelServer(options, opened.get(options.name))
        super().__init__(servers, tasks_of(models), aliases_of(models))

    def close(self) -> None:
        """Answer what is in the queues and end their threads."""
        for model in self.models.values():
            model.close()
