"""What the service takes from its clients: sizes, times, keys, and from which hosts and pages."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from pipelines.serve.admission import Claim
from pipelines.serve.http.keys import Key, KeyRing, parse_keys, read_keys

API_KEY = "MODERNBERT_API_KEY"
MOST_ITEMS = 1 << 16
"""Items in a list of a body; HttpLimits.max_inputs is at most this."""
CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""Who sent the request that is being answered: the name of its key, or else its address."""
MODEL: ContextVar[str | None] = ContextVar("model", default=None)
"""The model that the path of the request names; None where it names none."""
HELD: ContextVar[Claim | None] = ContextVar("held", default=None)
"""The bytes of the answer of the request; they are given back when its last part is sent."""


class HttpLimits(BaseModel):
    """What the service takes from its clients, and from which of them."""

    model_config = ConfigDict(extra="forbid")

    max_body_bytes: Annotated[int, Field(ge=1, description="bytes in a request's body")] = 8 << 20
    max_bodies_bytes: Annotated[
        int,
        Field(
            ge=1, description="bytes in all bodies under way, at most half of them of one client"
        ),
    ] = 256 << 20
    max_answers_bytes: Annotated[
        int,
        Field(
            ge=1,
            description=(
                "bytes of all answers that are not sent yet, at most half of them of one client"
            ),
        ),
    ] = 512 << 20
    max_inputs: Annotated[int, Field(ge=1, le=MOST_ITEMS, description="inputs in a request")] = 2048
    max_characters: Annotated[int, Field(ge=1, description="characters in an input")] = 1_000_000
    max_documents: Annotated[
        int,
        Field(
            ge=1, description="inputs of all requests under way, at most half of them of one client"
        ),
    ] = 8192
    timeout_s: Annotated[float, Field(gt=0, description="seconds that a request may take")] = 60.0
    body_timeout_s: Annotated[
        float, Field(gt=0, description="seconds that a request's body may take to arrive")
    ] = 30.0
    cors_origins: Annotated[
        tuple[str, ...], Field(description="web pages' origins that may ask; '*' for any")
    ] = ()
    api_key_file: Annotated[
        Path | None,
        Field(
            description=(
                f"file with the key, or several, one a line, as KEY or as NAME: KEY; followed "
                f"where it changes (default: {API_KEY}, else none)"
            )
        ),
    ] = None
    access_log: Annotated[
        bool,
        Field(
            description=(
                "a line of JSON in the log for each request: id, client, route, status, "
                "milliseconds, model, documents, tokens; no texts, no keys"
            )
        ),
    ] = False
    hosts: Annotated[
        tuple[str, ...],
        Field(
            description=(
                "names that a service without a key has where a proxy on its machine asks it by "
                "127.0.0.1"
            )
        ),
    ] = ()
    trusted_proxies: Annotated[
        int,
        Field(
            ge=0,
            description=(
                "proxies in front that each add the address of who asks them to x-forwarded-for "
                "(jobs/haproxy.cfg is one); 0: the header is not believed"
            ),
        ),
    ] = 0
    _keys: tuple[Key, ...] = PrivateAttr(())
    """Read first where the configuration is: no process can serve without a key."""

    @model_validator(mode="after")
    def _read_keys(self) -> HttpLimits:
        if self.api_key_file is not None:
            self._keys = read_keys(self.api_key_file)
        elif API_KEY in os.environ:
            self._keys = parse_keys(os.environ[API_KEY], f"environment variable {API_KEY}")
        return self

    def key_ring(self) -> KeyRing:
        """Return the keys of an application, which follow their file."""
        ring = KeyRing(self._keys, self.api_key_file)
        ring.follow()
        return ring
