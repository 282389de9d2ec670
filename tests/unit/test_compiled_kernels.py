"""The kernels as machine code of an H100, compiled without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "triton", reason="Triton comes with torch's CUDA builds, and with the extra `test`"
)


@pytest.mark.slow
def test_kernels_compile_for_sm_90_without_spills_and_with_wide_loads(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        capture_output=True, text=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = json.loads(run.stdout)
    for name, counts in kernels.items():
        assert counts["spills"] == counts["stack"] == counts["local"] == 0, (name, counts)
        assert counts["reg"] <= 128, (
            name,
            counts,
        )  # from here on an SM holds fewer than half of its warps
        if "rotate" not in name and "8" not in name:
            assert counts["wide_loads"] >= 4, (name, counts)
    for size in ("base", "large"):
        rotate, geglu = kernels[f"rotate {size}"], kernels[f"geglu {size}"]
        assert rotate["wide_loads"] >= 4, (
            rotate
        )  # queries and keys; positions are one number a token
        assert rotate["wide_stores"] == rotate["stores"], rotate
        assert (geglu["wide_loads"], geglu["wide_stores"]) == (geglu["loads"], geglu["stores"]), (
            geglu
        )
