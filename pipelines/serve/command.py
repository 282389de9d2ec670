"""The command `modernbert-ray serve`: `serve run`, which answers what it has before it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType

import ray
from ray import serve
from ray.serve.schema import ReplicaState
from ray.serve.scripts import run as serve_run

from pipelines.raydata.cluster import started_here
from pipelines.report.text import say
from pipelines.serve.config import INGRESS_NAME
from pipelines.signals import Stopped

_SERVICE = "pipelines.serve.deployment:build"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_DRAINS_WITHIN_S = 120.0
"""A request may take 30 s to arrive, its answer 60 s, and some time until a slow client has it."""
_SAME_SIGNAL_S = 1.0
"""Signals so soon after the first one are of the same stop."""
_LOOKS_EVERY_S = 0.1
_SETTLES_S = 1.0
"""For the proxy to pass on the last bytes of the last answers."""


def run_service(arguments: list[str], program: str) -> int:
    """Run the service in the foreground until SIGINT or SIGTERM, as `serve run` does.

    The first signal lets the service answer what is under way; it refuses what comes then. The
    second one ends it at once.

    Args:
        arguments: those of `serve run`. Where the first of them is no configuration, it is an
            option or a name=value of our application.
        program: the name of the command, for its messages.

    Returns:
        0 if all that was under way is answered, else 128 + the signal's number.
    """
    has_config = bool(arguments) and not arguments[0].startswith("-") and "=" not in arguments[0]
    if not has_config:
        arguments = [_SERVICE, *arguments]
    _raise_signals()
    # ray.init sets handlers of its own, in Python and in C++.
    ray._private.worker._post_init_hooks.append(_raise_signals)
    try:
        serve_run.main(arguments, prog_name=program)  # ends with SystemExit
    except Stopped as stop:
        number: int = stop.args[0]
    return _end(number)


def _end(number: int) -> int:
    """Drain the service and end it; the exit code tells whether all requests are answered."""
    try:
        say(
            "the service ends when what is under way is answered; once more ends it now", sys.stderr
        )
        is_drained = _drain()
    except Stopped:
        is_drained = False
    for each in _SIGNALS:
        signal.signal(each, _exit_now)
    if not is_drained:
        say("the service ends before all requests are answered", sys.stderr)
    if ray.is_initialized() and not started_here():
        serve.shutdown()
    return 0 if is_drained else 128 + number


def _drain() -> bool:
    """Let every copy of the HTTP side answer what it has; False where one could not."""
    if not ray.is_initialized():
        return True
    try:
        copies = _copies()
        asyncio.run(_drain_copies(copies))
    except Exception as error:  # what Ray raises where its parts are gone has many types
        say(f"the service cannot be drained: {type(error).__name__}: {error}", sys.stderr)
        return False
    if copies:
        time.sleep(_SETTLES_S)
    return True


def _copies() -> dict[str, int]:
    """Return how many copies of the HTTP side run, by the name of their application."""
    copies = {}
    for name, application in serve.status().applications.items():
        ingress = application.deployments.get(INGRESS_NAME)
        running = ingress.replica_states.get(ReplicaState.RUNNING, 0) if ingress else 0
        if running:
            copies[name] = running
    return copies


async def _drain_copies(copies: Mapping[str, int]) -> None:
    """Drain the copies of each application; TimeoutError where that takes too long."""
    async with asyncio.timeout(_DRAINS_WITHIN_S):
        await asyncio.gather(*(_drain_application(*each) for each in copies.items()))


async def _drain_application(name: str, count: int) -> None:
    # In a loop, since a new handle does not know all copies at once.
    handle = serve.get_deployment_handle(INGRESS_NAME, name)
    while len(await handle.broadcast("drain").results_async()) < count:
        await asyncio.sleep(_LOOKS_EVERY_S)


def _exit_now(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _raise_signals(ignored_until: float = 0.0) -> None:
    """Let signals raise Stopped here, with their number, from a time on (that of `monotonic`).

    One that is ignored stays so, as `nohup` wants it.
    """

    def stop(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if now > ignored_until:
            _raise_signals(ignored_until=now + _SAME_SIGNAL_S)
            raise Stopped(number)

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
