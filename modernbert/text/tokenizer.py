"""The tokenizer of a checkpoint (tokenizer.json, run by the `tokenizers` library): from texts to
packed windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from modernbert.files import CheckpointError, resolve
from modernbert.stored import CheckpointPath
from modernbert.text.pieces import PieceCache
from modernbert.text.tokenizer_settings import CLEAN_UP_BPE, clean_up_spaces, read_settings
from modernbert.text.windows import (
    MOST_OVERLAP,
    Text,
    Tokens,
    Windows,
    WindowsBuilder,
    longest_first,
    prefix_is_exact,
    suffix_is_exact,
    text_end,
    window_ranges,
)

_CHARS_PER_TOKEN = (
    12  # a long text is first cut to this many characters for each token that is needed
)
_CHARS_PER_CALL = (
    4 << 20
)  # encodings take more memory than ids, so that they are made for some documents at a time
_NO_LIMIT = 1 << 62
_PADDINGS = {
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    False: None,
    "do_not_pad": None,
}
_TRUNCATIONS = {True: True, "longest_first": True, False: False, "do_not_truncate": False}


class Batch(dict):
    """A dict of ids and masks whose values are attributes, too; a model takes it as `**batch`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A tokenizer with the results of transformers' fast tokenizer on the same files, without its
    overhead per text.

    Args:
        fast: a tokenizer of the `tokenizers` library; its truncation and padding are switched off.
        settings: the content of tokenizer_config.json, whose truncation_side counts before that of
            tokenizer.json.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> inputs = tokenizer(["a text", "and a longer one"], padding=True, return_tensors="pt")
        >>> inputs.input_ids.shape
        torch.Size([2, 6])
    """

    def __init__(self, fast: FastTokenizer, settings: dict[str, Any] | None = None):
        settings = settings or {}
        self.truncation_side: str = settings.get("truncation_side") or (fast.truncation or {}).get(
            "direction", "right"
        )
        """Where tokens beyond a maximum are cut off: "right" or "left"."""
        self.padding_side: str = settings.get("padding_side") or (fast.padding or {}).get(
            "direction", "right"
        )
        """Where short rows are filled up: "right" or "left"."""
        if self.padding_side not in ("left", "right"):
            raise CheckpointError(
                f"padding_side is {self.padding_side!r}; it must be 'left' or 'right'"
            )
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = bool(settings.get("split_special_tokens"))
        self._fast = fast
        self._settings = settings
        self._pieces = PieceCache.for_tokenizer(fast)
        self._cleans_up = bool(settings.get("clean_up_tokenization_spaces")) and (
            not isinstance(fast.model, BPE) or bool(settings.get(CLEAN_UP_BPE))
        )
        longest = settings.get("model_max_length") or settings.get("max_len") or 0
        self.model_max_length = int(longest) if 0 < longest < 1e9 else None
        """The longest input in tokens, as stated by the checkpoint; None where it states none."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath) -> Tokenizer:
        """Load tokenizer.json and the files beside it that say more of the tokenizer from a
        checkpoint's folder.

        Raises:
            CheckpointError: where tokenizer.json is missing, a file cannot be read, or another
                contradicts it.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{folder} lacks tokenizer.json, the only tokenizer format that is read"
            )
        try:
            fast = FastTokenizer.from_buffer(file.read_bytes())
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file} is not a readable tokenizer: {error}") from error
        return cls(fast, read_settings(folder, fast))

    @classmethod
    def from_pretrained(cls, model: str | Path, *, revision: str | None = None) -> Tokenizer:
        """Load the tokenizer of a checkpoint.

        Args:
            model: a folder, or a Hugging Face hub id, which is downloaded or found in the hub's
                cache.
            revision: a branch, tag or commit of the hub's repository.

        Raises:
            CheckpointError: where there is no such checkpoint, or its tokenizer cannot be read.

        Example:
            >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        """
        return cls.from_folder(resolve(model, revision))

    @property
    def vocab_size(self) -> int:
        """The number of ids, including added tokens."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @cached_property
    def mask_token_id(self) -> int | None:
        """The id of the mask token, or None if the vocabulary has none."""
        return self._special("mask_token", "[MASK]")

    @cached_property
    def pad_token_id(self) -> int | None:
        """The id of the padding token, or None if the vocabulary has none."""
        return self._special("pad_token", "[PAD]")

    @cached_property
    def cls_token_id(self) -> int | None:
        """The id of the classification token, or None if the vocabulary has none."""
        return self._special("cls_token", "[CLS]")

    @cached_property
    def unk_token_id(self) -> int | None:
        """The id of the unknown token, or None if the vocabulary has none."""
        return self._special("unk_token", "[UNK]")

    @cached_property
    def lowercased(self) -> Tokenizer:
        """This tokenizer with lower-casing, except of special tokens, as in
        sentence-transformers.
        """
        fast = FastTokenizer.from_str(self._fast.to_str())
        rest = [fast.normalizer] if fast.normalizer else []
        fast.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        return Tokenizer(fast, self._settings | self._sides)

    @cached_property
    def without_special_tokens(self) -> Tokenizer:
        """This tokenizer without special tokens around texts."""
        fast = FastTokenizer.from_str(self._fast.to_str())
        fast.post_processor = processors.Sequence([])
        return Tokenizer(fast, self._settings | self._sides)

    @property
    def ending_ids(self) -> list[int]:
        """The ids of the special tokens behind a text."""
        return self._template(pairs=False)[-1]

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, added tokens included."""
        return self._fast.get_vocab(with_added_tokens=True)

    def truncating(self, side: str) -> Tokenizer:
        """Return this tokenizer with another `truncation_side`."""
        return Tokenizer(self._fast, self._settings | self._sides | {"truncation_side": side})

    @property
    def continuing_subword_prefix(self) -> str:
        """The prefix of tokens that continue a word ("##" in WordPiece); empty in byte-level
        vocabularies.
        """
        return getattr(self._fast.model, "continuing_subword_prefix", None) or ""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if it is not in the vocabulary."""
        return self._fast.token_to_id(token)

    def token(self, token_id: int) -> str:
        """Return the token of an id, as it is in the vocabulary ("ĠParis"); empty for an unknown
        id.
        """
        return self._fast.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids, with the spaces before punctuation that the checkpoint's
        settings leave.

        Example: `tokenizer.decode(tokenizer("a text").input_ids, skip_special_tokens=True)` returns
        "a text".
        """
        text = self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up_spaces(text) if self._cleans_up else text

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text of vocabulary tokens."""
        return self._fast.decoder.decode(list(tokens)) if self._fast.decoder else " ".join(tokens)

    def encode(
        self,
        documents: Sequence[Text],
        max_length: int | None = None,
        *,
        stride: int | None = None,
        details: bool = False,
        add_special_tokens: bool = True,
    ) -> Windows:
        """Encode documents as windows with special tokens.

        Args:
            documents: texts, or pairs of texts.
            max_length: the most tokens in a window, special tokens included; None: no limit.
            stride: None: each document is one window, and tokens beyond `max_length` are cut off on
                the tokenizer's `truncation_side` (in a pair, from the longer text first). A number:
                a longer document is cut into windows whose neighbours share this many tokens, from
                its other side on; in a pair the second text is cut, and each window has the whole
                first text.
            details: whether to fill `offsets`, `word_ids` and `sequence_ids`.
            add_special_tokens: False: windows have no special tokens.

        Returns:
            The windows, in the order of `documents`. Documents that cannot be cut into windows are
            in `rejected`.

        Raises:
            ValueError: where `max_length` leaves no room beside special tokens, and for a mixture
                of texts and pairs.

        Example:
            >>> texts = ["a short text", "a long text " * 100]
            >>> windows = tokenizer.encode(texts, max_length=128, stride=32)
            >>> windows.document.tolist()
            [0, 1, 1, 1]
        """
        pairs = bool(documents) and isinstance(documents[0], tuple)
        if any(isinstance(document, tuple) != pairs for document in documents):
            raise ValueError(
                "documents are texts and pairs of texts; encode each in a call of its own"
            )
        template = self._template(pairs)
        if not add_special_tokens:
            template = [[] for _ in template]
        max_tokens = _NO_LIMIT if max_length is None else max_length - sum(map(len, template))
        if max_tokens < 1:
            num_special = sum(map(len, template))
            raise ValueError(
                f"max_length {max_length} leaves no room: {num_special} of its tokens are special "
                "ones"
            )
        encoded_tokens = max_tokens if stride is None else _NO_LIMIT
        out = WindowsBuilder(template, details)
        for document, parts in enumerate(self._iter_tokens(documents, encoded_tokens, details)):
            lengths = [len(part.ids) for part in parts]
            if stride is not None:
                self._cut_windows(out, document, parts, lengths, max_tokens, stride)
                continue
            kept = lengths
            if sum(lengths) > max_tokens:
                whole = self._whole_lengths(documents[document], lengths, max_tokens)
                kept = longest_first(whole, max_tokens)
            ranges = [self._kept_range(n, length) for n, length in zip(kept, lengths, strict=True)]
            out.add(document, parts, ranges, ranges[-1][0])
            out.finish(sum(kept), kept != lengths)
        return out.windows()

    def encode_crossed(
        self,
        texts: Sequence[str],
        seconds: Sequence[Sequence[str]],
        max_length: int,
        *,
        stride: int | None = None,
    ) -> Windows:
        """Encode each text with each of its second texts, as pairs of one document; every text is
        tokenised once.

        Args:
            texts: the first texts, of which tokens are cut off where a pair has more than
                `max_length`.
            seconds: the second texts of each; they stay whole.
            max_length: the most tokens in a window, special tokens included.
            stride: None: what is too long of a text is cut off. A number: the text is cut into
                overlapping windows.

        Returns:
            The windows of each text with its first second text, then with the next one. `n_tokens`
            counts the tokens of the text and the special ones. Texts whose second texts leave no
            room are in `rejected`.

        Example:
            >>> labels = [["one", "two"], ["one"]]
            >>> windows = tokenizer.encode_crossed(["a text", "another"], labels, max_length=128)
            >>> windows.document.tolist()
            [0, 0, 1]
        """
        distinct = list(dict.fromkeys(chain.from_iterable(seconds)))
        encoded = dict(zip(distinct, self._encode_texts(distinct, _NO_LIMIT, False), strict=True))
        template = self._template(pairs=True)
        out = WindowsBuilder(template, details=False)
        counts, n_tokens, truncated = [], [], []
        rejected: dict[int, str] = {}
        least = (
            1 if stride is None else stride + -(-max_length // MOST_OVERLAP)
        )  # tokens of a text in a window
        tokens = self._iter_tokens(texts, max_length if stride is None else _NO_LIMIT, False)
        for document, ((text,), some) in enumerate(zip(tokens, seconds, strict=True)):
            length = len(text.ids)
            rooms = [max_length - out.num_special - len(encoded[second].ids) for second in some]
            if length > (smallest := min(rooms, default=length)) and smallest < least:
                rejected[document] = (
                    f"too long: its second text leaves {max(smallest, 0)} of {max_length} tokens "
                    f"to it; {least} are"
                    " needed"
                )
                some = []
            for second, room in zip(some, rooms, strict=False):
                ranges = [self._kept_range(room, length)]
                if stride is not None:
                    ranges = window_ranges(length, room, stride, self.truncation_side)
                for start, stop in ranges:
                    pair = encoded[second]
                    out.add(
                        len(out.n_tokens), (text, pair), [(start, stop), (0, len(pair.ids))], start
                    )
                out.finish(length, truncated=False)
            kept = length if stride is not None else min(length, max(rooms, default=0))
            counts.append(len(some))
            n_tokens.append(kept + out.num_special if some else 0)
            truncated.append(bool(some) and stride is None and length > smallest)
        windows = out.windows()
        document_of_pair = np.repeat(np.arange(len(texts)), counts)
        return replace(
            windows,
            document=document_of_pair[windows.document],
            n_tokens=np.array(n_tokens, dtype=np.int32),
            truncated=np.array(truncated, dtype=bool),
            rejected=rejected,
        )

    def __call__(
        self,
        text: str | Sequence[Text],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        **unavailable: Any,
    ) -> Batch:
        """Encode texts for `forward`, with the arguments of transformers.

        Args:
            text: a text, or several texts or pairs of texts.
            text_pair: the second text of each pair; None: no pairs but those in `text`.
            add_special_tokens: whether to add [CLS] and [SEP].
            padding: True or "longest": short rows are filled up to the longest one, on the
                `padding_side`; "max_length": to `max_length`; False or "do_not_pad".
            truncation: True or "longest_first": rows are cut to `max_length`, in a pair the longer
                text first; False or "do_not_truncate". None: True where `max_length` is given
                without `padding`.
            max_length: the most tokens in a row, and the length to which "max_length" pads; None:
                `model_max_length`.
            return_tensors: "pt" for int64 tensors (B, S); None for lists.
            unavailable: no other argument of transformers is taken.

        Returns:
            `input_ids` and `attention_mask`. For a single text, lists have no batch dimension.

        Raises:
            ValueError: for an argument or a value that is not available, a `max_length` without
                room for a token of the texts, padding without a padding token, tensors of rows that
                differ in length, and what is no text.

        Example:
            >>> tokenizer("a text", return_tensors="pt").attention_mask
            tensor([[1, 1, 1, 1]])
        """
        if unavailable:
            raise ValueError(
                f"{next(iter(unavailable))} is not available: arguments are text, text_pair, "
                "add_special_tokens,"
                " padding, truncation, max_length and return_tensors; leave it out"
            )
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; known is 'pt'")
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise ValueError(
                f"max_length is {max_length!r}; it must be a number of tokens, at least 1"
            )
        if truncation is None:
            truncation = max_length is not None and padding is False
        pads_to = _strategy("padding", padding, _PADDINGS)
        truncates = _strategy("truncation", truncation, _TRUNCATIONS)
        if pads_to and self.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        documents = _documents(text, text_pair)
        longest = max_length or self.model_max_length
        windows = self.encode(
            documents, longest if truncates else None, add_special_tokens=add_special_tokens
        )
        width = max(windows.lengths.tolist(), default=0) if pads_to == "longest" else 0
        if pads_to == "max_length":
            width = longest or 0
        ids, masks = [], []
        for start, stop in pairwise(windows.cu_seqlens.tolist()):
            row = windows.input_ids[start:stop].tolist()
            mask = [1] * len(row)
            missing = max(width - len(row), 0)
            padding_ids, padding_mask = [self.pad_token_id or 0] * missing, [0] * missing
            left = self.padding_side == "left"
            ids.append(padding_ids + row if left else row + padding_ids)
            masks.append(padding_mask + mask if left else mask + padding_mask)
        if return_tensors == "pt":
            return _tensors(ids, masks)
        if isinstance(text, str):
            return Batch(input_ids=ids[0], attention_mask=masks[0])
        return Batch(input_ids=ids, attention_mask=masks)

    @property
    def _sides(self) -> dict[str, str]:
        """What the settings of a tokenizer made of this one say of sides, whichever file this one
        has them from.
        """
        return {"truncation_side": self.truncation_side, "padding_side": self.padding_side}

    def _kept_range(self, kept: int | None, length: int) -> tuple[int, int]:
        """Return the tokens [start, stop) that stay of `length` if `kept` of them do, or all where
        that is None.
        """
        kept = length if kept is None else min(kept, length)
        return (0, kept) if self.truncation_side == "right" else (length - kept, length)

    def _special(self, name: str, default: str) -> int | None:
        """Return the id of the special token that tokenizer_config.json calls `name`."""
        token = self._settings.get(name) or default
        return self._fast.token_to_id(token["content"] if isinstance(token, dict) else token)

    def _template(self, pairs: bool) -> list[list[int]]:
        """Return the special ids before, between and after the texts, as an encoded example has
        them.
        """
        probe = self._fast.encode("a", "a" if pairs else None)
        template: list[list[int]] = [[]]
        last = None
        for token, text in zip(probe.ids, probe.sequence_ids, strict=True):
            if text is None:
                template[-1].append(token)
            elif text != last:
                template.append([])
            last = text if text is not None else last
        return template

    def _iter_tokens(
        self, documents: Sequence[Text], max_tokens: int, details: bool
    ) -> Iterator[tuple[Tokens, ...]]:
        """Yield the tokens of each document's texts, which are encoded for some documents at a
        time.
        """
        start = size = 0
        for stop, document in enumerate(documents, 1):
            size += len(document) if isinstance(document, str) else sum(map(len, document))
            if size >= _CHARS_PER_CALL or stop == len(documents):
                chunk = documents[start:stop]
                columns: list[Any] = (
                    list(zip(*chunk, strict=True)) if isinstance(document, tuple) else [chunk]
                )
                yield from zip(
                    *(self._encode_texts(texts, max_tokens, details) for texts in columns),
                    strict=True,
                )
                start, size = stop, 0

    def _encode_texts(self, texts: Sequence[str], max_tokens: int, details: bool) -> list[Tokens]:
        """Encode without special tokens; at least the `max_tokens` tokens of each text that may
        stay are right.

        The cost is bounded by `max_tokens`: long texts are cut first, and encoded whole where the
        cut may show. The offsets of a text whose beginning is cut off would not be those in the
        whole text.
        """
        ids: list[list[int] | None] = [None] * len(texts)
        if (
            self._pieces
            and not details
            and (self.truncation_side == "right" or max_tokens == _NO_LIMIT)
        ):
            ids = self._pieces.encode(texts, max_tokens, max_tokens * _CHARS_PER_TOKEN)
        rest = [text for text, known in zip(texts, ids, strict=True) if known is None]
        encodings = iter(self._encode_by_library(rest, max_tokens, details))
        return [
            Tokens.from_encoding(next(encodings), details)
            if known is None
            else Tokens(known, [], [])
            for known in ids
        ]

    def _whole_lengths(self, document: Text, lengths: list[int], max_tokens: int) -> list[int]:
        """Return the tokens of a document's texts as far as `longest_first` depends on them.

        `lengths` may be those of texts that were cut, in another order than those of the texts. The
        order counts where both texts keep half of `max_tokens`: the longer one keeps an odd token.
        """
        if isinstance(document, str) or max_tokens % 2 == 0 or min(lengths) <= max_tokens // 2:
            return lengths
        if max(map(len, document)) <= max_tokens * _CHARS_PER_TOKEN:
            return lengths
        return [len(tokens.ids) for tokens in self._encode_texts(document, _NO_LIMIT, False)]

    def _encode_by_library(
        self, texts: Sequence[str], max_tokens: int, offsets: bool
    ) -> list[Encoding]:
        encode = self._fast.encode_batch if offsets else self._fast.encode_batch_fast
        longest = max_tokens * _CHARS_PER_TOKEN
        left = self.truncation_side == "left"
        cut = [i for i, text in enumerate(texts) if len(text) > longest and not (left and offsets)]
        stretches = [text_end(texts[i], longest) if left else texts[i][:longest] for i in cut]
        encodings = self._fast.encode_batch(stretches, add_special_tokens=False)  # with word ids
        is_exact = suffix_is_exact if left else prefix_is_exact
        exact = {
            i: encoding
            for i, encoding in zip(cut, encodings, strict=True)
            if is_exact(encoding, max_tokens)
        }
        rest = iter(
            encode(
                [text for i, text in enumerate(texts) if i not in exact], add_special_tokens=False
            )
        )
        return [exact[i] if i in exact else next(rest) for i in range(len(texts))]

    def _cut_windows(
        self,
        out: WindowsBuilder,
        document: int,
        parts: Sequence[Tokens],
        lengths: list[int],
        max_tokens: int,
        stride: int,
    ) -> None:
        """Add overlapping windows of a document, or reject it where windows have no room for more
        than `stride`.
        """
        *whole, last = lengths
        capacity = max_tokens - sum(whole)
        if capacity <= stride and sum(lengths) > max_tokens:
            detail = (
                f"its first text has {whole[0]} tokens"
                if whole
                else f"windows have room for {max_tokens} tokens"
            )
            out.reject(f"too long for overlapping windows: {detail}, and {stride} are shared")
            return
        for start, stop in window_ranges(last, capacity, stride, self.truncation_side):
            out.add(document, parts, [*((0, n) for n in whole), (start, stop)], start)
        out.finish(sum(lengths), truncated=False)


def _strategy(name: str, value: Any, known: Mapping[Any, Any]) -> Any:
    """Return what `value` means among the values that are known; ValueError for another one."""
    if not isinstance(value, bool | str) or value not in known:  # 1 equals True
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")
    return known[value]


def _documents(text: Any, text_pair: Any) -> list[Text]:
    """Return the texts or pairs of a call; ValueError for what is none."""
    single = isinstance(text, str)
    if text_pair is not None and isinstance(text_pair, str) != single:
        raise ValueError("text and text_pair must both be a text, or both be lists of texts")
    documents: list[Any]
    if single:
        documents = (
            [(text, text_pair)] if text_pair else [text]
        )  # an empty text_pair is none, as in transformers
    elif not isinstance(text, Iterable):
        raise ValueError(f"text is {text!r}; it must be a text or a list of texts")
    else:
        documents = [tuple(item) if isinstance(item, list | tuple) else item for item in text]
        seconds = None if text_pair is None else list(text_pair)
        if seconds is not None and len(seconds) != len(documents):
            raise ValueError(
                f"text holds {len(documents)} texts and text_pair {len(seconds)}; give as many"
            )
        if seconds is not None:
            documents = list(zip(documents, seconds, strict=True))
    for i, document in enumerate(documents):
        texts = document if isinstance(document, tuple) and len(document) == 2 else (document,)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError(
                f"text {i} is {str(document)[:40]!r}; it must be a text or a pair of texts"
            )
    return documents


def _tensors(ids: list[list[int]], masks: list[list[int]]) -> Batch:
    """Return rows as tensors (B, S); ValueError where they differ in length."""
    import torch  # not for a process that only tokenises

    lengths = {len(row) for row in ids}
    if len(lengths) > 1:
        raise ValueError(
            f"rows have from {min(lengths)} to {max(lengths)} tokens, which are no tensor: give "
            "padding=True, or"
            " truncation=True for texts that are too long"
        )
    shape = (len(ids), max(lengths, default=0))
    tensors = [torch.tensor(rows, dtype=torch.int64).reshape(shape) for rows in (ids, masks)]
    return Batch(input_ids=tensors[0], attention_mask=tensors[1])
