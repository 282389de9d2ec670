"""python -m pipelines: a job where an input is named; else lines in, JSON lines out, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import write_task
from commands import run_module
from conftest import REPOSITORY
from predictions import assert_close

from pipelines import pipeline

LINES = ["the cat sat", "", "😀 e\u0301 [MASK] the\r", "[MASK] and [MASK]", "the cat " * 60]
PAIRS = [
    {"question": "the cat?", "context": "the cat sat on the mat 😀 " * 20},
    {"question": "the", "context": "cat"},
    {"question": "the"},
]
QUERIES = [
    {"query": "the cat?", "texts": LINES},
    {"query": "the", "texts": []},
    {"texts": ["the"]},
    [1],
]
TASKS = {
    "text-classification": (
        "ModernBertForSequenceClassification",
        {"labels": ["no", "yes", "perhaps"]},
        LINES,
    ),
    "token-classification": (
        "ModernBertForTokenClassification",
        {"labels": ["O", "B-X", "I-X"]},
        LINES,
    ),
    "fill-mask": ("ModernBertForMaskedLM", {}, LINES),
    "question-answering": ("ModernBertForQuestionAnswering", {}, PAIRS),
    "sentence-embedding": ("ModernBertModel", {}, LINES),
    "rerank": ("ModernBertForSequenceClassification", {"num_labels": 1}, QUERIES),
}
OPTIONS = {
    "text-classification": {"top_k": 2, "long_documents": "windows", "max_length": 32},
    "token-classification": {
        "aggregation": "simple",
        "ignore_labels": ["O", "Y"],
        "max_length": 32,
        "stride": 4,
    },
    "fill-mask": {"top_k": 3, "targets": [" the", "cat"]},
    "question-answering": {"no_answer": True, "top_k": 2, "max_length": 64},
    "sentence-embedding": {"dimensions": 8, "normalize": True, "pooling": "cls"},
    "rerank": {"raw_scores": True},
}


def run(*arguments, given=b""):
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(
        command, input=given, capture_output=True, cwd=REPOSITORY, check=False, timeout=300
    )


def flags(options):
    for name, value in options.items():
        yield "--" + name.replace("_", "-")
        if value is not True:
            yield ",".join(value) if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_results_and_error_lines(tmp_path, task):
    """Results are those of the pipeline in memory; lines without one say why, and make the exit code 1."""
    architecture, config, items = TASKS[task]
    folder = str(write_task(tmp_path, architecture, **config))
    options = OPTIONS[task]
    lines = [item if items is LINES else json.dumps(item, ensure_ascii=False) for item in items]
    lines += ["{not JSON"] if items is not LINES else []
    done = run(task, "--model", folder, *flags(options), given="\n".join(lines).encode() + b"\n")
    got = [json.loads(line) for line in done.stdout.decode().splitlines()]
    want = pipeline(task, folder, **options).predict_lines([line.rstrip("\r") for line in lines])
    assert_close(got, want)
    errors = {
        "fill-mask": {0: "text has no [MASK]", 1: "text has no [MASK]", 4: "text has no [MASK]"},
        "question-answering": {
            2: "input must hold question and context, not",
            3: "not valid JSON: Expecting property name",
        },
        "rerank": {
            2: "input must hold query and texts, not",
            3: "input must hold",
            4: "not valid JSON: Expecting property name",
        },
    }.get(task, {})
    failed = {
        i: result["error"]
        for i, result in enumerate(got)
        if isinstance(result, dict) and "error" in result
    }
    assert failed.keys() == errors.keys()
    assert all(failed[i].startswith(errors[i]) for i in errors)
    assert done.returncode == int(bool(errors)), done.stderr.decode()


MISTAKES = {
    "no task": ([], "usage: python -m pipelines TASK --model MODEL [options]"),
    "unknown task": (["translate"], "usage: python -m pipelines TASK --model MODEL [options]"),
    "no model": (["fill-mask"], "error: --model is missing: a folder"),
    "no such model": (["fill-mask", "--model", "/nowhere"], "error: "),
    "no number": (
        ["fill-mask", "--model", "x", "--top-k", "many"],
        "error: --top-k 'many': must be a valid integer",
    ),
    "out of range": (
        ["fill-mask", "--model", "x", "--top-k", "0"],
        "error: --top-k '0': must be greater than or",
    ),
    "no choice": (
        ["rerank", "--model", "x", "--merge", "least"],
        "error: --merge 'least': must be 'mean' or 'max'",
    ),
    "another task's": (["rerank", "--model", "x", "--top-k", "2"], "usage: "),
    "a job's without an input": (["rerank", "--model", "x", "--actors", "2"], "usage: "),
    "an output without an input": (
        ["rerank", "--model", "x", "--output", "y"],
        "error: --input is missing",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_with_2_and_say_what(arguments, message):
    done = run_module("pipelines", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    stderr = done.stderr
    assert stderr.startswith(message)
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 1 or message.startswith("usage")


@pytest.mark.parametrize("named", ["on the command line", "in a file", "in the environment"])
def test_a_task_with_an_input_is_its_job(named, tmp_path, monkeypatch):
    """Wherever the input is named; the others read standard input, which this one leaves alone."""
    pq.write_table(pa.table({"text": ["wake me at six"]}), tmp_path / "in.parquet")
    arguments = ["classify", "--model", REPOSITORY / "jobs/demo/intent-classifier", "--dry-run"]
    arguments += ["--output", tmp_path / "out"]
    if named == "on the command line":
        arguments += ["--input", tmp_path / "in.parquet"]
    elif named == "in a file":
        (tmp_path / "job.yaml").write_text(f"input: {tmp_path}/in.parquet\n")
        arguments += ["--config", tmp_path / "job.yaml"]
    else:
        monkeypatch.setenv("MODERNBERT_INPUT", f"{tmp_path}/in.parquet")
    done = run_module("pipelines", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 parquet file(s), 1 rows" in done.stdout
    assert not (tmp_path / "out").exists()


def test_help_of_a_task_has_the_options_of_its_job():
    done = run_module("pipelines", "classify", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m pipelines classify [options]\n")
    assert all(flag in done.stdout for flag in ("--input", "--keep-columns", "--top-k"))
    assert "Without an input, the task answers the lines of standard input" in " ".join(
        done.stdout.split()
    )


@pytest.mark.slow
def test_what_does_not_fit_the_checkpoint_is_one_line_that_names_the_flag(tmp_path):
    folder = write_task(tmp_path, "ModernBertForSequenceClassification", num_labels=3)
    for arguments, message in (
        (
            ["text-classification", "--stride", 9],
            "error: --stride 9 is for overlapping windows: long_documents must",
        ),
        (
            ["token-classification"],
            f"error: --model '{folder}' is a ModernBertForSequenceClassification: it fits",
        ),
    ):
        done = run_module("pipelines", *arguments, "--model", folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message)
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_output_is_utf8_and_may_be_read_in_part(tmp_path):
    folder = write_task(tmp_path, "ModernBertForTokenClassification", labels=["X", "Y"])
    command = [sys.executable, "-m", "pipelines", "token-classification", "--model", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes) as process:
        process.stdin.write("é 😀\n".encode() * 2000)
        process.stdin.close()
        first = json.loads(process.stdout.readline().decode("utf-8"))
        process.stdout.close()
        assert "é" in "".join(entity["word"] for entity in first)
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_help():
    """In a process of its own, as a user runs it."""
    done = run("--help")
    assert done.returncode == 0
    assert all(task in done.stderr.decode() for task in TASKS)
