"""Tasks whose documents may have a second text: the job, the step of a Dataset and memory agree, and so do oracles."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import ray
import transformers
from checkpoints import write_task
from commands import run_job
from predictions import assert_close, random_texts

from pipelines import pipeline, processor

NULL, EMPTY = 3, 5


def answers_of(step, file):
    """The rows that a step of a Dataset gives for a file, by their id."""
    rows = step(ray.data.read_parquet(str(file))).take_all()
    return {row["id"]: row for row in rows}


def test_classify_labels_pairs(local_ray, tmp_path):
    """Within 1e-5 of transformers, and of a text alone; a row without a second text is rejected."""
    model = write_task(tmp_path / "model", "ModernBertForSequenceClassification", num_labels=3)
    first, second = random_texts(11, 12, 5, 60), [*random_texts(12, 12, 5, 60)]
    second[NULL], second[EMPTY] = None, " "
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(12), "text": first, "other": second}), file, row_group_size=5)
    columns = {"text_pair_column": "other", "max_length": 40}
    assert run_job("classify", input=file, model=model, output=tmp_path / "out", top_k=3, **columns) == 0
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    rejected = pq.read_table(tmp_path / "out" / "_rejected").to_pylist()
    assert {row["id"]: row["_reason"] for row in rejected} == {NULL: "text_pair is null", EMPTY: "text_pair is empty"}
    assert [row["id"] for row in rows] == [i for i in range(12) if i not in (NULL, EMPTY)]
    got = [
        [{"label": label, "score": score} for label, score in zip(row["labels"], row["scores"], strict=True)]
        for row in rows
    ]
    pairs = [{"text": row["text"], "text_pair": row["other"]} for row in rows]
    theirs = transformers.pipeline("text-classification", model=str(model))
    assert_close(got, theirs(pairs, truncation=True, max_length=40, top_k=None))
    ours = pipeline("classify", str(model), max_length=40, top_k=None)
    assert_close(got, ours(pairs))
    assert_close(ours([(pair["text"], pair["text_pair"]) for pair in pairs]), ours(pairs))
    answered = answers_of(processor("classify", str(model), "text", "other", max_length=40, actors=1), file)
    assert [answered[row["id"]]["score"] for row in rows] == [row["score"] for row in rows]
    assert answered[NULL]["error"] == "text_pair is null"
    with pytest.raises(ValueError, match="classify takes 1 or 2 columns of texts, not 3"):
        processor("classify", str(model), "text", "other", "id")
    with pytest.raises(ValueError, match=r"input has no column 'second'; .* \(see --text-pair-column\)"):
        run_job("classify", input=file, model=model, output=tmp_path / "no", text_pair_column="second")
