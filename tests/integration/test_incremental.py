"""Scheduled runs over an input that grows and changes, two runs at once, and runs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_job, run_script, stages_here
from conftest import REPOSITORY, SOAK
from corpora import count_parts, plan

from pipelines.errors import UserError
from pipelines.input import inspection
from pipelines.input.corpus import Corpus, Shards
from pipelines.input.cutting import cuts_of_file
from pipelines.input.shards import DataFile, Scan
from pipelines.output import folder as output
from pipelines.output import lease as output_lease
from pipelines.output.lease import LEASE, _processes, lease
from pipelines.output.parts import Listing
from pipelines.output.planned_files import read_files
from pipelines.output.record import RunRecord
from pipelines.storage import Folder

JOB = str(REPOSITORY / "jobs" / "classify_corpus.py")


def write(folder: Path, name: str, rows: range) -> None:
    pq.write_table(
        pa.table({"id": rows, "text": [f"the cat {i} sat" for i in rows]}),
        folder / f"{name}.parquet",
    )


def run(folder: Path, model: Path, **options) -> int:
    named = {"input": str(folder / "in"), "output": str(folder / "out"), "model": str(model)}
    return run_job("classify", **named | options)


def ids(folder: Path) -> list[int]:
    return ds.dataset(folder / "out").to_table()["id"].to_pylist()


@pytest.mark.slow
def test_three_nights(tmp_path, checkpoint, in_process, monkeypatch, capfd):
    """New files are labelled, changed ones again, missing ones listed; what is unchanged is neither read nor run."""
    (tmp_path / "in").mkdir()
    for name, rows in (("a", range(100)), ("b", range(100, 200)), ("c", range(200, 250))):
        write(tmp_path / "in", name, rows)
    assert run(tmp_path, checkpoint) == 0
    assert ids(tmp_path) == list(range(250))
    first = {
        part.name: part.stat().st_mtime_ns for part in (tmp_path / "out").glob("data/a.parquet-*")
    }

    write(tmp_path / "in", "b", range(1000, 1070))
    write(tmp_path / "in", "d", range(300, 330))
    read: list[str] = []
    original = inspection.inspect_file

    def counted(format_, filesystem, path, **columns):
        read.append(path)
        return original(format_, filesystem, path, **columns)

    capfd.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(inspection, "inspect_file", counted)
        assert run(tmp_path, checkpoint) == 0
    assert sorted(Path(file).stem for file in read) == ["b", "d"]
    assert ids(tmp_path) == [*range(100), *range(1000, 1070), *range(200, 250), *range(300, 330)]
    message = capfd.readouterr().out
    assert "1  new files" in message
    assert "1  changed files" in message
    assert {
        part.name: part.stat().st_mtime_ns for part in (tmp_path / "out").glob("data/a.parquet-*")
    } == first

    (tmp_path / "in" / "c.parquet").unlink()
    assert run(tmp_path, checkpoint) == 0
    assert (
        "1  files have disappeared, and their rows stay in the output: " in capfd.readouterr().out
    )
    assert ids(tmp_path) == [*range(100), *range(1000, 1070), *range(200, 250), *range(300, 330)]
    record = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert [(attempt["outcome"], attempt["rows"]) for attempt in record["attempts"]] == [
        ("complete", 250),
        ("complete", 100),
        ("complete", 0),
    ]
    assert (
        record["totals"]["rows"] == sum(record["totals"]["labels"].values()) == 250
    )  # all nights', less what changed
    assert "250" in (tmp_path / "out" / "_report.html").read_text(encoding="utf-8")
    assert run(tmp_path, checkpoint, overwrite=True) == 0
    assert ids(tmp_path) == [*range(100), *range(1000, 1070), *range(300, 330)]
    assert len(json.loads((tmp_path / "out" / "_run.json").read_text())["attempts"]) == 1


@pytest.mark.slow
def test_rows_of_a_changed_file_that_were_rejected_go_too(tmp_path, checkpoint, in_process):
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"id": [1, 2], "text": ["the cat", None]}), tmp_path / "in" / "a.parquet"
    )
    assert run(tmp_path, checkpoint) == 0
    assert pq.read_table(tmp_path / "out" / "_rejected")["id"].to_pylist() == [2]
    pq.write_table(
        pa.table({"id": [1, 2], "text": ["the cat", "mended"]}), tmp_path / "in" / "a.parquet"
    )
    assert run(tmp_path, checkpoint) == 0
    assert ids(tmp_path) == [1, 2]
    assert not list((tmp_path / "out" / "_rejected").iterdir())


@pytest.mark.slow
def test_a_corrupt_file_among_good_ones_is_named_and_the_others_finish(
    tmp_path, checkpoint, in_process, capfd
):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a", range(100))
    write(tmp_path / "in", "c", range(200, 230))
    (tmp_path / "in" / "b.parquet").write_bytes((tmp_path / "in" / "a.parquet").read_bytes()[:-9])
    assert run(tmp_path, checkpoint) == 1
    assert "in/b.parquet: cannot be read: " in capfd.readouterr().out
    assert ids(tmp_path) == [*range(100), *range(200, 230)]
    write(tmp_path / "in", "b", range(100, 150))
    assert run(tmp_path, checkpoint) == 0
    assert ids(tmp_path) == [*range(150), *range(200, 230)]


@pytest.mark.slow
@pytest.mark.parametrize(("most", "where"), [("10", "local_ray"), ("30%", "in_process")])
def test_a_job_that_rejects_too_much_stops(most, where, tmp_path, checkpoint, request):
    request.getfixturevalue(where)
    (tmp_path / "in").mkdir()
    texts = [None if i % 3 == 0 else "the cat" for i in range(300)]
    pq.write_table(pa.table({"id": range(300), "text": texts}), tmp_path / "in" / "a.parquet")
    with pytest.raises(
        UserError, match=f"rejected, more than --max-rejected {most}: .* times text is null"
    ):
        run(tmp_path, checkpoint, max_rejected=most)
    with stages_here():
        assert run(tmp_path, checkpoint, max_rejected="40%") == 0


@pytest.mark.slow
def test_rejected_rows_are_an_input_once_they_are_mended(tmp_path, checkpoint, in_process):
    (tmp_path / "in").mkdir()
    texts = pa.array(["the cat", None, "sat"])
    pq.write_table(pa.table({"id": [0, 1, 2], "text": texts}), tmp_path / "in" / "a.parquet")
    assert run(tmp_path, checkpoint) == 0
    rejected = pq.read_table(tmp_path / "out" / "_rejected")
    mended = rejected.set_column(
        rejected.schema.get_field_index("text"), "text", pa.array(["mended"])
    )
    (tmp_path / "mended").mkdir()
    pq.write_table(mended, tmp_path / "mended" / "a.parquet")
    named = {"input": tmp_path / "mended", "output": tmp_path / "more", "model": checkpoint}
    assert run_job("classify", **named) == 0
    assert ds.dataset(tmp_path / "more").to_table()["id"].to_pylist() == [1]


@pytest.mark.slow
def test_text_files_through_the_whole_job(tmp_path, checkpoint, local_ray, capfd):
    """Malformed lines are rejected with their text, drift changes no value, a file of something else is named."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    lines = [
        json.dumps(
            {"id": i if i < 90 else f"A{i}", "text": f"the cat {i}", "at": f"2024-01-01T{i}Z"}
        )
        for i in range(100)
    ]
    lines[7] = lines[7][:20]
    (source / "a.jsonl").write_text("\n".join(lines))
    (source / "b.jsonl").write_text("")
    (source / "c.jsonl").write_text("not JSON\n")
    options = {"input": source, "output": out, "model": checkpoint}
    assert run_job("classify", **options) == 1
    assert (
        f"{source}/c.jsonl: cannot be read: no record of it is a row of json"
        in capfd.readouterr().out
    )
    rows = ds.dataset(out).to_table().to_pylist()
    assert [(row["id"], row["at"]) for row in rows] == [
        (str(i) if i < 90 else f"A{i}", f"2024-01-01T{i}Z") for i in range(100) if i != 7
    ]
    (rejected,) = pq.read_table(out / "_rejected").to_pylist()
    assert (rejected["_row"], rejected["_raw"]) == (7, lines[7])
    assert rejected["_reason"] == "not readable as JSON: Unterminated string starting at"
    assert not (out / "_staged").exists()
    (source / "c.jsonl").write_text('{"text": "the cat", "id": "c"}')
    with stages_here():
        assert run_job("classify", **options) == 0
    assert "reading 1 json file(s)" in capfd.readouterr().out
    assert ds.dataset(out).to_table()["id"].to_pylist()[-1] == "c"
    for part in out.glob("data/a.jsonl*.parquet"):
        part.unlink()
    with stages_here():
        assert run_job("classify", **options) == 0  # staged again, into the same shards
    assert ds.dataset(out).to_table().to_pylist()[:-1] == rows


def test_text_files_that_are_known_are_not_read_again(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(300))
        )
    planned = plan(tmp_path / "*.jsonl", tmp_path / "out")
    out = Folder(str(tmp_path / "out"))
    output.begin_run(out, RunRecord({}), planned, Listing(), overwrite=False)
    again = plan(tmp_path / "*.jsonl", "/dev/null/none", earlier=read_files(out))
    assert list(again.shards) == list(planned.shards)
    assert again.schema == planned.schema


def test_an_output_that_version_0_2_0_began_goes_on_with_its_shards(
    tmp_path, checkpoint, in_process
):
    """Known files keep the rows a shard of the record; small ones keep parts of their own, and new ones share."""
    (tmp_path / "in").mkdir()
    for number in range(40):
        write(tmp_path / "in", f"{number:03}", range(100 * number, 100 * number + 9 + number % 2))
    write(tmp_path / "in", "large", range(10_000, 10_300))
    assert run(tmp_path, checkpoint) == 0
    # What 0.2.0 wrote: no step and no groups, and shards of at most 128 rows; two files are done.
    out = tmp_path / "out"
    with pa.ipc.open_file(out / "_files.arrow") as reader:
        files = reader.read_all().select(["path", "version", "rows", "size", "parts"])
    with pa.ipc.new_file(out / "_files.arrow", files.schema) as writer:
        writer.write_table(files)
    record = json.loads((out / "_run.json").read_text()) | {"shard_rows": 128}
    (out / "_run.json").write_text(json.dumps(record))
    for part in out.glob("data/*"):
        part.unlink()
    assert run(tmp_path, checkpoint) == 0
    ranges = sorted(part.stem.split("-", 1)[1][9:] for part in out.glob("data/large*"))
    assert ranges == ["000000000-000000128", "000000128-000000256", "000000256-000000300"]
    assert count_parts(out) == 43
    before = sorted(out.glob("data/*"))
    for number in range(200, 300):
        write(tmp_path / "in", f"{number:03}", range(100 * number, 100 * number + 5))
    assert run(tmp_path, checkpoint) == 0
    assert set(before) < set(out.glob("data/*"))
    assert count_parts(out) < 43 + 60
    assert len(set(ids(tmp_path))) == len(ids(tmp_path)) == 40 * 9 + 20 + 300 + 100 * 5


def test_a_hundred_thousand_shards_are_compared_by_one_listing(tmp_path):
    """Ten files of 10,000 shards each: the plan comes back from the ledger, and who is done from the names alone."""
    scan = Scan(4096 * 10_000, 0)
    files = [
        DataFile(f"/in/{i}.parquet", "0" * 8, scan, name=f"{i}.parquet", step=4096)
        for i in range(10)
    ]
    names = [
        f"{i}.parquet-00000000-{4096 * j:09d}-{4096 * (j + 1):09d}"
        for i in range(10)
        for j in range(10_000)
    ]
    cuts = [cuts_of_file(i, scan, 4096, scan.rows) for i in range(10)]
    planned = Shards("parquet", [(file, ()) for file in files], [], np.concatenate(cuts))
    corpus = Corpus(files, "parquet", pa.schema([("text", pa.string())]), planned)
    for name in names[::2]:
        (tmp_path / f"{name}.parquet").touch()
    out = Folder(str(tmp_path))
    present = output.shards_there(out, "", overwrite=False)
    todo, _ = output.begin_run(out, RunRecord({}), corpus, present, overwrite=False)
    assert [planned[place].name for place in todo] == names[1::2]
    assert [file.path for file in read_files(out).files] == [file.path for file in files]


def test_an_overwrite_that_dies_in_between_leaves_no_mixture(tmp_path, monkeypatch):
    """Killed while it removes: what is left is still the earlier output's, and no other run goes on with it."""
    table = pa.table({"text": ["a"] * 200})
    pq.write_table(table, tmp_path / "in.parquet")
    planned, out = (
        plan(tmp_path / "in.parquet", tmp_path / "out", shard_rows=64),
        Folder(str(tmp_path / "out")),
    )
    output.begin_run(out, RunRecord({"model": "one"}), planned, Listing(), overwrite=False)
    for shard in planned.shards:
        out.write_atomic(f"data/{shard.name}.parquet", b"")
    with monkeypatch.context() as patched:
        patched.setattr(RunRecord, "write", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            output.begin_run(out, RunRecord({"model": "two"}), planned, Listing(), overwrite=True)
    with pytest.raises(UserError, match="was begun with model one, not two"):
        output.open_output(out, {"model": "two"}, overwrite=False)
    todo, _ = output.begin_run(out, RunRecord({"model": "two"}), planned, Listing(), overwrite=True)
    assert len(todo) == len(planned.shards)
    assert output.open_output(out, {"model": "two"}, overwrite=False)
    long_path = "/a/long/path/of/a/model/" + "m" * 40
    with pytest.raises(UserError, match=f"was begun with model two, not {long_path}; "):
        output.open_output(out, {"model": long_path}, overwrite=False)
    with pytest.raises(UserError, match=f"not {'0a' * 6}; "):
        output.open_output(out, {"model": "0a" * 32}, overwrite=False)


def test_a_second_run_at_once_stops_and_a_dead_ones_lease_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lease, "_WATCHED_S", 0.1)
    monkeypatch.setattr(output_lease, "_LOOKS_S", 0.1)
    out = Folder(str(tmp_path))
    with lease(out):
        with (
            pytest.raises(UserError, match=f"is being written by process {os.getpid()} on"),
            lease(out),
        ):
            pass
        assert (tmp_path / LEASE).exists()
    assert not (tmp_path / LEASE).exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    message = {"host": "here", "process": ended.pid, "processes": _processes()}
    (tmp_path / LEASE).write_text(json.dumps(message))
    with lease(out):
        pass
    (tmp_path / LEASE).write_text(json.dumps(message | {"processes": "another machine"}))
    with pytest.raises(UserError, match="is being written"), lease(out):
        pass
    os.utime(tmp_path / LEASE, (time.time() - 61, time.time() - 61))
    with lease(out):
        pass


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
def test_a_lease_is_that_of_a_living_or_a_dead_run_whatever_its_clock(
    ahead_s, tmp_path, monkeypatch
):
    """Where a folder has its times from those who write there, as FUSE gives them."""
    written_at = output_lease._written_at

    def by_its_clock(folder, name):
        written = written_at(folder, name)
        return written + ahead_s if written is not None and name == LEASE else written

    monkeypatch.setattr(output_lease, "_written_at", by_its_clock)
    monkeypatch.setattr(output_lease, "_RENEWED_S", 0.05)
    monkeypatch.setattr(output_lease, "_LOOKS_S", 0.05)
    out = Folder(str(tmp_path))
    with (
        lease(out) as held,
        pytest.raises(UserError, match="is being written by process"),
        lease(out),
    ):
        pass
    assert not held.lost.is_set()
    monkeypatch.setattr(output_lease, "_WATCHED_S", 0.2)
    message = {"host": "dead", "process": 1, "processes": "another machine"}
    (tmp_path / LEASE).write_text(json.dumps(message))
    with lease(out) as held:
        held.check()


@pytest.mark.slow
def test_a_job_that_is_stopped_says_how_to_go_on_and_goes_on(tmp_path, checkpoint, ray_head):
    """On a Ray that goes on, and in the soak on one of its own, which test_signals.py stops, too."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", "a", range(3000))
    command = [JOB, "--input", "in", "--output", "out", "--model", str(checkpoint), "--actors", "1"]
    cases = [(signal.SIGINT, 130, "interrupted", ray_head.address)]
    if SOAK:
        cases.append((signal.SIGTERM, 143, "stopped", "local"))
    for sent, code, word, address in cases:
        there = list((tmp_path / "out").glob("data/*.parquet"))
        settings = {"env": os.environ | {"RAY_ADDRESS": address}, "cwd": tmp_path, "text": True}
        job = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
        )
        while len(list((tmp_path / "out").glob("data/*.parquet"))) == len(there):
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(sent)
        _, message = job.communicate(timeout=120)
        assert job.returncode == code, message
        assert f"{word}; the same command goes on where this one stopped" in message
        assert "Traceback" not in message
        assert not (tmp_path / "out" / LEASE).exists()
    with stages_here():
        assert run_script(*command, cwd=tmp_path).returncode == 0
    assert ids(tmp_path) == list(range(3000))
