"""A nightly corpus job from Airflow 3 (or 2.10 and newer), on a Ray cluster whose dashboard the
worker reaches.

Copy this file and submit_once.py into the folder of DAGs. The workers need
`pip install 'ray[default]==2.60.0'`, the version of the cluster, whose image has the code
(jobs/docker/). A cluster with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the
environment of the workers. The values in capitals are yours.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta
from typing import Any

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

from submit_once import Run, RunFailed, connect, is_passing, one_line, step

# yours
DASHBOARD = os.environ.get("MODERNBERT_RAY_DASHBOARD", "http://modernbert-jobs-head-svc:8265")
JOB = (
    "python /app/jobs/classify_corpus.py --input s3://your-bucket/articles --output "
    "s3://your-bucket/labelled "
    "--model s3://your-bucket/models/my-modernbert --text-column body --device cuda --actors 1:8"
)
SCHEDULE = "0 2 * * *"
LONGEST = timedelta(hours=10)  # a job that runs for longer is stopped


@task.sensor(
    mode="reschedule",  # holds no slot between two polls, and survives the worker
    poke_interval=60,
    timeout=(LONGEST + timedelta(hours=1)).total_seconds(),
    retries=2,
    retry_delay=timedelta(minutes=15),
)
def run_job(
    run_id: str = "", ti: Any = None, entrypoint: str = JOB, dashboard: str = DASHBOARD
) -> bool:
    """Submit a job, or look after the one of an earlier poll; True once it has succeeded.

    Its id is that of the DAG's run, so that a retry, or a task that is cleared while its job runs,
    finds that job again; each retry of Airflow's allows for one more attempt. A failed poll is
    repeated. To stop a job: `ray job stop`.
    """
    run = Run(
        id="label-articles-" + re.sub(r"[^A-Za-z0-9]+", "-", run_id),
        entrypoint=entrypoint,
        attempts=ti.try_number,
        retry_after_s=0,  # Airflow has waited
        stop_after_s=LONGEST.total_seconds(),
    )
    try:
        client = connect(dashboard)
        is_done, job = step(client, run)
        print(client.get_job_logs(job) if is_done and job else f"{job} goes on")
    except RunFailed as error:
        print(client.get_job_logs(error.job))
        raise
    except (OSError, RuntimeError) as error:
        if not is_passing(error):
            raise
        print(f"no answer from {dashboard}: {one_line(error)}")
        return False
    return is_done


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
