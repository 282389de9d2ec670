"""The tokenizer of a checkpoint (tokenizer.json, run by the `tokenizers` library): from texts to
packed windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers, processors
from tokenizers.models import BPE

from modernbert.files import resolve
from modernbert.stored import CheckpointError, CheckpointPath, Json
from modernbert.text.call import (
    Batch,
    check_arguments,
    documents_of,
    pad_rows,
    padding_target,
    to_tensors,
    truncates,
)
from modernbert.text.encoder import Side, WindowEncoder
from modernbert.text.pieces import DetailCache, PieceCache
from modernbert.text.tokenizer_settings import (
    CLEAN_UP_BPE,
    clean_up_spaces,
    read_tokenizer_settings,
)
from modernbert.text.windows import Text, Windows


class Tokenizer:
    """A tokenizer with the results of transformers' fast tokenizer on the same files, without its
    overhead per text.

    Args:
        fast: a tokenizer of the `tokenizers` library; its truncation and padding are switched off.
        settings: the content of tokenizer_config.json, whose truncation_side counts before that of
            tokenizer.json.
        num_embeddings: the embeddings of the model, if it may have fewer than the tokenizer has
            ids; `encode` rejects documents with others.

    Example:
        >>> tokenizer = Tokenizer.from_pretrained("answerdotai/ModernBERT-base")
        >>> inputs = tokenizer(["a text", "and a longer one"], padding=True, return_tensors="pt")
        >>> inputs.input_ids.shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        fast: FastTokenizer,
        settings: Json | None = None,
        num_embeddings: int | None = None,
    ):
        settings = settings or {}
        stored_side = (fast.truncation or {}).get("direction", "right")
        self.truncation_side: str = settings.get("truncation_side") or stored_side
        """Where tokens beyond a maximum are cut off: "right" or "left"."""
        stored_side = (fast.padding or {}).get("direction", "right")
        self.padding_side: str = settings.get("padding_side") or stored_side
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
        has_more_ids = num_embeddings is not None and num_embeddings < self.vocab_size
        self._num_embeddings = num_embeddings if has_more_ids else None
        self._pieces = PieceCache.for_tokenizer(fast)
        self._details = DetailCache.for_tokenizer(fast)
        has_clean_text = not isinstance(fast.model, BPE) or bool(settings.get(CLEAN_UP_BPE))
        self._cleans_up = bool(settings.get("clean_up_tokenization_spaces")) and has_clean_text
        longest = settings.get("model_max_length") or settings.get("max_len") or 0
        self.model_max_length = int(longest) if 0 < longest < 1e9 else None
        """The longest input in tokens, as stated by the checkpoint; None where it states none."""

    @classmethod
    def from_folder(cls, folder: CheckpointPath, num_embeddings: int | None = None) -> Tokenizer:
        """Load tokenizer.json, and the files beside it that say more, from a checkpoint's folder.

        Args:
            folder: the checkpoint.
            num_embeddings: the embeddings of its model, as for `Tokenizer`.

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
        return cls(fast, read_tokenizer_settings(folder, fast), num_embeddings)

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

    def reads_like(self, other: Tokenizer) -> bool:
        """Tell whether another tokenizer gives the same windows of any text."""
        return (
            self.truncation_side == other.truncation_side
            and self._num_embeddings == other._num_embeddings
            and (self is other or self._fast.to_str() == other._fast.to_str())
        )

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
    def knows_words(self) -> bool:
        """Whether texts are cut into words; for Gemma's tokenizer (mmBERT) a text is one word."""
        words = self._fast.encode("a a", add_special_tokens=False).word_ids
        return len(set(words)) > 1

    @cached_property
    def token_lengths(self) -> np.ndarray:
        """The characters of each token as the vocabulary spells it, (V,): at least as many as its
        text has.
        """
        return np.array([len(self.token(token_id)) for token_id in range(self.vocab_size)])

    @cached_property
    def lowercased(self) -> Tokenizer:
        """This tokenizer with lower-casing of all but special tokens (sentence-transformers)."""
        fast = FastTokenizer.from_str(self._fast.to_str())
        steps: list[Any] = [normalizers.Lowercase()]  # the library's classes share no typed base
        if fast.normalizer:
            steps.append(fast.normalizer)
        fast.normalizer = normalizers.Sequence(steps)
        return Tokenizer(fast, self._settings | self._sides, self._num_embeddings)

    @cached_property
    def without_special_tokens(self) -> Tokenizer:
        """This tokenizer without special tokens around texts."""
        fast = FastTokenizer.from_str(self._fast.to_str())
        fast.post_processor = processors.Sequence([])
        return Tokenizer(fast, self._settings | self._sides, self._num_embeddings)

    @property
    def special_ids(self) -> list[int]:
        """The ids of the special tokens around a text and around a pair."""
        templates = (self._encoder.template(pairs=False), self._encoder.template(pairs=True))
        return [token for template in templates for ids in template for token in ids]

    @property
    def starting_ids(self) -> list[int]:
        """The ids of the special tokens before a text."""
        return self._encoder.template(pairs=False)[0]

    @property
    def ending_ids(self) -> list[int]:
        """The ids of the special tokens behind a text."""
        return self._encoder.template(pairs=False)[-1]

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, added tokens included."""
        return self._fast.get_vocab(with_added_tokens=True)

    def truncating(self, side: str) -> Tokenizer:
        """Return this tokenizer with another `truncation_side`."""
        settings = self._settings | self._sides | {"truncation_side": side}
        return Tokenizer(self._fast, settings, self._num_embeddings)

    @property
    def continuing_subword_prefix(self) -> str:
        """What tokens that continue a word begin with: "##" in WordPiece, else empty."""
        return getattr(self._fast.model, "continuing_subword_prefix", None) or ""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if it is not in the vocabulary."""
        return self._fast.token_to_id(token)

    def token(self, token_id: int) -> str:
        """Return the token of an id as the vocabulary spells it ("ĠParis"), or an empty text."""
        return self._fast.id_to_token(token_id) or ""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids.

        Spaces before punctuation are taken out where the checkpoint's settings say so.

        Example:
            >>> tokenizer.decode(tokenizer("a text").input_ids, skip_special_tokens=True)
            'a text'
        """
        text = self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up_spaces(text) if self._cleans_up else text

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text of vocabulary tokens."""
        if not self._fast.decoder:
            return " ".join(tokens)
        text: str = self._fast.decoder.decode(list(tokens))
        return text

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
            The windows, in the order of `documents`. Documents that cannot be cut into windows, or
            have tokens without an embedding, are in `rejected`.

        Raises:
            ValueError: where `max_length` leaves no room beside special tokens, and for a mixture
                of texts and pairs.
            WindowBudgetError: within `window_budget`, where the windows would hold more tokens.

        Example:
            >>> texts = ["a short text", "a long text " * 100]
            >>> windows = tokenizer.encode(texts, max_length=128, stride=32)
            >>> windows.document.tolist()
            [0, 1, 1, 1]
        """
        return self._encoder.encode(
            documents,
            max_length,
            stride=stride,
            details=details,
            add_special_tokens=add_special_tokens,
        )

    def encode_words(
        self,
        documents: Sequence[Sequence[str]],
        max_length: int,
        *,
        stride: int | None = None,
    ) -> Windows:
        """Encode lists of words as windows with special tokens and details.

        Each word is tokenised by itself, as transformers does with `is_split_into_words`.

        Args:
            documents: the words of each document.
            max_length: the most tokens in a window, special tokens included.
            stride: None: what is too long is cut off; a number: it is cut into windows whose
                neighbours share this many tokens.

        Returns:
            The windows, in the order of `documents`. Of a token, `word_ids` has the number of its
            word in the list, and `offsets` its characters in the word.

        Example:
            >>> windows = tokenizer.encode_words([["Ada", "Lovelace"]], max_length=128)
            >>> windows.word_ids.tolist()
            [-1, 0, 1, 1, 1, -1]
        """
        return self._encoder.encode_words(documents, max_length, stride=stride)

    def encode_crossed(
        self,
        texts: Sequence[str],
        seconds: Sequence[Sequence[str]],
        max_length: int,
        *,
        stride: int | None = None,
        joined: Side | None = None,
    ) -> Windows:
        """Encode each text with each of its second texts, as pairs of one document.

        Every text is tokenised once.

        Args:
            texts: the first texts, of which tokens are cut off where a pair has more than
                `max_length`.
            seconds: the second texts of each; they stay whole.
            max_length: the most tokens in a window, special tokens included.
            stride: None: what is too long of a text is cut off. A number: the text is cut into
                overlapping windows.
            joined: "before" or "behind": a text and a second text are no pair, but one text, with
                the second text at this side of it, without special tokens between them.

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
        return self._encoder.encode_crossed(
            texts, seconds, max_length, stride=stride, joined=joined
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
        **unavailable: object,
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
                differ in length, and what is not a text.

        Example:
            >>> tokenizer("a text", return_tensors="pt").attention_mask
            tensor([[1, 1, 1, 1]])
        """
        check_arguments(unavailable, return_tensors, max_length)
        target = padding_target(padding)
        is_cut = truncates(truncation, padding, max_length)
        if target and self.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        documents = documents_of(text, text_pair)
        longest = max_length or self.model_max_length
        windows = self.encode(
            documents, longest if is_cut else None, add_special_tokens=add_special_tokens
        )
        rows = []
        for start, stop in pairwise(windows.cu_seqlens.tolist()):
            rows.append(windows.input_ids[start:stop].tolist())
        width = 0
        if target == "longest":
            width = max(map(len, rows), default=0)
        elif target == "max_length":
            width = longest or 0
        ids = pad_rows(rows, width, self.pad_token_id or 0, self.padding_side)
        masks = pad_rows([[1] * len(row) for row in rows], width, 0, self.padding_side)
        if return_tensors == "pt":
            return to_tensors(ids, masks)
        if isinstance(text, str):
            return Batch(input_ids=ids[0], attention_mask=masks[0])
        return Batch(input_ids=ids, attention_mask=masks)

    @property
    def _encoder(self) -> WindowEncoder:
        """What encodes documents, with the truncation side as it is now."""
        return WindowEncoder(
            self._fast, self._pieces, self._details, self.truncation_side, self._num_embeddings
        )

    @property
    def _sides(self) -> dict[str, str]:
        """The sides, as settings of a tokenizer that is created from this one."""
        return {"truncation_side": self.truncation_side, "padding_side": self.padding_side}

    def _special(self, name: str, default: str) -> int | None:
        """Return the id of the special token that tokenizer_config.json calls `name`."""
        token = self._settings.get(name) or default
        content = token["content"] if isinstance(token, dict) else token
        return self._fast.token_to_id(content)
