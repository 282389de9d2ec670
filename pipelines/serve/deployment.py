"""The models on Ray Serve: a deployment each, and before them the application that speaks HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.serve.config import (
    INGRESS_NAME,
    ServedModel,
    ServiceOptions,
    aliases_of,
    check_checkpoints,
    service_options,
    tasks_of,
)
from pipelines.serve.http.drain import UnderWay
from pipelines.serve.protocol import (
    Info,
    ModelClient,
    PredictRequest,
    PredictResponse,
    ServeError,
    Tokens,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipelines.checkpoints import Checkpoint

# Requests at a time that Serve lets through: the model's own limit counts documents.
_ONGOING = 100_000
_HEALTH_S = 5.0  # between two checks; Serve replaces a copy after three that fail
_GRACE_S = 5.0  # after a request's own deadline, for a copy that does not even say that it passed
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _returns_errors(
    method: Callable[_Arguments, Awaitable[_Result]],
) -> Callable[_Arguments, Awaitable[_Result | ServeError]]:
    """Let a method of a replica return a ServeError: Serve logs and wraps what is raised."""

    @wraps(method)
    async def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result | ServeError:
        try:
            return await method(*arguments, **named)
        except ServeError as error:
            return error

    return call


class Replica:
    """A replica of a model, in a process of its own: what ReplicatedModel calls."""

    def __init__(self, options: ServedModel, checkpoint: Checkpoint):
        """Load the model; CheckpointChanged if its files are not those that the service was
        deployed with.
        """
        from pipelines.serve.model import ModelServer

        _keep_texts_out_of_logs()
        self.model = ModelServer(options, checkpoint)

    @_returns_errors
    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request."""
        return await self.model.predict(request)

    @_returns_errors
    async def info(self) -> Info:
        """Return what is known of the model."""
        return await self.model.info()

    @_returns_errors
    async def tokenize(
        self, texts: Sequence[str], special: bool, client: str | None
    ) -> list[Tokens]:
        """Tokenise texts."""
        return await self.model.tokenize(texts, special, client)

    @_returns_errors
    async def decode(
        self, ids: Sequence[Sequence[int]], skip_special_tokens: bool, client: str | None
    ) -> list[str]:
        """Decode lists of token ids."""
        return await self.model.decode(ids, skip_special_tokens, client)

    @_returns_errors
    async def probe(self) -> None:
        """Tell whether the model can answer, as `check_health` does."""
        await self.model.check_health()

    async def check_health(self) -> None:
        """Raise if the replica must be replaced; Serve calls this."""
        await self.model.check_health()


class ReplicatedModel:
    """A model behind a handle of Ray Serve."""

    def __init__(self, options: ServedModel, handle: DeploymentHandle[Replica]):
        self.name = options.name
        self.timeout_s = options.timeout_s
        # Each access to a method of a handle makes a new handle.
        self._predict = handle.predict
        self._info = handle.info
        self._tokenize = handle.tokenize
        self._decode = handle.decode
        self._probe = handle.probe

    async def predict(self, request: PredictRequest) -> PredictResponse:
        limit_s = min(request.timeout_s or self.timeout_s, self.timeout_s)
        response: PredictResponse = await self._call(self._predict, request, limit_s=limit_s)
        return response

    async def info(self) -> Info:
        info: Info = await self._call(self._info)
        return info

    async def tokenize(
        self, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        tokens: list[Tokens] = await self._call(self._tokenize, texts, special, client)
        return tokens

    async def decode(
        self,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        texts: list[str] = await self._call(self._decode, ids, skip_special_tokens, client)
        return texts

    async def check_health(self) -> None:
        await self._call(self._probe, limit_s=min(_GRACE_S, self.timeout_s))

    async def _call(
        self, method: DeploymentHandle[Replica], *arguments: object, limit_s: float | None = None
    ) -> Any:
        """Call a method of a replica, of any result, and once more if the replica died.

        ServeError for what the replica returns as one, and where there is no answer.
        """
        try:
            async with asyncio.timeout((limit_s or self.timeout_s) + _GRACE_S):
                try:
                    result = await method.remote(*arguments)
                except RayActorError:
                    # Requests change nothing, so that another replica can answer.
                    result = await method.remote(*arguments)
        except TimeoutError:
            raise ServeError("timeout", f"model {self.name} does not answer") from None
        except RayActorError:
            message = f"model {self.name} died while it answered; try again"
            raise ServeError("unhealthy", message, 1.0) from None
        except DeploymentUnavailableError:
            message = f"model {self.name} cannot be started; the log of its copies says why"
            raise ServeError("unhealthy", message) from None
        if isinstance(result, ServeError):
            raise result
        return result


def _client(
    models: Sequence[ServedModel], handles: Mapping[str, DeploymentHandle[Replica]]
) -> ModelClient:
    replicated: dict[str, ReplicatedModel] = {}
    for options in models:
        replicated[options.name] = ReplicatedModel(options, handles[options.name])
    return ModelClient(replicated, tasks_of(models), aliases_of(models))


class HttpIngress:
    """HTTP in a process of its own, which loads no torch."""

    def __init__(self, options: ServiceOptions, handles: dict[str, DeploymentHandle[Replica]]):
        self.options = options
        self.models = _client(options.models, handles)
        self.under_way = UnderWay()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _serve_app(self.models, self.options, self.under_way)

    async def drain(self) -> None:
        """Take no new request, and wait until those under way are answered."""
        await self.under_way.drain()


class SingleProcessApp:
    """HTTP and the models in one process."""

    def __init__(self, options: ServiceOptions, checkpoints: dict[str, Checkpoint]):
        """Load the models; CheckpointChanged if their files are not those that the service was
        deployed with.
        """
        from pipelines.serve.local import LocalModelClient

        _keep_texts_out_of_logs()
        self.options = options
        self.models = LocalModelClient(options.models, checkpoints)
        self.under_way = UnderWay()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _serve_app(self.models, self.options, self.under_way)

    async def drain(self) -> None:
        """Take no new request, and wait until those under way are answered."""
        await self.under_way.drain()

    async def check_health(self) -> None:
        """Raise if the replica must be replaced; Serve calls this."""
        for name, reason in (await self.models.unready()).items():
            raise ServeError("unhealthy", f"{name}: {reason}")


def build(args: Json) -> serve.Application:
    """Build the application: `pipelines.serve.deployment:build` is what `serve run` and `serve
    deploy` import.

    The copies of a model, whenever they start, have the files that its checkpoint has now: one that
    finds others does not start.

    Args:
        args: the options of the service (config.py), as a file of YAML or a command line has them.

    Raises:
        click.ClickException: for mistakes; it is shown as one line.
    """
    from pipelines.tasks.base import task_class  # not for the HTTP process, which imports this file

    try:
        options = _placed(service_options(args))
        checkpoints = check_checkpoints(options.models)
        models = tuple(task_class(model.task).read_files(model) for model in options.models)
    except UserError as error:
        raise click.ClickException(str(error)) from None  # one line in place of a traceback
    options = options.model_copy(update={"models": models})
    if options.one_process:
        return _build_one_process(options, checkpoints)
    handles = {}
    for model in options.models:
        deployed = serve.deployment(
            name=model.name,
            ray_actor_options=_resources(model),
            **_scaling(model),
            **_common(options),
        )
        handles[model.name] = deployed(Replica).bind(model, checkpoints[model.name])
    deployed = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": 0},
        **_common(options),
    )
    return deployed(serve.ingress()(HttpIngress)).bind(options, handles)


def _build_one_process(
    options: ServiceOptions, checkpoints: dict[str, Checkpoint]
) -> serve.Application:
    # The models take turns on what the largest of them needs.
    needed = [_resources(model) for model in options.models]
    largest = {unit: max(each[unit] for each in needed) for unit in ("num_cpus", "num_gpus")}
    deployed = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=options.replicas,
        ray_actor_options=largest,
        **_common(options),
    )
    return deployed(serve.ingress()(SingleProcessApp)).bind(options, checkpoints)


def _serve_app(models: ModelClient, options: ServiceOptions, under_way: UnderWay) -> FastAPI:
    from pipelines.serve.http.app import create_app
    from pipelines.serve.metrics import RayHttpMetrics

    return create_app(
        models,
        options.http,
        metrics=RayHttpMetrics(),
        under_way=under_way,
        behind_serve=True,
    )


def _keep_texts_out_of_logs() -> None:
    """Silence the warnings of tasks, which quote requests, such as a target that is no token."""
    logging.getLogger("pipelines.tasks").setLevel(logging.ERROR)


def _placed(options: ServiceOptions) -> ServiceOptions:
    """Resolve device auto by what the cluster has, since the GPUs may be on other machines."""
    if ray.is_initialized():
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    else:
        import torch  # only where there is no Ray to ask: the HTTP process does without

        has_gpu = torch.cuda.device_count() > 0
    device = "cuda" if has_gpu else "cpu"
    models = []
    for number, model in enumerate(options.models):
        if model.device == "cuda" and not has_gpu and not _may_find_gpus():
            raise UserError(
                f"models[{number}] {model.name!r}: device cuda, but there is no GPU; use cpu or "
                "auto, or set RAY_ADDRESS to join a Ray that has some"
            )
        is_auto = model.device == "auto"
        models.append(model.model_copy(update={"device": device}) if is_auto else model)
    return options.model_copy(update={"models": tuple(models)})


def _may_find_gpus() -> bool:
    """Tell whether GPUs may be elsewhere, or come later."""
    # Not for the HTTP process, which imports this file.
    from ray._private.services import canonicalize_bootstrap_address

    from pipelines.raydata.placement import is_fixed

    if ray.is_initialized():
        return not is_fixed()
    try:
        return canonicalize_bootstrap_address(None) is not None  # type: ignore[arg-type]
    except (ValueError, OSError):
        return True  # ray.init says what is wrong with RAY_ADDRESS


def _resources(model: ServedModel) -> dict[str, float]:
    return {"num_cpus": model.cpus, "num_gpus": model.gpus if model.device == "cuda" else 0}


# Options of Ray Serve, which types them one by one.
def _scaling(model: ServedModel) -> Json:
    """Return how many copies of a model there are: a number, or what Serve adds and removes."""
    if model.max_replicas is None or model.max_replicas == model.replicas:
        return {"num_replicas": model.replicas}
    autoscaling = {
        "min_replicas": model.replicas,
        "max_replicas": model.max_replicas,
        "target_ongoing_requests": model.target_ongoing_requests,
    }
    return {"autoscaling_config": autoscaling}


def _common(options: ServiceOptions) -> Json:
    """Let a replica that ends answer what it has, and replace one that answers no probe."""
    longest_s = max(model.timeout_s for model in options.models)
    longest_batch_s = max(model.batch_timeout_s for model in options.models)
    return {
        "max_ongoing_requests": _ONGOING,
        "logging_config": {"enable_access_log": False},  # a line a request, twice
        "health_check_period_s": _HEALTH_S,
        "graceful_shutdown_timeout_s": longest_s + _GRACE_S,
        "health_check_timeout_s": longest_batch_s + _GRACE_S,
    }
