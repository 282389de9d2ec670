"""What the service takes from its clients: sizes, times, keys, and from which hosts and pages."""

from __future__ import annotations

import hmac
import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from pipelines.serve.admission import Claim

API_KEY = "MODERNBERT_API_KEY"
MOST_ITEMS = 1 << 16
"""Items in a list of a body; HttpLimits.max_inputs is at most this."""
CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""Who sent the request that is being answered: its key, by number, or else its address."""
HELD: ContextVar[Claim | None] = ContextVar("held", default=None)
"""The bytes of the answer of the request; they are given back when its last part is sent."""
_KEY = re.compile(r"[\x21-\x7e]+")


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
            description=f"file with the key, or several, one a line (default: {API_KEY}, else none)"
        ),
    ] = None
    hosts: Annotated[
        tuple[str, ...],
        Field(
            description=(
                "names that a service without a key has where a proxy on its machine asks it by "
                "127.0.0.1"
            )
        ),
    ] = ()
    _keys: tuple[bytes, ...] = PrivateAttr(())
    """Read once, where the configuration is: no process can serve without the key."""

    @model_validator(mode="after")
    def _read_keys(self) -> HttpLimits:
        if self.api_key_file is None:
            source = f"environment variable {API_KEY}"
            text = os.environ.get(API_KEY)
        else:
            source = f"api_key_file {self.api_key_file}"
            try:
                text = self.api_key_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{source}: {error}") from error
        if text is None:
            return self
        keys = []
        for number, line in enumerate(text.splitlines(), 1):
            key = line.strip()
            # The message gives the number of the line alone: the line is a secret.
            if key and not _KEY.fullmatch(key):
                raise ValueError(
                    f"{source}: line {number} holds a blank, or what is not ASCII; a key is one "
                    "line of visible ASCII"
                )
            if key:
                keys.append(key.encode())
        # An empty key must not open the service.
        if not keys:
            raise ValueError(f"{source} is empty")
        self._keys = tuple(keys)
        return self

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    def key_number(self, authorization: str) -> int | None:
        """Return the number of the key in this header, or None."""
        scheme, _, value = authorization.partition(" ")
        sent_key = value.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, so that the time does not tell which one came close.
        matches = [hmac.compare_digest(sent_key, key) for key in self._keys]
        return matches.index(True) if any(matches) else None

    def admits(self, authorization: str) -> bool:
        """Tell whether a request with this header is let in."""
        return not self.has_keys or self.key_number(authorization) is not None
