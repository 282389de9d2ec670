"""Answers with the kinds of tokenizers that checkpoints of the family have equal those of transformers."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import transformers
from checkpoints import TOKENIZERS, write_task
from predictions import assert_close, random_texts
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from modernbert.text.tokenizer import Tokenizer
from pipelines import pipeline
from pipelines.checkpoints import Checkpoint

CLASSIFIER = "ModernBertForSequenceClassification"
TAGGER = "ModernBertForTokenClassification"
MASKED = "ModernBertForMaskedLM"
TEXTS = ["a", " the  cat ", "e\u0301 中文 👍🏽 the", *random_texts(5, 12)]


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder_of(request, tmp_path_factory):
    """The folder of a checkpoint with the tokenizer, written once for each class."""
    folders = {}

    def write(architecture, **config):
        if architecture not in folders:
            folder = tmp_path_factory.mktemp("checkpoint")
            write_task(folder, architecture, tokenizer=request.param, **config)
            folders[architecture] = str(folder)
        return folders[architecture]

    return write


def same(task, folder, *inputs, **options):
    with warnings.catch_warnings(action="ignore"):
        want = transformers.pipeline(task, model=folder)(*inputs, **options)
    assert_close(pipeline(task, folder)(*inputs, **options), want)
    return want


def test_ids(folder_of):
    folder = folder_of(CLASSIFIER, labels=[*"abc"])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(Path(folder))
    assert ours(TEXTS).input_ids == theirs(TEXTS).input_ids
    pairs = [(TEXTS[i], TEXTS[-i]) for i in range(len(TEXTS))]
    assert (
        ours(pairs, max_length=40).input_ids
        == theirs(pairs, max_length=40, truncation=True).input_ids
    )
    for ids in ours(TEXTS).input_ids:
        assert ours.decode(ids) == theirs.decode(ids)


def test_classification(folder_of):
    same("text-classification", folder_of(CLASSIFIER, labels=[*"abc"]), TEXTS, top_k=None)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(folder_of, strategy):
    folder = folder_of(TAGGER, labels=["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    assert any(same("ner", folder, TEXTS, aggregation_strategy=strategy))


def test_masks(folder_of):
    folder = folder_of(MASKED)
    mask = transformers.AutoTokenizer.from_pretrained(folder).mask_token
    same("fill-mask", folder, [f"the {mask} sat", f"{mask}cat"], top_k=3)


FEWER = 268
"""Embeddings of a model; the last merges of the byte-level tokenizer have larger ids."""


@pytest.fixture(scope="module")
def fewer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return str(write_task(folder, CLASSIFIER, vocab_size=FEWER, labels=[*"abc"]))


def test_texts_without_the_tokens_that_a_model_has_no_embeddings_for(fewer):
    same("text-classification", fewer, ["dog", "e\u0301 中文", "xyz 123"], top_k=None)
    with pytest.raises(ValueError, match=r"holds the token '.*', whose id is \d+: the model has"):
        pipeline("text-classification", fewer)(["dog", "the other"])


@pytest.mark.parametrize("stride", [None, 2])
def test_a_document_is_rejected_for_the_tokens_that_are_read(fewer, stride):
    texts = [*TEXTS, "the other cat", "dog", "dog " * 30 + "the other"]
    whole = Tokenizer.from_folder(Path(fewer)).encode(texts, None if stride else 40)
    want = set()
    for document, (start, stop) in enumerate(pairwise(whole.cu_seqlens.tolist())):
        if whole.input_ids[start:stop].max() >= FEWER:
            want.add(document)
    tokenizer = Checkpoint.open(fewer).tokenizer
    windows = tokenizer.encode(texts, 40, stride=stride)
    assert set(windows.rejected) == want
    assert (len(texts) - 1 in want) == (stride is not None)
    assert windows.input_ids.max() < FEWER
    crossed = tokenizer.encode_crossed(["dog", "the other", "dog"], [["a"], ["a"], ["there"]], 40)
    assert set(crossed.rejected) == {1, 2}
    assert crossed.document.tolist() == [0]


def test_a_special_token_without_an_embedding_is_an_error(tmp_path):
    folder = write_task(tmp_path, CLASSIFIER, vocab_size=FEWER, num_labels=2)
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens(["[END]"])
    fast.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", fast.token_to_id("[END]"))]
    )
    fast.save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"puts '\[END\]' around each text, whose id is"):
        pipeline("text-classification", str(folder))
