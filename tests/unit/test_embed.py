"""Token vectors to a document's: windows, dimensions, length, precision."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from predictions import described, predicted

from modernbert.encoders.sentence_config import SentenceConfig
from pipelines.options import EmbedOptions
from pipelines.tasks.embed import Embed

VECTORS = np.array([[3, 4, 0, -1], [0, 0, 0, 0], [-2, 0.5, 1, 8]], np.float32)
FLOAT = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
BITS = {"binary": pa.int8(), "ubinary": pa.uint8()}


def task(size=4, **options):
    return Embed.from_checkpoint(
        described(hidden_size=size, num_attention_heads=1), EmbedOptions.parse(options)
    )


def embeddings(values, made_of=None, **options):
    result = task(values.shape[1], **options)
    rows = result.decode(predicted(values, *(made_of or ())))
    assert rows.field("embedding").type == result.columns.field("embedding").type
    return np.array(rows.field("embedding").to_pylist())


def test_vectors_as_they_are():
    assert embeddings(VECTORS).tolist() == VECTORS.tolist()


def test_windows_count_by_their_tokens():
    got = embeddings(VECTORS, ([0, 0, 1], [30, 10, 7]))
    np.testing.assert_allclose(
        got, [(VECTORS[0] * 30 + VECTORS[1] * 10) / 40, VECTORS[2]], rtol=1e-6
    )
    got = embeddings(VECTORS, ([0, 0, 1], [30, 10, 7]), normalize=True)
    np.testing.assert_allclose(got[0], VECTORS[0] / np.linalg.norm(VECTORS[0]), rtol=1e-6)


def test_length_one_after_the_cut():
    got = embeddings(VECTORS, dimensions=2, normalize=True)
    np.testing.assert_allclose(
        got, [[0.6, 0.8], [0, 0], VECTORS[2, :2] / np.hypot(2, 0.5)], rtol=1e-6
    )


@pytest.mark.parametrize("precision", FLOAT)
def test_precisions(precision):
    column = task(precision=precision).columns.field("embedding").type
    assert column == pa.list_(FLOAT[precision], 4)
    want = {"int8": [[95, 127, 0, -32], [0, 0, 0, 0], [-32, 8, 16, 127]]}.get(
        precision, VECTORS.tolist()
    )
    assert embeddings(VECTORS, precision=precision).tolist() == want


@pytest.mark.parametrize("precision", BITS)
def test_bits(precision):
    """The sign of each number, the first in the highest bit; zero counts as negative."""
    values = np.tile(VECTORS, (1, 4))
    assert task(16, precision=precision).columns.field("embedding").type == pa.list_(
        BITS[precision], 2
    )
    want = np.array([[0b11001100] * 2, [0] * 2, [0b01110111] * 2]) - (
        128 if precision == "binary" else 0
    )
    assert embeddings(values, precision=precision).tolist() == want.tolist()
    assert embeddings(values, precision=precision, dimensions=8).tolist() == want[:, :1].tolist()


def test_results_are_plain_numbers():
    result = task(precision="int8", dimensions=2)
    assert result.results(predicted(VECTORS)) == [[95, 127], [0, 0], [-127, 32]]
    assert json.dumps(task(precision="float16").results(predicted(VECTORS)))
    assert task().results(predicted(np.empty((0, 4), np.float32))) == []


def with_prompts(tmp_path: Path, include_prompt: bool) -> SimpleNamespace:
    (tmp_path / "1_Pooling").mkdir()
    settings = {"pooling_mode": "cls", "embedding_dimension": 4, "include_prompt": include_prompt}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "Normalize")]
        )
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    named = {"prompts": {"query": "find: ", "none": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(named))
    checkpoint = described(hidden_size=4, num_attention_heads=1)
    checkpoint.folder = tmp_path
    checkpoint.tokenizer.encode = lambda texts: SimpleNamespace(n_tokens=[len(texts[0]) + 2])
    return checkpoint


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(tmp_path, include_prompt):
    checkpoint = with_prompts(tmp_path, include_prompt)
    assert SentenceConfig.from_folder(tmp_path).pooling == ("cls",)
    result = Embed.from_checkpoint(checkpoint, EmbedOptions())
    assert (result.prompt, result.prompt_tokens, result.normalize_first) == (
        "find: ",
        0 if include_prompt else 7,
        True,
    )
    assert Embed.from_checkpoint(checkpoint, EmbedOptions(prompt_name="none")).prompt_tokens == 0
    assert Embed.from_checkpoint(checkpoint, EmbedOptions(prompt="")).prompt == ""
    assert Embed.from_checkpoint(checkpoint, EmbedOptions(prompt="x ", pooling="mean")).pooling == (
        "mean",
    )
    if not include_prompt:
        assert Embed.from_checkpoint(checkpoint, EmbedOptions(max_length=8)).max_length == 8
        with pytest.raises(
            ValueError,
            match="has 7 tokens, which this model leaves out: max_length 7 leaves nothing",
        ):
            Embed.from_checkpoint(checkpoint, EmbedOptions(max_length=7))
    with pytest.raises(
        ValueError, match="prompt_name 'answer' is unknown; this model has query, none"
    ):
        Embed.from_checkpoint(checkpoint, EmbedOptions(prompt_name="answer"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions 0 must be at least 1"),
        ({"dimensions": 5}, "dimensions 5 must be from 1 to the model's 4"),
        (
            {"precision": "binary"},
            "precision binary packs eight dimensions in a byte; 4 is not a multiple",
        ),
        ({"prompt_name": "query"}, "prompt_name 'query' is unknown; this model has none"),
        (
            {"stride": 4},
            "stride 4 is for overlapping windows: long_documents must be windows, not truncate",
        ),
        (
            {"long_documents": "windows", "stride": 30, "max_length": 32},
            "stride 30 leaves nothing new in windows of",
        ),
        ({"max_length": 9000}, "max_length 9000 is above the model's 8192 positions"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)
