"""The models on Ray Serve: a deployment each, and before them the application that speaks HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from pipelines.errors import UserError
from pipelines.serve.config import (
    INGRESS_NAME,
    ServedModel,
    ServiceOptions,
    check_checkpoints,
    service_options,
)
from pipelines.serve.protocol import (
    Info,
    ModelClient,
    PredictRequest,
    PredictResponse,
    ServeError,
    Tokens,
)

if TYPE_CHECKING:
    from pipelines.checkpoints import Checkpoint

_ONGOING = (
    100_000  # requests at a time that Serve lets through: the model's own limit counts documents
)
_HEALTH_S = 5.0  # between two checks; Serve replaces a copy after three that fail
_GRACE_S = 5.0  # after a request's own deadline, for a copy that does not even say that it passed


class Replica:
    """A replica of a model, in a process of its own."""

    def __init__(self, options: ServedModel, checkpoint: Checkpoint):
        """Load the model; CheckpointChanged if its files are not those that the service was
        deployed with.
        """
        from pipelines.serve.model import ModelServer

        _keep_texts_out_of_logs()
        self.model = ModelServer(options, checkpoint)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of ModelServer; a ServeError is returned, since Serve logs and wraps what
        is raised.
        """
        try:
            return await getattr(self.model, method)(*arguments)
        except ServeError as error:
            return error

    async def check_health(self) -> None:
        """Raise if the replica must be replaced; Serve calls this."""
        await self.model.check_health()


class ServeModelClient:
    """Models behind the handles of Ray Serve."""

    def __init__(self, models: Sequence[ServedModel], handles: dict[str, DeploymentHandle]):
        self.models = {options.name: options for options in models}
        self.tasks = {options.name: options.task for options in models}
        self.aliases = {
            alias: options.name for options in models for alias in options.model_aliases
        }
        # Each access to a method of a handle makes a new handle.
        self._calls = {name: handle.options(method_name="call") for name, handle in handles.items()}

    async def predict(self, model: str, request: PredictRequest) -> PredictResponse:
        return await self._call(model, "predict", request, limit_s=request.timeout_s)

    async def info(self, model: str) -> Info:
        return await self._call(model, "info")

    async def tokenize(
        self, model: str, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        return await self._call(model, "tokenize", texts, special, client)

    async def decode(
        self,
        model: str,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        return await self._call(model, "decode", ids, skip_special_tokens, client)

    async def unready(self) -> dict[str, str]:

        async def reason(name: str) -> str | None:
            try:
                await self._call(name, "check_health", limit_s=_GRACE_S)
            except ServeError as error:
                return str(error)
            return None

        reasons = await asyncio.gather(*map(reason, self.models))
        return {name: reason for name, reason in zip(self.models, reasons, strict=True) if reason}

    async def _call(
        self, model: str, method: str, *arguments: Any, limit_s: float | None = None
    ) -> Any:
        """Call a replica of the model, and once more if it died: requests change nothing."""
        if model not in self.models:
            raise ServeError(
                "unknown_model",
                f"model {model[:80]!r} is unknown; known are {', '.join(self.models)}",
            )
        most_s = self.models[model].timeout_s
        call = self._calls[model]
        try:
            async with asyncio.timeout(min(limit_s or most_s, most_s) + _GRACE_S):
                try:
                    answer = await call.remote(method, *arguments)
                except RayActorError:
                    answer = await call.remote(method, *arguments)
        except TimeoutError:
            raise ServeError("timeout", f"model {model} does not answer") from None
        except RayActorError:
            raise ServeError(
                "unhealthy", f"model {model} died while it answered; try again", 1.0
            ) from None
        except DeploymentUnavailableError:
            raise ServeError(
                "unhealthy", f"model {model} cannot be started; the log of its copies says why"
            ) from None
        if isinstance(answer, ServeError):
            raise answer
        return answer


class HttpIngress:
    """HTTP in a process of its own, which loads no torch."""

    def __init__(self, options: ServiceOptions, handles: dict[str, DeploymentHandle]):
        self.options, self.models = options, ServeModelClient(options.models, handles)

    def __serve_build_asgi_app__(self) -> Any:
        return _serve_app(self.models, self.options)


class SingleProcessApp:
    """HTTP and the models in one process."""

    def __init__(self, options: ServiceOptions, checkpoints: dict[str, Checkpoint]):
        """Load the models; CheckpointChanged if their files are not those that the service was
        deployed with.
        """
        from pipelines.serve.local import LocalModelClient

        _keep_texts_out_of_logs()
        self.options, self.models = options, LocalModelClient(options.models, checkpoints)

    def __serve_build_asgi_app__(self) -> Any:
        return _serve_app(self.models, self.options)

    async def check_health(self) -> None:
        """Raise if the replica must be replaced; Serve calls this."""
        for name, reason in (await self.models.unready()).items():
            raise ServeError("unhealthy", f"{name}: {reason}")


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application: `pipelines.serve.deployment:build` is what `serve run` and `serve
    deploy` import.

    `args`: the options of the service (config.py). The copies of a model, whenever they start, have
    the files that its checkpoint has now: one that finds others does not start. Raises
    click.ClickException, shown as one line, for mistakes.
    """
    from pipelines.tasks.base import (
        task_class,
    )  # not for the HTTP process, which imports this module, too

    try:
        options = _placed(service_options(args))
        checkpoints = check_checkpoints(options.models)
        models = tuple(task_class(model.task).read_files(model) for model in options.models)
        options = options.model_copy(update={"models": models})
    except UserError as error:
        raise click.ClickException(str(error)) from None  # one line in place of a traceback
    if options.one_process:
        needed = [_resources(model) for model in options.models]
        together = {unit: max(each[unit] for each in needed) for unit in ("num_cpus", "num_gpus")}
        deployed = serve.deployment(
            name=INGRESS_NAME,
            num_replicas=options.replicas,
            ray_actor_options=together,
            **_common(options),
        )
        return deployed(serve.ingress()(SingleProcessApp)).bind(options, checkpoints)
    handles = {}
    for model in options.models:
        scaling: dict[str, Any] = {"num_replicas": model.replicas}
        if model.max_replicas is not None and model.max_replicas > model.replicas:
            limits = {"min_replicas": model.replicas, "max_replicas": model.max_replicas}
            scaling = {
                "autoscaling_config": {
                    **limits,
                    "target_ongoing_requests": model.target_ongoing_requests,
                }
            }
        deployed = serve.deployment(
            name=model.name, ray_actor_options=_resources(model), **scaling, **_common(options)
        )
        handles[model.name] = deployed(Replica).bind(model, checkpoints[model.name])
    deployed = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": 0},
        **_common(options),
    )
    return deployed(serve.ingress()(HttpIngress)).bind(options, handles)


def _serve_app(models: ModelClient, options: ServiceOptions) -> Any:
    from pipelines.serve.http.app import create_app
    from pipelines.serve.metrics import RayHttpMetrics

    return create_app(models, options.http, metrics=RayHttpMetrics(), behind_serve=True)


def _keep_texts_out_of_logs() -> None:
    """Silence the warnings of tasks, which quote requests (a target that is no token, for
    example).
    """
    logging.getLogger("pipelines.tasks").setLevel(logging.ERROR)


def _placed(options: ServiceOptions) -> ServiceOptions:
    """Resolve device auto by what the cluster has: the process that builds may run where no GPU
    is.
    """
    if ray.is_initialized():
        gpus = ray.cluster_resources().get("GPU", 0)
    else:
        import torch  # only where there is no Ray to ask: the HTTP process does without

        gpus = torch.cuda.device_count()
    default = "cuda" if gpus else "cpu"
    models = [
        m.model_copy(update={"device": default}) if m.device == "auto" else m
        for m in options.models
    ]
    return options.model_copy(update={"models": tuple(models)})


def _resources(model: ServedModel) -> dict[str, float]:
    return {"num_cpus": model.cpus, "num_gpus": model.gpus if model.device == "cuda" else 0}


def _common(options: ServiceOptions) -> dict[str, Any]:
    """Let a replica that is to end answer what it has, and replace one that does not answer a
    probe.
    """
    return {
        "max_ongoing_requests": _ONGOING,
        "logging_config": {"enable_access_log": False},  # a line a request, twice
        "health_check_period_s": _HEALTH_S,
        "graceful_shutdown_timeout_s": max(model.timeout_s for model in options.models) + _GRACE_S,
        "health_check_timeout_s": max(model.batch_timeout_s for model in options.models) + _GRACE_S,
    }
