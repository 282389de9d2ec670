"""What the options of every task have in common, without torch: a task's own are in options.py.

Rules that need no checkpoint are validated here, the others by the task's `from_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modernbert.stored import Route
from pipelines.option_types import LONG_DOCUMENTS, LongDocuments, plain_message


class TaskOptions(BaseModel):
    """The options of a task, and what the faces need to know of it before torch is loaded.

    A subclass adds the task's own options as fields and describes the task in class variables. An
    option that is None has its default.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    task: ClassVar[str]
    """The name of the task: in `task:` of a served model and in messages."""
    implementation: ClassVar[str]
    """Where its Task lies, as "module:class"."""
    purpose: ClassVar[str]
    """What its corpus job does, in a sentence."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Its names in transformers and on the command line."""
    inputs: ClassVar[dict[str, str]] = {"text": "text"}
    """The names of a document's texts, and what they hold; each has a column option in a job."""
    optional_inputs: ClassVar[dict[str, str]] = {}
    """A text that a document may have beside those; then it is a pair."""
    list_inputs: ClassVar[frozenset[str]] = frozenset()
    """The inputs that are several texts: a list, or one text, which `split_labels` splits."""
    fits: ClassVar[dict[str, str]] = {}
    """The architectures whose checkpoints it runs, and what a message then names as the task."""
    transformers_names: ClassVar[dict[str, str]] = {}
    """What transformers calls some of the options, and their names here."""
    gold: ClassVar[str] = ""
    """What a column of gold holds that a corpus job compares its answers with; empty: it has none.
    """
    online: ClassVar[bool] = True
    """Whether a model can be served for it."""

    max_length: Annotated[
        int | None, Field(ge=3, description="tokens read at a time (default: the model's maximum)")
    ] = None
    long_documents: Annotated[LongDocuments, LONG_DOCUMENTS] = "truncate"
    stride: Annotated[
        int | None, Field(ge=0, description="tokens that windows share (default: 128 or half)")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _none_is_the_default(cls, values: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Return the options `values`, by name, as Python code gives them.

        Raises ValueError that begins with the name of an option which the task does not have, or
        whose value is not of its very type or out of its range.
        """
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            names = ", ".join(cls.model_fields)
            raise ValueError(f"{unknown[0]} is not an option of {cls.task}; it has {names}")
        try:
            return cls.model_validate(dict(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # of several options together, it names them itself
                raise ValueError(plain_message(first["msg"])) from error
            name = str(first["loc"][0])
            if first["type"] == "greater_than_equal":
                least = first["ctx"]["ge"]
                raise ValueError(f"{name} {first['input']} must be at least {least}") from error
            raise ValueError(f"{name} {values[name]!r}: {plain_message(first['msg'])}") from error

    @property
    def reads_words(self) -> bool:
        """Whether a document is a list of words."""
        return False

    @property
    def route(self) -> Route | None:
        """What a model with a Router is opened for; None: what it reads texts as by default."""
        return None

    def model_named(self, model: str | None) -> str:
        """Return the model that a call names with `model`, or in the task's own options.

        Raises ValueError that begins with "model" where it is in neither or in both.
        """
        if model is None:
            raise ValueError("model is missing: a folder, a URI or a Hugging Face hub id")
        return model

    @classmethod
    def input_names(cls, count: int | None = None) -> tuple[str, ...]:
        """Return the names of the texts of a document that has `count` of them, by default all."""
        return (*cls.inputs, *cls.optional_inputs)[:count]

    def check_inputs(self, names: Collection[str]) -> None:
        """Raise ValueError where documents with the texts `names` lack what these options need.

        Its message begins with the name of an option.
        """

    def override(self, values: Mapping[str, object]) -> TaskOptions:
        """Return the options with `values` in place of some; ValueError as `parse` raises it."""
        # The task's own class: those of the faces add the options of a job or a model to it.
        cls = next(each for each in type(self).__mro__ if "task" in vars(each))
        assert issubclass(cls, TaskOptions)
        own = {name: getattr(self, name) for name in cls.model_fields}
        return cls.parse(own | dict(values))
