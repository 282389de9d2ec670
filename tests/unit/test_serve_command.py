"""What `modernbert-ray serve` says of a service that Ray cannot deploy, and what it starts Ray with."""

from __future__ import annotations

import os

import pytest
import ray
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from pipelines.serve import command
from pipelines.serve.command import _reason
from pipelines.serve.http.upgrades import CALLBACK

TRACEBACK = """Unexpected error occurred while deploying application 'modernbert':
Traceback (most recent call last):
  File "serve.py", line 1, in build
{}
"""
LINE = "models[0] 'intent': model 'no/such' is not a folder"
START = "The deployment failed to start 3 times in a row. Error:\n" + TRACEBACK


def failed(message: str, **deployments: tuple[str, str]) -> ApplicationStatusOverview:
    """A failed application with deployments, each a status and a message."""
    overviews = {
        name: DeploymentStatusOverview(status, "UNSPECIFIED", {}, text)
        for name, (status, text) in deployments.items()
    }
    return ApplicationStatusOverview("DEPLOY_FAILED", message, 0.0, overviews)


@pytest.mark.parametrize(("application", "reason"), [
    (failed(TRACEBACK.format(f"click.exceptions.ClickException: {LINE}")), LINE),
    (failed("", http=("HEALTHY", "")), "Ray gives no reason; the logs of its controller may"),
    (
        failed("Failed to update the deployments.", http=("HEALTHY", "x"),
               intent=("DEPLOY_FAILED", START.format("OSError: no space")), pii=("UNHEALTHY", "it\ndied\n\n")),
        "intent: OSError: no space; pii: died",
    ),
])  # fmt: skip
def test_the_reason_is_the_last_line_of_what_ray_says(
    application: ApplicationStatusOverview, reason: str
) -> None:
    assert _reason(application) == reason


@pytest.mark.parametrize("own", [None, "my.module:callback"])
def test_the_proxy_passes_over_upgrades(monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    """The Ray that `serve run` starts has the callback in its environment, unless there is another."""
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    seen = []

    def deploy(*_: object) -> bool:
        seen.append(os.environ[name])
        return False

    monkeypatch.setattr(command, "_deploy", deploy)
    for handlers in ("_raise_signals", "_exit_at_signals"):
        monkeypatch.setattr(command, handlers, lambda: None)
    monkeypatch.setattr(ray._private.worker, "_post_init_hooks", [])
    assert command.run_service([], "modernbert-ray serve") == 1
    assert seen == [own or CALLBACK]
