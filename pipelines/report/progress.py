"""The progress of a running job: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BAR_WIDTH = 28
_TERMINAL_S, _LOG_S = 0.5, 5.0


def progress_line(rows: int, total: int, tokens: int, seconds: float, bar: bool) -> str:
    """Formats the progress of a job as one line: rows and tokens with their rates, and the time left at these rates.

    Args:
        rows: rows done so far, more than 0 unless `total` is 0.
        total: rows to do.
        tokens: tokens done so far.
        seconds: the time that they took, more than 0.
        bar: whether the line begins with a bar.
    """
    share = min(rows / total, 1.0) if total else 1.0
    left = format_duration(seconds * (1 - share) / share)
    rates = f"{rows / seconds:,.1f} rows/s, {tokens / seconds:,.0f} tokens/s"
    shown = f"{rows:,} of {total:,} rows, {tokens:,} tokens, {rates}, {left} left"
    filled = round(share * BAR_WIDTH)
    return f"{share:4.0%} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {shown}" if bar else f"{share:4.0%} {shown}"


def format_duration(seconds: float) -> str:
    """Formats seconds as "12 s", "3 min 20 s" or "5 h 10 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress_bar(total: int, read: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Shows the progress of a job on stderr while the block runs. The clock starts with the first rows.

    Args:
        total: rows to do.
        read: returns (rows, tokens) done so far; called from another thread every 0.5 s on a terminal, every 5 s
            elsewhere.
    """
    terminal, started, shown = sys.stderr.isatty(), time.monotonic(), (0, 0)

    def show() -> bool:
        nonlocal started, shown
        rows, tokens = read()
        if not rows:
            started = time.monotonic()
        if (rows, tokens) != shown:
            shown = rows, tokens
            line = progress_line(rows, total, tokens, time.monotonic() - started, bar=terminal)
            print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        return True

    try:
        with repeated(_TERMINAL_S if terminal else _LOG_S, show):
            yield
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def repeated(seconds: float, call: Callable[[], bool]) -> Iterator[None]:
    """Calls `call` from another thread every so many seconds while the block runs, until it returns False."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds) and call():
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
