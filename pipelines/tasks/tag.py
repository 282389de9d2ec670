"""tag: entities with their places in the text, from a token classifier.

Shapes: T tokens, U units (tokens or words), G groups (entities), W windows, D documents, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.options import Aggregation, TagOptions
from pipelines.tasks.base import Task, label_maps
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, per_document, softmax
from pipelines.tasks.resolve import resolve_windowing

SPECIAL, SUBWORD = -1, 1
"""Values of `Windows.token_tags`: not a token of the text; a token that continues the word before
it.
"""
ENTITY = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.string()),
    ]
)
_BEGINS, _ENDS = ("B-", "S-", "U-"), ("E-", "L-", "S-", "U-")
_PREFIXES = ("B-", "I-", "E-", "L-", "S-", "U-")


@dataclass(frozen=True)
class Entities:
    """Entities of several documents, in the order of the text."""

    document: np.ndarray
    """(G,)"""
    label: list[str]
    score: np.ndarray
    """(G,) float32"""
    span: np.ndarray
    """(G, 2): characters [start, end)"""
    tokens: np.ndarray
    """(G, 2): tokens [first, last] in the pack"""

    def take(self, rows: np.ndarray) -> Entities:
        """Return the entities at `rows`."""
        label = [self.label[i] for i in rows]
        return Entities(
            self.document[rows], label, self.score[rows], self.span[rows], self.tokens[rows]
        )


@dataclass(frozen=True, kw_only=True)
class Tag(Task):
    """Entities from the logits of tokens; `token_tags` of its windows are SPECIAL, SUBWORD or 0."""

    labels: tuple[str, ...]
    aggregation: Aggregation
    """none: each token by itself; simple: adjacent tokens of one entity together; first, average,
    max: words first, by their first token, the mean of their tokens' scores, or their most probable
    token.
    """
    ignore_labels: tuple[str, ...]

    options_class = TagOptions
    model_class = "modernbert.heads:ModernBertForTokenClassification"
    per_token = True
    needs_details = True
    columns = pa.schema([("entities", pa.list_(ENTITY))])  # type: ignore[assignment]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: TagOptions) -> Tag:
        config = checkpoint.config
        windowing = resolve_windowing(checkpoint, options)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=tuple(config.id2label[i] for i in range(config.num_labels)),
            aggregation=options.aggregation,
            ignore_labels=("O",) if options.ignore_labels is None else tuple(options.ignore_labels),
        )

    @classmethod
    def for_pipeline(cls, checkpoint: Checkpoint, options: TagOptions) -> Tag:
        given = "aggregation" in options.model_fields_set
        return cls.from_checkpoint(
            checkpoint, options if given else options.model_copy(update={"aggregation": "none"})
        )

    def info(self, checkpoint: Checkpoint) -> dict[str, Any]:  # noqa: ARG002
        return {"labels": self.labels, "model_type": {"token_classifier": label_maps(self.labels)}}

    @property
    def width(self) -> int:
        return len(self.labels)

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        # The rules of transformers' pipeline for what goes on with a word.
        windows = super().encode(tokenizer, documents)
        if tokenizer.continuing_subword_prefix:
            spelt = np.array(
                [len(tokenizer.token(i)) for i in windows.input_ids.tolist()], dtype=np.int32
            )
            tags_T = (spelt != np.diff(windows.offsets, axis=1)[:, 0]).astype(np.int32)
        else:
            tags_T = _inside_words([str(document) for document in documents], windows)
        tags_T[windows.input_ids == tokenizer.unk_token_id] = 0
        tags_T[windows.sequence_ids < 0] = SPECIAL
        return replace(windows, token_tags=tags_T.astype(np.int8))

    def rows(self, input_ids: np.ndarray, cu_seqlens: np.ndarray) -> np.ndarray:  # noqa: ARG002
        return np.diff(cu_seqlens)

    def most_results(self, windows: Windows) -> int:
        return len(windows.input_ids)

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        found = self.entities(outputs.windows, outputs.values)
        texts = [
            str(outputs.documents[d])[a:b]
            for d, (a, b) in zip(found.document, found.span.tolist(), strict=True)
        ]
        fields = [
            pa.array(found.label, pa.string()),
            pa.array(found.score, pa.float32()),
            pa.array(found.span[:, 0], pa.int32()),
            pa.array(found.span[:, 1], pa.int32()),
            pa.array(texts, pa.string()),
        ]
        counts = np.bincount(found.document, minlength=len(outputs.documents))
        lists = list_array(counts, pa.StructArray.from_arrays(fields, fields=list(ENTITY)))
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[dict[str, Any]]]:
        found = self.entities(outputs.windows, outputs.values)
        out: list[list[dict[str, Any]]] = [[] for _ in outputs.documents]
        spans = zip(found.span.tolist(), found.tokens.tolist(), strict=True)
        for i, ((start, end), (first, last)) in enumerate(spans):
            answer: dict[str, Any] = {"score": float(found.score[i])}
            text = str(outputs.documents[found.document[i]])
            if self.aggregation == "none":
                starts = outputs.windows.cu_seqlens
                window = np.searchsorted(starts, first, side="right") - 1
                answer |= {"entity": found.label[i], "index": int(first - starts[window])}
            else:
                answer["entity_group"] = found.label[i]
            answer |= {"word": self._word(outputs, text, first, last), "start": start, "end": end}
            out[found.document[i]].append(answer)
        return out

    def entities(self, windows: Windows, logits_TC: np.ndarray) -> Entities:
        """Find every entity that is not ignored; where two windows overlap, the longest, then the
        most probable one.
        """
        real_T = np.flatnonzero(windows.token_tags != SPECIAL)
        window_T = np.repeat(np.arange(len(windows.document)), windows.lengths)[real_T]
        scores_TC = softmax(logits_TC[real_T])
        begins_unit = np.ones(len(real_T), dtype=bool)
        if self.aggregation in ("first", "average", "max"):
            begins_unit[1:] = (windows.token_tags[real_T][1:] != SUBWORD) | (np.diff(window_T) > 0)
        first_U, last_U = _runs(begins_unit)
        scores_UC = self._unit_scores(scores_TC, first_U, last_U)
        label_U = scores_UC.argmax(axis=1) if len(scores_UC) else np.empty(0, np.int64)
        score_U = scores_UC[np.arange(len(label_U)), label_U]
        begins_group = np.ones(len(label_U), dtype=bool)
        if self.aggregation != "none" and len(label_U):
            tag, begins, ends = self._scheme
            previous, this = label_U[:-1], label_U[1:]
            begins_group[1:] = (tag[previous] != tag[this]) | begins[this] | ends[previous]
            begins_group[1:] |= np.diff(window_T[first_U]) > 0
        first_G, last_G = _runs(begins_group)
        score_G = score_U
        if len(first_G):
            score_G = np.add.reduceat(score_U, first_G, dtype=np.float64) / (last_G - first_G + 1)
        names = (
            self.labels
            if self.aggregation == "none"
            else [_type(label, self._prefixed) for label in self.labels]
        )
        label_G = label_U[first_G]
        kept = ~np.array([name in self.ignore_labels for name in names])[label_G]
        tokens = np.stack(
            (real_T[first_U[first_G[kept]]], real_T[last_U[last_G[kept]]]), axis=1
        ).reshape(-1, 2)
        found = Entities(
            windows.document[window_T[first_U[first_G[kept]]]],
            [names[i] for i in label_G[kept]],
            score_G[kept].astype(np.float32),
            np.stack((windows.offsets[tokens[:, 0], 0], windows.offsets[tokens[:, 1], 1]), axis=1),
            tokens,
        )
        return _without_overlaps(found, windows)

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        return Counter(answers.field("entities").flatten().field("label").to_pylist())

    def scores(self, answers: pa.StructArray) -> pa.Array:
        return answers.field("entities").flatten().field("score")

    def preview(self, answer: dict[str, Any]) -> str:
        found = [f"{entity['label']} {entity['text']!r}" for entity in answer["entities"][:4]]
        return (
            ", ".join(found) + (", …" if len(answer["entities"]) > 4 else "")
            if found
            else "(nothing found)"
        )

    @property
    def _prefixed(self) -> bool:
        """Whether the labels follow a scheme with B- or I-; in plain labels a hyphen is part of the
        name.
        """
        return any(label.startswith(("B-", "I-")) for label in self.labels)

    @property
    def _scheme(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, per label, the number of its type, whether it begins an entity, and whether it
        ends one.
        """
        types = [_type(label, self._prefixed) for label in self.labels]
        tag = np.array([types.index(type_) for type_ in types])
        prefixed = self._prefixed
        begins = np.array([prefixed and label.startswith(_BEGINS) for label in self.labels])
        ends = np.array([prefixed and label.startswith(_ENDS) for label in self.labels])
        return tag, begins, ends

    def _unit_scores(
        self, scores_TC: np.ndarray, first_U: np.ndarray, last_U: np.ndarray
    ) -> np.ndarray:
        if self.aggregation == "average" and len(first_U):
            return np.add.reduceat(scores_TC, first_U, axis=0) / (last_U - first_U + 1)[
                :, None
            ].astype(np.float32)
        if self.aggregation == "max" and len(first_U):
            unit_T = np.repeat(np.arange(len(first_U)), last_U - first_U + 1)
            order = np.lexsort((-scores_TC.max(axis=1), unit_T))  # stable: of equals the first
            return scores_TC[order[first_U]]
        return scores_TC[first_U]

    def _word(self, outputs: ModelOutputs, text: str, first: int, last: int) -> str:
        """Spell the entity as the tokenizer does; with word aggregation word by word, as
        transformers does.
        """
        windows, tokenizer = outputs.windows, outputs.tokenizer
        words: list[list[str]] = []
        for t in range(first, last + 1):
            token = tokenizer.token(int(windows.input_ids[t]))
            if windows.input_ids[t] == tokenizer.unk_token_id:
                token = text[windows.offsets[t, 0] : windows.offsets[t, 1]]
            if words and windows.token_tags[t] == SUBWORD:
                words[-1].append(token)
            else:
                words.append([token])
        if self.aggregation == "none":
            return words[0][0]
        if self.aggregation == "simple":
            return tokenizer.join([token for word in words for token in word])
        return tokenizer.join([tokenizer.join(word) for word in words])


def _inside_words(texts: list[str], windows: Windows) -> np.ndarray:
    """Tag tokens with SUBWORD if neither their first character nor the one before it is a space,
    else with 0.
    """
    starts, counts = per_document(windows)
    tags_T = np.zeros(len(windows.input_ids), dtype=np.int32)
    for document in np.flatnonzero(counts):
        codes = np.frombuffer(texts[document].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        space = np.append(codes == ord(" "), False)
        first = windows.cu_seqlens[starts[document]]
        tokens = slice(first, windows.cu_seqlens[starts[document] + counts[document]])
        start_T = windows.offsets[tokens, 0]
        tags_T[tokens] = SUBWORD * ((start_T > 0) & ~space[start_T - 1] & ~space[start_T])
    return tags_T


def _runs(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last index of each run; `begins` is true where a run begins."""
    first = np.flatnonzero(begins)
    return first, np.append(first[1:], len(begins))[: len(first)] - 1


def _type(label: str, prefixed: bool) -> str:
    return label[2:] if prefixed and label.startswith(_PREFIXES) else label


def _without_overlaps(found: Entities, windows: Windows) -> Entities:
    """Drop entities that a neighbouring window also found, whole or in part: transformers' rule for
    a stride.
    """
    several = np.bincount(windows.document, minlength=len(windows.n_tokens)) > 1
    if not several.any():
        return found
    kept: list[int] = []
    for i in np.lexsort((found.span[:, 0], found.document)).tolist():
        document, (start, end) = found.document[i], found.span[i]
        if (
            not kept
            or not several[document]
            or found.document[kept[-1]] != document
            or (start >= found.span[kept[-1], 1] or start < found.span[kept[-1], 0])
        ):
            kept.append(i)
            continue
        length, before = end - start, found.span[kept[-1], 1] - found.span[kept[-1], 0]
        if length > before or (length == before and found.score[i] > found.score[kept[-1]]):
            kept[-1] = i
    return found.take(np.array(kept, dtype=np.int64))
