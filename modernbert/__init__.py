"""ModernBERT on packed batches: configuration, models and tokenizer.

Each name loads its module, and with it torch, when it is first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modernbert.config import ModernBertConfig
    from modernbert.heads import (
        ModernBertForMaskedLM,
        ModernBertForMultipleChoice,
        ModernBertForQuestionAnswering,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
    )
    from modernbert.model import ModernBertModel
    from modernbert.text.tokenizer import Tokenizer

_MODULES = {
    "ModernBertConfig": "config",
    "ModernBertForMaskedLM": "heads",
    "ModernBertForMultipleChoice": "heads",
    "ModernBertForQuestionAnswering": "heads",
    "ModernBertForSequenceClassification": "heads",
    "ModernBertForTokenClassification": "heads",
    "ModernBertModel": "model",
    "Tokenizer": "text.tokenizer",
}
__all__ = [
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForMultipleChoice",
    "ModernBertForQuestionAnswering",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
    "Tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
