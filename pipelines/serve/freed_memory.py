"""Give memory that large requests have freed back to the system, which glibc would keep."""

from __future__ import annotations

import ctypes
import sys
import threading

_TRIMMED_AT_BYTES = 32 << 20  # freed since the last time, about: a trim takes some milliseconds
_lock = threading.Lock()
_freed_bytes = 0


def _find_trim() -> ctypes._NamedFuncPointer | None:
    """Return malloc_trim of glibc; other C libraries, such as musl, have none."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


_trim = _find_trim()


def record_freed(count: int) -> None:
    """Count bytes that a request has held, and give memory back in a thread where they are many."""
    global _freed_bytes
    if _trim is None:
        return
    with _lock:
        _freed_bytes += count
        if _freed_bytes < _TRIMMED_AT_BYTES:
            return
        _freed_bytes = 0
    # A moment later: who calls still holds some of it.
    timer = threading.Timer(0.1, _trim, (0,))
    timer.daemon = True
    timer.start()
