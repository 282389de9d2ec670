"""benchmarks/gpu.py runs every part on a CPU at toy size: nothing in it is to fail on its first device."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import why_ended
from benchmarks.gpu_parts.run import PARTS

BENCHMARK = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.mark.slow
def test_every_part_runs_dry_and_each_figure_is_a_line(tmp_path):
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--dry", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert lines == [json.loads(line) for line in run.stdout.splitlines()]
    parts: dict[str, dict] = {}
    for line in lines:
        parts.setdefault(line["part"], {})[line["figure"]] = line["value"]
    assert list(parts) == list(PARTS)
    assert "fa3_fwd_interface" in parts.pop("fa3")["skipped"]  # its wheel is for GPUs alone
    assert not [name for name, part in parts.items() if "failed" in part or "skipped" in part]
    assert parts["kernels"]["base"]["rotate"]["error"] < 1e-6
    assert parts["products"]["base Wi, GeGLU, 64x128x32"]["error"] < 1e-6
    assert parts["products"]["base Wqkv, RoPE, 64x128x32"]["error"] < 1e-6
    assert parts["attention"]["sdpa"]["local"]["worst_error"] < 1e-6
    assert parts["float8"]["float8"]["mean_cosine"] > 0.99
    assert parts["predictor"]["256"]["failed"] == 0
    assert parts["headline"]["base 64"]["m_tokens_s"] > 0


def ends_at_once() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("target", "arguments", "reason"),
    [
        (time.sleep, (60,), "it took more than 0 s"),
        (signal.raise_signal, (signal.SIGKILL,), "its process was ended by signal 9"),
        (ends_at_once, (), ""),  # it has said why
    ],
)
def test_a_part_that_hangs_or_dies_is_told_from_one_that_fails(target, arguments, reason):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    assert why_ended(process, 0.2 if target is time.sleep else 30) == reason
    assert process.exitcode != 0


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--out", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.split(":")[0]) == (0, "skipped")
    assert not list(tmp_path.iterdir())
