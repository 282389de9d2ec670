"""Corpus jobs, in-memory pipelines and the online service on ModernBERT."""

from __future__ import annotations

from typing import Any


def pipeline(task: str, model: str, **options: Any) -> Any:
    """A task in memory: see `pipelines.inmemory.pipeline`, which this loads when it is called."""
    from pipelines.inmemory import pipeline

    return pipeline(task, model, **options)
