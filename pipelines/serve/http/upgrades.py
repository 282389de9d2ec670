"""Requests that offer another protocol beside HTTP/1.1, as Java's HttpClient does by default.

Whoever offers one (`Upgrade: h2c`) takes an answer in HTTP/1.1 (RFC 9110, section 7.8). uvicorn's
parser takes the offer for accepted: it drops the body, or refuses it as another request.
"""

from __future__ import annotations

import uvicorn.protocols.http.auto
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CALLBACK = "pipelines.serve.http.upgrades:pass_over_upgrades"
"""The value of Ray Serve's variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""


class UpgradeIgnoringProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which reads a request again without its offers of other protocols than
    WebSocket.
    """

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        unread: bytes | memoryview = data
        try:
            while (offer_end := self._read(unread)) is not None:
                head = self._head_without_offer()
                self.parser = HttpRequestParser(self)
                self.parser.feed_data(head)
                unread = memoryview(unread)[offer_end:]
        except HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _read(self, data: bytes | memoryview) -> int | None:
        """Parse data; returns where in it the head of a request with an offer ends, or None."""
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._is_offer():
                head_end: int = upgrade.args[0]
                return head_end
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._unsupported_upgrade_warning()
        return None

    def on_headers_complete(self) -> None:
        if not self._is_offer():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        """Tell whether the request that is read offers a protocol that nobody here speaks."""
        if not self.parser.should_upgrade() or self._should_upgrade():
            return False
        # CONNECT, too, wants another protocol, but does not leave it at an offer.
        return any(name == b"upgrade" for name, _ in self.headers)

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


def pass_over_upgrades() -> list[Middleware]:
    """Let every server of uvicorn that starts in this process from now on pass over offers.

    Ray Serve calls it where its proxy starts; it wants a list of middlewares, of which there are
    none.
    """
    uvicorn.protocols.http.auto.AutoHTTPProtocol = UpgradeIgnoringProtocol
    return []
