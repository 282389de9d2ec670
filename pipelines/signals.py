"""What SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed) do to a job.

A command that holds nothing ends at once, by a thread of its own: the main thread may be in an
import, where an exception could break a half-initialised module, or in a call that takes minutes.
While a job holds its output, signals are delayed, so that its lease and its record are written
whole. Only where it works, and can be stopped anywhere, the first one is raised as an exception;
those that come after it change nothing. Where it can finish what it is at, the first one asks for
that, and it is raised when that is done, takes too long, or a second one comes.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NoReturn

_WORDS: dict[int, str] = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "stopped",
    signal.SIGHUP: "stopped",
}
_RAISED_AGAIN_S = 5.0
"""An exception may be lost in code that catches all; where the work goes on, it is raised again."""
_STOPS_WITHIN_S = 60.0
"""How long a command may take to write its record, release its output and end its Ray."""
_RELEASES_WITHIN_S = 5.0
_HANDLED_AGAIN_S = 0.002
_FINISHES_WITHIN_S = 40.0
"""How long the work that is under way may take: less than `_STOPS_WITHIN_S`."""
_LOOKS_EVERY_S = 0.3
_SAME_SIGNAL_S = 1.0
"""Signals so soon after the first one are of the same stop: schedulers send several at once."""


_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
"""What signal.getsignal returns."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP came: the scheduler, the cluster or a person wants the job to stop."""


@dataclass
class _State:
    """What this process knows of the signals that it was sent."""

    first: int | None = None
    """The first signal, whose exit code counts."""
    raised_at: float | None = None
    holds: bool = False
    """Whether signals are delayed, or raised: the process holds something that it must release."""
    raises: bool = False
    """Whether an exception may be raised here and now."""
    ends: bool = False
    """Whether the process ends anyway, and only has to say goodbye to Ray."""
    finish: Callable[[], None] | None = None
    """What the first signal calls in place of an exception (`finishing_signals`)."""
    asked_at: float | None = None
    is_command: bool = False
    advice: str = ""
    stderr: int = 2
    said: bool = False


_state = _State()
_ending = threading.Lock()
"""Held where `holds` changes, and where the process is ended because it holds nothing."""
_release: list[Callable[[], None]] = []
"""What is still called where the process is ended while it holds something."""
_when_stopped: list[Callable[[], None]] = []
_in_place_of: dict[Callable[..., None], Callable[[], None]] = {}
"""What is called at the end of a command, last of all, in place of functions of atexit."""


def take_over(advice: str = "") -> None:
    """Let signals end this process with one line and the exit code 128 + their number.

    To be called first of all.

    Signals that are ignored stay so, as `nohup` wants it. Where it was called before, only
    the advice is new.

    Args:
        advice: what follows "stopped" or "interrupted" in the line.
    """
    _state.advice = advice or _state.advice
    if _state.is_command:
        return
    _open_missing_streams()
    _state.is_command = True
    _state.stderr = os.dup(2)  # what else is done to it, this line reaches it
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python writes each signal there at once, even while the main thread is in an import or a call.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals")
    watcher.start()
    _handle_signals()


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, once what is registered with atexit was called.

    The interpreter is not torn down, in which threads of native libraries may crash the process;
    nor are these libraries shut down where a signal has stopped what they were at.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if _state.said:
        _end(_state.first or signal.SIGTERM)
    _state.ends = True
    goodbye = threading.Thread(target=_say_goodbye, daemon=True)
    goodbye.start()
    while goodbye.is_alive():
        # Ray takes its own handlers away when it is shut down, and with them ours
        _handle_signals()
        goodbye.join(_HANDLED_AGAIN_S)
    with _ending:
        if _state.first is not None:
            _say(_state.first)  # the watching thread may not have come to it yet
            code = 128 + _state.first
        os._exit(code)


def _say_goodbye() -> None:
    for function in _in_place_of:
        atexit.unregister(function)
    atexit._run_exitfuncs()
    for replacement in _in_place_of.values():
        with suppress(Exception):
            replacement()


def call_when_stopped(function: Callable[[], None]) -> None:
    """Let `function` be called where a signal ends this process, in place of atexit's functions."""
    _when_stopped.append(function)


def replace_at_end(function: Callable[..., None], replacement: Callable[[], None]) -> None:
    """Let `end_process` call `replacement`, last of all, in place of a function of atexit."""
    _in_place_of[function] = replacement


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Delay signals until the end of the block, or until a `raised_signals` in it.

    Outside the main thread, where no signal arrives, do nothing.

    Raises:
        KeyboardInterrupt: for SIGINT.
        Stopped: for SIGTERM and SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _state.holds:
        with _raising(False):
            yield
        _raise_delayed()
        return
    replaced: dict[int, _Handler] = {}  # the handlers that come back after the block
    for number in _WORDS:
        handler = signal.getsignal(number)
        if _may_be_replaced(number, handler):
            replaced[number] = handler
            signal.signal(number, _on_signal)
    with _ending:
        _state.holds = True
    try:
        yield
    finally:
        with _ending:
            _state.holds = False
            _state.raises = False
        for number, handler in replaced.items():
            signal.signal(number, handler)
        first = _state.first
        was_raised = _state.raised_at is not None
        if not _state.is_command:  # a program goes on, and may run other jobs
            _state.first = None
            _state.asked_at = None
            _state.raised_at = None
    if first is not None and not was_raised:
        raise _exception(first)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raise signals as exceptions within the block, which is in one of `delayed_signals`."""
    if threading.current_thread() is not threading.main_thread() or not _state.holds:
        yield
        return
    with _raising(True):
        _raise_delayed()
        yield


@contextmanager
def finishing_signals(stop: Callable[[], None], is_done: Callable[[], bool]) -> Iterator[None]:
    """Let the block, which is in a `raised_signals`, finish what it is at when a signal comes.

    The signal is raised when that is done, after 40 s, or when another one comes.

    Args:
        stop: lets nothing more begin; called in another thread.
        is_done: tells whether nothing is under way; called there, too.
    """
    if threading.current_thread() is not threading.main_thread() or not _state.raises:
        yield
        return
    _state.finish = partial(_finish, stop, is_done)
    try:
        yield
    finally:
        _state.finish = None
    _raise_delayed()


@contextmanager
def released_at_end(release: Callable[[], None]) -> Iterator[None]:
    """Call `release` where the process is ended within the block, as it does not stop by itself."""
    _release.append(release)
    try:
        yield
    finally:
        _release.remove(release)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Keep what signals do through a block that sets a handler of its own, which is `ray.init`.

    Within `delayed_signals`, they are delayed: half of a Ray cannot be shut down. Processes that
    the block starts do not see SIGHUP, as Ray keeps SIGINT from them: a terminal sends either to
    all processes of the job at once, and the driver needs the others while it stops.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    # The processes that it starts inherit this; in this one, another thread receives SIGHUP.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with _raising(False):
            yield
    except SystemExit as error:  # Ray's handler has raised it
        if not _state.is_command and not _state.holds:
            raise
        _state.first = _state.first or signal.SIGTERM
        raise Stopped from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        if callable(before):
            signal.signal(signal.SIGTERM, before)
    _raise_delayed()


def how_stopped(error: BaseException | None = None) -> str | None:
    """Tell how a run was stopped, "interrupted" or "stopped"; None where no signal did it.

    `error`: what ended the run, which may be the error of a library that has caught the signal's
    exception.
    """
    if _state.first is not None:
        return _WORDS[_state.first]
    if isinstance(error, KeyboardInterrupt):
        return _WORDS[signal.SIGINT]
    if isinstance(error, Stopped):
        return _WORDS[signal.SIGTERM]
    return None


def say_stopped(error: BaseException) -> int:
    """Say in one line that a signal has stopped this process, once, and return the exit code."""
    number = _state.first
    if number is None:
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
    with _ending:
        _say(number)
    return 128 + number


def _handle_signals() -> None:
    if not _state.is_command:
        return
    for number in _WORDS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, _: FrameType | None) -> None:
    if _state.first is None:
        _state.first = number
    if not _state.raises:
        return
    now = time.monotonic()
    if _state.finish is not None:
        if _state.asked_at is None:
            _state.asked_at = now
            threading.Thread(target=_state.finish, daemon=True, name="finish").start()
            return
        if now - _state.asked_at < _SAME_SIGNAL_S:
            return
    if _state.raised_at is None or now - _state.raised_at > _RAISED_AGAIN_S:
        _state.raised_at = now
        raise _exception(_state.first)


def _finish(stop: Callable[[], None], is_done: Callable[[], bool]) -> None:
    """Wait until what is under way is done, and send the signal again, which is raised then."""
    until = time.monotonic() + _FINISHES_WITHIN_S
    with suppress(Exception):  # what it asks may be gone
        stop()
        while not is_done() and time.monotonic() < until:
            time.sleep(_LOOKS_EVERY_S)
    if _state.finish is not None:
        _state.finish = None
        signal.pthread_kill(threading.main_thread().ident or 0, _state.first or signal.SIGTERM)


def _raise_delayed() -> None:
    if _state.raises and _state.first is not None and _state.raised_at is None:
        _state.raised_at = time.monotonic()
        raise _exception(_state.first)


def _exception(number: int) -> BaseException:
    if _state.is_command:
        # Generators and threads that the exception ends have nothing to add to the one line.
        sys.unraisablehook = _say_nothing
        threading.excepthook = _say_nothing
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped()


def _say_nothing(_: object) -> None:
    pass


@contextmanager
def _raising(raises: bool) -> Iterator[None]:
    before = _state.raises
    _state.raises = raises
    try:
        yield
    finally:
        _state.raises = before


def _may_be_replaced(number: int, handler: _Handler) -> bool:
    """Tell whether a job may set its handler for its time: a program keeps its own for Ctrl-C."""
    if handler == signal.SIG_IGN:
        return False
    if number == signal.SIGTERM:
        return True
    return handler in (signal.SIG_DFL, signal.default_int_handler, _on_signal)


def _watch(reader: int) -> None:
    """End the process when a signal comes while it holds nothing, or if it does not stop by itself.

    `reader`: the end of a pipe to which each signal's number is written.
    """
    first: int | None = None
    first_at = 0.0
    while True:
        # Until the first signal there is nothing to do; from then on, look every few seconds.
        timeout_s = None if first is None else _RAISED_AGAIN_S
        ready, _, _ = select.select([reader], [], [], timeout_s)
        written = os.read(reader, 64) if ready else b""
        numbers = [number for number in written if number in _WORDS]
        if first is None:
            if not numbers:
                continue
            first = numbers[0]
            first_at = time.monotonic()
        with _ending:  # so that it takes up nothing to hold in between
            _state.first = _state.first or first
            if _state.ends:
                _say(_state.first)
            elif not _state.holds:
                _end(_state.first)
        if time.monotonic() - first_at > _STOPS_WITHIN_S:
            # A release writes to the output, which may hang.
            releases = threading.Thread(target=_release_all, daemon=True)
            releases.start()
            releases.join(_RELEASES_WITHIN_S)
            _end(_state.first)
        may_finish = _state.finish is not None and _state.asked_at is not None
        if _state.holds and not ready and not may_finish:
            # The main thread may have lost the exception, or be in a call that a signal interrupts.
            signal.pthread_kill(threading.main_thread().ident or 0, first)


def _release_all() -> None:
    for release in list(_release):
        release()


def _end(number: int) -> NoReturn:
    _say(number)
    for function in _when_stopped:
        with suppress(Exception):
            function()
    os._exit(128 + number)


def _say(number: int) -> None:
    if _state.said:
        return
    _state.said = True
    with suppress(OSError):  # nobody reads it
        os.write(_state.stderr, f"{_WORDS[number]}{_state.advice}\n".encode())


def _open_missing_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, so that no other file takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
