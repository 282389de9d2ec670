"""Disks that are full, read-only or damaged, under a real job: small file systems of its own, and damaged bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_script, stages_here
from conftest import REPOSITORY

JOB = REPOSITORY / "jobs" / "classify_corpus.py"


def options(checkpoint: Path) -> list[str]:
    return ["--input", "in", "--output", "out", "--model", str(checkpoint)]


def run(folder: Path, checkpoint: Path) -> subprocess.CompletedProcess[str]:
    """The job from in/ to out/."""
    return run_script("jobs/classify_corpus.py", *options(checkpoint), cwd=folder)


def run_on(mount: str, folder: Path, checkpoint: Path) -> subprocess.CompletedProcess[str]:
    """The same job with a small file system of its own at out/, with options for `mount`; kept in kept/."""
    script = f'mount -t tmpfs {mount} none out && "$0" "$@"; code=$?; cp -r out/. kept; exit $code'
    job = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        sys.executable,
        str(JOB),
    ]
    done = subprocess.run(
        [*job, *options(checkpoint)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of its own for a process here: {done.stderr.splitlines()[0]}")
    return done


@pytest.fixture
def corpus(tmp_path) -> Path:
    """2,000 rows in four row groups, and an empty folder for the output."""
    for name in ("in", "out", "kept"):
        (tmp_path / name).mkdir()
    texts = [f"the cat {hash((i, 'x')):x}" for i in range(2000)]
    pq.write_table(
        pa.table({"id": range(2000), "text": texts}),
        tmp_path / "in" / "a.parquet",
        row_group_size=500,
    )
    return tmp_path


@pytest.mark.slow
def test_a_full_disk_stops_the_job_and_the_same_command_goes_on(corpus, checkpoint):
    done = run_on("-o size=100k", corpus, checkpoint)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "out' cannot be written: " in done.stderr
    assert "No space left on device" in done.stderr
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    parts = list((corpus / "kept").glob("data/*.parquet"))
    assert 0 < sum(pq.read_metadata(part).num_rows for part in parts) < 2000  # each is whole
    (corpus / "out").rmdir()
    (corpus / "kept").rename(corpus / "out")
    with stages_here():
        assert run(corpus, checkpoint).returncode == 0
    assert ds.dataset(corpus / "out").to_table()["id"].to_pylist() == list(range(2000))


@pytest.mark.slow
def test_a_read_only_output_is_told_before_any_work(corpus, checkpoint):
    done = run_on("-o ro", corpus, checkpoint)
    assert done.returncode == 2
    assert "out' cannot be written: Read-only file system" in done.stderr
    assert "labelling" not in done.stdout


@pytest.mark.slow
def test_a_read_error_in_the_middle_of_a_file_costs_only_the_shards_there(
    corpus, checkpoint, local_ray
):
    """Damage in the second of four row groups: the footer is whole, so that only reading the rows tells."""
    file = corpus / "in" / "a.parquet"
    group = pq.read_metadata(file).row_group(1).column(1)
    content = bytearray(file.read_bytes())
    start, half = group.dictionary_page_offset, group.total_compressed_size // 2
    content[start : start + half] = b"\xff" * half
    file.write_bytes(content)
    done = run(corpus, checkpoint)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = json.loads((corpus / "out" / "_run.json").read_text())["failed"]
    assert all(reason.startswith("cannot be read: ") for reason in failed.values())
    assert all(
        ": cannot be read: " in line
        for line in done.stdout.splitlines()
        if line.startswith("failed")
    )
    ranges = [tuple(map(int, name.rsplit("-", 2)[1:])) for name in failed]
    assert min(ranges)[0] <= 500
    assert max(ranges)[1] >= 1000
    assert all(first < 1000 and last > 500 for first, last in ranges)
    lost = {row for first, last in ranges for row in range(first, last)}
    assert ds.dataset(corpus / "out").to_table()["id"].to_pylist() == [
        i for i in range(2000) if i not in lost
    ]
