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
    if name in _HOMES:  # torch and Ray take seconds, which not every import of this package needs
        return resolve_name(f"{_HOMES[name]}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
