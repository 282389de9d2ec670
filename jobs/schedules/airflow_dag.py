"""A nightly corpus job from Airflow 3 (or 2.10 and newer), on a Ray cluster whose dashboard the
worker reaches.

Copy this file into the folder of DAGs. The workers need `pip install 'ray[default]==2.60.0'`, the
version of the cluster, whose image has the code (jobs/docker/). The values in capitals are yours.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

# yours
DASHBOARD = os.environ.get("MODERNBERT_RAY_DASHBOARD", "http://modernbert-jobs-head-svc:8265")
JOB = (
    "python /app/jobs/classify_corpus.py --input s3://your-bucket/articles --output "
    "s3://your-bucket/labelled "
    "--model s3://your-bucket/models/my-modernbert --text-column body --device cuda --actors 1:8"
)
SCHEDULE = "0 2 * * *"
# RAY_JOB_STOP_WAIT_TIME_S: seconds that a stopped job has for its last report.
RUNTIME_ENV = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}


@task(retries=2, retry_delay=timedelta(minutes=15), execution_timeout=timedelta(hours=10))
def run_job(entrypoint: str = JOB, dashboard: str = DASHBOARD, poll_s: float = 30.0) -> str:
    """Submit a job, wait for its end and return its id; a task that is cleared or times out stops
    its job.

    A retry is the same command, which does only what is missing. A cluster with a token wants
    RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment of the workers.
    """
    from ray.job_submission import (
        JobStatus,
        JobSubmissionClient,
    )  # seconds, which parsing the DAG should not take

    client = JobSubmissionClient(dashboard)
    job = client.submit_job(entrypoint=entrypoint, runtime_env=RUNTIME_ENV)
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            time.sleep(poll_s)
    except BaseException:
        client.stop_job(job)
        raise
    print(client.get_job_logs(job))
    if status != JobStatus.SUCCEEDED:
        raise RuntimeError(f"{job} {status}: {client.get_job_info(job).message}")
    return job


@dag(
    schedule=SCHEDULE,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["modernbert"],
)
def label_articles():
    run_job()


label_articles()
