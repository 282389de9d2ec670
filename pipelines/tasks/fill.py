"""fill: the likeliest tokens for each mask in a text, from a masked language model.

Shapes: T tokens, P masks, K tokens a mask, V vocabulary, W windows, D documents.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import FillOptions
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, per_document
from pipelines.tasks.resolve import resolve_windowing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from modernbert.heads import ModernBertForMaskedLM
    from modernbert.packing import PackedBatch

logger = logging.getLogger(__name__)
_MASKS_AT_ONCE = (
    4096  # whose logits are in memory together: 800 MB with the vocabulary of ModernBERT
)
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

    options_class = FillOptions
    model_class = "modernbert.heads:ModernBertForMaskedLM"
    columns = pa.schema([("fills", pa.list_(pa.list_(FILL)))])  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: FillOptions) -> Fill:
        tokenizer, vocab_size = checkpoint.tokenizer, checkpoint.config.vocab_size
        mask = tokenizer.mask_token_id
        if mask is None:
            raise ValueError(f"model {str(checkpoint.folder)!r}: its tokenizer has no mask token")
        ids = None if options.targets is None else _target_ids(options.targets, tokenizer)
        if options.top_k > vocab_size:
            raise ValueError(
                f"top_k {options.top_k} must be from 1 to the vocabulary's {vocab_size} tokens"
            )
        windowing = resolve_windowing(checkpoint, options)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            top_k=min(options.top_k, vocab_size if ids is None else len(ids)),
            targets=ids,
            mask_token_id=mask,
            mask_token=tokenizer.token(mask),
        )

    @property
    def probe(self) -> Text:
        return self.mask_token

    def info(self, checkpoint: Checkpoint) -> dict[str, Any]:  # noqa: ARG002
        return {"mask_token": self.mask_token, "model_type": {"masked_lm": {}}}

    @property
    def width(self) -> int:
        # The scores of a mask's tokens, best first, then their ids: whole numbers that float32
        # holds exactly.
        return 2 * self.top_k

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        windows = super().encode(tokenizer, documents)
        masks_W = self.rows(windows.input_ids, windows.cu_seqlens)
        has_mask = np.bincount(windows.document, masks_W, minlength=len(documents)) > 0
        rejected = dict(windows.rejected)
        for document in np.flatnonzero(~has_mask).tolist():
            cut = " in the tokens that are read" if windows.truncated[document] else ""
            rejected.setdefault(document, f"text has no {self.mask_token}{cut}")
        return keep_windows(replace(windows, rejected=rejected), has_mask[windows.document])

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:
        before = np.concatenate(([0], np.cumsum(input_ids == self.mask_token_id)))
        return np.diff(before[cu_seqlens])

    def most_results(self, windows: Windows) -> int:
        return int(np.count_nonzero(windows.input_ids == self.mask_token_id)) * self.top_k

    def forward(self, model: ModernBertForMaskedLM, batch: PackedBatch, ids: np.ndarray) -> Tensor:
        import torch

        masks = int((ids == self.mask_token_id).sum())
        positions = torch.nonzero_static(batch.input_ids == self.mask_token_id, size=masks)[:, 0]
        x_PD = model.model.forward_packed(batch)[positions]
        return torch.cat(
            [self._top(model.decode(chunk_PD)) for chunk_PD in x_PD.split(_MASKS_AT_ONCE)]
        )

    def _top(self, logits_PV: Tensor) -> Tensor:
        """Return the scores of the likeliest tokens, and after them their ids, (P, 2K)."""
        import torch

        logits_PV = logits_PV.float()
        total = logits_PV.logsumexp(dim=-1, keepdim=True)
        if self.targets is None:
            top, tokens = logits_PV.topk(self.top_k)
        else:
            targets = _token_ids(self.targets, logits_PV.device)
            top, places = logits_PV[:, targets].topk(self.top_k)
            tokens = targets[places]
        return torch.cat(((top - total).exp(), tokens.float()), dim=1)

    @property
    def forward_options(self) -> tuple[Any, ...]:
        return self.top_k, self.targets

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        rows, counts = self._masks(outputs)
        scores, ids = (
            outputs.values[rows, : self.top_k].ravel(),
            outputs.values[rows, self.top_k :].ravel().astype(np.int32),
        )
        texts = {i: outputs.tokenizer.decode([i]) for i in set(ids.tolist())}
        fields = [
            pa.array([texts[i] for i in ids.tolist()], pa.string()),
            pa.array(ids),
            pa.array(scores),
        ]
        fills = pa.StructArray.from_arrays(fields, fields=list(FILL))
        of_mask = list_array(np.full(len(rows), self.top_k), fills)
        return pa.StructArray.from_arrays([list_array(counts, of_mask)], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[Any]:
        tokenizer, windows = outputs.tokenizer, outputs.windows
        rows, counts = self._masks(outputs)
        masks = np.flatnonzero(windows.input_ids == self.mask_token_id)[rows]
        out = []
        for first, count in zip(np.cumsum(counts) - counts, counts, strict=True):
            lists = []
            for row, mask in zip(
                rows[first : first + count], masks[first : first + count], strict=True
            ):
                w = np.searchsorted(windows.cu_seqlens, mask, side="right") - 1
                ids = windows.input_ids[windows.cu_seqlens[w] : windows.cu_seqlens[w + 1]].tolist()
                filled = []
                for score, token in zip(*np.split(outputs.values[row], 2), strict=True):
                    ids[mask - windows.cu_seqlens[w]] = int(token)
                    sequence = tokenizer.decode(ids, skip_special_tokens=count == 1)
                    token_str = tokenizer.decode([int(token)])
                    filled.append(
                        {
                            "score": float(score),
                            "token": int(token),
                            "token_str": token_str,
                            "sequence": sequence,
                        }
                    )
                lists.append(filled)
            out.append(lists[0] if count == 1 else lists)
        return out

    def preview(self, answer: dict[str, Any]) -> str:
        shown = ", ".join(
            f"{fill['token'].strip()} {fill['score']:.2f}" for fill in answer["fills"][0][:4]
        )
        return shown + (" …" if len(answer["fills"]) > 1 else "")

    def _masks(self, outputs: ModelOutputs) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of all masks by document and position, and the number of masks per
        document, (D,).

        A mask that two windows share counts in the window that leaves it more context on its
        shorter side.
        """
        windows = outputs.windows
        starts, counts = per_document(windows)
        tokens = np.flatnonzero(windows.input_ids == self.mask_token_id)
        window = np.searchsorted(windows.cu_seqlens, tokens, side="right") - 1
        position = tokens - windows.cu_seqlens[window]
        at = position + windows.start[window]
        is_first = window == starts[windows.document[window]]
        is_last = window == (starts + counts - 1)[windows.document[window]]
        left = np.where(is_first, np.inf, position)
        right = np.where(is_last, np.inf, windows.lengths[window] - 1 - position)
        document = windows.document[window]
        order = np.lexsort((-np.minimum(left, right), at, document))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(document[order]) != 0) | (np.diff(at[order]) != 0)
        rows = order[new]
        return rows, np.bincount(document[rows], minlength=len(outputs.documents))


def keep_windows(windows: Windows, keep_W: np.ndarray) -> Windows:
    """Keep some of the windows; the counts of rejected documents become zero."""
    if keep_W.all():
        return windows
    tokens = np.repeat(keep_W, windows.lengths)
    rejected = np.array(sorted(windows.rejected), dtype=np.int64)
    n_tokens, truncated = windows.n_tokens.copy(), windows.truncated.copy()
    n_tokens[rejected], truncated[rejected] = 0, False
    return replace(
        windows,
        input_ids=windows.input_ids[tokens],
        cu_seqlens=np.concatenate(([0], np.cumsum(windows.lengths[keep_W]))),
        document=windows.document[keep_W],
        start=windows.start[keep_W],
        n_tokens=n_tokens,
        truncated=truncated,
    )


@lru_cache(maxsize=16)
def _token_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Return ids as a tensor on a device, where they stay: uploading them for each batch would wait
    for it.
    """
    import torch

    return torch.tensor(ids, device=device)


def _target_ids(targets: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of words or tokens; one that the vocabulary lacks counts as its first token, with a
    warning.
    """
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
