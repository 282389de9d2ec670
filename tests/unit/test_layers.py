"""Imports point one way: jobs -> pipelines -> modernbert; what runs beside a GPU imports without Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_arrows_point_one_way():
    for file in (REPOSITORY / "modernbert").rglob("*.py"):
        assert not imported(file) & {"pipelines", "jobs", "ray", "pyarrow", "pandas", "transformers"}, file
    for file in (REPOSITORY / "pipelines").rglob("*.py"):
        assert not imported(file) & {"jobs", "transformers"}, file
    assert "ray" not in imported(REPOSITORY / "pipelines" / "bucketing.py")
    assert "torch" not in imported(REPOSITORY / "pipelines" / "bucketing.py")


def test_the_predictor_imports_without_ray_and_transformers():
    code = "import sys; sys.modules['ray'] = sys.modules['transformers'] = None; import pipelines.predictor"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
