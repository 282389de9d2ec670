"""Several models over one reading: what each of them answers alone, and an encoder that runs once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import write_checkpoint, write_multi_vector, write_tokenizer
from commands import LocalDataset
from safetensors.torch import load_file, save_file

from modernbert import int8
from modernbert.model import ModernBertModel
from modernbert.sharing import share_encoder
from pipelines import pipeline, processor, run_corpus
from pipelines.tasks.several import Several

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
}
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NLI = ["contradiction", "neutral", "entailment"]
WORDS = ["the", "cat", "sat", "é", "👩‍👩‍👧", "\r\n", "中文", "[SEP]", "mat.", "(on)"]


def labels(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "topic": ("ModernBertForSequenceClassification", {"num_labels": 3}),
    "mood": (
        "ModernBertForSequenceClassification",
        {"num_labels": 2, "classifier_pooling": "mean"},
    ),
    "entities": ("ModernBertForTokenClassification", labels(BIO)),
    "nli": ("ModernBertForSequenceClassification", labels(NLI)),
    "vector": ("ModernBertModel", {}),
    "weights": ("ModernBertForMaskedLM", {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads on one frozen encoder, and two models of their own: another encoder, a multi-vector one."""
    root = tmp_path_factory.mktemp("models")
    encoder: dict[str, torch.Tensor] = {}
    for name, (architecture, settings) in HEADS.items():
        folder = root / name
        write_checkpoint(folder, architecture=architecture, heat=1.5, **SMALL, **settings)
        write_tokenizer(folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        prefix = "" if architecture == "ModernBertModel" else "model."
        for key in [key for key in weights if key.startswith(prefix)]:
            inner = key.removeprefix(prefix)
            if prefix or "." in key:
                weights[key] = encoder.setdefault(inner, weights[key]).clone()
        save_file(weights, file, {"format": "pt"})
    write_checkpoint(root / "other", architecture=HEADS["topic"][0], heat=2.0, **SMALL)
    write_tokenizer(root / "other", text="quite another text of which the tokens are others")
    write_multi_vector(root / "written").rename(root / "colbert")
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dice = np.random.default_rng(3)
    texts: list[str | None] = [
        " ".join(dice.choice(WORDS, size=n)) for n in dice.integers(1, 120, 40)
    ]
    texts[4], texts[5], texts[6] = None, " ", "the cat sat on the mat and " * 300
    file = tmp_path_factory.mktemp("corpus") / "in.parquet"
    pq.write_table(pa.table({"id": range(40), "text": texts}), file, row_group_size=15)
    return file


ENTRIES: list[dict[str, Any]] = [
    {"model": "topic", "task": "classify", "top_k": 2},
    {"model": "mood", "task": "text-classification"},
    {"model": "entities", "task": "tag", "aggregation": "first", "long_documents": "truncate"},
    {"model": "entities", "task": "tag", "prefix": "windows_"},
    {"model": "nli", "task": "zero_shot", "labels": ["cat", "politics"], "multi_label": True},
    {"model": "vector", "task": "embed", "normalize": True},
    {"model": "vector", "task": "embed", "prefix": "asked_", "prompt": "query: "},
    {"model": "weights", "task": "sparse", "top_k": 9},
    {"model": "other", "task": "classify", "max_length": 40},
    {"model": "colbert", "task": "multi_vector"},
]


def entries_in(models: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries with the folders of their models, where they name one."""
    return [e | {"model": str(models / e["model"])} if "model" in e else e for e in entries]


def rows_of(output: Path) -> dict[int, dict[str, Any]]:
    table = ds.dataset(output, exclude_invalid_files=True).to_table()
    return {row["id"]: row for row in table.to_pylist()}


def rejects_of(output: Path) -> dict[int, str]:
    table = ds.dataset(output / "_rejected").to_table()
    return dict(zip(table["id"].to_pylist(), table["_reason"].to_pylist(), strict=True))


def test_each_model_answers_as_alone(models, corpus, tmp_path, in_process):
    """The oracle is a job of each model with the same prefix: all its columns are equal to the last bit."""
    entries = entries_in(models, ENTRIES)
    options = {"input": str(corpus), "max_length": 64}
    together = run_corpus("several", models=entries, output=str(tmp_path / "all"), **options)
    assert together.outcome == "complete"
    rows = rows_of(tmp_path / "all")
    columns = set(next(iter(rows.values()))) - {"id", "text"}
    assert len(rows) == 38

    counts: Counter[str] = Counter()
    for number, entry in enumerate(entries):
        alone = dict(entry)
        prefix = alone.pop("prefix", f"{Path(alone['model']).name}_")
        output = tmp_path / str(number)
        named = options | alone | {"output": str(output), "output_prefix": prefix}
        assert run_corpus(named.pop("task"), **named).outcome == "complete"
        expected = rows_of(output)
        own = [name for name in columns if name.startswith(prefix)]
        assert {name for name in next(iter(expected.values())) if name.startswith(prefix)} == set(
            own
        )
        for id_, row in expected.items():
            assert {name: row[name] for name in own} == {name: rows[id_][name] for name in own}
        columns -= set(own)
        assert rejects_of(output) == rejects_of(tmp_path / "all")
        labels_alone = json.loads((output / "_run.json").read_text())["totals"]["labels"]
        counts |= Counter({f"{prefix}{label}": n for label, n in labels_alone.items()})
    assert not columns  # each is one model's
    totals = json.loads((tmp_path / "all" / "_run.json").read_text())["totals"]
    assert totals["labels"] == counts
    assert (totals["labelled"], totals["rejected"]) == (38, 2)


def test_an_encoder_runs_once_for_the_heads_that_share_it(models, monkeypatch):
    """Batches are counted in the layers: as many for six heads as for one, twice with another encoder."""
    computed: list[int] = []
    run_layers = ModernBertModel.run_layers

    def counted(self, batch, *more):
        computed.append(id(self))
        return run_layers(self, batch, *more)

    texts = ["the cat", "the cat sat on the mat", "é"]
    shared = ENTRIES[:3]
    with monkeypatch.context() as patch:
        patch.setattr(ModernBertModel, "run_layers", counted)
        pipe = pipeline("several", models=entries_in(models, shared), max_length=64)
        computed.clear()
        together = pipe(texts)
        assert len(computed) == 1
        pipe = pipeline("several", models=entries_in(models, [*shared, ENTRIES[8]]), max_length=64)
        assert len(pipe.predictor.encoders) == 2
        computed.clear()
        pipe(texts)
        assert len(computed) == len(set(computed)) == 2
    alone = pipeline("tag", str(models / "entities"), aggregation="first", max_length=64)(texts)
    assert [result["entities_"] for result in together] == alone


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_shared_encoders_in_other_dtypes(dtype, models):
    """What is quantised or reordered once answers as each model does alone."""
    if dtype == "int8" and int8.why_unsupported():
        pytest.skip(f"no int8 here: {int8.why_unsupported()}")
    texts = ["the cat", "the cat sat on the mat", "é"]
    entries = entries_in(models, ENTRIES[:3])
    together = pipeline("several", models=entries, dtype=dtype, max_length=64)(texts)
    for name, task, options in (
        ("mood", "classify", {}),
        ("entities", "tag", {"aggregation": "first"}),
    ):
        pipe = pipeline(task, str(models / name), dtype=dtype, max_length=64, **options)
        alone = pipe.task_cls.results(pipe.task({}), pipe.predictor.answer(texts)[0])
        assert [result[f"{name}_"] for result in together] == alone


def test_only_equal_encoders_are_shared(models):
    """A weight, a setting of the encoder, or a dtype that differs keeps them apart; a head's does not."""
    from modernbert.heads import ModernBertForSequenceClassification as Classifier

    folder = models / "topic"

    def load(**settings: Any) -> Classifier:
        return Classifier.from_pretrained(folder, **settings)

    first = load()
    assert share_encoder(load(), [first])
    assert first.model.is_shared
    assert share_encoder(load(classifier_pooling="mean"), [first])
    assert not share_encoder(load(local_attention=64), [first])
    assert not share_encoder(load(norm_eps=1e-6), [first])
    assert not share_encoder(load(dtype=torch.bfloat16), [first])
    other = load()
    with torch.no_grad():
        other.model.layers[1].mlp.Wo.weight[0, 0] += 1e-6
    assert not share_encoder(other, [first])
    third = load()
    assert share_encoder(third, [other, first])
    assert third.model is first.model


def test_a_dataset_has_the_same_answers(models, corpus, tmp_path, in_process):
    entries = entries_in(models, [ENTRIES[0], ENTRIES[2], ENTRIES[7]])
    run_corpus("several", models=entries, input=str(corpus), output=str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    step = processor("several", models=entries)
    table = pq.read_table(corpus)
    answered = step(LocalDataset(table)).table.to_pylist()
    assert len(answered) == 40
    for row in answered:
        if row["id"] in rows:
            assert row == rows[row["id"]] | {"error": None}
        else:
            assert row["error"]
            assert row["topic_label"] is None


def test_a_row_that_one_model_cannot_answer_is_rejected_once(
    models, tmp_path, in_process, monkeypatch
):
    """A model that gives no number for some texts, and another tokenizer that refuses others."""
    texts = ["the cat", "broken", "the mat"]
    pq.write_table(pa.table({"id": range(3), "text": texts}), tmp_path / "in.parquet")
    entries = entries_in(models, [ENTRIES[0], ENTRIES[8]])
    encode = Several.encode

    def refusing(self, tokenizer, documents):
        windows = encode(self, tokenizer, documents)
        for place, text in enumerate(documents):
            if text == "broken":  # by both readings
                windows.rejected[place] = "first"
                windows.rejected[place + len(documents)] = "second"
        return windows

    monkeypatch.setattr(Several, "encode", refusing)
    options = {"input": str(tmp_path / "in.parquet"), "output": str(tmp_path / "out")}
    assert run_corpus("several", models=entries, **options).rejected == 1
    assert sorted(rows_of(tmp_path / "out")) == [0, 2]
    assert rejects_of(tmp_path / "out") == {1: "first"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "models is missing"),
        ([{"task": "classify"}], r"models\[0\]: model is missing"),
        ([{"model": "topic"}], r"models\[0\]: task is missing"),
        ([{"model": "topic", "task": "answer"}], "does not read a text alone"),
        ([{"model": "topic", "task": "several"}], "does not read a text alone"),
        (
            [{"model": "topic", "task": "classify", "tpo_k": 2}],
            "tpo_k is not an option of classify",
        ),
        ([{"model": "topic", "task": "classify"}] * 2, r"models\[1\]: prefix 'topic_' is that of"),
        ([{"model": "topic", "task": "tag"}], "topic_: model .* fits classify"),
        ([{"model": "vector", "task": "embed", "chunk_tokens": 9}], "chunk_tokens is for a model"),
    ],
)
def test_mistakes_are_named_before_work(entries, message, models, corpus, tmp_path):
    options = {"input": str(corpus), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=message):
        run_corpus(
            "several",
            models=entries_in(models, entries),
            **options,
        )
    assert not (tmp_path / "out").exists()
