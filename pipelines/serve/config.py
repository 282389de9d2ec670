"""The options of the service, as `serve run` and jobs/serve.yaml give them, checked before anything
is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from pipelines.errors import UserError
from pipelines.job_options import read_yaml
from pipelines.model_options import ModelOptions
from pipelines.option_types import plain_message
from pipelines.options import TASKS
from pipelines.serve.http.limits import HttpLimits
from pipelines.task_options import TaskOptions

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
    model: Annotated[str, Field(description="checkpoint: a folder or a Hugging Face hub id")]
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
        if self.task == "embed":
            return self
        for name in ("openai_truncate", "openai_token_ids"):
            if getattr(self, name):
                message = f"{name} is for embed, whose models /v1/embeddings serves"
                raise ValueError(f"{message}; this one does {self.task}")
        return self

    @model_validator(mode="after")
    def _no_chunks(self) -> Self:
        for name in ("chunk_tokens", "chunk_overlap", "late"):
            if getattr(self, name, None):
                raise ValueError(
                    f"{name} is an option of requests to /embed, not of a model: other routes give "
                    "a vector a text; leave it out here"
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
    bases: Any = (options, ServedModel)  # whose type create_model cannot tell
    cls = create_model(f"Served{options.__name__}", __base__=bases, __doc__=options.__doc__)
    return cast("type[ServedModel]", cls)


_DEMO_MODELS = [  # small: they share a core
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


def service_options(arguments: Mapping[str, Any]) -> ServiceOptions:
    """Check the options of a service.

    Args:
        arguments: those of `serve run` (config=FILE, or name=value), or the `args` of an
            application.

    Raises:
        UserError: names each wrong option in one line.
    """
    options = _python_names(arguments)
    file = options.pop("config", None)
    if file is not None:
        options = read_yaml(file) | options
    models = served_models(options.pop("models", None))
    try:
        return ServiceOptions(models=models, **options)
    except ValidationError as error:
        raise UserError(_format_error(error)) from error


def check_checkpoints(models: Sequence[ServedModel]) -> dict[str, Checkpoint]:
    """Open the checkpoint of each model, by its name.

    Raises UserError if one is missing, is another task's, or does not allow its options.
    """
    from pipelines.checkpoints import Checkpoint  # torch, which the HTTP process does without
    from pipelines.tasks.base import task_class

    checkpoints = {}
    for number, options in enumerate(models):
        try:
            _check_revision(options)
            checkpoint = Checkpoint.open(options.model, options.revision, options.route)
            task_cls = task_class(options.task)
            task_cls.check(checkpoint)
            task_cls.from_checkpoint(checkpoint, options)
        except ValueError as error:  # CheckpointError, ConfigError
            raise UserError(f"models[{number}] {options.name!r}: {error}") from error
        checkpoints[options.name] = checkpoint
    return checkpoints


def _check_revision(options: ServedModel) -> None:
    """Raise ValueError for a revision of what has none."""
    is_folder = "://" in options.model or Path(options.model).expanduser().is_dir()
    if options.revision is not None and is_folder:
        raise ValueError(
            f"revision {options.revision!r} is for a repository of the Hugging Face hub, and model "
            "is a folder, which has none; leave it out"
        )


def served_models(entries: object) -> tuple[ServedModel, ...]:
    """Check the models of a configuration, None for the demo models.

    Raises UserError that says in one line what is wrong.
    """
    if entries is None:
        entries = _demo_models()
    if not isinstance(entries, list):
        raise UserError(f"models {str(entries)[:40]!r}: must be a list, an entry a model")
    if not entries:
        raise UserError(
            "models is empty; name at least one, or leave models out to serve the demos"
        )
    models = [_served_model(f"models[{number}]", entry) for number, entry in enumerate(entries)]
    _check_names(models)
    return tuple(models)


def tasks_of(models: Sequence[ServedModel]) -> dict[str, str]:
    """Return the task of each model, by its name."""
    return {model.name: model.task for model in models}


def aliases_of(models: Sequence[ServedModel]) -> dict[str, str]:
    """Return the model of each other name that requests may call it."""
    return {alias: model.name for model in models for alias in model.model_aliases}


def _check_names(models: Sequence[ServedModel]) -> None:
    """Raise UserError for a name or an alias that another model or the HTTP side has."""
    names = [model.name for model in models]
    if INGRESS_NAME in names:
        place = f"models[{names.index(INGRESS_NAME)}]"
        message = f"{place}: the name {INGRESS_NAME!r} is the HTTP side's own; choose another"
        raise UserError(message)
    repeated = _first_repeated(names)
    if repeated is not None:
        count = names.count(repeated)
        message = f"models: the name {repeated!r} is there {count} times; each must differ"
        raise UserError(message)
    aliases = [alias for model in models for alias in model.model_aliases]
    repeated = _first_repeated(names + aliases)
    if repeated is not None:
        message = f"models: the alias {repeated!r} is another name or alias, too; each must differ"
        raise UserError(message)


def _first_repeated(names: Sequence[str]) -> str | None:
    """Return the first, in alphabetical order, of the names that are there more than once."""
    repeated = {name for name in names if names.count(name) > 1}
    return min(repeated, default=None)


def _demo_models() -> list[dict[str, object]]:
    if not DEMOS.is_dir():
        raise UserError(
            f"models is missing, and the demo models are not here: they lie in {DEMOS} of the "
            "repository, whose folder the service must be started in; name models of yours under "
            "models:"
        )
    folder = DEMOS.absolute()
    return [{**entry, "model": f"{folder}/{entry['model']}"} for entry in _DEMO_MODELS]


def _served_model(place: str, entry: object) -> ServedModel:
    """Check an entry of `models`; `place` is where it stands, for messages."""
    if not isinstance(entry, dict):
        raise UserError(
            f"{place} is {str(entry)[:40]!r}; it must hold options as 'name: value' lines"
        )
    options = _python_names(entry)
    task = options.pop("task", None)
    tasks = [name for name, cls in TASKS.items() if cls.online]
    if task not in tasks:
        raise UserError(f"{place}: task {task!r} must be one of {', '.join(tasks)}")
    try:
        return served_model(task)(**options)
    except ValidationError as error:
        raise UserError(f"{place}: {_format_error(error)}") from error


def _python_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, of any type until they are checked, by their names in Python."""
    return {str(name).replace("-", "_"): value for name, value in options.items()}


def _format_error(error: ValidationError) -> str:
    """Name each wrong option: what came, what is allowed."""
    messages = []
    for mistake in error.errors():
        name = ".".join(map(str, mistake["loc"]))
        message = plain_message(mistake["msg"])
        if mistake["type"] == "missing":
            message = f"{name} is missing"
        elif mistake["type"] == "extra_forbidden":
            message = f"{name} is not an option"
        elif name:
            message = f"{name} {mistake['input']!r}: {message}"
        messages.append(message)
    return "; ".join(messages)
