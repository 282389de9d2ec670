"""jobs/schedules/airflow_dag.py without Airflow."""

from __future__ import annotations

import runpy
import sys
import types
from typing import Any

from conftest import REPOSITORY

AIRFLOW_DAG = REPOSITORY / "jobs/schedules/airflow_dag.py"


def airflow_dag() -> dict[str, Any]:
    """The names in the file; its tasks are plain functions, and its DAG does nothing."""
    stub: Any = types.ModuleType("airflow.sdk")
    stub.task, stub.dag = lambda **_: lambda function: function, lambda **_: lambda _: lambda: None
    before = {name: sys.modules.get(name) for name in ("airflow", "airflow.sdk")}
    sys.modules.update({"airflow": types.ModuleType("airflow"), "airflow.sdk": stub})
    try:
        return runpy.run_path(str(AIRFLOW_DAG))
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
