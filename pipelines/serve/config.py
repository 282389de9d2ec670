"""The options of the service, as `serve run` and jobs/serve.yaml give them, checked before anything
is loaded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from pipelines.errors import UserError
from pipelines.job_options import read_yaml
from pipelines.options import TASKS, ModelOptions, TaskOptions, plain_message
from pipelines.serve.http.limits import HttpLimits

if TYPE_CHECKING:
    from pipelines.checkpoints import Checkpoint

INGRESS_NAME = "http"
"""The name of the deployment that speaks HTTP; a model's deployment has the model's name."""
DEMOS = Path("jobs", "demo")
"""The demo models, where the service is started in a checkout of the repository."""


class ServedModel(TaskOptions, ModelOptions):
    """The options of a model online: its task's, and those of its replicas."""

    name: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="what requests call it"),
    ]
    model_aliases: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")], ...],
        Field(
            alias="aliases",
            description=(
                "other names that requests may call it, such as text-embedding-3-small or "
                "my-org/my-model"
            ),
        ),
    ] = ()
    model: Annotated[str, Field(description="checkpoint: a folder or a Hugging Face hub id")]  # type: ignore[assignment]
    revision: Annotated[
        str | None, Field(description="branch, tag or commit of the hub's repository")
    ] = None
    replicas: Annotated[
        int, Field(ge=1, description="copies of the model, or the least of them")
    ] = 1
    max_replicas: Annotated[
        int | None,
        Field(
            ge=1,
            description="the most copies: above REPLICAS, Ray adds and removes them with the load",
        ),
    ] = None
    target_ongoing_requests: Annotated[
        float, Field(gt=0, description="requests under way in a copy, above which Ray adds one")
    ] = 32.0
    cpus: Annotated[
        float, Field(gt=0, description="CPUs that a copy holds: its threads on a CPU")
    ] = 1
    gpus: Annotated[
        float, Field(gt=0, description="GPUs that a copy holds where its device is one")
    ] = 1
    max_queued_documents: Annotated[
        int,
        Field(
            ge=1,
            description=(
                "documents that a copy takes in at a time, at most half of them of one client"
            ),
        ),
    ] = 4096
    max_request_tokens: Annotated[
        int, Field(ge=1, description="tokens that the windows of a request may hold together")
    ] = 1 << 19
    timeout_s: Annotated[float, Field(gt=0, description="seconds that a request may take")] = 60.0
    batch_timeout_s: Annotated[
        float,
        Field(gt=0, description="seconds that a packed batch may take before its copy is replaced"),
    ] = 60.0

    openai_truncate: Annotated[
        bool,
        Field(
            description=(
                "embed: /v1/embeddings cuts inputs that are too long off in place of refusing them"
            )
        ),
    ] = False
    openai_token_ids: Annotated[
        bool,
        Field(
            description=(
                "embed: /v1/embeddings takes token ids, which must be of this model's tokenizer"
            )
        ),
    ] = False

    @model_validator(mode="after")
    def _only_for_embed(self) -> Self:
        for name in ("openai_truncate", "openai_token_ids"):
            if getattr(self, name) and self.task != "embed":
                raise ValueError(
                    f"{name} is for embed, whose models /v1/embeddings serves; this one does "
                    f"{self.task}"
                )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}")
        return self


@cache
def served_model(task: str) -> type[ServedModel]:
    """The options of a model that is served for a task: the task's, and those of its replicas."""
    options = TASKS[task]
    bases: Any = (options, ServedModel)
    return create_model(f"Served{options.__name__}", __base__=bases, __doc__=options.__doc__)


_DEMO_MODELS: list[dict[str, Any]] = [  # small: they share a core
    {"name": "intent", "task": "classify", "model": "intent-classifier", "cpus": 0.25},
    {"name": "pii", "task": "tag", "model": "pii-tagger", "cpus": 0.25},
    {"name": "mask", "task": "fill", "model": "masked-lm", "cpus": 0.25},
    {"name": "sentence", "task": "embed", "model": "sentence-encoder", "cpus": 0.25},
]


class ServiceOptions(BaseModel):
    """The options of the whole service."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    models: tuple[ServedModel, ...]
    http: Annotated[
        HttpLimits,
        Field(default_factory=HttpLimits, description="what is taken from clients, and from whom"),
    ]
    one_process: Annotated[
        bool, Field(description="HTTP and all models in one process, of which there are copies")
    ] = False
    replicas: Annotated[int, Field(ge=1, description="copies of the HTTP side")] = 1


def service_options(given: dict[str, Any]) -> ServiceOptions:
    """Check the arguments of `serve run` (config=FILE, or name=value) or the `args` of an
    application.

    Raises UserError that names each wrong option in one line.
    """
    given = {str(name).replace("-", "_"): value for name, value in given.items()}
    if (file := given.pop("config", None)) is not None:
        given = read_yaml(file) | given
    models = served_models(given.pop("models", None))
    try:
        return ServiceOptions(models=models, **given)
    except ValidationError as error:
        raise UserError(_format_error(error)) from error


def check_checkpoints(models: tuple[ServedModel, ...]) -> dict[str, Checkpoint]:
    """Open the checkpoint of each model, by its name.

    Raises UserError if one is missing, is another task's, or does not allow its options.
    """
    from pipelines.checkpoints import Checkpoint  # torch, which the HTTP process does without
    from pipelines.tasks.base import task_class

    opened = {}
    for at, options in enumerate(models):
        try:
            checkpoint, task_cls = (
                Checkpoint.open(options.model, options.revision),
                task_class(options.task),
            )
            task_cls.check(checkpoint)
            task_cls.from_checkpoint(checkpoint, options)
        except ValueError as error:  # CheckpointError, ConfigError
            raise UserError(f"models[{at}] {options.name!r}: {error}") from error
        opened[options.name] = checkpoint
    return opened


def served_models(given: Any) -> tuple[ServedModel, ...]:
    """Check the models of a configuration, None for the demo models; UserError names what is wrong
    in one line.
    """
    models = []
    if given is not None and not isinstance(given, list):
        raise UserError(f"models {str(given)[:40]!r}: must be a list, an entry a model")
    for at, entry in enumerate(_demo_models() if given is None else given):
        models.append(_served_model(f"models[{at}]", entry))
    names = [model.name for model in models]
    if INGRESS_NAME in names:
        at = names.index(INGRESS_NAME)
        raise UserError(
            f"models[{at}]: the name {INGRESS_NAME!r} is the HTTP side's own; choose another"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"models: the name {repeated[0]!r} is there {names.count(repeated[0])} times; each "
            "must differ"
        )
    names += [alias for model in models for alias in model.model_aliases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"models: the alias {repeated[0]!r} is another name or alias, too; each must differ"
        )
    if not models:
        raise UserError(
            "models is empty; name at least one, or leave models out to serve the demos"
        )
    return tuple(models)


def _demo_models() -> list[dict[str, Any]]:
    if not DEMOS.is_dir():
        raise UserError(
            f"models is missing, and the demo models are not here: they lie in {DEMOS} of the "
            "repository, whose folder "
            "the service must be started in; name models of yours under models:"
        )
    return [entry | {"model": str(DEMOS.absolute() / entry["model"])} for entry in _DEMO_MODELS]


def _served_model(path: str, entry: Any) -> ServedModel:
    if not isinstance(entry, dict):
        raise UserError(
            f"{path} is {str(entry)[:40]!r}; it must hold options as 'name: value' lines"
        )
    entry = {str(name).replace("-", "_"): value for name, value in entry.items()}
    task = entry.pop("task", None)
    tasks = [name for name, options in TASKS.items() if options.online]
    if task not in tasks:
        raise UserError(f"{path}: task {task!r} must be one of {', '.join(tasks)}")
    try:
        return served_model(task)(**entry)
    except ValidationError as error:
        raise UserError(f"{path}: {_format_error(error)}") from error


def _format_error(error: ValidationError) -> str:
    """Name each wrong option: what came, what is allowed."""
    wrong = []
    for e in error.errors():
        name = ".".join(map(str, e["loc"]))
        message = plain_message(e["msg"])
        if e["type"] == "missing":
            message = f"{name} is missing"
        elif e["type"] == "extra_forbidden":
            message = f"{name} is no option"
        elif name:
            message = f"{name} {e['input']!r}: {message}"
        wrong.append(message)
    return "; ".join(wrong)
