"""What is in jobs/schedules/, without Airflow."""

from __future__ import annotations

import importlib.util
import runpy
import sys
import types
from typing import Any

from conftest import REPOSITORY

FOLDER = REPOSITORY / "jobs/schedules"
AIRFLOW_DAG = FOLDER / "airflow_dag.py"
SUBMIT_ONCE = FOLDER / "submit_once.py"


def submit_once() -> Any:
    """The module, which is in no package: users copy the file."""
    if "submit_once" not in sys.modules:
        spec = importlib.util.spec_from_file_location("submit_once", SUBMIT_ONCE)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["submit_once"] = module
        spec.loader.exec_module(module)
    return sys.modules["submit_once"]


def airflow_dag() -> dict[str, Any]:
    """The names in the file; its tasks are plain functions, and its DAG does nothing."""

    def task(**_: Any) -> Any:
        return lambda function: function

    submit_once()
    stub: Any = types.ModuleType("airflow.sdk")
    stub.task = types.SimpleNamespace(sensor=task)
    stub.dag = lambda **_: lambda _: lambda: None
    before = {name: sys.modules.get(name) for name in ("airflow", "airflow.sdk")}
    sys.modules.update({"airflow": types.ModuleType("airflow"), "airflow.sdk": stub})
    try:
        return runpy.run_path(str(AIRFLOW_DAG))
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
