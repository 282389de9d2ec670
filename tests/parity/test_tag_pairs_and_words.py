"""tag on pairs and on lists of words: transformers' tokens, logits and entities are the oracle, and all faces agree.

Scores are probabilities in float32 of logits that agree to about 1e-6: within 1e-5.
"""

from __future__ import annotations

import json
import random
import warnings

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from checkpoints import TOKENIZERS, write_task
from commands import run_job, run_script
from online_service import post, serving
from predictions import PIECES, assert_close, random_texts

from pipelines import pipeline, processor
from pipelines.dataset import stages
from pipelines.raydata.actor import Predict
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

TAGGER = "ModernBertForTokenClassification"
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
PARTS = [piece for piece in PIECES if "[" not in piece]
FIRSTS = [*random_texts(51, 8, 1, 40, PARTS), "the cat"]
SECONDS = [*random_texts(52, 8, 1, 90, PARTS), "sat"]
PAIRS = list(zip(FIRSTS, SECONDS, strict=True))


def random_words(seed: int, count: int, longest: int = 30) -> list[list[str]]:
    """Lists of words of some pieces; some words have none, and so no token."""
    dice = random.Random(seed)
    lists = []
    for _ in range(count):
        words = dice.randint(1, longest)
        lists.append(["".join(dice.choices(PIECES, k=dice.randint(0, 5))) for _ in range(words)])
    return lists


class Oracle:
    """A checkpoint as transformers runs it."""

    def __init__(self, folder):
        self.pipeline = transformers.pipeline("token-classification", model=str(folder))
        self.tokenizer = self.pipeline.tokenizer
        self.labels = self.pipeline.model.config.id2label

    def windows(self, *texts, **options):
        """The encoding of a document, the ids of each of its windows, and their logits."""
        encoding = self.tokenizer(*texts, return_offsets_mapping=True, **options)
        rows = encoding["input_ids"]
        if not options.get("return_overflowing_tokens"):
            rows = [rows]
            encoding["offset_mapping"] = [encoding["offset_mapping"]]
        with torch.no_grad():
            logits = [self.pipeline.model(input_ids=torch.tensor([row])).logits for row in rows]
        return encoding, rows, logits

    def entities(self, first, second, strategy, **options):
        """What its pipeline makes of the logits of a pair where it takes the first text for special tokens."""
        encoding, rows, logits = self.windows(first, second, **options)
        outputs = []
        for i, row in enumerate(rows):
            sequences = encoding.sequence_ids(i)
            outputs.append({
                "logits": logits[i],
                "sentence": second,
                "input_ids": torch.tensor([row]),
                "offset_mapping": torch.tensor([encoding["offset_mapping"][i]]),
                "special_tokens_mask": torch.tensor([[int(each != 1) for each in sequences]]),
            })  # fmt: skip
        with warnings.catch_warnings(action="ignore"):
            strategy = transformers.pipelines.token_classification.AggregationStrategy(strategy)
            return self.pipeline.postprocess(outputs, strategy)

    def word_labels(self, words, **options):
        """The label and the probability of each word by its first token, with the most context where it is in several
        windows.
        """
        encoding, rows, logits = self.windows(words, is_split_into_words=True, **options)
        best: dict[int, tuple[int, str, float]] = {}
        seen: dict[
            int, tuple[int, int]
        ] = {}  # of a word, the window that has its first token first, and where
        step = len(rows[0]) - 2 - options.get("stride", 0)
        for window, row in enumerate(rows):
            before = None
            for i, word in enumerate(encoding.word_ids(window)):
                is_first = word is not None and word != before
                before = word
                place = window * step + i
                if not is_first or seen.setdefault(word, place) != place:
                    continue
                context = min(i, len(row) - 1 - i)
                scores = logits[window][0, i].softmax(-1)
                if word not in best or context > best[word][0]:
                    best[word] = (context, self.labels[int(scores.argmax())], float(scores.max()))
        none = (None, None, None)
        return [
            {"entity": label, "score": score, "index": index, "word": word}
            for index, word in enumerate(words)
            for _, label, score in [best.get(index, none)]
        ]


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request, tmp_path_factory):
    return write_task(
        tmp_path_factory.mktemp("tagger"), TAGGER, labels=BIO, tokenizer=request.param
    )


@pytest.fixture(scope="module")
def oracle(folder):
    return Oracle(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return pipeline("token-classification", str(folder))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_of_pairs(oracle, ours, strategy):
    want = [oracle.entities(*pair, strategy) for pair in PAIRS]
    got = ours(PAIRS, aggregation_strategy=strategy)
    assert_close(got, want)
    assert any(got)
    as_dictionary = {"text": FIRSTS[0], "text_pair": SECONDS[0]}
    assert ours(as_dictionary, aggregation_strategy=strategy) == got[0]


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_long_pairs_in_windows(oracle, ours, strategy):
    """Each window has the whole first text, and a stretch of the second one."""
    pairs = [(first[:20], second * 3) for first, second in PAIRS]
    windows = {"max_length": 120, "stride": 16}
    encoded = {"truncation": "only_second", "return_overflowing_tokens": True, **windows}
    want = [oracle.entities(*pair, strategy, **encoded) for pair in pairs]
    assert_close(ours(pairs, aggregation_strategy=strategy, **windows), want)
    too_long = [("the cat " * 60, "sat")]
    with pytest.raises(ValueError, match="input 0: too long for overlapping windows: its first"):
        ours(too_long, **windows)
    cut = {"truncation": True, "max_length": 120}
    want = [oracle.entities(*pair, strategy, **cut) for pair in too_long]
    assert_close(ours(too_long, aggregation_strategy=strategy, **cut), want)


def test_lettuce_detect(tmp_path, folder):
    """Its spans are runs of tokens of the answer with label 1; its confidence is that of the surest token."""
    tokenizer = folder / "tokenizer.json"
    model = write_task(tmp_path, TAGGER, num_labels=2)
    for name in (tokenizer.name, "tokenizer_config.json"):
        (model / name).write_bytes((folder / name).read_bytes())
    oracle = Oracle(model)
    ours = pipeline("tag", str(model), ignore_labels=["LABEL_0"])
    for prompt, answer in PAIRS:
        encoding, _, (logits,) = oracle.windows(prompt, answer)
        spans: list[dict[str, object]] = []
        goes_on = False
        for token, sequence in enumerate(encoding.sequence_ids()):
            start, end = encoding["offset_mapping"][0][token]
            if sequence != 1 or start == end:
                continue
            supported, unsupported = logits[0, token].softmax(-1).tolist()
            if unsupported > supported and not goes_on:
                spans.append({"start": start, "end": end, "confidence": unsupported})
            elif unsupported > supported:
                confidence = max(spans[-1]["confidence"], unsupported)
                spans[-1] |= {"end": end, "confidence": confidence}
            goes_on = unsupported > supported
        confidences: list[float] = []
        last = None
        for token in ours([(prompt, answer)])[0]:
            if last is None or token["index"] > last + 1:
                confidences.append(0.0)
            confidences[-1] = max(confidences[-1], token["score"])
            last = token["index"]
        entities = ours([(prompt, answer)], aggregation="simple")[0]
        found = [
            {"start": entity["start"], "end": entity["end"], "confidence": confidence}
            for entity, confidence in zip(entities, confidences, strict=True)
        ]
        assert_close(found, spans)


def test_labels_of_words(oracle, ours):
    lists = random_words(53, 12)
    want = [oracle.word_labels(words) for words in lists]
    got = ours(lists, is_split_into_words=True)
    assert_close(got, want)
    assert any(label["entity"] is None for labels in got for label in labels)
    assert ours(lists[0], is_split_into_words=True) == got[0]
    assert list(ours(iter(lists), is_split_into_words=True)) == got


@pytest.mark.parametrize("stride", [None, 5])
def test_long_lists_of_words(oracle, ours, stride):
    """They are cut off, and words without a token have no label; or they are read in windows."""
    lists = random_words(54, 6, 60)
    if stride is None:
        options = {"truncation": True, "max_length": 30}
        want = [oracle.word_labels(words, **options) for words in lists]
    else:
        options = {"max_length": 30, "stride": stride}
        encoded = {"truncation": True, "return_overflowing_tokens": True, **options}
        want = [oracle.word_labels(words, **encoded) for words in lists]
    assert_close(ours(lists, is_split_into_words=True, **options), want)


def answers_of_step(processor, table):
    """What a step of a Dataset gives for a table, without Ray."""
    step = processor.step
    return stages.answer(step, Predict(step.run)(stages.tokenise(step, table)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("model"), TAGGER, labels=BIO)


@pytest.fixture(scope="module")
def url(model):
    models = LocalModelClient(
        served_models([{"name": "tagger", "task": "tag", "model": str(model)}])
    )
    with serving(models) as url:
        yield url
    models.close()


def online(url, inputs, **parameters):
    answer = post("/models/tagger", {"inputs": inputs, "parameters": parameters}, url)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_pairs_in_all_faces(model, url, tmp_path, in_process):
    seconds = [*SECONDS, None, " "]
    table = pa.table({"id": range(11), "text": [*FIRSTS, "a", "b"], "other": seconds})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)
    options = {"input": tmp_path / "in.parquet", "model": model, "text_pair_column": "other"}
    assert run_job("tag", output=tmp_path / "out", **options) == 0
    rows = ds.dataset(tmp_path / "out").to_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(9))
    rejected = pq.read_table(tmp_path / "out" / "_rejected").to_pylist()
    assert [row["_reason"] for row in rejected] == ["text_pair is null", "text_pair is empty"]

    entities = [row["entities"] for row in rows]
    for row in rows:
        assert [each["text"] for each in row["entities"]] == [
            row["other"][each["start"] : each["end"]] for each in row["entities"]
        ]
    step = processor("tag", str(model), "text", "other")
    answered = answers_of_step(step, table)
    assert answered["entities"].to_pylist() == [*entities, None, None]

    names = {"label": "entity_group", "score": "score", "start": "start", "end": "end"}
    want = [[{names[key]: each[key] for key in names} for each in found] for found in entities]
    in_memory = pipeline("tag", str(model), aggregation="simple")(PAIRS)
    pairs = [{"text": first, "text_pair": second} for first, second in PAIRS]
    over_http = online(url, pairs, aggregation_strategy="simple")
    assert online(url, pairs[0], aggregation_strategy="simple") == over_http[0]
    assert_close(over_http, in_memory, 1e-7)
    for found in (in_memory, over_http):
        for each in (each for entities in found for each in entities):
            del each["word"]
        assert_close(found, want, 1e-7)


def test_words_in_all_faces(model, url, tmp_path, in_process):
    lists = random_words(55, 8)
    odd = [*lists, None, ["a", None], []]
    table = pa.table({"id": range(11), "tokens": pa.array(odd, pa.list_(pa.string()))})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=4)
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    options = {"model": model, "text_column": "tokens", "is_split_into_words": True}
    for name in ("in.parquet", "in.jsonl"):
        output = tmp_path / f"out of {name}"
        assert run_job("tag", input=tmp_path / name, output=output, **options) == 0
        rows = ds.dataset(output).to_table().sort_by("id").to_pylist()
        rejected = pq.read_table(output / "_rejected").to_pylist()
        reasons = ["text is null", "text holds a null", "text is empty"]
        assert [row["_reason"] for row in rejected] == reasons
        assert [row["tokens"] for row in rows] == lists
    labels = [row["labels"] for row in rows]
    scores = [row["scores"] for row in rows]
    assert [len(each) for each in labels] == [len(words) for words in lists]

    step = processor("tag", str(model), "tokens", is_split_into_words=True)
    answered = answers_of_step(step, table)
    assert answered["labels"].to_pylist() == [*labels, None, None, None]
    assert answered["scores"].to_pylist() == [*scores, None, None, None]
    in_memory = pipeline("tag", str(model), is_split_into_words=True)(lists)
    over_http = online(url, lists, is_split_into_words=True)
    filled = [[word or "a" for word in lists[0]]]
    want = online(url, filled, is_split_into_words=True)
    assert online(url, filled[0], is_split_into_words=True) == want[0]
    for found in (in_memory, over_http):
        assert [[each["entity"] for each in words] for words in found] == labels
        assert_close([[each["score"] for each in words] for words in found], scores, 1e-7)


def test_a_dry_run_reads_words_of_files_that_are_not_staged(model, tmp_path, in_process):
    (tmp_path / "in.jsonl").write_text('{"tokens": ["the", "cat"]}\n{"tokens": ["sat"]}\n')
    flags = ["--text-column", "tokens", "--is-split-into-words", "--dry-run"]
    files = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--model", model]
    done = run_script("jobs/tag_corpus.py", *files, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from a sample of 2 rows (0 of them truncated, 0 rejected)" in done.stdout


def test_texts_where_words_are_wanted_and_words_where_texts_are(model, url, tmp_path, in_process):
    table = pa.table({"text": ["the cat"], "tokens": [["the", "cat"]], "other": ["a"]})
    pq.write_table(table, tmp_path / "in.parquet")
    options = {"input": tmp_path / "in.parquet", "model": model, "output": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"column 'text' holds string, not lists of words \(see"):
        run_job("tag", is_split_into_words=True, **options)
    with pytest.raises(ValueError, match=r"column 'tokens' holds list<.*>, not text \(see"):
        run_job("tag", text_column="tokens", **options)
    with pytest.raises(ValueError, match="which have no second text: leave text_pair_column out"):
        run_job("tag", is_split_into_words=True, text_pair_column="other", **options)
    step = processor("tag", str(model), "text", is_split_into_words=True)
    with pytest.raises(ValueError, match="column 'text' holds string, not lists of words"):
        answers_of_step(step, table)
    words = {"is_split_into_words": True}
    for inputs, parameters, reason in (
        ([["the", "cat"]], {}, "input 0 is a list of words, which tag does not take without"),
        ([["the"], "cat"], words, "input 1 is no list of words, which tag takes with"),
        ("the cat", words, "input 0 is no list of words, which tag takes with"),
        ([[""] * 100_001] * 4, words, "inputs hold 400,004 words; a request may hold 400,000"),
    ):
        refused = post("/models/tagger", {"inputs": inputs, "parameters": parameters}, url)
        assert 400 <= refused.status_code < 500
        assert reason in refused.json()["error"]


def test_another_output_is_not_gone_on_with(model, tmp_path, in_process):
    """Entities and labels of words have other columns: the fingerprint tells them apart."""
    table = pa.table({"text": ["the cat"], "tokens": [["the", "cat"]]})
    pq.write_table(table, tmp_path / "in.parquet")
    options = {"input": tmp_path / "in.parquet", "model": model, "output": tmp_path / "out"}
    assert run_job("tag", **options) == 0
    with pytest.raises(ValueError, match="is_split_into_words None, not True"):
        run_job("tag", text_column="tokens", is_split_into_words=True, **options)
