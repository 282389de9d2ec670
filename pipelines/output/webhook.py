"""A URL that is told how a job has ended: one POST of JSON, tried a few times at most."""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from modernbert.stored import Json
from pipelines.errors import UserError
from pipelines.storage import one_line, remember_secrets

_PAUSES_S = (1.0, 3.0)
"""Before the second and the third attempt."""
_TIMEOUT_S = 5.0
_LONGEST_WORD = 8
_PLAIN_WORD = re.compile(r"[a-z._-]*")
"""Other parts of a URL that are longer may be secrets, as those of chats are."""
_REQUEST_TIMEOUT, _TOO_MANY = 408, 429


class _NoRedirects(HTTPRedirectHandler):
    """Lets a redirect be an error: it would make a GET of the POST, perhaps to another host."""

    def redirect_request(
        self,
        req: Request,  # noqa: ARG002
        fp: IO[bytes],  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: object,  # noqa: ARG002
        newurl: str,  # noqa: ARG002
    ) -> None:
        return None


@dataclass(frozen=True, repr=False)
class Webhook:
    """A URL, which its text and messages show as its scheme and host alone."""

    url: str
    """Without a name and a password."""
    authorization: str | None = None

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def __repr__(self) -> str:
        return f"Webhook({str(self)!r})"

    @classmethod
    def of_user(cls, url: str) -> Webhook:
        """Make the webhook that a user names; UserError for what is no http:// or https:// URL."""
        remember_secrets(url)
        wrong = "notify must be an http:// or https:// URL, such as https://example.com/hook"
        if any(not sign.isprintable() or sign.isspace() for sign in url):
            raise UserError(f"{wrong}: it holds white space or control characters")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise UserError(f"{wrong}: its host or port cannot be read") from None
        if parts.scheme not in ("http", "https"):
            raise UserError(f"{wrong}; it begins with '{parts.scheme}:'" if parts.scheme else wrong)
        if not host:
            raise UserError(f"{wrong}; it names no host")
        if not url.isascii():
            raise UserError(f"{wrong}: quote what is not ASCII (%C3%A9)")
        words = [parts.path, *parts.path.split("/"), *re.split("[=&]", parts.query)]
        for word in words:
            if len(word) > _LONGEST_WORD and not _PLAIN_WORD.fullmatch(word):
                remember_secrets(word)
        authorization: str | None = None
        if parts.username is not None or parts.password is not None:
            name, password = unquote(parts.username or ""), unquote(parts.password or "")
            remember_secrets(parts.password or "", password)
            encoded = b64encode(f"{name}:{password}".encode()).decode()
            remember_secrets(encoded)
            authorization = f"Basic {encoded}"
        shown_host = f"[{host}]" if ":" in host else host
        netloc = f"{shown_host}:{port}" if port is not None else shown_host
        url = urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))
        return cls(url, authorization)

    def post(self, content: Json) -> str | None:
        """Send JSON, three times at most; return why it has failed, None where it has not.

        A server that is overloaded or away is tried again; one that refuses is not.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "modernbert-ray"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        request = Request(self.url, json.dumps(content).encode(), headers, method="POST")
        opener = build_opener(_NoRedirects)
        reason = ""
        for pause_s in (*_PAUSES_S, None):
            try:
                with opener.open(request, timeout=_TIMEOUT_S):
                    return None
            except HTTPError as error:
                reason = f"the server answers {error.code}"
                error.close()
                if error.code < 500 and error.code not in (_REQUEST_TIMEOUT, _TOO_MANY):
                    return reason
            except URLError as error:
                reason = one_line(OSError(str(error.reason)))
            except (OSError, HTTPException, ValueError) as error:
                reason = one_line(error)
            if pause_s is not None:
                time.sleep(pause_s)
        return f"{reason}, {len(_PAUSES_S) + 1} times"
