"""What `modernbert-ray serve` says of a service that Ray cannot deploy."""

from __future__ import annotations

import pytest
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from pipelines.serve.command import _reason

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
