"""Requests as they are on the wire, and Java's above all."""

from __future__ import annotations

import re
import socket
from http.client import HTTPResponse
from typing import BinaryIO, cast

EMBEDDINGS = b'{"input":["where is my parcel?"],"model":"sentence","encoding_format":"float"}'


def java_post(host: str, path: str = "/v1/embeddings", body: bytes = EMBEDDINGS) -> bytes:
    """The head of the first POST on a connection of java.net.http.HttpClient of Java 17."""
    return (
        b"POST %b HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\n"
        b"Host: %b\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
        b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17.0.15\r\nAuthorization: Bearer x\r\n"
        b"Content-Type: application/json\r\n\r\n"
    ) % (path.encode(), len(body), host.encode())


def java_get(host: str, path: str) -> bytes:
    """The head of the first GET on a connection of Java's client."""
    return (
        b"GET %b HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nHost: %b\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
        b"Upgrade: h2c\r\nUser-Agent: Java-http-client/17.0.15\r\n\r\n"
    ) % (path.encode(), host.encode())


def exchanged(url: str, parts: list[bytes], count: int = 1) -> list[tuple[int, bytes]]:
    """Status and body of each response on one connection, whose bytes are sent in parts."""
    host, port = re.findall(r"//(.*):(\d+)", url)[0]
    found = []
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        responses = Responses(connection.makefile("rb"))
        for _ in range(count):
            response = HTTPResponse(cast("socket.socket", responses))
            response.begin()
            found.append((response.status, response.read()))
    return found


class Responses:
    """A connection whose bytes several responses are read of: each closes what it reads."""

    def __init__(self, reader: BinaryIO):
        self.read = reader.read
        self.read1 = reader.read
        self.readline = reader.readline
        self.readinto = reader.readinto  # type: ignore[attr-defined]

    def makefile(self, *_: object) -> Responses:
        return self

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
