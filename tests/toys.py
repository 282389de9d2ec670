"""A toy task, file format and HTTP dialect, which test_extending.py adds by the steps of CONTRIBUTING.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field
from starlette.responses import Response

from pipelines.input.shapes import Shape
from pipelines.input.shards import Block, Format
from pipelines.serve.http.bodies import Body
from pipelines.serve.http.dialect import Dialect
from pipelines.serve.http.responses import json_response
from pipelines.serve.http.routes import new_router
from pipelines.task_options import TaskOptions
from pipelines.tasks.base import Task
from pipelines.tasks.postprocess import merged
from pipelines.tasks.resolve import resolve_windowing


def lines_of(filesystem, path):
    with filesystem.open_input_stream(path) as stream:
        return stream.read().decode().splitlines()


def blocks_of_lines(reading):
    reading.shapes["text"] = Shape({"string"})
    yield Block(pa.table({"text": lines_of(reading.filesystem, reading.path)}), [])


LINES = Format("lines", (".lines",), blocks_of_lines)
"""A text a line."""


class LengthOptions(TaskOptions):
    """A toy: the number of tokens of a text, times a factor, beside the model's first logit."""

    task = "length"
    implementation = "toys:Length"
    purpose = "Measure every document of a corpus."
    aliases = ("text-length",)
    fits: ClassVar = {"ModernBertForSequenceClassification": "length"}

    factor: Annotated[int, Field(ge=1, description="what lengths are multiplied by")] = 1


@dataclass(frozen=True, kw_only=True)
class Length(Task):
    """The toy's Task."""

    factor: int

    options_class = LengthOptions
    model_class = "modernbert.heads:ModernBertForSequenceClassification"
    columns = pa.schema([("length", pa.int64()), ("logit", pa.float32())])
    width = 3

    @classmethod
    def from_checkpoint(cls, checkpoint, options):
        windowing = resolve_windowing(checkpoint, options)
        return cls(max_length=windowing.max_length, stride=windowing.stride, factor=options.factor)

    def decode(self, outputs):
        logits = merged(outputs.windows, outputs.values, "mean")[:, 0]
        lengths = outputs.windows.n_tokens.astype(np.int64) * self.factor
        return pa.StructArray.from_arrays(
            [pa.array(lengths), pa.array(logits)], fields=list(self.columns)
        )

    def results(self, outputs):
        return self.decode(outputs).to_pylist()

    def info(self, checkpoint):  # noqa: ARG002
        return {"model_type": {"length": {}}}

    def preview(self, answer):
        return f"{answer['length']} tokens"


class LengthRequest(Body):
    inputs: list[str]


def add_length(router, handler, name, path):
    @router.post(path)
    async def length(body: LengthRequest) -> Response:
        info = await handler.pick("length", name)
        handled = await handler.predict(info, body.inputs, field="inputs")
        return handled.reply(handled.response.results)


class ToyError(BaseModel):
    """The shape of the toy dialect's errors."""

    oops: str


def toy_routes(handler):
    router = new_router(TOY, tags=["toy"])

    @router.post("/toy/count")
    async def count(body: LengthRequest) -> Response:
        return json_response({"count": len(body.inputs)})

    return [router]


TOY = Dialect(
    "toy", ToyError, lambda error: {"oops": error.message}, {"invalid": 418}, ("/toy",), toy_routes
)
