"""`_status.json`, what writes it and who reads it: real jobs in this process, and the command on their outputs."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_job, run_module
from conftest import REPOSITORY, readme_block
from hypothesis import given
from hypothesis import strategies as st

from pipelines import run_corpus
from pipelines.corpus import status as job_status
from pipelines.corpus.execute import Execution
from pipelines.errors import JobError
from pipelines.output import status as output_status
from pipelines.output.status import STATUS, ReasonClasses, Status, read_status, without_texts
from pipelines.status_command import COMPLETE, FAILED, MAY_BE_DEAD, MISTAKE, RUNS
from pipelines.storage import Folder

PLANTED = "planted secret of a row"


def files(folder, rows=12, count=3):
    folder.mkdir()
    for number in range(count):
        texts = [f"the cat sat {number}"] * (rows - 1) + [None]
        pq.write_table(pa.table({"text": texts}), folder / f"{number}.parquet")
    return folder


@pytest.fixture
def job(tmp_path, checkpoint, in_process):
    """The options of a job of three shards, each with a row that is rejected."""
    folder = files(tmp_path / "in")
    return {
        "input": str(folder),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
        "rows_per_file": 12,
    }


def status_of(job):
    return read_status(Folder(job["output"]))


def command(*arguments):
    return run_module("pipelines", "status", *arguments)


def test_the_last_status_has_what_the_run_did(job):
    done = run_corpus("classify", **job)
    status = status_of(job)
    attempt = json.loads(Folder(job["output"]).read("_run.json"))["attempts"][-1]
    assert (status.state, status.run, status.task) == ("complete", attempt["run"], "classify")
    assert (status.node, status.process) == (attempt["host"], os.getpid())
    assert (status.rows, status.tokens, status.rejected) == (done.rows, done.tokens, done.rejected)
    assert (status.rows, status.rejected, status.rows_todo) == (36, 3, 36)
    assert (status.commits, status.shards, status.failures) == (3, 3, 0)
    assert status.rejects == {"text is null": 3}
    assert status.left_s == 0
    assert status.last_error is None
    assert status.started < status.last_commit < status.written


def test_a_run_writes_it_while_it_works_and_a_later_run_replaces_it(job, monkeypatch):
    monkeypatch.setattr(job_status, "WRITTEN_EVERY_S", 0.01)
    seen = []
    add_committed = Execution.add_committed

    def add_and_look(self, stats):
        add_committed(self, stats)
        until = time.monotonic() + 60
        while (now := status_of(job)).commits < self.tally.shards:
            assert time.monotonic() < until
            time.sleep(0.01)
        seen.append((now.state, now.commits, now.rows, now.rejected))

    monkeypatch.setattr(Execution, "add_committed", add_and_look)
    run_corpus("classify", **job)
    assert seen == [("running", 1, 12, 1), ("running", 2, 24, 2), ("running", 3, 36, 3)]
    first = status_of(job)
    run_corpus("classify", **job)
    second = status_of(job)
    assert second.run != first.run
    assert (second.state, second.shards, second.commits, second.rows) == ("complete", 0, 0, 0)


def test_a_run_that_ends_otherwise_says_how(job, monkeypatch, tmp_path):
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1 not at all PAR1")
    assert run_corpus("classify", **job).failed
    status = status_of(job)
    assert (status.state, status.commits, status.failures) == ("failed", 3, 1)
    assert "broken.parquet: cannot be read" in status.last_error
    done = command(job["output"])
    assert done.returncode == FAILED
    assert "state      failed, written " in done.stdout
    assert "last error broken.parquet: cannot be read" in done.stdout.replace(f"{tmp_path}/in/", "")

    (tmp_path / "in" / "broken.parquet").unlink()
    job = job | {"output": str(tmp_path / "other")}
    for error, state, last in (
        (JobError(f"Ray: lost '{PLANTED}'"), "error", "Ray: lost '…'"),
        (KeyboardInterrupt(), "interrupted", None),
    ):
        monkeypatch.setattr(Execution, "run", lambda *_, error=error: raise_(error))
        with pytest.raises(type(error)):
            run_corpus("classify", **job)
        status = status_of(job)
        assert (status.state, status.last_error, status.commits) == (state, last, 0)
        assert command(job["output"]).returncode == FAILED


def raise_(error):
    raise error


def test_a_status_that_cannot_be_written_is_said_once_and_costs_nothing(job, monkeypatch, caplog):
    write_atomic = Folder.write_atomic

    def write(self, name, data):
        if name == STATUS:
            raise OSError(28, "No space left on device")
        write_atomic(self, name, data)

    monkeypatch.setattr(Folder, "write_atomic", write)
    monkeypatch.setattr(job_status, "WRITTEN_EVERY_S", 0.01)
    with caplog.at_level(logging.WARNING):
        done = run_corpus("classify", **job)
    assert (done.outcome, done.rows) == ("complete", 36)
    said = [record.message for record in caplog.records if STATUS in record.message]
    assert said == [
        f"{STATUS} cannot be written: [Errno 28] No space left on device; the job goes on"
    ]
    assert STATUS not in Folder(job["output"]).files()


def test_a_run_whose_lease_is_lost_leaves_the_status_to_the_other(job, monkeypatch):
    other = b"of the other run"

    def lose(self, *_):
        status = self.check.__self__
        status.lost.set()
        self.job.folder.write_atomic(STATUS, other)

    monkeypatch.setattr(Execution, "run", lose)
    with pytest.raises(JobError, match="was taken over by another run"):
        run_corpus("classify", **job)
    assert Folder(job["output"]).read(STATUS) == other


def test_it_holds_no_text_of_a_row(tmp_path, checkpoint, in_process):
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": f"{PLANTED} {number}"}) for number in range(20)]
    lines += [f'{{"text": "{PLANTED}', f'{{"text": "{PLANTED}"}} and more', '{"text": ""}']
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(lines))
    run_job("classify", input=tmp_path / "in", output=tmp_path / "out", model=checkpoint)
    content = (tmp_path / "out" / STATUS).read_text()
    assert json.loads(content)["rejected"] == 3
    assert "planted" not in content
    assert "label-" not in content


@given(st.lists(st.text(max_size=30)), st.text(max_size=30), st.sampled_from(["'{}'", '"{}"']))
def test_reasons_have_few_classes_and_show_nothing_that_is_quoted(texts, text, quoted):
    classes = ReasonClasses()
    reasons = [f"label {text!r} is there {number} times" for number, text in enumerate(texts)]
    assert len({classes.name(reason) for reason in reasons}) <= 1
    many = {classes.name(text) for text in texts} | {classes.name("x" * n) for n in range(50)}
    assert len(many) <= 17
    shown = without_texts(f"the model's label {quoted.format(f'{text}{PLANTED}{text}')} is wrong")
    assert PLANTED not in shown
    assert shown.startswith("the model's label")


def test_the_command_tells_how_the_job_is_by_its_exit_code(job, monkeypatch):
    run_corpus("classify", **job)
    *_, name, output = shlex.split(readme_block("status", "jobs/README.md"))
    assert (name, output) == ("status", "labelled/")
    done = command(job["output"])
    assert done.returncode == COMPLETE
    assert done.stdout.splitlines()[0].startswith("state      complete, written ")
    assert "commits    3 of 3 (100%) shards, the last at 2" in done.stdout
    assert "failures   0 files or shards\n" in done.stdout
    assert "rows       36 of 36 (100%), 3 rejected\n" in done.stdout
    assert "rejected           3  text is null" in done.stdout
    machine = json.loads(command(job["output"], "--json").stdout)
    assert (machine["state"], machine["rows"], machine["may_be_dead"]) == ("complete", 36, False)

    monkeypatch.setattr(output_status, "WATCHED_S", 0.1)
    monkeypatch.setattr(output_status, "_LOOKS_S", 0.1)
    for age_s, code in ((5, RUNS), (3600, MAY_BE_DEAD)):
        write_running(job, age_s)
        done = command(job["output"])
        assert done.returncode == code
        assert ("the job may be dead" in done.stdout) == (code == MAY_BE_DEAD)
        found = json.loads(command(job["output"], "--json").stdout)
        assert found["may_be_dead"] == (code == MAY_BE_DEAD)
        assert found["age_s"] >= age_s


def write_running(job, age_s):
    """Write the status of a job that runs, so old by the clock of its driver."""
    folder = Folder(job["output"])
    written = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    content = json.loads(folder.read(STATUS)) | {"state": "running", "written": written}
    folder.write_atomic(STATUS, json.dumps(content).encode())


@pytest.mark.parametrize("age_s", [-7200, 7200])
def test_a_job_lives_or_may_be_dead_whatever_the_clock_of_its_driver(age_s, job, monkeypatch):
    run_corpus("classify", **job)
    monkeypatch.setattr(output_status, "_LOOKS_S", 0.05)
    write_running(job, age_s)
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            write_running(job, age_s)

    thread = threading.Thread(target=live)
    thread.start()
    living = command(job["output"])
    ended.set()
    thread.join()
    monkeypatch.setattr(output_status, "WATCHED_S", 0.2)
    dead = command(job["output"])
    assert (living.returncode, dead.returncode) == (RUNS, MAY_BE_DEAD)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"state": 1}', b"\xff"])
def test_what_holds_no_status_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / STATUS).write_bytes(content)
    done = command(tmp_path)
    assert done.returncode == MISTAKE
    assert done.stderr.startswith(f"error: '{tmp_path}")
    assert done.stderr.count("\n") == 1


def test_the_command_imports_neither_ray_nor_torch(job):
    run_corpus("classify", **job)
    code = f"""
import sys
from pipelines.__main__ import main
print(main(["status", {job["output"]!r}, "--json"]), {{"ray", "torch"}} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_it_is_no_data_and_no_hindrance(tmp_path, checkpoint, in_process, capfd):
    """A new output may hold it; a folder with one is an input; a dry run leaves it as it was."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text('{"text": "the cat"}\n' * 3)
    status = Status(
        state="error", run="r", task="classify", node="n", process=1, started="", written="", seconds=0
    )  # fmt: skip
    out = tmp_path / "out"
    for folder in (source, out):
        status.write(Folder(str(folder)))
    options = {"input": str(source), "output": str(out), "model": str(checkpoint)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    dry = run_module("pipelines", "classify", *arguments, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "1 json file(s), about 3 rows" in dry.stdout
    assert read_status(Folder(str(out))) == status
    done = run_corpus("classify", **options)
    assert (done.rows, done.failed) == (3, {})
    assert "are not of this job" not in str(run_corpus("classify", **options))
    assert status_of(options).state == "complete"
