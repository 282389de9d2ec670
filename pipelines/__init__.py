"""Corpus jobs, steps of Ray Datasets, in-memory pipelines and the online service on ModernBERT."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.corpus.run import Outcome, run_corpus
    from pipelines.dataset.processor import processor
    from pipelines.memory.pipeline import pipeline

__all__ = ["Outcome", "pipeline", "processor", "run_corpus"]
_HOMES = {
    "Outcome": "pipelines.corpus.run",
    "pipeline": "pipelines.memory.pipeline",
    "processor": "pipelines.dataset.processor",
    "run_corpus": "pipelines.corpus.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and Ray take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _HOMES[name]
    return resolve_name(f"{module}:{name}")
