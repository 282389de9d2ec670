"""Tasks whose documents may have a second text: the job, the step of a Dataset and memory agree, and so do oracles."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import transformers
from checkpoints import write_task
from commands import LocalDataset, run_job
from predictions import assert_close, random_texts

from pipelines import pipeline, processor

CLASSIFIER = "ModernBertForSequenceClassification"
NULL, EMPTY = 3, 5


def answers_of(step, file):
    """The rows that a step gives for a file, by their id; test_task_jobs.py has steps of two columns on Ray."""
    rows = step(LocalDataset(pq.read_table(file))).table.to_pylist()
    return {row["id"]: row for row in rows}


def test_classify_labels_pairs(local_ray, in_process, tmp_path):
    """Within 1e-5 of transformers, and of a text alone; a row without a second text is rejected."""
    model = write_task(tmp_path / "model", CLASSIFIER, num_labels=3)
    first, second = random_texts(11, 12, 5, 60), [*random_texts(12, 12, 5, 60)]
    second[NULL], second[EMPTY] = None, " "
    file = tmp_path / "in.parquet"
    pq.write_table(
        pa.table({"id": range(12), "text": first, "other": second}), file, row_group_size=5
    )
    columns = {"text_pair_column": "other", "max_length": 40}
    assert (
        run_job("classify", input=file, model=model, output=tmp_path / "out", top_k=3, **columns)
        == 0
    )
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    rejected = pq.read_table(tmp_path / "out" / "_rejected").to_pylist()
    assert {row["id"]: row["_reason"] for row in rejected} == {
        NULL: "text_pair is null",
        EMPTY: "text_pair is empty",
    }
    assert [row["id"] for row in rows] == [i for i in range(12) if i not in (NULL, EMPTY)]
    got = [
        [
            {"label": label, "score": score}
            for label, score in zip(row["labels"], row["scores"], strict=True)
        ]
        for row in rows
    ]
    pairs = [{"text": row["text"], "text_pair": row["other"]} for row in rows]
    theirs = transformers.pipeline("text-classification", model=str(model))
    assert_close(got, theirs(pairs, truncation=True, max_length=40, top_k=None))
    ours = pipeline("classify", str(model), max_length=40, top_k=None)
    assert_close(got, ours(pairs))
    assert_close(ours([(pair["text"], pair["text_pair"]) for pair in pairs]), ours(pairs))
    answered = answers_of(processor("classify", str(model), "text", "other", max_length=40), file)
    assert [answered[row["id"]]["score"] for row in rows] == [row["score"] for row in rows]
    assert answered[NULL]["error"] == "text_pair is null"
    with pytest.raises(ValueError, match="classify takes 1 or 2 columns of texts, not 3"):
        processor("classify", str(model), "text", "other", "id")
    with pytest.raises(
        ValueError, match=r"input has no column 'second'; .* \(see --text-pair-column\)"
    ):
        run_job(
            "classify", input=file, model=model, output=tmp_path / "no", text_pair_column="second"
        )


@pytest.mark.slow
def test_zero_shot_by_labels_of_all_rows_and_of_each(local_ray, in_process, tmp_path):
    """Columns are what transformers says with the same labels, within 1e-5; a step of a Dataset gives the same bits."""
    model = write_task(
        tmp_path / "model", CLASSIFIER, labels=["contradiction", "neutral", "entailment"]
    )
    theirs = transformers.pipeline("zero-shot-classification", model=str(model))
    texts, some = random_texts(13, 8, 5, 60), ["cat", "the mat, or é", "politics"]
    own = [some[: 1 + i % 3] for i in range(8)]
    own[NULL], own[EMPTY] = None, []
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(8), "text": texts, "own": own}), file, row_group_size=5)
    options = {"input": file, "model": model, "hypothesis_template": "It is about {}."}
    (tmp_path / "labels").write_text("\n".join(some))
    assert (
        run_job(
            "zero_shot",
            output=tmp_path / "all",
            labels_file=str(tmp_path / "labels"),
            top_k=2,
            **options,
        )
        == 0
    )
    for row in ds.dataset(tmp_path / "all").to_table().to_pylist():
        want = theirs(row["text"], some, hypothesis_template="It is about {}.")
        assert_close([row["labels"], row["scores"]], [want["labels"][:2], want["scores"][:2]])
        assert_close([row["label"], row["score"]], [want["labels"][0], want["scores"][0]])
        assert row["n_windows"] == 3
    assert run_job("zero_shot", output=tmp_path / "own", labels_column="own", **options) == 0
    rows = ds.dataset(tmp_path / "own").to_table().to_pylist()
    rejected = pq.read_table(tmp_path / "own" / "_rejected").to_pylist()
    assert {row["id"]: row["_reason"] for row in rejected} == {
        NULL: "labels is null",
        EMPTY: "labels is empty",
    }
    for row in rows:
        want = theirs(row["text"], row["own"], hypothesis_template="It is about {}.")
        assert_close([row["labels"], row["scores"]], [want["labels"], want["scores"]])
    step = processor("zero_shot", str(model), "text", "own", hypothesis_template="It is about {}.")
    answered = answers_of(step, file)
    assert [answered[row["id"]]["scores"] for row in rows] == [row["scores"] for row in rows]
    with pytest.raises(
        ValueError,
        match="labels come from labels, labels_file or labels_column; none of them is given",
    ):
        run_job("zero_shot", output=tmp_path / "no", **options)
    with pytest.raises(ValueError, match="labels and labels_column are given: give one"):
        run_job("zero_shot", output=tmp_path / "no", labels=["a"], labels_column="own", **options)
    with pytest.raises(ValueError, match=r"labels_file .* cannot be read"):
        run_job("zero_shot", output=tmp_path / "no", labels_file="nowhere", **options)
