"""Credentials in URIs: nothing that a job prints, writes or logs holds them, whatever the URI and whatever fails."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HEAD_ENVIRONMENT, REPOSITORY
from pyarrow import fs

from pipelines import run_corpus
from pipelines.checkpoints import Checkpoint
from pipelines.storage import Folder, Location, open_location, redact

KEY = "AKIAPLANTEDKEY"
SECRETS = [
    "pl4nt3dSecret",
    "pl4nt/3dSe+cret==",
    "pl4nt 3d%Secret",
    "pl4nt@3dSecret",
    "pl4nt:3d/Secret",
    "pl4nt%2F3dSecret",
]
MODEL = str(REPOSITORY / "jobs/demo/intent-classifier")


def forms(secret: str) -> list[str]:
    return [secret, quote(secret, safe=""), quote(secret), KEY]


def assert_hidden(text: str, secret: str) -> None:
    assert not [form for form in forms(secret) if form in text], text


def places(secret: str) -> list[str]:
    """URIs that mean nothing, and one whose bucket nobody asks for."""
    hosts = ["bucket:99999x", "", "[::1", "buck et"]
    paths = [
        "/data-[0-9].parquet",
        "/a b#c/?.parquet",
        "",
        f"/x?access_key={secret}",
        "/a//b",
        "/user@example.com/x",
    ]
    schemes = ["s3", "gs", "abfs", "ftp", "hdfs"]
    wrong = [
        f"{scheme}://{KEY}:{secret}@{host}{path}"
        for scheme in schemes
        for host in hosts
        for path in paths
    ]
    return [
        *wrong,
        f"s3://{KEY}:{secret}@bucket/x?region=nowhere&endpoint_override=127.0.0.1:1&scheme=http",
    ]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_text_of_a_location_or_its_errors_holds_a_credential(secret, caplog):
    caplog.set_level(logging.DEBUG)
    for uri in places(secret):
        for call in (
            Location.of_user,
            open_location,
            Folder.at,
            lambda uri: Location(uri).filesystem_and_path,
        ):
            try:
                made = call(uri)
            except Exception as error:  # whatever it is
                assert_hidden(f"{error} {error!r} {error.__cause__} {error.__context__}", secret)
            else:
                assert_hidden(f"{made} {made!r}", secret)
        for made in (Location(uri), Folder(uri), Checkpoint(uri, None)):
            assert_hidden(f"{made} {made!r} {[made]} {made!s:>9}", secret)
        assert_hidden(redact(f"anything about {uri} and {quote(uri)}"), secret)
    assert_hidden(caplog.text, secret)
    assert "credentials in a URI are seen by whoever sees the command line" in caplog.text


def test_a_location_travels_with_its_credentials():
    location = Folder("s3://key-of-mine:secret-of-mine@bucket/x")
    there = pickle.loads(pickle.dumps(location))
    assert (there, there.uri, str(there)) == (location, location.uri, "s3://bucket/x")
    assert Location("s3://bucket/x").uri == str(Location("s3://bucket/x"))
    for words in (
        "continue",
        "anonymous",
        "a container",
    ):  # names that are no secrets stay in messages
        Location("gs://anonymous@bucket/x")
        Location("abfs://cont@account.dfs.core.windows.net/x")
        assert redact(words) == words


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("what", ["input", "output", "model"])
def test_mistakes_of_a_call_do_not_print_a_credential(tmp_path, secret, what, in_process, capfd):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    named = {"input": str(tmp_path / "in.parquet"), "output": str(tmp_path / "out"), "model": MODEL}
    for uri in places(secret)[:-1:4]:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever it is)
            run_corpus("classify", **named | {what: uri})
        assert_hidden(f"{caught.value} {caught.value!r}", secret)
    captured = capfd.readouterr()
    assert_hidden(captured.out + captured.err, secret)


@pytest.mark.slow
def test_nothing_that_a_job_prints_writes_or_logs_holds_a_credential(tmp_path):
    """A whole job with a Ray of its own, whose logs are read as well; rows are rejected, and a file is broken."""
    from moto.server import ThreadedMotoServer

    secret = SECRETS[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        store, _ = fs.FileSystem.from_uri(f"s3://{KEY}:x@of-secrets/?{query}")
        # A name of its own: moto's servers share what is in them.
        store.create_dir("of-secrets")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.jsonl").write_text('{"text": "wake me"}\n{"text": ""}\n{"tex\n' * 30)
        (tmp_path / "in" / "b.jsonl").write_bytes(b"\xff\xfe" + "text".encode("utf-16-le"))
        fs.copy_files(str(tmp_path / "in"), "of-secrets/in", destination_filesystem=store)
        fs.copy_files(MODEL, "of-secrets/model", destination_filesystem=store)

        def uri(path: str) -> str:
            return f"s3://{KEY}:{secret}@of-secrets/{path}?{query}"

        command = [
            sys.executable,
            "jobs/classify_corpus.py",
            "--input",
            uri("in"),
            "--output",
            uri("out"),
        ]
        environment = HEAD_ENVIRONMENT | {
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": "",
            "XDG_CACHE_HOME": str(tmp_path),
        }
        logs = Path(f"/tmp/rs{os.getpid()}")
        logs.mkdir()
        environment |= {"RAY_TMPDIR": str(logs), "TMPDIR": str(logs)}
        done = subprocess.run([*command, "--model", uri("model")], cwd=REPOSITORY, env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        wrong = subprocess.run([*command, "--model", uri("nowhere")], cwd=REPOSITORY, env=environment,
                               capture_output=True, text=True, timeout=300)  # fmt: skip
        assert (done.returncode, wrong.returncode) == (1, 2), (
            done.stdout + done.stderr + wrong.stderr
        )
        assert "30 labelled, 60 rejected" in done.stdout
        for result in (done, wrong):
            assert_hidden(result.stdout + result.stderr, secret)
        found = [path for path in logs.rglob("*") if path.is_file()]
        assert any(path.suffix == ".log" for path in found)
        for path in found:
            assert_hidden(path.read_text(errors="replace"), secret)
        written = [
            info
            for info in store.get_file_info(fs.FileSelector("of-secrets/out", recursive=True))
            if info.is_file
        ]
        assert {"_run.json", "_report.html"} <= {info.base_name for info in written}
        for info in written:
            with store.open_input_file(info.path) as stream:
                assert_hidden(stream.read().decode(errors="replace"), secret)
    finally:
        server.stop()
        subprocess.run(["rm", "-rf", f"/tmp/rs{os.getpid()}"], check=False)
