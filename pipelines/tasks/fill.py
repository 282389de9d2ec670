"""fill: the likeliest tokens for each mask in a text, from a masked language model.

Shapes: T tokens, P masks, K tokens a mask, V vocabulary, W windows, D documents.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import FillOptions
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs, Results
from pipelines.tasks.postprocess import keep_windows, list_array, per_document
from pipelines.tasks.resolve import resolve_windowing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from modernbert.heads import ModernBertForMaskedLM
    from modernbert.packing import PackedBatch

logger = logging.getLogger(__name__)
_MASKS_AT_ONCE = 4096
"""Masks whose logits are in memory together: 800 MB with the vocabulary of ModernBERT."""
FILL = pa.struct([("token", pa.string()), ("token_id", pa.int32()), ("score", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class Fill(Task):
    """The likeliest tokens for each mask; documents without a mask among their tokens are
    rejected.
    """

    top_k: int
    """Tokens per mask."""
    targets: tuple[int, ...] | None
    """The only ids to choose from; None for the whole vocabulary."""
    mask_token_id: int
    mask_token: str

    shows_texts = True
    options_class = FillOptions
    model_class = "modernbert.heads:ModernBertForMaskedLM"
    columns = pa.schema([("fills", pa.list_(pa.list_(FILL)))])

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: FillOptions) -> Fill:
        tokenizer = checkpoint.tokenizer
        vocab_size = checkpoint.config.vocab_size
        mask = tokenizer.mask_token_id
        if mask is None:
            raise ValueError(f"model {str(checkpoint.folder)!r}: its tokenizer has no mask token")
        targets = None if options.targets is None else _target_ids(options.targets, tokenizer)
        if options.top_k > vocab_size:
            raise ValueError(
                f"top_k {options.top_k} must be from 1 to the vocabulary's {vocab_size} tokens"
            )
        largest = max((mask, *(targets or ())))
        if largest >= vocab_size:
            raise ValueError(
                f"targets and the mask are tokens with an id below {vocab_size}, the model's "
                f"embeddings; {tokenizer.token(largest)!r} has {largest}"
            )
        windowing = resolve_windowing(checkpoint, options)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            top_k=min(options.top_k, vocab_size if targets is None else len(targets)),
            targets=targets,
            mask_token_id=mask,
            mask_token=tokenizer.token(mask),
        )

    @property
    def probe(self) -> Text:
        return self.mask_token

    def info(self, checkpoint: Checkpoint) -> Json:  # noqa: ARG002
        return {"mask_token": self.mask_token, "model_type": {"masked_lm": {}}}

    @property
    def width(self) -> int:
        # The scores of a mask's tokens, best first, then their ids: whole numbers that float32
        # holds exactly.
        return 2 * self.top_k

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        windows = super().encode(tokenizer, documents)
        masks_W = self.rows(windows.input_ids, windows.cu_seqlens)
        masks_D = np.bincount(windows.document, masks_W, minlength=len(documents))
        has_mask_D = masks_D > 0
        rejected = dict(windows.rejected)
        for document in np.flatnonzero(~has_mask_D).tolist():
            where = " in the tokens that are read" if windows.truncated[document] else ""
            rejected.setdefault(document, f"text has no {self.mask_token}{where}")
        windows = replace(windows, rejected=rejected)
        return keep_windows(windows, has_mask_D[windows.document])

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        before = np.concatenate(([0], np.cumsum(input_ids == self.mask_token_id)))
        return np.diff(before[cu_seqlens])

    def most_results(self, windows: Windows) -> int:
        return int(np.count_nonzero(windows.input_ids == self.mask_token_id)) * self.top_k

    def most_characters(self, tokenizer: Tokenizer, windows: Windows) -> int:
        # Each candidate has the text of its window and, there and beside it, its token.
        lengths = tokenizer.token_lengths
        if self.targets is not None:
            lengths = lengths[list(self.targets)]
        of_tokens = 2 * int(np.sort(lengths)[-self.top_k :].sum())
        masks_W = self.rows(windows.input_ids, windows.cu_seqlens)
        characters = 0
        for w in np.flatnonzero(masks_W).tolist():
            start, end = windows.cu_seqlens[w], windows.cu_seqlens[w + 1]
            text = tokenizer.decode(windows.input_ids[start:end].tolist())
            characters += int(masks_W[w]) * (self.top_k * len(text) + of_tokens)
        return characters

    def forward(self, model: ModernBertForMaskedLM, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        import torch

        # The host counts the masks, so that nothing waits for the device.
        masks = int((ids == self.mask_token_id).sum())
        is_mask_T = batch.input_ids == self.mask_token_id
        positions_P = torch.nonzero_static(is_mask_T, size=masks)[:, 0]
        x_PD = model.model.forward_packed(batch)[positions_P]
        chunks = torch.split(x_PD, _MASKS_AT_ONCE)
        tops = [self._top(model.decode(chunk_PD)) for chunk_PD in chunks]
        return torch.cat(tops)

    def _top(self, logits_PV: Tensor) -> Tensor:
        """Return the scores of the likeliest tokens, and after them their ids, (P, 2K)."""
        import torch

        logits_PV = logits_PV.float()
        total_P1 = logits_PV.logsumexp(dim=-1, keepdim=True)
        if self.targets is None:
            top_PK, tokens_PK = logits_PV.topk(self.top_k)
        else:
            targets = _token_ids(self.targets, logits_PV.device)
            top_PK, places_PK = logits_PV[:, targets].topk(self.top_k)
            tokens_PK = targets[places_PK]
        scores_PK = (top_PK - total_P1).exp()
        return torch.cat((scores_PK, tokens_PK.float()), dim=1)

    @property
    def forward_options(self) -> tuple[object, ...]:
        return self.top_k, self.targets

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        rows_P, counts_D = self._masks(outputs)
        scores = outputs.values[rows_P, : self.top_k].ravel()
        ids = outputs.values[rows_P, self.top_k :].ravel().astype(np.int32)
        # A token is decoded once, however often it is chosen.
        text_of = {i: outputs.tokenizer.decode([i]) for i in set(ids.tolist())}
        fields = [
            pa.array([text_of[i] for i in ids.tolist()], pa.string()),
            pa.array(ids),
            pa.array(scores),
        ]
        fills = pa.StructArray.from_arrays(fields, fields=list(FILL))
        of_masks = list_array(np.full(len(rows_P), self.top_k), fills)
        of_documents = list_array(counts_D, of_masks)
        return pa.StructArray.from_arrays([of_documents], fields=list(self.columns))

    # A result is a list of candidates, or for several masks a list of such lists.
    def results(self, outputs: ModelOutputs) -> Results:
        windows = outputs.windows
        rows_P, counts_D = self._masks(outputs)
        places_P = np.flatnonzero(windows.input_ids == self.mask_token_id)[rows_P]
        results: Results = []
        first = 0
        for count in counts_D.tolist():
            candidates = [
                self._candidates(outputs, int(place), outputs.values[row], count == 1)
                for place, row in zip(
                    places_P[first : first + count], rows_P[first : first + count], strict=True
                )
            ]
            results.append(candidates[0] if count == 1 else candidates)
            first += count
        return results

    def _candidates(
        self, outputs: ModelOutputs, place: int, values: np.ndarray, is_only_mask: bool
    ) -> list[Json]:
        """Return the tokens of a mask, each with its window's text in which it is filled in.

        `place`: the mask's among all tokens; `values`: the scores and ids of its tokens, (2K,).
        """
        windows = outputs.windows
        tokenizer = outputs.tokenizer
        w = np.searchsorted(windows.cu_seqlens, place, side="right") - 1
        start, end = windows.cu_seqlens[w], windows.cu_seqlens[w + 1]
        ids = windows.input_ids[start:end].tolist()
        candidates: list[Json] = []
        for score, token_id in zip(values[: self.top_k], values[self.top_k :], strict=True):
            token = int(token_id)
            ids[place - start] = token
            # Where other masks are left, transformers shows special tokens, the masks among them.
            sequence = tokenizer.decode(ids, skip_special_tokens=is_only_mask)
            candidates.append(
                {
                    "score": float(score),
                    "token": token,
                    "token_str": tokenizer.decode([token]),
                    "sequence": sequence,
                }
            )
        return candidates

    def preview(self, answer: Json) -> str:
        first_mask, *other_masks = answer["fills"]
        shown = ", ".join(f"{fill['token'].strip()} {fill['score']:.2f}" for fill in first_mask[:4])
        return f"{shown} …" if other_masks else shown

    def _masks(self, outputs: ModelOutputs) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of all masks by document and position, (P,), and the number of masks per
        document, (D,).

        A mask that two windows share counts in the window that leaves it more context on its
        shorter side.
        """
        windows = outputs.windows
        first_D, counts_D = per_document(windows)
        last_D = first_D + counts_D - 1
        tokens_P = np.flatnonzero(windows.input_ids == self.mask_token_id)
        window_P = np.searchsorted(windows.cu_seqlens, tokens_P, side="right") - 1
        document_P = windows.document[window_P]
        in_window_P = tokens_P - windows.cu_seqlens[window_P]
        in_document_P = in_window_P + windows.start[window_P]

        # Where a document begins or ends, no context is missing.
        left_P = in_window_P.astype(np.float64)
        left_P[window_P == first_D[document_P]] = np.inf
        right_P = (windows.lengths[window_P] - 1 - in_window_P).astype(np.float64)
        right_P[window_P == last_D[document_P]] = np.inf
        context_P = np.minimum(left_P, right_P)

        # Of equal masks, those at one place of a document, the first in this order counts.
        order = np.lexsort((-context_P, in_document_P, document_P))
        other_document = np.diff(document_P[order]) != 0
        other_place = np.diff(in_document_P[order]) != 0
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = other_document | other_place
        rows_P = order[is_first]
        return rows_P, np.bincount(document_P[rows_P], minlength=len(outputs.documents))


@lru_cache(maxsize=16)
def _token_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Return ids as a tensor that stays on a device: an upload for each batch would wait for it."""
    import torch

    return torch.tensor(ids, device=device)


def _target_ids(targets: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of words or tokens, the first token of one that the vocabulary lacks."""
    ids: list[int] = []
    for target in targets:
        token = tokenizer.token_id(target)
        if token is None:
            pieces = tokenizer(target, add_special_tokens=False).input_ids
            if not pieces:
                logger.warning("target %r has no token and is left out", target)
                continue
            token = pieces[0]
            if len(pieces) > 1:
                logger.warning(
                    "target %r is several tokens; %r stands for it", target, tokenizer.token(token)
                )
        ids.append(token)
    if not ids:
        raise ValueError(f"targets {', '.join(targets)!r} hold no token of the vocabulary")
    return tuple(dict.fromkeys(ids))
