"""Vectors of chunks equal sentence-transformers' of their texts, or late: hidden states of transformers, pooled."""

from __future__ import annotations

from itertools import pairwise

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import TOKENIZERS, write_task
from commands import LocalDataset
from online_service import serving
from predictions import random_texts
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from modernbert.text.chunks import ID_BITS, encode_late_chunks, late_chunks
from modernbert.text.sentences import Chunking
from modernbert.text.tokenizer import Tokenizer
from pipelines import pipeline, processor, run_corpus
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

PIECES = [*"abct", " the", " cat", " sat", ". ", "! ", "? ", "\n\n", "é", "。", " The", '." ', " é"]
TEXTS = ["the cat", *random_texts(3, 4, 40, 200, PIECES)]
PROMPT = "The cat: "


@pytest.fixture(scope="module", params=TOKENIZERS)
def styled(request, tmp_path_factory):
    """A checkpoint with the tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_task(folder, "ModernBertModel", tokenizer=request.param)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("checkpoint"), "ModernBertModel")


def write_stack(folder, encoder, pooling, include_prompt=True):
    """A sentence-transformers model with a prompt and a dense layer behind its pooling."""
    torch.manual_seed(0)
    modules = [
        Transformer(str(encoder)),
        Pooling(64, pooling, include_prompt=include_prompt),
        Dense(64, 32, activation_function=torch.nn.Tanh()),
        Normalize(),
    ]
    prompts = {"prompts": {"p": PROMPT}, "default_prompt_name": "p"}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def assert_same(got, want):
    got, want = np.array(got), np.array(want)
    assert got.shape == want.shape
    assert (np.linalg.norm(got - want, axis=1) <= 1e-5 * np.linalg.norm(want, axis=1)).all()


def check_chunks(ours, theirs, **options):
    """Each vector is that of the chunk's text."""
    results = ours(TEXTS, chunk_tokens=30, **options)
    assert max(map(len, results)) > 3
    for text, chunks in zip(TEXTS, results, strict=True):
        pieces = [text[chunk["start"] : chunk["end"]] for chunk in chunks]
        assert_same([chunk["embedding"] for chunk in chunks], theirs.encode(pieces))
    return results


POOLED = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "lasttoken": lambda x: x[-1],
    "weightedmean": lambda x: (
        (x * torch.arange(1, len(x) + 1)[:, None]).sum(0) / sum(range(1, len(x) + 1))
    ),
}


def check_late(ours, theirs, pooling, prompt):
    """Each vector is that of the chunk's tokens in the whole text, through the layers behind the pooling."""
    transformer, *_ = theirs
    tokenizer = transformer.tokenizer
    results = ours(TEXTS, chunk_tokens=30, chunk_overlap=8, late=True)
    for text, chunks in zip(TEXTS, results, strict=True):
        inputs = tokenizer(prompt + text, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            hidden = transformer.model(**inputs).last_hidden_state[0]
        rows = []
        for chunk in chunks:
            start, end = chunk["start"] + len(prompt), chunk["end"] + len(prompt)
            # A token is in the chunk with its first character that is no space.
            own = []
            for i, (a, b) in enumerate(offsets):
                place = a + len((prompt + text)[a:b]) - len((prompt + text)[a:b].lstrip())
                if place < b and start <= place < end:
                    own.append(i)
            rows.append(POOLED[pooling](hidden[own[0] : own[-1] + 1]))
        vectors = {"sentence_embedding": torch.stack(rows)}
        for module in list(theirs)[2:]:
            vectors = module(vectors)
        assert_same(
            [chunk["embedding"] for chunk in chunks],
            vectors["sentence_embedding"].detach().numpy(),
        )


def test_each_kind_of_tokenizer(styled, tmp_path):
    theirs = write_stack(tmp_path, styled, "mean")
    ours = pipeline("sentence-embedding", str(tmp_path))
    apart = check_chunks(ours, theirs)
    check_late(ours, theirs, "mean", PROMPT)
    late = ours(TEXTS, chunk_tokens=30, late=True)
    places = [[(each["start"], each["end"]) for each in chunks] for chunks in apart]
    assert [[(each["start"], each["end"]) for each in chunks] for chunks in late] == places
    assert ours(TEXTS[1], chunk_tokens=30, late=True) == late[1]


@pytest.mark.parametrize("pooling", POOLED)
def test_each_pooling(encoder, tmp_path, pooling):
    theirs = write_stack(tmp_path, encoder, pooling, include_prompt=pooling == "max")
    ours = pipeline("sentence-embedding", str(tmp_path))
    check_chunks(ours, theirs, chunk_overlap=10)
    check_late(ours, theirs, pooling, PROMPT)


def test_pooling_by_cls_is_of_chunks_that_are_read_apart(encoder, tmp_path):
    theirs = write_stack(tmp_path, encoder, "cls")
    ours = pipeline("sentence-embedding", str(tmp_path))
    check_chunks(ours, theirs)
    with pytest.raises(ValueError, match=r"^late pools the tokens of a chunk.*give pooling mean"):
        ours("a", chunk_tokens=20, late=True)
    assert len(ours("a", chunk_tokens=20, late=True, pooling="mean")) == 1


def test_late_chunks_of_a_text_longer_than_a_window(encoder):
    """Each chunk is pooled from the hidden states of its window."""
    ours = pipeline("embed", str(encoder))
    theirs = SentenceTransformer(str(encoder), device="cpu")[0].model
    tokenizer = Tokenizer.from_folder(encoder)
    got = ours(TEXTS[1:], chunk_tokens=12, late=True, max_length=48, stride=16)
    chunking = Chunking(tokens=12, overlap=0, prompt="")
    windows = encode_late_chunks(tokenizer, TEXTS[1:], chunking, 48, 16)
    assert len(windows.document) > 2 * len(TEXTS)
    want = []
    for start, stop in pairwise(windows.cu_seqlens.tolist()):
        marked = windows.input_ids[start:stop]
        ids = torch.from_numpy(marked & ID_BITS)[None].long()
        with torch.inference_mode():
            hidden = theirs(input_ids=ids).last_hidden_state[0]
        want += [hidden[first:after].mean(0).numpy() for first, after in late_chunks(marked)]
    assert_same([chunk["embedding"] for chunks in got for chunk in chunks], want)


MISTAKES = {
    "late is for chunks: give chunk_tokens, too": {"late": True},
    "chunk_overlap 3 is for chunks: give chunk_tokens, too": {"chunk_overlap": 3},
    "chunk_overlap 6 may be at most half of chunk_tokens, 5": {
        "chunk_tokens": 10,
        "chunk_overlap": 6,
    },
    "stride 3 is for late; chunks share chunk_overlap tokens": {"chunk_tokens": 9, "stride": 3},
    "chunk_tokens 9000 is more than a window of max_length 8192 has room for: 8190 beside": {
        "chunk_tokens": 9000
    },
    "stride 24 may be at most 15, half of a window and what chunk_tokens 15 leaves of it": {
        "chunk_tokens": 15,
        "stride": 24,
        "late": True,
        "max_length": 32,
    },
}


@pytest.mark.parametrize(("message", "options"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes(encoder, message, options):
    with pytest.raises(ValueError, match=f"^{message}"):
        pipeline("embed", str(encoder), **options)


@pytest.mark.parametrize("late", [False, True])
def test_every_face(encoder, tmp_path, in_process, late):
    model = str(encoder)
    options = {"chunk_tokens": 30, "chunk_overlap": 8, "late": late, "normalize": True}
    want = [
        [chunk | {"embedding": np.float32(chunk["embedding"]).tolist()} for chunk in chunks]
        for chunks in pipeline("embed", model)(TEXTS, **options)
    ]
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, tmp_path / "in.parquet")
    paths = {"input": str(tmp_path / "in.parquet"), "output": str(tmp_path / "out")}
    summary = run_corpus("embed", **paths, model=model, **options)
    written = ds.dataset(tmp_path / "out").to_table()
    assert written["chunks"].to_pylist() == want
    assert written["n_tokens"].to_pylist() == [
        len(each) for each in SentenceTransformer(model, device="cpu").tokenizer(TEXTS).input_ids
    ]
    assert "chunks" in str(summary)

    step = processor("embed", model, device="cpu", **options)
    assert step(LocalDataset(table)).table["chunks"].to_pylist() == want

    models = LocalModelClient(served_models([{"name": "a", "task": "embed", "model": model}]))
    with serving(models) as url:
        for path in ("/embed", "/models/a"):
            reply = httpx.post(url + path, json={"inputs": TEXTS, **options})
            assert reply.json() == want
        body = {"inputs": TEXTS, "chunk_tokens": 4, "chunk_overlap": 3}
        reply = httpx.post(f"{url}/embed", json=body)
        assert reply.status_code == 422
        assert "chunk_overlap 3 may be at most half" in reply.json()["error"]
    models.close()


def test_a_served_model_has_no_chunks_of_its_own(encoder):
    with pytest.raises(ValueError, match="chunk_tokens is an option of requests to /embed"):
        served_models([{"name": "a", "task": "embed", "model": str(encoder), "chunk_tokens": 20}])


def test_a_row_per_chunk(encoder, tmp_path, in_process):
    """As jobs/README.md says."""
    duckdb = pytest.importorskip("duckdb")
    pq.write_table(pa.table({"id": [*"abcde"], "text": TEXTS}), tmp_path / "in.parquet")
    paths = {"input": str(tmp_path / "in.parquet"), "output": str(tmp_path / "vectors")}
    run_corpus("embed", **paths, model=str(encoder), chunk_tokens=30)
    table = ds.dataset(tmp_path / "vectors").to_table()
    want = [
        (row["id"], chunk["start"], chunk["end"], chunk["embedding"])
        for row in table.to_pylist()
        for chunk in row["chunks"]
    ]
    assert len(want) > len(TEXTS)
    files = tmp_path / "vectors" / "data" / "*.parquet"
    query = f"SELECT id, unnest(chunks, max_depth := 2) FROM '{files}'"
    rows = duckdb.sql(query).fetchall()
    assert [(a, b, c, list(d)) for a, b, c, d in rows] == want

    frame = pd.read_parquet(tmp_path / "vectors" / "data", columns=["id", "chunks"])
    rows = frame.explode("chunks", ignore_index=True)
    rows = rows.join(pd.json_normalize(rows.pop("chunks")))
    got = zip(rows["id"], rows["start"], rows["end"], map(list, rows["embedding"]), strict=True)
    assert list(got) == want
