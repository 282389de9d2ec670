"""What reaches the terminal of a job, and a job whose terminal, home folder or reader is gone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import write_checkpoint, write_task, write_tokenizer
from commands import run_job, run_module, run_script
from conftest import REPOSITORY

from pipelines.report.text import printable_lines

JOB = "jobs/classify_corpus.py"
HARMFUL = "\x1b[31mred\x07\x9b2J\u202e"


@pytest.mark.slow
def test_what_texts_labels_and_names_hold_is_no_command_to_the_terminal(
    tmp_path, in_process, capfd
):
    model = tmp_path / "model"
    model.mkdir()
    labels = [f"{HARMFUL}\n{i}" for i in range(3)]
    write_checkpoint(
        model,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    write_tokenizer(model)
    source = tmp_path / f"in{HARMFUL}"
    source.mkdir()
    pq.write_table(pa.table({"text": [f"the cat {HARMFUL} sat", None]}), source / "a.parquet")
    (source / f"b{HARMFUL}.parquet").write_bytes(b"PAR1 not at all PAR1")
    capfd.readouterr()  # what writing a checkpoint has said
    assert (
        run_job("classify", input=source, output=tmp_path / f"out{HARMFUL}", model=model) == 1
    )  # b is broken
    stdout, stderr = capfd.readouterr()
    assert "the cat \\x1b[31mred\\x07\\x9b2J\\u202e sat" in stdout
    assert "label              1  \\x1b[31mred" in stdout
    assert re.search(r"\nfailed     .*b\\x1b\[31mred\\x07\\x9b2J\\u202e\.parquet: ", stdout), stdout
    for shown in (stdout, stderr, (tmp_path / f"out{HARMFUL}" / "_report.html").read_text()):
        assert printable_lines(shown) == shown
    options = ["--input", source, "--output", tmp_path / "out", "--model", model]
    for wrong in (
        ["--input", f"/no/{HARMFUL}"],
        ["--text-column", HARMFUL],
        [f"--{HARMFUL}"],
        ["--dtype", HARMFUL],
    ):
        done = run_script(JOB, *options, *wrong, cwd=tmp_path)
        assert done.returncode == 2
        assert "red" in done.stderr
        assert printable_lines(done.stderr) == done.stderr


def test_names_of_tasks_are_ours_and_those_of_transformers():
    usage = run_module("pipelines", "--help").stderr
    assert "TASK: classify, text-classification, sentiment-analysis, zero_shot, " in usage
    assert all(
        usage.split(": ", 2)[-1].split(", ").count(name) == 1
        for name in ("classify", "rerank", "embed")
    )


@pytest.mark.slow
def test_our_names_of_tasks_and_a_home_that_cannot_be_written(tmp_path):
    folder = write_task(tmp_path, "ModernBertForSequenceClassification", labels=["no", "yes"])
    environment = {
        name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"
    } | {"HOME": "/proc/1"}
    answers = []
    for task in ("classify", "text-classification"):
        command = [sys.executable, "-m", "pipelines", task, "--model", folder]
        done = subprocess.run(
            command,
            input=b"the cat\n",
            capture_output=True,
            cwd=REPOSITORY,
            env=environment,
            check=True,
        )
        assert done.stderr == b""
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_job_goes_on_without_a_reader_a_terminal_and_a_home(tmp_path, checkpoint):
    """Its stdout is a pipe that is closed after the first line, its stderr is closed, its HOME cannot be written."""
    pq.write_table(pa.table({"text": ["the cat é sat"] * 100}), tmp_path / "in.parquet")
    unset = ("XDG_CACHE_HOME", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"RAY_ADDRESS": "local", "HOME": "/proc/1", "PYTHONIOENCODING": "ascii"}
    command = [
        sys.executable,
        REPOSITORY / JOB,
        "--input",
        tmp_path / "in.parquet",
        "--output",
        tmp_path / "out",
    ]
    command += ["--model", checkpoint, "--actors", "1"]
    job = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "Ray started here" in job.stdout.readline()
    job.stdout.close()
    assert job.wait(200) == 0
    record = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert record["complete"]
    assert record["totals"]["rows"] == record["attempts"][0]["rows"] == 100
