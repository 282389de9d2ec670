"""What is done for every request before a byte of it is parsed, and when it is over: ids, keys,
sizes, deadlines, and the log.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.admission import Admission, Claim
from pipelines.serve.freed_memory import record_freed
from pipelines.serve.http.access import USAGE, Usage, log_request
from pipelines.serve.http.dialect import Dialect, dialect_of, error_response, path_of
from pipelines.serve.http.drain import UnderWay
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.keys import KeyRing
from pipelines.serve.http.limits import CLIENT, HELD, MODEL, HttpLimits
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.model_paths import ModelPaths
from pipelines.serve.http.tracing import TRACE, Export, Trace

logger = logging.getLogger(__name__)
PUBLIC = frozenset({"/health", "/ping", "/metrics", "/docs"})
"""The routes that need no key, as a GET of / does, which is another name of /health. /docs asks for
the key itself.
"""
_WHILE_DRAINING = frozenset({"/ping", "/metrics"})
"""What is answered to the end: the process lives, and is watched."""
CLIENT_CLOSED_REQUEST = 499
"""The status of a request whose client left before its response began, in metrics and the log."""
_SMALL_BODY = 1 << 16  # bytes of a body for which there is room where large ones fill it
_FORWARDED = "x-forwarded-for"
_HERE = "127.0.0.1"
_PORT = re.compile(r":\d*$")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestLimitsMiddleware:
    """Passes a request to the application once its whole body is there, or refuses it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: HttpLimits,
        metrics: HttpMetrics,
        keys: KeyRing,
        under_way: UnderWay,
        dialects: Sequence[Dialect],
        model_paths: ModelPaths,
        behind_serve: bool,
        export_trace: Export | None,
    ):
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.dialects = dialects
        self._model_paths = model_paths
        self._keys = keys
        self._under_way = under_way
        self.behind_serve = behind_serve
        self._export_trace = export_trace
        self._bodies = Admission(limits.max_bodies_bytes, _SMALL_BODY)
        self._answers = Admission(limits.max_answers_bytes, _SMALL_BODY)
        metrics.bytes_in_bodies = lambda: self._bodies.used

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        # HEAD is answered as GET, less the body.
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}
        model, path = self._model_paths.resolve(path_of(scope))
        if model is not None:
            scope = {**scope, "path": scope.get("root_path", "") + path}
            scope["check_body"] = partial(self._model_paths.check, model)
        sent_id = headers.get("x-request-id", "")
        is_usable = _REQUEST_ID.fullmatch(sent_id) is not None
        request_id = sent_id if is_usable else uuid.uuid4().hex
        # Ray Serve's proxy itself puts an id that came with the request on the response.
        added_id = None if is_usable and self.behind_serve else request_id
        response = _ResponseSender(send, added_id, without_body=is_head)
        # What answers the request, down to the routes, reads these.
        client = self._client(scope, headers)
        trace = Trace({"modernbert.request_id": request_id}) if self._export_trace else None
        scope["request_id"] = request_id
        scope["most_inputs"] = self.limits.max_inputs
        scope["dialect"] = dialect_of(path_of(scope), self.dialects)
        CLIENT.set(client)
        MODEL.set(model)
        TRACE.set(trace)
        USAGE.set(Usage())

        async def refuse(error: ApiError) -> None:
            # A response that has begun cannot become another one.
            if not response.has_begun:
                await error_response(scope, error)(scope, receive, response.send)

        claim = self._bodies.claim(client)
        answer = self._answers.claim(client)
        HELD.set(answer)
        try:
            if path_of(scope) not in _WHILE_DRAINING:
                self._under_way.check()
            with self._under_way.counted():
                await self._answer(scope, headers, receive, response.send, claim)
        except ApiError as error:
            await refuse(error)
        except Exception as error:
            # The message may hold a client's text: only its type and traceback are logged.
            places = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s %s\n%s", request_id, type(error).__name__, places)
            message = "the service failed; its log has the reason under this x-request-id"
            await refuse(ApiError("internal", message))
        finally:
            # Also where the client left, which cancels this task.
            record_freed(claim.count + answer.count)
            claim.release()
            answer.release()
            seconds = time.perf_counter() - started
            self._record(scope, headers, response.status, trace, seconds)

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, send: Send, claim: Claim
    ) -> None:
        """Let the application answer; ApiError for what comes before it, or takes too long."""
        self._check_key(scope, headers)
        self._check_host(scope, headers)
        try:
            body = await self._body(scope, headers, receive, claim)
            if body is None:
                return
            async with asyncio.timeout(self.limits.timeout_s):
                await _run(self.app, scope, body, receive, send)
        except TimeoutError:
            raise ApiError("timeout", f"no answer within {self.limits.timeout_s:g} s") from None

    def _record(
        self, scope: Scope, headers: Headers, status: int, trace: Trace | None, seconds: float
    ) -> None:
        """Count a request that is over, export its trace, and log it."""
        method = scope["method"]
        # By its route, not its path: paths that match none would be metrics without end.
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.record_request(route, status, seconds)
        client = CLIENT.get()
        usage = USAGE.get()
        self.metrics.record_client(client, status, usage.tokens if usage else 0)
        if self._export_trace and trace:
            ended = time.time()
            self._export_trace(trace, headers, method, route, status, ended - seconds, ended)
        request_id = scope["request_id"]
        log_request(request_id, client, method, route, status, seconds)

    def _client(self, scope: Scope, headers: Headers) -> str | None:
        """Name who sent the request: its key, or else its address."""
        name = self._keys.name_of(_authorization(headers))
        if name is not None:
            return name
        header = ",".join(headers.getlist(_FORWARDED))
        forwarded = [each.strip() for each in header.split(",")]
        hops = self.limits.trusted_proxies
        if 0 < hops <= len(forwarded) and _address(forwarded[-hops]) is not None:
            return forwarded[-hops]
        peer: tuple[str, int] | None = scope.get("client")
        if peer is None:
            return None
        # The server in front of the application believes the header where it comes from this
        # machine, as from Serve's HAProxy: the address is then what anyone may have written there.
        if header and (peer[0] in header or _address(peer[0]) is None):
            return _HERE
        return peer[0]

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = path_of(scope)
        is_public = path in PUBLIC or (path == "/" and scope["method"] == "GET")
        if not is_public and not self._keys.admits(_authorization(headers)):
            message = "send the service's key as the header 'authorization: Bearer KEY'"
            raise ApiError("unauthorized", message)

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        """Refuse a foreign host name: a web page may have pointed it to a loopback address.

        Nor is a second one taken, which what stands before the service may have believed.
        """
        if len(headers.getlist("host")) > 1:
            raise ApiError("malformed", "the request has several host headers; send one")
        # A page does not know the key.
        if self._keys.has_keys:
            return
        server: tuple[str, int | None] | None = scope.get("server")
        address = _address(server[0] if server else "")
        if address is None or not address.is_loopback:
            return
        name = _PORT.sub("", headers.get("host", "")).lower().rstrip(".")
        # DNS has neither names without a dot nor addresses; the others are stated to be ours.
        is_no_dns_name = "." not in name or _address(name) is not None
        if is_no_dns_name or name.endswith(".localhost") or name in self.limits.hosts:
            return
        message = f"host {name[:100]!r} is not this machine's; ask 127.0.0.1, set a key, or add it"
        raise ApiError("misdirected", f"{message} to http: hosts")

    async def _body(
        self, scope: Scope, headers: Headers, receive: Receive, claim: Claim
    ) -> bytes | None:
        """Return the body, counted as it arrives, or None if the client left."""
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            message = f"content-encoding is {coding[:60]!r}; send the body as it is, without one"
            raise ApiError("media_type", message)
        # A body that says that it is too large is not waited for. Its length may have any number of
        # digits, which Python would convert slowly.
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.limits.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                body = await self._receive_body(receive, claim)
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.body_timeout_s:g} s"
            raise ApiError("slow", message) from None
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and scope["method"] == "POST" and media_type != "application/json":
            message = f"content-type is {media_type[:60]!r}; it must be application/json"
            raise ApiError("media_type", message)
        return body

    async def _receive_body(self, receive: Receive, claim: Claim) -> bytes | None:
        """Receive a body part by part; ApiError as soon as there is no room for it."""
        body = bytearray()
        has_more = True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
            if len(body) > self.limits.max_body_bytes:
                raise self._too_large()
            if not claim.resize(len(body)):
                reason = (
                    f"bodies of {self._bodies.used:,} bytes are under way; {self._bodies.most:,} "
                    "may be, at most half of them of one client"
                )
                raise ApiError("bodies_full", reason, retry_after_s=1)
        return bytes(body)

    def _too_large(self) -> ApiError:
        most = self.limits.max_body_bytes
        return ApiError("body_too_large", f"the body is larger than {most:,} bytes")


class _ResponseSender:
    """Sends the messages of a response: notes its status, adds the request's id to its headers, and
    leaves the body out where none is wanted.
    """

    def __init__(self, send: Send, added_id: str | None, *, without_body: bool):
        self._send = send
        self._added_id = added_id
        self._without_body = without_body
        self.has_begun = False
        self.status = CLIENT_CLOSED_REQUEST

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.status = message["status"]
            if self._added_id is not None:
                MutableHeaders(scope=message)["x-request-id"] = self._added_id
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)


def _authorization(headers: Headers) -> str:
    """Return the header with the key, or what Azure's clients send as `api-key` in its words."""
    key = headers.get("api-key")
    return headers.get("authorization", "" if key is None else f"Bearer {key}")


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name.strip("[]"))
    except ValueError:
        return None


async def _run(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Run the application on a whole body, and cancel it when the client leaves."""
    client_left = asyncio.Event()
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    running = asyncio.current_task()
    assert running

    async def replay() -> Message:
        if parts:
            return parts.pop()
        await client_left.wait()
        return {"type": "http.disconnect"}

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client_left.set()
        running.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await app(scope, replay, send)
    except asyncio.CancelledError:
        # Cancelled by the watcher alone, the request ends here; else by others, too: the deadline,
        # or the server.
        if not client_left.is_set() or running.uncancel():
            raise
    finally:
        watcher.cancel()
