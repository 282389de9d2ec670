"""tag: entities with their places in the text, from a token classifier.

Shapes: T tokens, U units (tokens or words), G groups (entities), W windows, D documents, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modernbert.stored import Json
from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.option_types import Aggregation
from pipelines.options import TagOptions
from pipelines.tasks.base import GoldTypes, Task
from pipelines.tasks.checks import Comparison
from pipelines.tasks.gold import SPANS, compare_spans, holds_spans, least_by_row
from pipelines.tasks.outputs import ModelOutputs
from pipelines.tasks.postprocess import list_array, per_document, softmax
from pipelines.tasks.resolve import resolve_windowing
from pipelines.tasks.tag_words import TagWords, TokenClassifier

SPECIAL, SUBWORD = -1, 1
"""Values of `Windows.token_tags`: not a token of the text, or of the second one of a pair; a token
that continues the word before it.
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
        return Entities(
            document=self.document[rows],
            label=[self.label[i] for i in rows],
            score=self.score[rows],
            span=self.span[rows],
            tokens=self.tokens[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Tag(TokenClassifier):
    """Entities from the logits of tokens; `token_tags` of its windows are SPECIAL, SUBWORD or 0."""

    aggregation: Aggregation
    """none: each token by itself; simple: adjacent tokens of one entity together; first, average,
    max: words first, by their first token, the mean of their tokens' scores, or their most probable
    token.
    """
    ignore_labels: tuple[str, ...]

    columns = pa.schema([("entities", pa.list_(ENTITY))])
    doubt_columns = ("entities",)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, options: TagOptions) -> Task:
        if options.is_split_into_words:
            return TagWords.from_checkpoint(checkpoint, options)
        config = checkpoint.config
        windowing = resolve_windowing(checkpoint, options)
        ignored = ("O",) if options.ignore_labels is None else tuple(options.ignore_labels)
        return cls(
            max_length=windowing.max_length,
            stride=windowing.stride,
            labels=tuple(config.id2label[i] for i in range(config.num_labels)),
            aggregation=options.aggregation,
            ignore_labels=ignored,
        )

    @classmethod
    def for_pipeline(cls, checkpoint: Checkpoint, options: TagOptions) -> Task:
        if "aggregation" not in options.model_fields_set:
            options = options.model_copy(update={"aggregation": "none"})
        return cls.from_checkpoint(checkpoint, options)

    def encode(self, tokenizer: Tokenizer, documents: Sequence[Text]) -> Windows:
        # As in transformers' pipeline: a token goes on with a word where the tokenizer spells it so
        # ("##ing"), or where it has no such spelling, where no space is before it.
        windows = super().encode(tokenizer, documents)
        # Of a pair, the first text is there to be read with the second one, and has no entities.
        is_pair = bool(documents) and isinstance(documents[0], tuple)
        is_read_T = windows.sequence_ids == (1 if is_pair else 0)
        if tokenizer.continuing_subword_prefix:
            spelt = [len(tokenizer.token(i)) for i in windows.input_ids.tolist()]
            read_T = np.diff(windows.offsets, axis=1)[:, 0]
            tags_T = (np.array(spelt, dtype=np.int32) != read_T).astype(np.int32)
        else:
            start_T = np.where(is_read_T, windows.offsets[:, 0], 0)
            tags_T = _inside_words([_read_text(each) for each in documents], windows, start_T)
        tags_T[windows.input_ids == tokenizer.unk_token_id] = 0
        tags_T[~is_read_T] = SPECIAL
        return replace(windows, token_tags=tags_T.astype(np.int8))

    @property
    def reading(self) -> tuple[object, ...]:
        return self.max_length, self.stride  # the tags beside the tokens are no others' concern

    def decode(self, outputs: ModelOutputs) -> pa.StructArray:
        entities = self.entities(outputs.windows, outputs.values)
        texts = []
        for document, (start, end) in zip(entities.document, entities.span.tolist(), strict=True):
            texts.append(_read_text(outputs.documents[document])[start:end])
        fields = [
            pa.array(entities.label, pa.string()),
            pa.array(entities.score, pa.float32()),
            pa.array(entities.span[:, 0], pa.int32()),
            pa.array(entities.span[:, 1], pa.int32()),
            pa.array(texts, pa.string()),
        ]
        structs = pa.StructArray.from_arrays(fields, fields=list(ENTITY))
        counts_D = np.bincount(entities.document, minlength=len(outputs.documents))
        lists = list_array(counts_D, structs)
        return pa.StructArray.from_arrays([lists], fields=list(self.columns))

    def results(self, outputs: ModelOutputs) -> list[list[Json]]:
        entities = self.entities(outputs.windows, outputs.values)
        window_starts = outputs.windows.cu_seqlens
        by_document: list[list[Json]] = [[] for _ in outputs.documents]
        for i, document in enumerate(entities.document.tolist()):
            start, end = entities.span[i].tolist()
            first, last = entities.tokens[i].tolist()
            entity: Json = {"score": float(entities.score[i])}
            if self.aggregation == "none":
                window = np.searchsorted(window_starts, first, side="right") - 1
                entity["entity"] = entities.label[i]
                entity["index"] = int(first - window_starts[window])
            else:
                entity["entity_group"] = entities.label[i]
            text = _read_text(outputs.documents[document])
            entity["word"] = self._word(outputs, text, first, last)
            entity["start"] = start
            entity["end"] = end
            by_document[document].append(entity)
        return by_document

    def entities(self, windows: Windows, logits_TC: np.ndarray) -> Entities:
        """Find every entity that is not ignored.

        Where two windows overlap, the longest one counts, then the most probable one.
        """
        # Special tokens are in no entity: from here on, T are the tokens of the texts alone.
        real_T = np.flatnonzero(windows.token_tags != SPECIAL)
        window_T = np.repeat(np.arange(len(windows.document)), windows.lengths)[real_T]
        scores_TC = softmax(logits_TC[real_T])

        # Tokens make units: words, or each token its own.
        first_U, last_U = _runs(self._begins_unit(windows.token_tags[real_T], window_T))
        scores_UC = self._unit_scores(scores_TC, first_U, last_U)
        label_U = scores_UC.argmax(axis=1)
        score_U = scores_UC[np.arange(len(label_U)), label_U]

        # Units make groups, the entities: neighbours of one type, or each unit its own.
        first_G, last_G = _runs(self._begins_group(label_U, window_T[first_U]))
        label_G = label_U[first_G]
        score_G = _run_means(score_U, first_G, last_G)

        # Most are no entity at all (O), so that the rest is done for those that are kept.
        names = self._entity_names
        is_ignored_C = np.array([name in self.ignore_labels for name in names])
        kept = ~is_ignored_C[label_G]
        first_unit = first_G[kept]
        last_unit = last_G[kept]
        first_token = real_T[first_U[first_unit]]
        last_token = real_T[last_U[last_unit]]
        start = windows.offsets[first_token, 0]
        end = windows.offsets[last_token, 1]
        entities = Entities(
            document=windows.document[window_T[first_U[first_unit]]],
            label=[names[i] for i in label_G[kept]],
            score=score_G[kept].astype(np.float32),
            span=np.stack((start, end), axis=1),
            tokens=np.stack((first_token, last_token), axis=1),
        )
        return _without_overlaps(entities, windows)

    def label_counts(self, answers: pa.StructArray) -> Counter[str]:
        return Counter(answers.field("entities").flatten().field("label").to_pylist())

    def scores(self, answers: pa.StructArray) -> pa.Array:
        return answers.field("entities").flatten().field("score")

    def doubt(self, answers: pa.StructArray) -> np.ndarray:
        entities = answers.field("entities")
        scores = entities.flatten().field("score")
        lengths = pc.list_value_length(entities).to_numpy(zero_copy_only=False)
        return least_by_row(list_array(lengths, scores))

    def gold_types(self) -> GoldTypes:
        if self.aggregation == "none":
            raise ValueError("gold_column is for entities; aggregation none gives tokens")
        return GoldTypes(SPANS, holds_spans)

    def compare(
        self,
        outputs: ModelOutputs,  # noqa: ARG002
        answered: np.ndarray,  # noqa: ARG002
        answers: pa.StructArray,
        gold: pa.Array,
    ) -> Comparison:
        return compare_spans(
            gold, answers.field("entities"), self._entity_names, self.ignore_labels
        )

    def preview(self, answer: Json) -> str:
        entities = answer["entities"]
        if not entities:
            return "(nothing found)"
        shown = ", ".join(f"{entity['label']} {entity['text']!r}" for entity in entities[:4])
        return f"{shown}, …" if len(entities) > 4 else shown

    @property
    def _prefixed(self) -> bool:
        """Whether the labels follow a scheme with B- or I-; in plain labels a hyphen is part of the
        name.
        """
        return any(label.startswith(("B-", "I-")) for label in self.labels)

    @property
    def _entity_names(self) -> list[str]:
        """What entities are called, per label: the label of a token, else the type in it."""
        if self.aggregation == "none":
            return list(self.labels)
        return [_type(label, self._prefixed) for label in self.labels]

    def _begins_unit(self, tags_T: np.ndarray, window_T: np.ndarray) -> np.ndarray:
        """Return which tokens begin a unit, (T,) bool; `window_T`: their windows."""
        begins_T = np.ones(len(tags_T), dtype=bool)
        if self.aggregation in ("first", "average", "max"):
            begins_word = tags_T[1:] != SUBWORD
            begins_window = np.diff(window_T) > 0
            begins_T[1:] = begins_word | begins_window
        return begins_T

    def _begins_group(self, label_U: np.ndarray, window_U: np.ndarray) -> np.ndarray:
        """Return which units begin an entity, (U,) bool."""
        begins_U = np.ones(len(label_U), dtype=bool)
        if self.aggregation == "none":
            return begins_U
        type_of_name = {name: number for number, name in enumerate(self._entity_names)}
        type_C = np.array([type_of_name[name] for name in self._entity_names])
        begins_C = np.array([self._prefixed and label.startswith(_BEGINS) for label in self.labels])
        ends_C = np.array([self._prefixed and label.startswith(_ENDS) for label in self.labels])
        before = label_U[:-1]
        this = label_U[1:]
        is_other_type = type_C[before] != type_C[this]
        begins_window = np.diff(window_U) > 0
        begins_U[1:] = is_other_type | begins_C[this] | ends_C[before] | begins_window
        return begins_U

    def _unit_scores(
        self, scores_TC: np.ndarray, first_U: np.ndarray, last_U: np.ndarray
    ) -> np.ndarray:
        """Return the scores of units, (U, C)."""
        if not len(first_U):
            return scores_TC
        lengths_U = last_U - first_U + 1
        if self.aggregation == "average":
            sums_UC = np.add.reduceat(scores_TC, first_U, axis=0)
            means_UC: np.ndarray = sums_UC / lengths_U[:, None].astype(np.float32)
            return means_UC
        if self.aggregation == "max":
            # The order is stable: of equally probable tokens the first counts.
            unit_T = np.repeat(np.arange(len(first_U)), lengths_U)
            order_T = np.lexsort((-scores_TC.max(axis=1), unit_T))
            first_U = order_T[first_U]
        scores_UC: np.ndarray = scores_TC[first_U]
        return scores_UC

    def _word(self, outputs: ModelOutputs, text: str, first: int, last: int) -> str:
        """Spell the entity as the tokenizer does, by words where transformers does."""
        windows = outputs.windows
        tokenizer = outputs.tokenizer
        words: list[list[str]] = []
        for t in range(first, last + 1):
            token = tokenizer.token(int(windows.input_ids[t]))
            if windows.input_ids[t] == tokenizer.unk_token_id:
                start, end = windows.offsets[t]
                token = text[start:end]
            if words and windows.token_tags[t] == SUBWORD:
                words[-1].append(token)
            else:
                words.append([token])
        if self.aggregation == "none":
            return words[0][0]
        if self.aggregation == "simple":
            return tokenizer.join([token for word in words for token in word])
        return tokenizer.join([tokenizer.join(word) for word in words])


def _read_text(document: Text) -> str:
    """Return the text whose entities are found: of a pair, the second one."""
    return document if isinstance(document, str) else document[1]


def _inside_words(texts: list[str], windows: Windows, start_T: np.ndarray) -> np.ndarray:
    """Tag tokens with SUBWORD if neither their first character, at `start_T` of the text, nor the
    one before it is a space, else with 0.
    """
    first_windows, counts = per_document(windows)
    tags_T = np.zeros(len(windows.input_ids), dtype=np.int32)
    for document in np.flatnonzero(counts):
        code_points = texts[document].encode("utf-32-le", "surrogatepass")
        is_space = np.frombuffer(code_points, dtype=np.uint32) == ord(" ")
        is_space = np.append(is_space, False)  # the end of the text, where a token may be empty
        first_window = first_windows[document]
        begin, end = windows.cu_seqlens[[first_window, first_window + counts[document]]]
        starts = start_T[begin:end]
        is_inside = (starts > 0) & ~is_space[starts - 1] & ~is_space[starts]
        tags_T[begin:end] = SUBWORD * is_inside
    return tags_T


def _runs(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last index of each run; `begins` is true where a run begins."""
    first = np.flatnonzero(begins)
    after = np.append(first[1:], len(begins))[: len(first)]
    return first, after - 1


def _run_means(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the mean of each run of values, float64."""
    if not len(first):
        return np.empty(0)
    means: np.ndarray = np.add.reduceat(values, first, dtype=np.float64) / (last - first + 1)
    return means


def _type(label: str, prefixed: bool) -> str:
    return label[2:] if prefixed and label.startswith(_PREFIXES) else label


def _without_overlaps(entities: Entities, windows: Windows) -> Entities:
    """Drop entities that a neighbouring window also found, whole or in part: transformers' rule for
    a stride.
    """
    has_several_D = np.bincount(windows.document, minlength=len(windows.n_tokens)) > 1
    if not has_several_D.any():
        return entities
    start = entities.span[:, 0]
    document_of = entities.document.tolist()
    span_of = entities.span.tolist()
    kept: list[int] = []
    for i in np.lexsort((start, entities.document)).tolist():
        if not kept or not has_several_D[document_of[i]] or document_of[kept[-1]] != document_of[i]:
            kept.append(i)
            continue
        start_before, end_before = span_of[kept[-1]]
        start_here, end_here = span_of[i]
        if not start_before <= start_here < end_before:
            kept.append(i)
            continue
        # The two overlap: the longer one stays, of equal ones the more probable, else the first.
        length_before = end_before - start_before
        length_here = end_here - start_here
        is_likelier = entities.score[i] > entities.score[kept[-1]]
        if length_here > length_before or (length_here == length_before and is_likelier):
            kept[-1] = i
    return entities.take(np.array(kept, dtype=np.int64))
