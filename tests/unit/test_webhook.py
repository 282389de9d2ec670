"""--notify: what a URL gets when a job has ended, what becomes of the job where it gets nothing, and what a run costs."""

from __future__ import annotations

import json
import logging
import threading
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import run_corpus
from pipelines.corpus.compute import describe_compute, record_compute
from pipelines.corpus.execute import Execution
from pipelines.errors import JobError, UserError
from pipelines.job_options import corpus_options
from pipelines.output import webhook
from pipelines.output.record import Attempt
from pipelines.output.webhook import Webhook
from pipelines.storage import Folder, redact

SECRETS = ["pl4nt3d-p4ss", "T0000PLANTED/B0000PLANTED", "pl4nt3dToken"]
ANSWERS = {  # the server's: how many posts it gets, and what the job says
    200: (1, None),
    500: (3, "the server answers 500, 3 times"),
    429: (3, "the server answers 429, 3 times"),
    404: (1, "the server answers 404"),
    302: (1, "the server answers 302"),
}


@contextmanager
def server(*codes):
    """A server that answers with these codes, the last of them again and again; (its address, what it was sent)."""
    posts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(codes[min(len(posts), len(codes)) - 1])
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self):
            posts.append("followed")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"127.0.0.1:{http.server_port}", posts
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0, 0.0))


@pytest.fixture
def job(tmp_path, checkpoint, in_process):
    pq.write_table(pa.table({"text": ["the cat sat", None, "on the mat"]}), tmp_path / "in.parquet")
    return {
        "input": str(tmp_path / "in.parquet"),
        "output": str(tmp_path / "out"),
        "model": str(checkpoint),
    }


@pytest.mark.parametrize("code", ANSWERS)
def test_a_url_gets_the_last_status_once_and_the_job_ends_as_it_has(job, caplog, code):
    count, said = ANSWERS[code]
    with server(code) as (address, posts), caplog.at_level(logging.WARNING):
        done = run_corpus("classify", **job, notify=f"http://me:{SECRETS[0]}@{address}/a?b=1")
    assert (done.outcome, done.rows) == ("complete", 3)
    assert len(posts) == count
    path, authorization, content = posts[-1]
    assert path == "/a?b=1"
    assert authorization == "Basic " + b64encode(f"me:{SECRETS[0]}".encode()).decode()
    status = json.loads(Folder(job["output"]).read("_status.json"))
    times = ("written", "seconds")
    assert {name: value for name, value in content.items() if name not in times} == {
        name: value for name, value in (status | {"output": job["output"]}).items() if name not in times
    }  # fmt: skip
    assert (content["state"], content["rows"], content["rejected"]) == ("complete", 3, 1)
    warnings = [record.message for record in caplog.records if "notify" in record.message]
    assert warnings == (
        [f"--notify http://{address}: {said}; the job itself is not affected"] if said else []
    )


def test_a_server_that_comes_back_is_told(job, caplog):
    with server(503, 200) as (address, posts), caplog.at_level(logging.WARNING):
        run_corpus("classify", **job, notify=f"http://{address}")
    assert [path for path, _, _ in posts] == ["/", "/"]
    assert "notify" not in caplog.text


def test_a_job_that_fails_is_told_of_and_keeps_its_error(job, monkeypatch):
    def fail(self, *_):
        raise JobError("Ray: the head is lost")

    monkeypatch.setattr(Execution, "run", fail)
    with (
        server(200) as (address, posts),
        pytest.raises(JobError, match="the head is lost"),
    ):
        run_corpus("classify", **job, notify=f"http://{address}")
    assert [content["state"] for _, _, content in posts] == ["error"]
    assert posts[0][2]["last_error"] == "Ray: the head is lost"


def test_nothing_that_is_said_or_written_holds_what_the_url_hides(job, caplog, capfd, monkeypatch):
    url = f"https://me:{SECRETS[0]}@127.0.0.1:1/services/{SECRETS[1]}?key={SECRETS[2]}"

    def raise_with_url(*_, **__):
        raise ValueError(f"cannot open {url}")

    for break_it in (False, True):
        if break_it:
            monkeypatch.setattr("urllib.request.OpenerDirector.open", raise_with_url)
        with caplog.at_level(logging.DEBUG):
            done = run_corpus("classify", **job, notify=url)
        assert "--notify https://127.0.0.1:1: " in caplog.text
        texts = [caplog.text, str(done), repr(Webhook.of_user(url)), *capfd.readouterr()]
        folder = Folder(job["output"])
        files = [name for name, info in folder.files().items() if info.is_file]
        assert "_run.json" in files
        texts += [folder.read(name).decode(errors="replace") for name in files]
        for secret in (*SECRETS, *SECRETS[1].split("/")):
            assert not [text for text in texts if secret in text]
    assert redact(url) != url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "file:///etc/passwd",
        "ftp://me:pl4nt3d-p4ss@host/x",
        "gopher://host",
        "data:,x",
        "http://",
        "http:///x",
        "https://[::1/x",
        "https://host:99999/x",
        "https://host/a b",
        "https://host/a\nHost: other",
        "https://host/é",
    ],
)
def test_what_is_no_url_of_http_stops_before_any_work(job, url):
    with pytest.raises(UserError, match=r"^notify must be an http:// or https:// URL") as caught:
        run_corpus("classify", **job, notify=url)
    assert "pl4nt3d" not in str(caught.value)
    assert not Folder(job["output"]).files()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_run_uses_and_costs(device):
    attempt = Attempt("", 10.0, "complete", 1, 1, "h", device, None, {})
    options = corpus_options("classify")(price_per_hour=2.5)
    record_compute(attempt, 7200.0, 1800.0, device, options)
    gpu_s, cpu_s = (7200.0 if device == "cuda" else 0.0), 9000.0
    cost = 2.5 * (2 if device == "cuda" else 2.5)
    assert (attempt.gpu_s, attempt.cpu_s, attempt.cost) == (gpu_s, cpu_s, cost)
    assert describe_compute(attempt) == {
        "cuda": "2 h 0 min of GPUs and 2 h 30 min of CPU cores; 5 at 2.5 an hour of a GPU",
        "cpu": "2 h 30 min of CPU cores; 6.25 at 2.5 an hour of a core",
    }[device]  # fmt: skip
    unknown = Attempt("", 10.0, "stopped", 1, 1, "h", device, None, {})
    record_compute(unknown, None, 1.0, device, options)
    assert (unknown.gpu_s, unknown.cpu_s, unknown.cost) == (None, None, None)
    assert describe_compute(unknown) == ""


def test_cost_is_in_the_summary_the_record_and_the_report(job, monkeypatch):
    run = Execution.run

    def run_for_an_hour(self, *arguments):
        run(self, *arguments)
        self.held_s = 3600.0

    monkeypatch.setattr(Execution, "run", run_for_an_hour)
    done = run_corpus("classify", **job, price_per_hour=4)
    said = "compute    60 min 0 s of CPU cores; 4 at 4 an hour of a core"
    said = said.replace("60 min 0 s", "1 h 0 min")
    assert said in str(done).splitlines()
    attempt = json.loads(Folder(job["output"]).read("_run.json"))["attempts"][-1]
    assert attempt["cpu_s"] == pytest.approx(3600, abs=5)
    assert attempt["cost"] == pytest.approx(4, abs=0.01)
    assert (attempt["gpu_s"], attempt["price_per_hour"]) == (0, 4)
    assert "1 h 0 min of CPU cores; 4" in Folder(job["output"]).read("_report.html").decode()
