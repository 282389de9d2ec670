"""Limits on requests, before a byte of them is parsed: keys, sizes, deadlines; and request ids."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import time
import traceback
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.admission import Admission, Claim
from pipelines.serve.http.bodies import MOST_ITEMS
from pipelines.serve.http.errors import ApiError, Dialect, dialect_of, error_response, path_of
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.tracing import TRACE, Export, Trace

logger = logging.getLogger(__name__)
API_KEY = "MODERNBERT_API_KEY"
PUBLIC = frozenset({"/health", "/ping", "/metrics", "/docs"})
"""The routes that need no key, as a GET of / does, which is another name of /health. /docs asks for
the key itself.
"""
CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client left before its response began, in metrics and the log."""
CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""Who sent the request that is being answered: its key, by number, or else its address."""
_SMALL_BODY = 1 << 16  # bytes of a body for which there is room where large ones fill it
_PORT = re.compile(r":\d*$")
_KEY = re.compile(r"[\x21-\x7e]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


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
        place, text = f"environment variable {API_KEY}", os.environ.get(API_KEY)
        if self.api_key_file is not None:
            place = f"api_key_file {self.api_key_file}"
            try:
                text = self.api_key_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{place}: {error}") from error
        keys = [line.strip() for line in (text or "").splitlines()]
        for number, key in enumerate(keys, 1):
            if key and not _KEY.fullmatch(key):
                raise ValueError(
                    f"{place}: line {number} holds a blank, or what is not ASCII; a key is one "
                    "line of visible ASCII"
                )
        self._keys = tuple(key.encode() for key in keys if key)
        if text is not None and not self._keys:
            raise ValueError(f"{place} is empty")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    def key_number(self, authorization: str) -> int | None:
        """Return the number of the key in this header, or None."""
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, so that the time does not tell which one came close.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return matches.index(True) if any(matches) else None

    def admits(self, authorization: str) -> bool:
        """Tell whether a request with this header is let in."""
        return not self.has_keys or self.key_number(authorization) is not None


class RequestLimitsMiddleware:
    """Passes a request to the application once its whole body is there, or refuses it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: HttpLimits,
        metrics: HttpMetrics,
        dialects: Sequence[Dialect],
        behind_serve: bool,
        export_trace: Export | None,
    ):
        self.app, self.limits, self.metrics, self._export_trace = app, limits, metrics, export_trace
        self.dialects, self.behind_serve = dialects, behind_serve
        self._bodies = Admission(limits.max_bodies_bytes, _SMALL_BODY)
        metrics.bytes_in_bodies = lambda: self._bodies.used

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        if without_body := scope["method"] == "HEAD":  # is answered as GET, less the body
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        sane = _REQUEST_ID.fullmatch(given) is not None
        request_id = given if sane else uuid.uuid4().hex
        scope["request_id"] = request_id
        scope["dialect"] = dialect_of(path_of(scope), self.dialects)
        status = CLIENT_CLOSED_REQUEST

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not (sane and self.behind_serve):  # Ray Serve's proxy adds the one that came
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            elif without_body:
                message = {**message, "body": b""}
            await send(message)

        async def refuse(error: ApiError) -> None:
            if status == CLIENT_CLOSED_REQUEST:
                await error_response(scope, error)(scope, receive, send_with_id)

        trace = Trace({"modernbert.request_id": request_id}) if self._export_trace else None
        CLIENT.set(self._client(scope, headers))
        TRACE.set(trace)
        claim = self._bodies.claim(CLIENT.get())
        try:
            self._check_key(scope, headers)
            self._check_host(scope, headers)
            body = await self._body(scope, headers, receive, claim)
            if body is not None:
                async with asyncio.timeout(self.limits.timeout_s):
                    await _run(self.app, scope, body, receive, send_with_id)
        except TimeoutError:
            await refuse(ApiError("timeout", f"no answer within {self.limits.timeout_s:g} s"))
        except ApiError as error:
            await refuse(error)
        except Exception as error:
            # The message may hold a client's text: only its type and traceback are logged.
            places = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s %s\n%s", request_id, type(error).__name__, places)
            await refuse(
                ApiError(
                    "internal", "the service failed; its log has the reason under this x-request-id"
                )
            )
        finally:
            claim.release()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.record_request(route, status, seconds)
            if self._export_trace and trace:
                ended = time.time()
                self._export_trace(
                    trace, headers, scope["method"], route, status, ended - seconds, ended
                )
            logger.info(
                "%s %s %s %d %.1f ms", request_id, scope["method"], route, status, seconds * 1e3
            )

    def _client(self, scope: Scope, headers: Headers) -> str | None:
        key = self.limits.key_number(headers.get("authorization", ""))
        address = (scope.get("client") or [None])[0]
        return address if key is None else f"key {key}"

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = path_of(scope)
        public = path in PUBLIC or (path == "/" and scope["method"] == "GET")
        if not public and not self.limits.admits(headers.get("authorization", "")):
            raise ApiError(
                "unauthorized", "send the service's key as the header 'authorization: Bearer KEY'"
            )

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        """Refuse a name that is not this machine's, where a page from there reaches a loopback
        address by its DNS.
        """
        server = (scope.get("server") or [""])[0]
        name = _PORT.sub("", headers.get("host", "")).lower().rstrip(".")
        known = (
            "." not in name
            or _is_address(name)
            or name.endswith(".localhost")
            or name in self.limits.hosts
        )
        if (
            not known
            and not self.limits.has_keys
            and _is_address(server)
            and ip_address(server).is_loopback
        ):
            message = (
                f"host {name[:100]!r} is not this machine's; ask 127.0.0.1, set a key, or add it "
                "to http: hosts"
            )
            raise ApiError("misdirected", message)

    async def _body(
        self, scope: Scope, headers: Headers, receive: Receive, claim: Claim
    ) -> bytes | None:
        """Return the body, counted as it arrives, or None if the client left."""
        most = self.limits.max_body_bytes
        length = headers.get("content-length", "0")
        body = bytearray()
        large = ApiError("body_too_large", f"the body is larger than {most:,} bytes")
        if (coding := headers.get("content-encoding", "identity").strip().lower()) != "identity":
            wrong = f"content-encoding is {coding[:60]!r}; send the body as it is, without one"
            raise ApiError("media_type", wrong)
        if length.isdecimal() and int(length[:20]) > most:
            raise large
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise large
                    if not claim.resize(len(body)):
                        taken = (
                            f"bodies of {self._bodies.used:,} bytes are under way; "
                            f"{self._bodies.most:,} may be"
                        )
                        raise ApiError(
                            "bodies_full",
                            f"{taken}, at most half of them of one client",
                            retry_after_s=1,
                        )
        except TimeoutError:
            raise ApiError(
                "slow", f"the body did not arrive within {self.limits.body_timeout_s:g} s"
            ) from None
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and scope["method"] == "POST" and media_type != "application/json":
            raise ApiError(
                "media_type", f"content-type is {media_type[:60]!r}; it must be application/json"
            )
        return bytes(body)


def _is_address(name: str) -> bool:
    try:
        return bool(ip_address(name.strip("[]")))
    except ValueError:
        return False


async def _run(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the application on a whole body, and cancel it when the client leaves."""
    left = asyncio.Event()
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    running = asyncio.current_task()
    assert running

    async def replay() -> Message:
        if parts:
            return parts.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        running.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await app(scope, replay, send)
    except asyncio.CancelledError:
        if not left.is_set() or running.uncancel():
            raise
    finally:
        watcher.cancel()
