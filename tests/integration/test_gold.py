"""Jobs with gold: their figures are those of the answers in the output, whatever ended the runs; what gold must hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from checkpoints import SENTENCE, write_checkpoint, write_tokenizer
from commands import LocalDataset, run_job
from online_service import serving
from sklearn.metrics import accuracy_score, f1_score

from pipelines import pipeline, processor, run_corpus
from pipelines.corpus import stages
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

ROWS = 90
LABELS = [f"label-{i}" for i in range(5)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with gold in forms of every kind; a few rows are rejected."""
    dice = np.random.default_rng(1)
    texts = [" ".join(dice.choice(SENTENCE.split(), size=n)) for n in dice.integers(1, 30, ROWS)]
    gold: list[str | None] = [str(dice.choice(LABELS)) for _ in range(ROWS)]
    texts[3], gold[5], gold[6], gold[7] = " ", None, "Label-1", ""
    columns = {
        "text": texts,
        "label": gold,
        "id": pa.array([LABELS.index(g) if g in LABELS else None for g in gold], pa.int64()),
        "share": dice.random(ROWS),
        "labels": [list(dice.permutation(LABELS)[: dice.integers(0, 4)]) for _ in range(ROWS)],
    }
    folder = tmp_path_factory.mktemp("corpus")
    pq.write_table(pa.table(columns), folder / "in.parquet", row_group_size=20)
    pyarrow.csv.write_csv(pa.table({"text": texts, "label": gold}), folder / "in.csv")
    return folder


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi_label")
    settings = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
    }
    write_checkpoint(folder, problem_type="multi_label_classification", **settings)
    write_tokenizer(folder)
    return folder


def record_of(output: Path) -> dict:
    return json.loads((output / "_run.json").read_text())


@pytest.mark.parametrize("name", ["in.parquet", "in.csv"])
@pytest.mark.usefixtures("in_process")
def test_the_figures_are_those_of_the_answers(
    checkpoint: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
):
    out = tmp_path / "out"
    job = {"input": corpus / name, "model": checkpoint, "output": out, "rows_per_file": 20}
    job["keep_columns"] = ["text", "label"]
    assert run_job("classify", **job, gold_column="label") == 0
    rows = pq.read_table(out / "data").to_pandas()
    checked = rows[rows["label_of_input"].notna() & (rows["label_of_input"] != "")]
    checks = record_of(out)["checks"]
    assert (checks["rows"], checks["no_gold"], checks["unknown"]) == (ROWS - 3, 2, 1)
    assert checks["unknown_labels"] == ["Label-1"]
    gold, answers = checked["label_of_input"], checked["label"]
    assert checks["accuracy"] == pytest.approx(accuracy_score(gold, answers))
    assert checks["macro_f1"] == pytest.approx(f1_score(gold, answers, average="macro"))
    printed = capfd.readouterr().out
    assert "column 'label' is kept as 'label_of_input'" in printed
    assert "87 rows; 2 without gold are left out; the gold of 1 is no label of the model" in printed
    assert f"accuracy {checks['accuracy']:.3f}" in printed
    page = (out / "_report.html").read_text()
    assert "Answers against gold" in page
    assert "Rows that disagree most" in page

    with pytest.raises(ValueError, match="begun with gold_column label, not None"):
        run_job("classify", **job | {"keep_columns": ["text"]})


@pytest.mark.usefixtures("in_process")
def test_a_run_that_ends_early_and_goes_on_counts_each_row_once(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = {
        "input": corpus / "in.parquet",
        "model": checkpoint,
        "gold_column": "id",
        "keep_columns": ["text"],
        "rows_per_file": 20,
    }
    assert run_job("classify", **job, output=tmp_path / "whole") == 0
    commits = []

    def commit_some(*arguments, **options):
        if len(commits) == 3:
            raise RuntimeError("the power is gone")
        commits.append(1)
        return commit(*arguments, **options)

    commit = stages.commit
    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit", commit_some)
        with pytest.raises(RuntimeError):
            run_job("classify", **job, output=tmp_path / "parts")
    # What the driver had heard of is lost, too: the parts themselves keep their counts.
    for file in (
        *(tmp_path / "parts").glob("_shards*"),
        *(tmp_path / "parts" / "_shards").glob("*"),
    ):
        if file.is_file():
            file.unlink()
    assert run_job("classify", **job, output=tmp_path / "parts") == 0
    whole, parts = record_of(tmp_path / "whole"), record_of(tmp_path / "parts")
    assert parts["checks"] == whole["checks"]
    assert parts["checks"]["rows"] == ROWS - 4


@pytest.mark.parametrize(
    ("task", "column", "message"),
    [
        ("classify", "nothing", "input has no column 'nothing'.* \\(see --gold-column\\)"),
        ("classify", "share", "column 'share' holds double, not labels \\(text\\) or their ids"),
        ("embed", "label", "gold_column is not an option"),
    ],
)
def test_gold_that_cannot_be_compared_is_refused_before_any_work(
    checkpoint: Path, corpus: Path, tmp_path: Path, task: str, column: str, message: str
):
    with pytest.raises(ValueError, match=message):
        run_corpus(
            task,
            input=str(corpus / "in.parquet"),
            model=str(checkpoint),
            output=str(tmp_path / "out"),
            gold_column=column,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_process")
def test_thresholds_are_found_on_gold_and_taken_by_every_face(
    multi_label: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """The lists of job, Dataset, memory and HTTP are equal, and their F1 is the one that was promised."""
    job = {"input": corpus / "in.parquet", "model": multi_label, "keep_columns": ["text", "labels"]}
    found = tmp_path / "found"
    assert run_job("classify", **job, output=found, gold_column="labels", threshold="best-f1") == 0
    checks = record_of(found)["checks"]
    file = found / "_thresholds.json"
    thresholds = json.loads(file.read_text())
    assert list(thresholds) == LABELS
    assert len(set(thresholds.values())) > 1
    assert "a run with --threshold" in capfd.readouterr().out

    out = tmp_path / "out"
    assert run_job("classify", **job, output=out, gold_column="labels", threshold=str(file)) == 0
    again = record_of(out)["checks"]
    promised = {label: each["f1"] for label, each in checks["thresholds"].items()}
    assert {each["label"]: each["f1"] for each in again["labels"]} == pytest.approx(promised)
    assert again["macro_f1"] > checks["macro_f1"]
    with pytest.raises(ValueError, match="thresholds"):  # answers depend on them
        run_job("classify", **job, output=out, gold_column="labels", threshold=0.5)

    rows = pq.read_table(out / "data").to_pylist()
    texts = [row["text"] for row in rows]
    want = [
        [
            {"label": label, "score": pytest.approx(score, abs=1e-6)}
            for label, score in zip(row["labels"], row["scores"], strict=True)
        ]
        for row in rows
    ]
    assert any(want)
    assert not all(len(each) == len(LABELS) for each in want)
    assert pipeline("text-classification", str(multi_label), threshold=str(file))(texts) == want
    dataset = LocalDataset(pa.table({"text": texts}))
    step = processor("classify", str(multi_label), threshold=thresholds)
    table = step(dataset).table
    assert table["labels"].to_pylist() == [row["labels"] for row in rows]
    yaml = tmp_path / "thresholds.yaml"
    yaml.write_text("".join(f"{label}: {value}\n" for label, value in thresholds.items()))
    model = {"name": "m", "task": "classify", "model": str(multi_label), "threshold": str(yaml)}
    with serving(LocalModelClient(served_models([model]))) as url:
        answer = httpx.post(f"{url}/models/m", json={"inputs": texts[:20]}, timeout=60).json()
    assert answer == want[:20]


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (
            {"label-1": 0.5, "lable-2": 0.5},
            "threshold names 'lable-2', which is no label; there are label-0",
        ),
        ({"label-1": 1.5}, "label 'label-1' has 1.5: must be from 0 to 1"),
        ("nowhere.json", "threshold 'nowhere.json': cannot be read"),
        ("best-f1", "threshold best-f1 is found on gold, by a corpus job with gold_column"),
        (-1, "threshold -1: must be from 0 to 1"),
    ],
)
def test_wrong_thresholds_are_refused(multi_label: Path, threshold: object, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline("text-classification", str(multi_label), threshold=threshold)


BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
HEADS = {
    "tag": ("ModernBertForTokenClassification", {"id2label": dict(enumerate(BIO)), "label2id": {tag: i for i, tag in enumerate(BIO)}}),
    "answer": ("ModernBertForQuestionAnswering", {}),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}),
}  # fmt: skip


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.usefixtures("in_process")
def test_answers_that_are_their_own_gold_are_right(
    corpus: Path, tmp_path: Path, task: str, capfd: pytest.CaptureFixture[str]
):
    """What a job answers, given back as gold in a row group's half, is right there and counted there alone."""
    architecture, settings = HEADS[task]
    model = tmp_path / "model"
    write_checkpoint(model, architecture=architecture, **settings)
    write_tokenizer(model)
    table = pq.read_table(corpus / "in.parquet", columns=["text"]).slice(8)
    questions = pa.array(["the cat"] * len(table))
    table = table.append_column("question", questions)
    columns = {
        "answer": {"context_column": "text"},
        "rerank": {"query_column": "question", "passage_column": "text"},
    }.get(task, {})
    pq.write_table(table, tmp_path / "in.parquet")
    job = {"model": model, **columns, "keep_columns": ["text"]}
    if task == "answer":
        job["no_answer"] = True
    assert run_job(task, **job, input=tmp_path / "in.parquet", output=tmp_path / "first") == 0
    done = pq.read_table(tmp_path / "first" / "data")
    texts = set(done["text"].to_pylist())
    table = table.filter(pa.array([text in texts for text in table["text"].to_pylist()]))
    gold = {
        "tag": lambda: done["entities"],
        "answer": lambda: done["answer"],
        "rerank": lambda: pa.array([score >= 0.5 for score in done["score"].to_pylist()]),
    }[task]().to_pylist()
    half = len(gold) // 2
    values = pa.array([None] * half + gold[half:])
    pq.write_table(table.append_column("gold", values), tmp_path / "again.parquet")
    job |= {"input": tmp_path / "again.parquet", "output": tmp_path / "out", "rows_per_file": 20}
    assert run_job(task, **job, gold_column="gold") == 0
    checks = record_of(tmp_path / "out")["checks"]
    assert (checks["rows"], checks["no_gold"]) == (len(gold) - half, half)
    assert checks["exact_match" if task == "answer" else "accuracy"] == 1
    assert checks["f1" if task == "answer" else "micro_f1"] == pytest.approx(1)
    assert (
        f"gold       {len(gold) - half} rows; {half} without gold are left out"
        in capfd.readouterr().out
    )


@pytest.mark.usefixtures("in_process")
def test_the_least_sure_rows_and_the_drift_of_labels(
    checkpoint: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    table = pq.read_table(corpus / "in.parquet", columns=["text"])
    pq.write_table(table, folder / "a.parquet")
    job = {"input": folder, "model": checkpoint, "output": out, "rows_per_file": 20}
    assert run_job("classify", **job) == 0
    rows = pq.read_table(out / "data").to_pylist()
    assert record_of(out).get("drift") is None
    page = (out / "_report.html").read_text()
    assert "Least sure rows" in page
    assert min(rows, key=lambda row: row["score"])["text"][:100] in page

    one = max(rows, key=lambda row: row["score"])
    pq.write_table(pa.table({"text": [one["text"]] * 60}), folder / "b.parquet")
    assert run_job("classify", **job, review=7) == 0
    drift = record_of(out)["drift"]
    label, before, now = drift["changes"][0]
    share = sum(row["label"] == one["label"] for row in rows) / len(rows)
    assert (label, before, now) == (one["label"], pytest.approx(share), 1.0)
    assert drift["distance"] == pytest.approx(1 - share)
    printed = capfd.readouterr().out
    assert f"labels differ from the last run: {label} " in printed
    assert "_review.parquet: the 7 least sure rows" in printed
    review = pq.read_table(out / "_review.parquet").to_pylist()
    every = sorted(pq.read_table(out / "data").to_pylist(), key=lambda row: row["score"])
    assert [row["score"] for row in review] == [row["score"] for row in every[:7]]
    assert {row["text"] for row in review} <= {row["text"] for row in every}
