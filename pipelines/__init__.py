"""Corpus jobs, in-memory pipelines and the online service on ModernBERT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.inmemory import pipeline

__all__ = ["pipeline"]


def __getattr__(name: str) -> Any:
    if name == "pipeline":
        from pipelines.inmemory import pipeline  # torch takes seconds, which not every import of this package needs

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
