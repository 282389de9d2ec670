"""benchmarks/gpu.py runs every part on a CPU at toy size: nothing in it is to fail on its first device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.mark.slow
def test_every_part_runs_dry_and_is_written(tmp_path):
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--dry", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == [
        "ceilings", "kernels", "attention", "encoder", "host", "invariance", "accuracy", "float8", "graphs",
        "predictor", "memory", "peers",
    ]  # fmt: skip
    assert not [name for name, part in parts.items() if "failed" in part or "skipped" in part]
    assert parts["kernels"]["base"]["rotate"]["error"] < 1e-6
    assert parts["attention"]["sdpa"]["local"]["worst_error"] < 1e-6
    assert parts["float8"]["float8"]["mean_cosine"] > 0.99
    assert parts["predictor"]["256"]["failed"] == 0


def test_a_machine_without_a_gpu_is_told_so(tmp_path):
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--out", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout.split(":")[0]) == (0, "skipped")
    assert not list(tmp_path.iterdir())
