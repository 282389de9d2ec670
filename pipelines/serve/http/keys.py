"""The keys that requests may show, read with the configuration and whenever their file changes."""

from __future__ import annotations

import hmac
import logging
import re
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)
_KEY = re.compile(r"[\x21-\x7e]*[\x21-\x39\x3b-\x7e]")
"""Visible ASCII, whose last character is no colon: `name:` alone lacks its key."""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}):[ \t]+(.*)")
_LOOKS_EVERY_S = 1.0
"""Between two looks at the file. A change counts once two looks agree: a file that is being written
is left alone, and a key that is taken out is refused after 2 to 3 s.
"""


@dataclass(frozen=True)
class Key:
    """A key, and the name that limits, metrics and the log have for who sends it."""

    name: str
    secret: bytes = field(repr=False)


def parse_keys(text: str, source: str) -> tuple[Key, ...]:
    """Read keys, one a line: the key, or `name: key`.

    A key without a name is called by its number among all; several keys may have one name.

    Args:
        text: the lines.
        source: where they are from, for messages.

    Raises:
        ValueError: for what is no key, or where there is none. It quotes no key.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        secret = line.strip()
        name = f"key {len(keys)}"
        named = _NAMED.fullmatch(secret)
        if named:
            name, secret = named.groups()
        # The message gives the number of the line alone: the line is a secret.
        if secret and not _KEY.fullmatch(secret):
            raise ValueError(
                f"{source}: line {number} holds a blank, or what is not ASCII, or ends with a "
                "colon; a key is one line of visible ASCII, as KEY or as NAME: KEY"
            )
        if secret:
            keys.append(Key(name, secret.encode()))
    # An empty key must not open the service.
    if not keys:
        raise ValueError(f"{source} is empty")
    return tuple(keys)


def read_keys(file: Path) -> tuple[Key, ...]:
    """Read the keys of a file; ValueError if it cannot be read, or holds what is no key."""
    return parse_keys(_text_of(file), _source(file))


class KeyRing:
    """The keys of an application, as their file has them now.

    Args:
        keys: those that were read with the configuration; empty: requests need none.
        file: where they are from, which is followed; None: they stay.
    """

    def __init__(self, keys: Sequence[Key], file: Path | None):
        self._keys = tuple(keys)
        self._file = file
        self._seen: str | None = None
        self._said: str | None = None

    def follow(self) -> None:
        """Look at the file every second, in a thread that ends with this object."""
        if self._file is None:
            return
        arguments = (weakref.ref(self),)
        threading.Thread(target=_follow, args=arguments, daemon=True, name="keys").start()

    def look(self) -> None:
        """Take the keys of the file, if they are what the last look found there, too.

        Where they cannot be read, the last ones stay, which is said once.
        """
        if self._file is None:
            return
        try:
            text = _text_of(self._file)
            found = parse_keys(text, _source(self._file))
        except ValueError as error:
            self._seen = None
            if str(error) != self._said:
                self._said = str(error)
                logger.warning("%s; the keys stay as they were", error)
            return
        self._said = None
        is_whole = text == self._seen
        self._seen = text
        if is_whole and found != self._keys:
            self._keys = found
            logger.warning("%s has changed: its keys are now %d", _source(self._file), len(found))

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    @property
    def names(self) -> list[str]:
        """The names of the keys; one may be there several times."""
        return [key.name for key in self._keys]

    def name_of(self, authorization: str) -> str | None:
        """Return the name of the key in this header, or None."""
        scheme, _, value = authorization.partition(" ")
        sent = value.strip().encode() if scheme.lower() == "bearer" else b""
        # Every key is compared, so that the time does not tell which one came close.
        keys = self._keys
        matches = [hmac.compare_digest(sent, key.secret) for key in keys]
        return keys[matches.index(True)].name if any(matches) else None

    def admits(self, authorization: str) -> bool:
        """Tell whether a request with this header is let in."""
        return not self.has_keys or self.name_of(authorization) is not None


def _source(file: Path) -> str:
    return f"api_key_file {file}"


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{_source(file)}: {error}") from error


def _follow(ring: weakref.ref[KeyRing]) -> None:
    while True:
        time.sleep(_LOOKS_EVERY_S)
        kept = ring()
        if kept is None:
            return
        kept.look()
        del kept  # or this thread would keep it through its sleep
