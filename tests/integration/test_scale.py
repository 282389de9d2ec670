"""benchmarks/scale.py at a size for two cores: actors of several nodes stay busy, and a shard costs the driver little.

The whole sizes, 32 actors and 100,000 shards, are in benchmarks/results; they take minutes and a machine of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HEAD_ENVIRONMENT, REPOSITORY

pytestmark = pytest.mark.slow


def benchmark(folder: Path, *arguments: object) -> dict:
    command = [
        sys.executable,
        "benchmarks/scale.py",
        *map(str, arguments),
        "--out",
        str(folder / "out.json"),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=HEAD_ENVIRONMENT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def test_actors_of_several_nodes_stay_busy(tmp_path):
    figures = benchmark(
        tmp_path, "busy", "--nodes", 2, "--gpus", 2, "--seconds", 6, "--shards-each", 6
    )
    assert (figures["actors"], figures["shards"]) == (4, 24)
    assert figures["busy"] > 0.9  # other tests share these cores; alone it is 1.0


def test_shards_cost_the_driver_little(tmp_path):
    """Memory of the driver at 100,000 shards, from its growth over 2,000: under 1 GB."""
    figures = benchmark(tmp_path, "shards", "--shards", 2000)
    assert figures["shards"] == 2000
    before, most = (
        figures["streaming"][name] for name in ("driver_rss_mb_before", "driver_rss_mb")
    )
    ray_data = 15  # what it takes for itself, whatever the number of shards
    assert before + (most - before - ray_data) * 50 < 1000, figures["streaming"]
