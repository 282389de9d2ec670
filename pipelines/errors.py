"""The errors of this project.

ValueError            a mistake in the call: one line, exit code 2
  UserError           in what the user asked for: options, input, output
  ConfigError         in a config.json (modernbert.stored)
  CheckpointError     in a checkpoint (modernbert.files)
JobError              what keeps a job from going on: one line, exit code 1
ServeError            why an online request has no answer (pipelines.serve.protocol)
ApiError              the same as a response of HTTP (pipelines.serve.http.errors)
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for; shown as one line, with exit code 2."""


class JobError(RuntimeError):
    """What keeps a job from going on, though the call is right; one line, with exit code 1."""
