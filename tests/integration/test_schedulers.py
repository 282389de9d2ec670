"""jobs/schedules/airflow_dag.py: Airflow parses the DAG, and its task follows jobs on a real head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from schedules import AIRFLOW_DAG, airflow_dag

PARSE = f"""
import json
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(AIRFLOW_DAG)!r})
found = [
    [name, str(dag.schedule), dag.max_active_runs, dag.catchup, [[task.task_id, task.retries] for task in dag.tasks]]
    for name, dag in bag.dags.items()
]
print(json.dumps([{{str(file): str(error) for file, error in bag.import_errors.items()}}, found]))
"""


def airflow(folder: Path) -> str:
    """A Python with Airflow: what AIRFLOW_PYTHON names, else that of a new environment, which takes half a minute."""
    if python := os.environ.get("AIRFLOW_PYTHON"):
        return python
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120
    )
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "-q", "--no-compile", "apache-airflow==3.3.2"]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=400)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"Airflow could not be installed: {error}")
    return python


@pytest.mark.slow
def test_airflow_parses_the_dag(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    call = [airflow(tmp_path / "venv"), "-c", PARSE]
    done = subprocess.run(
        call, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    errors, dags = json.loads(done.stdout.splitlines()[-1])
    assert errors == {}
    assert dags == [["label_articles", "0 2 * * *", 1, False, [["run_job", 2]]]]


@pytest.mark.slow
def test_the_task_of_the_dag_follows_its_job(ray_head, monkeypatch):
    """It returns when the job has succeeded, raises when it has failed, and stops it when it is stopped itself."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    monkeypatch.delenv("RAY_ADDRESS")  # would be where jobs go
    dag = airflow_dag()
    client = JobSubmissionClient(ray_head.dashboard)
    for _ in range(60):  # the head answers some seconds before its agent takes jobs
        try:
            job = dag["run_job"]("python -c 'print(6 * 7)'", ray_head.dashboard, poll_s=0.5)
            break
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(1)
    assert client.get_job_logs(job).splitlines()[-1] == "42"
    assert client.get_job_info(job).runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    with pytest.raises(RuntimeError, match=r"FAILED.*exit code 2"):
        dag["run_job"]("python -c 'raise SystemExit(2)'", ray_head.dashboard, poll_s=0.5)

    def cleared(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dag["time"], "sleep", cleared)
    with pytest.raises(KeyboardInterrupt):
        dag["run_job"]("python -c 'import time; time.sleep(600)'", ray_head.dashboard)
    monkeypatch.undo()
    (stopped,) = [job for job in client.list_jobs() if "sleep(600)" in job.entrypoint]
    for _ in range(60):
        if (status := client.get_job_status(stopped.submission_id)).is_terminal():
            break
        time.sleep(1)
    assert status == JobStatus.STOPPED
