"""The README's commands and the demo checkpoints, as a new user meets them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from commands import here, run_job, run_script
from conftest import REPOSITORY, readme_block

from modernbert.text.tokenizer import Tokenizer
from pipelines.memory.pipeline import pipeline

README = "".join((REPOSITORY / file).read_text() for file in ("README.md", "jobs/README.md"))
DEMO = REPOSITORY / "jobs" / "demo"
DEMOS = re.findall(
    r"^\.venv/bin/python (jobs/\w+\.py)", readme_block("demos", "jobs/README.md"), re.MULTILINE
)
ELSEWHERE = {"jobs/classify_corpus.py", "jobs/embed_corpus.py"}
"""Run by test_offline_online.py, the first one in a process and with a Ray of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in DEMOS if job not in ELSEWHERE])
def test_a_demo_runs_without_options(job, tmp_path, ray_head, local_ray):
    done = run_script(job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"rows +[\d,]+: [\d,]+ labelled, [\d,]+ rejected", done.stdout)
    assert "example " in done.stdout
    port = ray_head.address.rpartition(":")[2]
    assert re.search(
        rf"^Ray joined at \S+:{port}: 1 node, 2 CPUs, 0 GPUs$", done.stdout, re.MULTILINE
    )
    (output,) = (tmp_path / "output").iterdir()
    assert ds.dataset(output).count_rows() > 100


def test_the_example_in_memory(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    exec(readme_block("memory"), {})
    shown = capsys.readouterr().out
    assert "'entity_group': 'PERSON'" in shown
    assert "'entity_group': 'PHONE'" in shown
    assert shown.rstrip().endswith("[]]")


def test_the_example_on_the_command_line():
    done = subprocess.run(
        here(readme_block("stdin", "jobs/README.md")),
        shell=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers[0]["token_str"].strip() == "set"


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"^\.venv/bin/python (jobs/\w+\.py) (--.+)$", README, re.MULTILINE))),
)
def test_the_options_of_every_job_named_are_known(command, tmp_path):
    """The command gets as far as finding that the folder it names is empty."""
    job, options = command
    (tmp_path / options.split()[1]).mkdir(parents=True)
    if "--threshold " in options:  # a file that an earlier job has written
        thresholds = tmp_path / options.partition("--threshold ")[2].split()[0]
        thresholds.parent.mkdir(exist_ok=True)
        thresholds.write_text(json.dumps({"a label": 0.5}))
    done = run_script(job, *shlex.split(options), cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no data file" in done.stderr


def test_all_demo_files_together_are_small():
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) < 30e6


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("pii-tagger", "AutoModelForTokenClassification"),
        ("masked-lm", "AutoModelForMaskedLM"),
        ("sentence-encoder", "AutoModel"),
    ],
)
def test_a_demo_checkpoint_loads_in_transformers_and_answers_alike(name, auto):
    import transformers

    import modernbert

    theirs = getattr(transformers, auto).from_pretrained(DEMO / name, dtype=torch.float32).eval()
    ours = getattr(modernbert, type(theirs).__name__).from_pretrained(DEMO / name)
    inputs = Tokenizer.from_folder(DEMO / name)("please call me at noon", return_tensors="pt")
    with torch.no_grad():
        want, got = theirs(**inputs)[0], ours(**inputs)[0]
    torch.testing.assert_close(
        got, want, rtol=2e-5, atol=2e-5
    )  # fp32 rounding in another order of operations


@pytest.mark.slow
def test_the_tagger_finds_personal_data_in_messages_from_other_templates(tmp_path, in_process):
    """Types and spans, blanks at their ends left out, over the held-out messages; the card says what was measured."""
    lines = (DEMO / "held_out_messages.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(line) for line in lines]
    pq.write_table(pa.table({"text": [row["text"] for row in wanted]}), tmp_path / "in.parquet")
    options = {
        "input": tmp_path / "in.parquet",
        "model": DEMO / "pii-tagger",
        "output": tmp_path / "out",
    }
    assert run_job("tag", **options) == 0
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert [row["text"] for row in rows] == [row["text"] for row in wanted]
    found = {
        (i, *without_blanks(entity)) for i, row in enumerate(rows) for entity in row["entities"]
    }
    right = {(i, *entity) for i, row in enumerate(wanted) for entity in row["entities"]}
    f1 = 2 * len(found & right) / (len(found) + len(right))
    assert f1 >= 0.8


def without_blanks(entity: dict[str, Any]) -> tuple[int, int, str]:
    """A byte-level token begins with the blank before it, and so does its entity, as in transformers."""
    text = entity["text"]
    return entity["end"] - len(text.lstrip()), entity["start"] + len(text.rstrip()), entity["label"]


def test_the_sentence_encoder_brings_like_requests_together():
    embed = pipeline("sentence-embedding", str(DEMO / "sentence-encoder"))
    requests = [
        "wake me up at six tomorrow",
        "set an alarm for 6 am",
        "what is the capital of france",
    ]
    a, b, c = np.array(embed(requests))
    assert a @ b > 0.5 > a @ c
