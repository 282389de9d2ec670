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
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview
from ray.serve.scripts import run as serve_run

from pipelines.raydata.cluster import started_here
from pipelines.report.text import say
from pipelines.serve.config import INGRESS_NAME
from pipelines.serve.http.upgrades import CALLBACK
from pipelines.signals import Stopped

_SERVICE = "pipelines.serve.deployment:build"
_PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
"""The states of deployments that keep their application from running."""
_MISTAKE = "click.exceptions.ClickException: "  # what `build` raises for users' mistakes
_DRAINS_WITHIN_S = 120.0
"""A request may take 30 s to arrive, its answer 60 s, and some time until a slow client has it."""
_SAME_SIGNAL_S = 1.0
"""Signals so soon after the first one are of the same stop."""
_LOOKS_EVERY_S = 0.5
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
        1 if the service cannot be deployed; after a signal 0 if all that was under way is answered,
        else 128 + the signal's number.
    """
    has_config = bool(arguments) and not arguments[0].startswith("-") and "=" not in arguments[0]
    if not has_config:
        arguments = [_SERVICE, *arguments]
    # Serve's Python proxy has it of the Ray that `serve run` starts.
    os.environ.setdefault(_PROXY_CALLBACK, CALLBACK)
    _raise_signals()
    # ray.init sets handlers of its own, in Python and in C++.
    ray._private.worker._post_init_hooks.append(_raise_signals)
    try:
        if _deploy(arguments, program):
            _wait()
        return 1
    except Stopped as stop:
        return _end(stop.args[0])
    finally:
        _exit_at_signals()


def _deploy(arguments: list[str], program: str) -> bool:
    """Let `serve run` start the service; False where it could not, which it has said.

    Raises SystemExit for what ends it otherwise: a mistake, --help, --non-blocking.
    """
    waits_itself = {"--reload", "-r", "--non-blocking"} & set(arguments)
    options = [] if waits_itself else ["--non-blocking"]
    try:
        serve_run.main([*options, *arguments], prog_name=program)
    except SystemExit as end:
        if end.code is None:  # after a traceback
            return False
        if end.code or waits_itself or not ray.is_initialized():
            raise
    return True


def _wait() -> None:
    """Wait until the service cannot be deployed, which is said, or for ever."""
    is_deployed = False
    while not is_deployed:
        time.sleep(_LOOKS_EVERY_S)
        applications = serve.status().applications.values()
        reasons = [
            _reason(each) for each in applications if each.status == ApplicationStatus.DEPLOY_FAILED
        ]
        if reasons:
            say(f"error: the service cannot be deployed: {'; '.join(reasons)}", sys.stderr)
            return
        running = [each.status == ApplicationStatus.RUNNING for each in applications]
        is_deployed = bool(running) and all(running)
    say("the service is ready", sys.stderr)
    while True:
        time.sleep(60)


def _reason(application: ApplicationStatusOverview) -> str:
    """Return why an application failed, in a line: the last one of each traceback."""
    messages = [
        f"{name}: {_last_line(deployment.message)}"
        for name, deployment in application.deployments.items()
        if deployment.status in _BROKEN
    ]
    return "; ".join(messages) or _last_line(application.message)


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return "Ray gives no reason; the logs of its controller may"
    return lines[-1].removeprefix(_MISTAKE)


def _end(number: int) -> int:
    """Drain the service and end it; the exit code tells whether all requests are answered."""
    try:
        say(
            "the service ends when what is under way is answered; once more ends it now", sys.stderr
        )
        is_drained = _drain()
    except Stopped:
        is_drained = False
    _exit_at_signals()
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
        states = ingress.replica_states.items() if ingress else ()
        running = sum(count for state, count in states if state == "RUNNING")
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


def _exit_at_signals() -> None:
    """Let signals end the process here, which has nothing more to answer."""

    def end(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    for number in _SIGNALS:
        signal.signal(number, end)


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
