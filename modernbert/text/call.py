"""The arguments of transformers' tokenizers, and rows filled up to one length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from modernbert.text.windows import Text

_PADDINGS: Mapping[object, Literal["longest", "max_length"] | None] = {
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    False: None,
    "do_not_pad": None,
}
_TRUNCATIONS: Mapping[object, bool] = {
    True: True,
    "longest_first": True,
    False: False,
    "do_not_truncate": False,
}


class Batch(dict[str, Any]):
    """A dict of ids and masks whose values are attributes, too; a model takes it as `**batch`.

    The values are tensors or lists, as `return_tensors` says.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def check_arguments(
    unavailable: Mapping[str, object], return_tensors: object, max_length: object
) -> None:
    """Raise ValueError for an argument that is not available, and a value that is not allowed."""
    if unavailable:
        raise ValueError(
            f"{next(iter(unavailable))} is not available: arguments are text, text_pair,"
            " add_special_tokens, padding, truncation, max_length and return_tensors; leave it out"
        )
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; known is 'pt'")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(f"max_length is {max_length!r}; it must be a number of tokens, at least 1")


def padding_target(padding: object) -> Literal["longest", "max_length"] | None:
    """Return what rows are filled up to, or None; ValueError for an unknown value."""
    _check_known("padding", padding, _PADDINGS)
    return _PADDINGS[padding]


def truncates(truncation: object, padding: object, max_length: int | None) -> bool:
    """Return whether rows are cut; ValueError for an unknown value."""
    if truncation is None:
        return max_length is not None and padding is False
    _check_known("truncation", truncation, _TRUNCATIONS)
    return _TRUNCATIONS[truncation]


def _check_known(name: str, value: object, known: Mapping[object, object]) -> None:
    # 1 equals True, and is not allowed.
    if not isinstance(value, bool | str) or value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")


def documents_of(text: Any, text_pair: Any) -> list[Text]:
    """Return the texts or pairs of a call, which may be any values; ValueError for other ones."""
    if text_pair is not None and isinstance(text_pair, str) != isinstance(text, str):
        raise ValueError("text and text_pair must both be a text, or both be lists of texts")
    documents: list[Any]  # what is not a text is found below
    if isinstance(text, str):
        # An empty text_pair is none, as in transformers.
        documents = [(text, text_pair)] if text_pair else [text]
    elif isinstance(text, Iterable):
        documents = [tuple(item) if isinstance(item, list | tuple) else item for item in text]
        if text_pair is not None:
            documents = _pairs(documents, list(text_pair))
    else:
        raise ValueError(f"text is {text!r}; it must be a text or a list of texts")
    for i, document in enumerate(documents):
        is_pair = isinstance(document, tuple) and len(document) == 2
        texts = document if is_pair else (document,)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError(
                f"text {i} is {str(document)[:40]!r}; it must be a text or a pair of texts"
            )
    return documents


def _pairs(firsts: list[Any], seconds: list[Any]) -> list[Any]:
    if len(seconds) != len(firsts):
        raise ValueError(
            f"text holds {len(firsts)} texts and text_pair {len(seconds)}; give as many"
        )
    return list(zip(firsts, seconds, strict=True))


def pad_rows(rows: list[list[int]], width: int, pad_id: int, side: str) -> list[list[int]]:
    """Fill short rows up to `width` numbers with `pad_id`, on their left or right side."""
    padded = []
    for row in rows:
        padding = [pad_id] * (width - len(row))
        padded.append(padding + row if side == "left" else row + padding)
    return padded


def to_tensors(ids: list[list[int]], masks: list[list[int]]) -> Batch:
    """Return rows as tensors (B, S); ValueError where they differ in length."""
    import torch  # not for a process that only tokenises

    lengths = {len(row) for row in ids}
    if len(lengths) > 1:
        raise ValueError(
            f"rows have from {min(lengths)} to {max(lengths)} tokens, which cannot be one tensor:"
            " give padding=True, or truncation=True for texts that are too long"
        )
    shape = (len(ids), max(lengths, default=0))
    return Batch(
        input_ids=torch.tensor(ids, dtype=torch.int64).reshape(shape),
        attention_mask=torch.tensor(masks, dtype=torch.int64).reshape(shape),
    )
