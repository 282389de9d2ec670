"""jobs/classify_corpus.py as a user runs it: real Ray, real files, real exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import write_checkpoint, write_tokenizer
from commands import run_job, run_script, stages_here
from conftest import REPOSITORY

from modernbert.text.tokenizer import Tokenizer
from pipelines.checkpoints import Checkpoint
from pipelines.corpus import run as corpus
from pipelines.inference.predictor import Predictor
from pipelines.options import ClassifyOptions
from pipelines.tasks.classify import Classify

COMMAND = [sys.executable, str(REPOSITORY / "jobs" / "classify_corpus.py")]


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_script("jobs/classify_corpus.py", *arguments, cwd=cwd)


run = partial(run_job, "classify")


@pytest.fixture(scope="module")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Parquet files with other column names, from one word to a text beyond the model's length, and bad rows."""
    folder = tmp_path_factory.mktemp("articles")
    dice = np.random.default_rng(0)
    texts: list[str | None] = [
        " ".join(dice.choice(["the", "cat", "sat", "ééé", "👍"], size=n))
        for n in dice.integers(1, 300, 300)
    ]
    texts[5], texts[150], texts[299] = None, "   ", "word " * 9000
    table = pa.table(
        {
            "number": range(300),
            "body": texts,
            "where": pa.array(["x", "y", "z"] * 100).dictionary_encode(),
        }
    )
    for i in range(3):
        pq.write_table(table.slice(100 * i, 100), folder / f"{i}.parquet", row_group_size=30)
    raw = pa.array([b"good", b"bad \xff\xfe", b"also good"]).cast(pa.binary())
    bad = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"number": [300, 301, 302], "body": bad}), folder / "3.parquet")
    return folder


@pytest.fixture(scope="module")
def labelled(articles, checkpoint, local_ray, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "out"
    assert (
        run(
            input=articles,
            output=out,
            model=checkpoint,
            text_column="body",
            top_k=2,
            max_length=512,
        )
        == 0
    )
    return out


@pytest.mark.slow
def test_every_row_once_in_order_with_its_columns(articles, labelled, checkpoint):
    rows = pq.read_table(articles)
    got = ds.dataset(labelled).to_table()
    rejected = pq.read_table(labelled / "_rejected")
    assert rejected["number"].to_pylist() == [5, 150, 301]
    assert rejected["_reason"].to_pylist() == [
        "text is null",
        "text is empty",
        "text is not valid UTF-8",
    ]
    assert rejected["_row"].to_pylist() == [5, 50, 1]
    assert rejected["body"].to_pylist()[2] == "bad \ufffd\ufffd"
    expected = [i for i in range(303) if i not in (5, 150, 301)]
    assert got["number"].to_pylist() == expected
    assert got.column_names == [
        "number",
        "body",
        "where",
        "label",
        "score",
        "labels",
        "scores",
        "n_tokens",
        "n_windows",
        "truncated",
    ]
    assert got["where"].to_pylist() == rows["where"].take(expected).to_pylist()
    assert got["body"].to_pylist() == rows["body"].take(expected).to_pylist()
    whole = np.diff(Tokenizer.from_folder(checkpoint).encode(got["body"].to_pylist()).cu_seqlens)
    assert got["n_tokens"].to_pylist() == whole.clip(max=512).tolist()
    assert got["truncated"].to_pylist() == (whole > 512).tolist()
    assert whole[expected.index(299)] > 8192
    record = json.loads((labelled / "_run.json").read_text())
    assert record["complete"]
    assert record["totals"]["rows"] == 303


@pytest.mark.slow
def test_labels_equal_transformers(articles, labelled, checkpoint):
    """The whole path against transformers' own tokenizer, model and softmax: 1e-5 of a probability, in fp32."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    for row in ds.dataset(labelled).to_table().slice(0, 60).to_pylist():
        with torch.no_grad():
            logits = model(
                **tokenizer(row["body"], truncation=True, max_length=512, return_tensors="pt")
            ).logits[0]
        best = logits.softmax(-1).topk(2)
        assert row["labels"] == [model.config.id2label[i] for i in best.indices.tolist()]
        assert row["scores"] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert (row["label"], row["score"]) == (row["labels"][0], row["scores"][0])


@pytest.mark.slow
def test_pandas_duckdb_and_polars_read_the_output(labelled):
    pattern = f"{labelled}/data/*.parquet"
    wanted = ds.dataset(labelled).to_table()["label"].to_pylist()
    assert pd.read_parquet(labelled)["label"].tolist() == wanted
    assert polars.read_parquet(labelled / "data")["label"].to_list() == wanted
    assert [row[0] for row in duckdb.sql(f"select label from '{pattern}'").fetchall()] == wanted


@pytest.mark.slow
def test_a_second_run_does_only_what_is_missing_and_gives_the_same_bytes(
    articles, labelled, checkpoint, capfd
):
    options = {
        "input": articles,
        "output": labelled,
        "model": checkpoint,
        "text_column": "body",
        "top_k": 2,
        "max_length": 512,
    }
    parts = sorted(labelled.glob("data/*.parquet"))
    lost = parts[1].read_bytes()
    parts[1].unlink()
    times = {part: part.stat().st_mtime_ns for part in parts if part != parts[1]}
    with stages_here():  # the bytes of workers of Ray
        assert run(**options) == 0
    assert parts[1].read_bytes() == lost
    assert times == {part: part.stat().st_mtime_ns for part in times}
    assert f"{len(parts) - 1} shards were in the output already" in capfd.readouterr().out
    with pytest.raises(ValueError, match="was begun with max_length 512, not 256"):
        run(**options | {"max_length": 256})
    with stages_here():
        assert run(**options | {"max_length": 256, "overwrite": True}) == 0
    assert max(ds.dataset(labelled).to_table()["n_tokens"].to_pylist()) == 256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where"), [("jsonl.gz", "local_ray"), ("csv", "in_process"), ("feather", "in_process")]
)
def test_other_formats_and_multi_label(kind, where, tmp_path, request):
    request.getfixturevalue(where)
    write_checkpoint(tmp_path / "model", num_labels=4, problem_type="multi_label_classification")
    write_tokenizer(tmp_path / "model")
    frame = pd.DataFrame({"text": [f"the cat {i}" for i in range(150)], "n": range(150)})
    file = tmp_path / f"rows.{kind}"
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "feather":
        frame.to_feather(file)
    else:
        frame.to_json(file, orient="records", lines=True)
    out = tmp_path / "out"
    assert (
        run(
            input=file,
            output=out,
            model=tmp_path / "model",
            keep_columns=["n"],
            threshold=0.3,
            output_prefix="our_",
        )
        == 0
    )
    got = ds.dataset(out).to_table()
    assert got["n"].to_pylist() == [
        str(i) if kind == "csv" else i for i in range(150)
    ]  # CSV is text as written
    assert got.column_names == [
        "n",
        *(
            "our_" + n
            for n in ("label", "score", "labels", "scores", "n_tokens", "n_windows", "truncated")
        ),
    ]
    bare = {"keep_columns": [], "dtype": "bfloat16"}
    with stages_here():
        assert run(input=file, output=tmp_path / "bare", model=tmp_path / "model", **bare) == 0
    assert ds.dataset(tmp_path / "bare").to_table().num_rows == 150
    for row in got.to_pylist():
        assert all(score >= 0.3 for score in row["our_scores"])
        assert row["our_scores"] == sorted(row["our_scores"], reverse=True)


@pytest.mark.slow
def test_a_file_that_breaks_after_planning_fails_alone(
    tmp_path, checkpoint, local_ray, monkeypatch, capfd
):
    for name in "ab":
        pq.write_table(
            pa.table({"text": [f"{name} {i}" for i in range(64)]}), tmp_path / f"{name}.parquet"
        )
    original = corpus.plan_job

    def plan_and_break(*arguments):
        planned = original(*arguments)
        (tmp_path / "a.parquet").write_bytes(b"gone")
        return planned

    monkeypatch.setattr(corpus, "plan_job", plan_and_break)
    out = tmp_path / "out"
    assert run(input=tmp_path / "*.parquet", output=out, model=checkpoint) == 1
    assert "failed     a.parquet" in capfd.readouterr().out
    assert ds.dataset(out).to_table()["text"].to_pylist() == [f"b {i}" for i in range(64)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text-column": "words"}, "input has no column 'words'; it has number, body, where"),
        ({"text-column": "number"}, "column 'number' holds int64, not text"),
        ({"keep-columns": "number,nope"}, "input has no column nope"),
        ({"input": "/no/such/folder"}, "input '/no/such/folder' does not exist"),
        ({"model": "/no/such/model"}, "model folder '/no/such/model' does not exist"),
        ({"max-length": "9000"}, "--max-length 9000 is above the model's 8192 positions"),
        ({"threshold": "0.5"}, "--threshold is for multi-label models"),
        ({"input": ".", "output": "out"}, "holds no data file"),
        ({"output": "."}, "holds something else than an output of this job"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(change, message, articles, checkpoint, tmp_path):
    (tmp_path / "somebody's file").write_text("")
    options = {
        "input": articles,
        "output": "out",
        "model": checkpoint,
        "text-column": "body",
    } | change
    done = command(
        *(part for name, value in options.items() for part in (f"--{name}", value)), cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_an_output_inside_the_input_is_refused(tmp_path, checkpoint):
    """In a process of its own, as a user runs it: one line and the exit code."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    arguments = ["--input", ".", "--output", "out", "--model", str(checkpoint)]
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "lies in the input folder" in done.stderr


def test_a_column_of_ours_that_the_input_has_already(tmp_path, checkpoint):
    pq.write_table(pa.table({"text": ["a"], "label": ["mine"]}), tmp_path / "in.parquet")
    done = command("--input", "in.parquet", "--output", "out", "--model", checkpoint, cwd=tmp_path)
    assert done.returncode == 2
    assert "input already has label" in done.stderr
    assert "--output-prefix" in done.stderr
    assert "--keep-columns" in done.stderr


def test_dry_run_does_nothing(articles, checkpoint, tmp_path):
    arguments = (
        "--input",
        articles,
        "--output",
        "out",
        "--model",
        checkpoint,
        "--text-column",
        "body",
        "--dry-run",
    )
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "4 parquet file(s), 303 rows" in done.stdout
    assert "from a sample of" in done.stdout
    assert not (tmp_path / "out").exists()


def test_help_fits_a_few_screens(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("\n") <= 72  # screens of 24 lines


CLINC = REPOSITORY.parent / "shared" / "data" / "clinc150" / "val.parquet"


@pytest.mark.slow
@pytest.mark.skipif(
    not CLINC.is_file(), reason="needs the CLINC150 validation rows, which are not shipped"
)
def test_accuracy_of_the_demo_checkpoint(tmp_path, in_process):
    demo = REPOSITORY / "jobs" / "demo" / "intent-classifier"
    assert run(input=CLINC, output=tmp_path / "out", model=demo) == 0
    rows = ds.dataset(tmp_path / "out").to_table().to_pandas()
    rows = rows[rows["intent"] != "oos"]
    assert len(rows) == 3000
    assert (rows["label"] == rows["intent"]).mean() >= 0.91


def test_the_demo_checkpoint_loads_in_transformers_and_answers_alike():
    import transformers

    demo = REPOSITORY / "jobs" / "demo" / "intent-classifier"
    texts = ["I lost my card", "how do you say hello in french", "set an alarm for six"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        demo, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        want = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    encoded = Tokenizer.from_folder(demo).encode(texts)
    checkpoint = Checkpoint.open(demo)
    predictor = Predictor(checkpoint, Classify.from_checkpoint(checkpoint, ClassifyOptions()))
    got = predictor.predict(encoded.input_ids, encoded.cu_seqlens).values
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5)
    assert [model.config.id2label[i] for i in got.argmax(1)] == [
        "report_lost_card",
        "translate",
        "alarm",
    ]
