"""Lines for people: whatever is in a text, it is one line and does nothing to the terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from typing import TextIO

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # controls: escape sequences begin with \x1b or \x9b
    # bidirectional: they reorder what stands around them
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    # line separators, and what cannot be seen
    r"\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    r"\ud800-\udfff]"  # bytes of file names that are not UTF-8
)
"""The joiners of emoji and of Persian (200c, 200d) are text."""
_COMPARED = 300
"""Characters of a reason that tell its kind: messages of other libraries may be of any length."""
_VARYING = re.compile(
    r", on node [^ ]+ \([^)]*\)"
    r"|(?<!\w)'.*'(?!\w)|(?<!\w)\".*\"(?!\w)"  # from the first mark to the last
    r"|\d[\d,.]*"
)


def printable(text: str) -> str:
    r"""Return a text in one line, with its control characters escaped.

    Args:
        text: of a row, a label, a file name, or an error with any of these in it.

    Example:
        >>> printable("red\x1b[31m")
        'red\\x1b[31m'
    """

    def escape(sign: re.Match[str]) -> str:
        return sign[0].encode("unicode_escape", "surrogatepass").decode()

    return _UNPRINTABLE.sub(escape, text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with all its other control characters escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))


def json_line(value: object) -> str:
    """Return a value as JSON in one line, with control characters escaped as JSON escapes them."""

    def escape(sign: re.Match[str]) -> str:
        return json.dumps(sign[0])[1:-1]

    return _UNPRINTABLE.sub(escape, json.dumps(value, ensure_ascii=False))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines, as they are, on stdout or another stream, if anybody can read them there.

    A job goes on without its reader: its terminal may be closed, its pipe broken, the disk of its
    log full.
    """
    with suppress(OSError, ValueError):  # ValueError: it was closed, or does not know a character
        print(text, file=stream or sys.stdout, flush=True)


class _Lines(logging.Formatter):
    """Formats records as their messages alone."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def log_in_lines() -> None:
    """Log warnings on stderr as plain lines, where the process does not log otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def kind_of(reason: str) -> str:
    """Return what reasons have in common that differ in numbers, quoted names or nodes alone, or
    behind their first _COMPARED characters.
    """
    return _VARYING.sub("…", reason[:_COMPARED])
