"""Documents that end or hang their process each time: found, rejected, and nothing else lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from commands import run_script
from conftest import REPOSITORY

from modernbert.text.tokenizer import Tokenizer


@pytest.mark.slow
def test_a_row_that_ends_or_hangs_its_process_is_rejected_alone(tmp_path, checkpoint, ray_head):
    tokenizer = Tokenizer.from_folder(checkpoint)
    deadly, hanging = " too", " mat"
    texts = [f"a c{i % 7}" for i in range(200)]
    texts[50], texts[51] = f"a{deadly}", f"b{hanging}"
    ids = [tokenizer.encode([text]).input_ids.tolist() for text in texts]
    assert [i for i, tokens in enumerate(ids) if 277 in tokens] == [50]
    assert [i for i, tokens in enumerate(ids) if 276 in tokens] == [51]
    pq.write_table(pa.table({"id": range(200), "text": texts}), tmp_path / "in.parquet")
    command = [
        sys.executable,
        Path(__file__).with_name("poisoned.py"),
        tmp_path / "in.parquet",
        tmp_path / "out",
        checkpoint,
    ]
    environment = ray_head.environment | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rejected = pq.read_table(tmp_path / "out" / "_rejected").sort_by("id")
    assert rejected["id"].to_pylist() == [50, 51]
    assert set(rejected["_reason"].to_pylist()) == {
        "its process ended each time that it was predicted"
    }
    assert rejected["_row"].to_pylist() == [50, 51]
    kept = ds.dataset(tmp_path / "out").to_table()
    assert kept["id"].to_pylist() == [i for i in range(200) if i not in (50, 51)]
    options = {"input": tmp_path / "in.parquet", "output": tmp_path / "out", "model": checkpoint}
    options["device"] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    )  # "auto" asks Ray, which has nothing to do here
    command = [part for name, value in options.items() for part in (f"--{name}", value)]
    again = run_script(
        "jobs/classify_corpus.py", *command, cwd=tmp_path
    )  # finds all done, in parts
    assert again.returncode == 0, again.stderr
    assert "4 shards were in the output already" in again.stdout
    assert ds.dataset(tmp_path / "out").to_table().equals(kept)
    assert pq.read_table(tmp_path / "out" / "_rejected").sort_by("id").equals(rejected)


@pytest.mark.slow
def test_where_ray_itself_fails_the_job_ends_with_one_line_that_names_the_log(
    tmp_path, checkpoint, ray_head
):
    pq.write_table(pa.table({"text": ["the cat"] * 100}), tmp_path / "in.parquet")
    script = Path(__file__).with_name("poisoned.py")
    command = [
        sys.executable,
        script,
        tmp_path / "in.parquet",
        tmp_path / "out",
        checkpoint,
        "broken",
    ]
    environment = ray_head.environment | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert re.match(r"Ray joined at \S+: 1 node, 2 CPUs, 0 GPUs\n", done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: Ray: The actor died because of an error raised in its creation task: RuntimeError: "
    )
    (log,) = tmp_path.glob("modernbert-ray-*.log")
    assert f"the device is on fire (details in {log}); what is done stays" in line
    assert "Traceback" in log.read_text()
