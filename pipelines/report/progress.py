"""The progress of a running job: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

BAR_WIDTH = 28
_TERMINAL_S, _LOG_S = 0.5, 5.0
_ENDS_S = 2.0
"""How long the last call may take, before its thread is left to itself."""


def progress_line(
    rows: int, total: int, tokens: int, seconds: float, done: tuple[int, int], bar: bool
) -> str:
    """Formats the progress of a job as one line: rows, tokens, their rates, and the time left.

    Args:
        rows: rows done so far.
        total: rows to do.
        tokens: tokens done so far.
        seconds: the time since the first rows were done.
        done: the rows and tokens done since then.
        bar: whether the line begins with a bar.
    """
    share = min(rows / total, 1.0) if total else 1.0
    text = f"{rows:,} of {total:,} rows, {tokens:,} tokens"
    rows_since, tokens_since = done
    if rows_since and seconds:
        left_s = (total - rows) * seconds / rows_since
        text += f", {rows_since / seconds:,.1f} rows/s, {tokens_since / seconds:,.0f} tokens/s"
        text += f", {format_duration(max(left_s, 0.0))} left"
    if not bar:
        return f"{share:4.0%} {text}"
    filled = round(share * BAR_WIDTH)
    empty = BAR_WIDTH - filled
    return f"{share:4.0%} [{'#' * filled}{'.' * empty}] {text}"


def format_duration(seconds: float) -> str:
    """Formats seconds as "12 s", "3 min 20 s" or "5 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


@contextmanager
def progress_bar(total: int, read: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Shows the progress of a job on stderr while the block runs.

    The rates are those since the first rows were done: what comes before is the start.

    Args:
        total: rows to do.
        read: returns (rows, tokens) done so far; called from another thread every 0.5 s on a
            terminal, every 5 s elsewhere.
    """
    terminal = _is_terminal(sys.stderr)
    first: tuple[float, int, int] | None = None  # when rows were done first, these, their tokens
    shown = 0

    def show() -> bool:
        nonlocal first, shown
        rows, tokens = read()
        if rows and first is None:
            first = (time.monotonic(), rows, tokens)
        if first is not None and rows != shown:
            shown = rows
            started, first_rows, first_tokens = first
            seconds = time.monotonic() - started
            line = progress_line(
                rows, total, tokens, seconds, (rows - first_rows, tokens - first_tokens), terminal
            )
            _write(f"\r{line}\033[K" if terminal else f"{line}\n")
        return True

    try:
        with repeated(_TERMINAL_S if terminal else _LOG_S, show):
            yield
    finally:
        if terminal:
            _write("\r\033[K")


@contextmanager
def repeated(seconds: float, call: Callable[[], bool]) -> Iterator[None]:
    """Calls `call` every so many seconds, in another thread, until the block ends or it is False.

    It is for people to see: whatever it raises, it is called again. The block does not wait for a
    call that hangs.
    """
    stop = threading.Event()

    def run() -> None:
        goes_on = True
        while goes_on and not stop.wait(seconds):
            with suppress(Exception):
                goes_on = call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_ENDS_S)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _write(text: str) -> None:
    with suppress(AttributeError, OSError, ValueError):  # nobody reads it any more
        print(text, end="", file=sys.stderr, flush=True)
