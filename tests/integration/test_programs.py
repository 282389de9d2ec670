"""The programs of docs/programs.md, on Ray; the one for GPUs runs in test_steps.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from checkpoints import write_task
from conftest import REPOSITORY, readme_block

from pipelines import pipeline

pytestmark = pytest.mark.slow
MODELS = REPOSITORY / "jobs/demo"
MESSAGES = MODELS / "messages.parquet"
HEAD = "ModernBertForSequenceClassification"


def run_program(name: str, folder: Path, **models: str) -> dict[str, Any]:
    """Run a program whose files are in a folder; return its names.

    Paths become absolute, since workers of a Ray that is joined are in a folder of their own. `models`: what stands in
    for those of the hub, by the last part of their names.
    """
    program = readme_block(name, "docs/programs.md").replace("jobs/demo/", f"{MODELS}/")
    program = re.sub(r'"(\w+(?:/|\.lance|\.jsonl))"', rf'"{folder}/\1"', program)
    for model, other in models.items():
        program = re.sub(rf'"[\w-]+/{model}"'.replace("_", "-"), repr(other), program)
    names: dict[str, Any] = {}
    exec(program, names)
    return names


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    """The texts of the demo's messages, None for those that hold none."""
    values = pq.read_table(MESSAGES)["text"].cast("binary").to_pylist()
    readable = [None if value is None else value.decode("utf-8", "replace") for value in values]
    return [
        text if text and not text.isspace() and "\ufffd" not in text else None for text in readable
    ]


@pytest.fixture(autouse=True)
def _on_the_shared_head(local_ray):
    """Programs join the Ray that this process has joined."""


def test_classify_and_filter(tmp_path, texts):
    run_program("classify-and-filter", tmp_path)
    got = ds.dataset(tmp_path / "sure").to_table()
    good = [text for text in texts if text is not None]
    want = [
        (text, answer["label"])
        for text, answer in zip(
            good, pipeline("classify", str(MODELS / "intent-classifier"))(good), strict=True
        )
        if answer["score"] > 0.5
    ]
    assert 0 < len(want) < len(good)
    assert sorted(zip(got["text"].to_pylist(), got["label"].to_pylist(), strict=True)) == sorted(
        want
    )
    assert got.column_names == ["text", "label", "score"]


def test_classify_then_embed_into_lance(tmp_path, texts):
    run_program("classify-then-embed", tmp_path)
    got = lance.dataset(tmp_path / "enriched.lance").to_table()
    assert [text is None for text in texts] == [e is not None for e in got["error"].to_pylist()]
    # A text that is not UTF-8 has no label, and can be read by what comes next.
    not_utf8 = "text is not valid UTF-8"
    assert not_utf8 in got["error"].to_pylist()
    assert got["vector_error"].to_pylist() == [
        None if error == not_utf8 else error for error in got["error"].to_pylist()
    ]
    good = [i for i, text in enumerate(texts) if text is not None]
    vectors = np.array([got["vector_embedding"][i].as_py() for i in good])
    want = pipeline("embed", str(MODELS / "sentence-encoder"), normalize=True)(
        [texts[i] for i in good]
    )
    np.testing.assert_allclose(vectors, want, atol=1e-6)


def test_stream(tmp_path, texts, capsys):
    found = run_program("stream", tmp_path)["found"]
    tagger = pipeline("tag", str(MODELS / "pii-tagger"), aggregation_strategy="simple")
    want: dict[str, int] = {}
    for entities in tagger([text for text in texts if text is not None]):
        for entity in entities:
            want[entity["entity_group"]] = want.get(entity["entity_group"], 0) + 1
    assert dict(found) == want != {}
    assert str(found) in capsys.readouterr().out


def test_renamed_columns(tmp_path):
    tickets = [
        {"id": i, "body": f"my parcel {i} came broken", "suggestion": f"send parcel {i} back"}
        for i in range(12)
    ]
    (tmp_path / "tickets.jsonl").write_text("\n".join(map(json.dumps, tickets)))
    nli = write_task(tmp_path / "nli", HEAD, labels=["contradiction", "neutral", "entailment"])
    cross = write_task(tmp_path / "cross", HEAD, num_labels=1)
    models = {"ModernBERT_base_nli": str(nli), "gte_reranker_modernbert_base": str(cross)}
    run_program("renamed-columns", tmp_path, **models)
    got = ds.dataset(tmp_path / "tickets").to_table().sort_by("id")
    bodies = [ticket["body"] for ticket in tickets]
    labels = ["billing", "delivery", "a broken product"]
    topics = pipeline("zero_shot", str(nli))(bodies, candidate_labels=labels)
    assert got["topic"].to_pylist() == [topic["labels"][0] for topic in topics]
    np.testing.assert_allclose(got["topic_score"], [topic["scores"][0] for topic in topics], 1e-5)
    score = pipeline("rerank", str(cross))
    scores = [score(each["body"], [each["suggestion"]])[0]["score"] for each in tickets]
    np.testing.assert_allclose(got["relevance"], scores, 1e-5)
    assert pc.all(got["topic_error"].is_null()).as_py()
    assert {"id", "body", "suggestion", "rerank_error", "n_tokens"} <= set(got.column_names)
