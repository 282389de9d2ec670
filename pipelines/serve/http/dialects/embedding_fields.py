"""The body of /v1/embeddings: OpenAI's fields, and those of others who speak it.

| server | fields of its own |
|---|---|
| vLLM | `truncate_prompt_tokens`, `truncation_side`, `normalize` |
| Voyage | `input_type`, `output_dimension`, `output_dtype`, `truncation` |
| NVIDIA NIM, Azure | `input_type`, `truncate` |
| Jina | `task`, `embedding_type`, `normalized`, `truncate` |
| mixedbread | `normalized`, more `encoding_format`s |

Other fields are passed over, as by all of them but OpenAI itself. Those that would change an
answer, and cannot be followed, are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from pipelines.serve.http.bodies import Flag, Inputs, Int, TolerantBody, as_flag
from pipelines.serve.http.dialects.shared import prompt_of
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.handler import Truncation
from pipelines.serve.protocol import Info

_SIDES = {"START": "left", "END": "right"}
_NOT_FOLLOWED = {
    "add_special_tokens": (True, "texts are always read with special tokens"),
    "late_chunking": (False, "/embed has late chunking (chunk_tokens, late)"),
    "prompt": (None, "the model's own prompts can be named by input_type"),
}
"""Fields that would change the answer: the value that does not, and what can be done."""


def _as_truncate(value: object) -> object:
    """Read Jina's booleans as NIM's words."""
    value = as_flag(value)
    if isinstance(value, bool):
        return "END" if value else "NONE"
    return value.upper() if isinstance(value, str) else value


class EmbeddingsRequest(TolerantBody):
    """Inputs to embed."""

    input: Inputs
    model: str | None = Field(default=None, description="default: the first that embeds")
    dimensions: Int | None = Field(
        default=None, ge=0, description="give only the first numbers of each vector (0: all)"
    )
    encoding_format: Literal["float", "base64", "int8", "binary", "ubinary"] | None = Field(
        default="float", description="base64: of little-endian float32; the others are mixedbread's"
    )
    user: str | None = Field(default=None, description="not used")
    input_type: str | None = Field(
        default=None, description="the prompt for this purpose, if the model has one: query, …"
    )
    task: str | None = Field(default=None, description="Jina's input_type: retrieval.query, …")
    truncate_prompt_tokens: Int | None = Field(
        default=None,
        ge=-1,
        description="vLLM's: cut inputs to so many tokens (-1: to what the model reads)",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="vLLM's: where they are cut off"
    )
    truncation: Flag | None = Field(
        default=None, description="Voyage's: cut inputs that are too long off, or refuse them"
    )
    truncate: Annotated[Literal["NONE", "START", "END"], BeforeValidator(_as_truncate)] | None = (
        Field(default=None, description="NIM's: where inputs that are too long are cut off")
    )
    modality: Literal["text"] | None = Field(
        default=None, description="Infinity's: inputs are texts"
    )
    normalize: Flag | None = Field(
        default=None, description="vLLM's: make vectors of length one (default: true)"
    )
    normalized: Flag | None = Field(default=None, description="Jina's, mixedbread's: as normalize")
    output_dimension: Int | None = Field(default=None, ge=1, description="Voyage's: as dimensions")
    output_dtype: Literal["float", "int8", "binary", "ubinary"] | None = Field(
        default=None, description="Voyage's: the precision of vectors"
    )
    embedding_type: Literal["float", "base64", "binary", "ubinary"] | None = Field(
        default=None, description="Jina's: the precision of vectors, or base64"
    )
    _without_prompt: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[str]:
        return [*super().ignored, *self._without_prompt]

    @property
    def is_base64(self) -> bool:
        """Whether vectors are wanted in base64."""
        return "base64" in (self.encoding_format, self.embedding_type)

    @property
    def precision(self) -> str | None:
        """The precision of vectors; ApiError where the body names several."""
        formats = (self.output_dtype, self.embedding_type, self.encoding_format)
        named = {each for each in formats if each not in (None, "float", "base64")}
        if len(named) > 1:
            message = f"the body wants vectors as {' and as '.join(sorted(map(str, named)))}"
            raise ApiError("invalid", message, field="encoding_format")
        return named.pop() if named else None

    def truncation_for(self, info: Info) -> Truncation:
        """What becomes of inputs that are too long for a model: as the body says, or its entry."""
        # A client that says where to cut wants inputs to be cut.
        cuts = info.openai_truncate or self.truncate_prompt_tokens is not None
        if self.truncation is not None:
            cuts = self.truncation
        if self.truncate is not None:
            cuts = self.truncate != "NONE"
        return Truncation(cuts, self.truncation_side or _SIDES.get(self.truncate or ""))

    def prompt_name(self, info: Info) -> str | None:
        """The model's prompt for what the body says of its inputs.

        Where the model has none, the field is one of those that are ignored.
        """
        for field, purpose in (("input_type", self.input_type), ("task", self.task)):
            if purpose is None:
                continue
            name = prompt_of(info, purpose)
            if name is not None:
                return name
            self._without_prompt.append(field)
        return None

    def check_followed(self) -> None:
        """Raise ApiError for a field that would change the answer, and is not known here."""
        extra = self.model_extra or {}
        for name, (harmless, advice) in _NOT_FOLLOWED.items():
            value = extra.get(name)
            if value is not None and as_flag(value) != harmless:
                raise ApiError("invalid", f"{name} is not available here: {advice}", field=name)
