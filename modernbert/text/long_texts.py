"""Tokens of long texts, of which only the first or the last are needed.

A text is cut before it is tokenised, and tokenised whole where the cut may show: the cost is
bounded by the tokens that are needed, and these are those of the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

CHARS_PER_TOKEN = 12
"""A long text is cut to this many characters for each token that is needed."""
_MARGIN_WORDS = 8  # words beside a cut through a text whose tokens may depend on the rest


def encode_ends(
    fast: FastTokenizer, texts: Sequence[str], max_tokens: int, side: str, offsets: bool
) -> list[Encoding]:
    """Encode texts without special tokens; those that truncation keeps are right.

    Args:
        fast: the tokenizer.
        texts: the texts.
        max_tokens: how many tokens of a text may be kept.
        side: where the others are cut off, "right" or "left".
        offsets: whether the offsets of tokens are read; they are those in the whole text.
    """
    longest = max_tokens * CHARS_PER_TOKEN
    keeps_end = side == "left"
    long = [i for i, text in enumerate(texts) if len(text) > longest]
    if keeps_end and offsets:
        long = []  # offsets in the end of a text are not those in the whole
    if keeps_end:
        stretches = [text_end(texts[i], longest) for i in long]
    else:
        stretches = [texts[i][:longest] for i in long]

    # `encode_batch_fast` has no word ids, which show how far the cut reaches.
    encodings = fast.encode_batch(stretches, add_special_tokens=False)
    is_exact = suffix_is_exact if keeps_end else prefix_is_exact
    exact: dict[int, Encoding] = {}
    for i, encoding in zip(long, encodings, strict=True):
        if is_exact(encoding, max_tokens):
            exact[i] = encoding

    encode = fast.encode_batch if offsets else fast.encode_batch_fast
    whole_texts = [text for i, text in enumerate(texts) if i not in exact]
    whole = iter(encode(whole_texts, add_special_tokens=False))
    return [exact[i] if i in exact else next(whole) for i in range(len(texts))]


def text_end(text: str, longest: int) -> str:
    """Return the end of a text, from the first space of its last `longest` characters on.

    Without a space there, it is the whole text.
    """
    space = text.find(" ", len(text) - longest)
    return text[space:] if space >= 0 else text


def prefix_is_exact(encoding: Encoding, max_tokens: int) -> bool:
    """Return whether the first `max_tokens` tokens end some words before the cut.

    Words are encoded one by one, so that the text behind the cut cannot change those tokens.
    """
    words = encoding.word_ids
    kept = [word for word in words[:max_tokens] if word is not None]
    dropped = [word for word in words[max_tokens:] if word is not None]
    return bool(kept and dropped) and dropped[-1] - kept[-1] > _MARGIN_WORDS


def suffix_is_exact(encoding: Encoding, max_tokens: int) -> bool:
    """Return whether the last `max_tokens` tokens begin some words after the cut."""
    words = encoding.word_ids
    kept = [word for word in words[-max_tokens:] if word is not None]
    dropped = [word for word in words[:-max_tokens] if word is not None]
    return bool(kept and dropped) and kept[0] - dropped[0] > _MARGIN_WORDS
