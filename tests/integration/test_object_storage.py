"""Input, model and output in object storage: S3, as moto's server speaks it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import boto3
import lance
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import run_script, stages_here, without_ray
from conftest import REPOSITORY, joined_ray
from corpora import plan, read_all
from deltalake import write_deltalake
from pyarrow import feather, fs
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import IntegerType

from pipelines import run_corpus
from pipelines.checkpoints import Checkpoint, download_checkpoint
from pipelines.errors import JobError, UserError
from pipelines.input.inspection import inspect_input
from pipelines.input.staging import STAGED, read_staged, remove_staged
from pipelines.input.text import TextOptions
from pipelines.output import lease
from pipelines.output.committing import REJECTED
from pipelines.output.parts import list_parts
from pipelines.storage import Folder, Location, redact_credentials, store_options


class Bucket:
    """A bucket of a server on this machine."""

    def __init__(self, host: str, port: int):
        self.query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="some-key",
            aws_secret_access_key="some-secret",
        )
        self.requests = Counter[tuple[str, str]]()
        """The requests so far, by what they do and the folder of their key."""
        self.filesystem, _ = fs.FileSystem.from_uri(self.uri(""))
        self.filesystem.create_dir("bucket")

    def counting(self, app: Callable) -> Callable:
        """Return the server's application, which counts requests."""

        def counted(environ: dict, start_response: Callable) -> object:
            query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
            what = environ["REQUEST_METHOD"]
            key = environ["PATH_INFO"].removeprefix("/bucket/")
            if "list-type" in query:
                what = "LIST"
                key = query.get("prefix", [""])[0]
            elif "uploads" in query or "uploadId" in query:
                what = "UPLOAD"
            self.requests[what, key.rpartition("/")[0]] += 1
            return app(environ, start_response)

        return counted

    def uri(self, path: str) -> str:
        return f"s3://some-key:some-secret@bucket/{path}?{self.query}"

    def copy(self, folder: Path, path: str) -> None:
        fs.copy_files(str(folder), f"bucket/{path}", destination_filesystem=self.filesystem)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    bucket = Bucket(*server.get_host_and_port())
    server._server.app = bucket.counting(server._server.app)
    yield bucket
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[str]:
    """Where checkpoints are copied to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder := str(tmp_path_factory.mktemp("cache")))
        yield folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("jobs/classify_corpus.py", *arguments, cwd=REPOSITORY)


@pytest.fixture
def local_ray(ray_head, cache) -> Iterator[None]:
    """The head, with workers that copy checkpoints to the same folder."""
    with joined_ray(ray_head, runtime_env={"env_vars": {"XDG_CACHE_HOME": cache}}):
        yield


@pytest.mark.slow
def test_input_model_and_output_in_object_storage(bucket, checkpoint, tmp_path, local_ray):
    """Two nights: the same bytes as in a folder, keys in none of the files, and only what is missing is done."""
    (tmp_path / "in").mkdir()
    texts = [f"the cat {i} sat" if i != 7 else None for i in range(100)]
    pq.write_table(pa.table({"id": range(100), "text": texts}), tmp_path / "in" / "a.parquet")
    bucket.copy(tmp_path / "in", "in")
    bucket.copy(checkpoint, "model")
    remote = [
        "--input",
        bucket.uri("in"),
        "--model",
        bucket.uri("model"),
        "--output",
        bucket.uri("out"),
    ]
    first = run(*remote)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "some-secret" not in first.stdout + first.stderr
    local = ["--input", tmp_path / "in", "--model", checkpoint, "--output", tmp_path / "out"]
    with stages_here():
        assert run(*map(str, local)).returncode == 0
    there = Folder(bucket.uri("out"))
    want, got = (
        list(list_parts(Folder(str(tmp_path / "out")), "data")),
        list(list_parts(there, "data")),
    )
    assert [name.rsplit("-", 2)[1:] for name in want] == [name.rsplit("-", 2)[1:] for name in got]
    for mine, other in zip(
        got, want, strict=True
    ):  # the names' versions differ with the files' times
        assert (
            there.read(f"data/{mine}.parquet")
            == (tmp_path / "out" / "data" / f"{other}.parquet").read_bytes()
        )
    message = [there.read(name) for name in there.files() if name.startswith("_") and "." in name]
    assert len(message) == 5
    assert not any(b"some-secret" in content for content in message)
    rejected = ds.dataset(f"bucket/out/{REJECTED}", filesystem=bucket.filesystem).to_table()
    assert rejected["id"].to_pylist() == [7]

    second = run(*remote)
    assert second.returncode == 0
    assert f"{len(got)} shards were in the output already" in second.stdout
    assert len(json.loads(there.read("_run.json"))["attempts"]) == 2

    pq.write_table(pa.table({"id": [100], "text": ["one more"]}), tmp_path / "in" / "b.parquet")
    bucket.copy(tmp_path / "in", "in2")
    other = run("--input", bucket.uri("in2"), *remote[2:])
    assert other.returncode == 2
    assert "was begun with source s3://bucket/in, not s3://bucket/in2" in other.stderr
    with stages_here():
        assert run("--input", bucket.uri("in2"), *remote[2:], "--overwrite").returncode == 0
    labelled = ds.dataset("bucket/out", filesystem=bucket.filesystem, format="parquet").to_table()
    assert labelled["id"].to_pylist() == [i for i in range(101) if i != 7]


def test_a_folder_is_listed_page_by_page(bucket, monkeypatch):
    """As Arrow lists it, which holds all of it: files, folders, none for the key of the folder itself."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    words = ["a.parquet", "b c%2F.parquet", "é/x", "é/y", "k/_.parquet", ".temporary.1", ""]
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # 1,100 requests would take seconds
    for key in words + [f"{number:04d}.parquet" for number in range(1100)]:
        store.put_object("bucket", f"pages/data/{key}", b"")

    def names(uri: str, below: str) -> list[str]:
        return sorted(Folder(uri).names(below))

    places = [
        (bucket.uri("pages"), "data"),
        (bucket.uri("pages"), ""),
        (bucket.uri(""), ""),
        (bucket.uri("pages"), "nowhere"),
        (bucket.uri("pages").replace("@bucket/", "@no-bucket/"), "data"),
    ]
    bucket.requests.clear()
    names(*places[0])
    assert bucket.requests == {("LIST", "pages/data"): 2}
    by_page = [names(*place) for place in places]
    monkeypatch.setattr("pipelines.storage.has_s3_client", lambda: False)
    assert by_page == [names(*place) for place in places]
    assert [len(each) for each in by_page[:2]] == [1100 + 5, 1]


def test_requests_of_a_shard(bucket, checkpoint, tmp_path, monkeypatch):
    """What a run asks of the store: a put for a part and one for its rejected rows, and a listing of the parts as it
    begins and as it ends. One that has nothing to do lists them once."""
    shards = 20
    texts = [f"the cat {i} sat" if i % 64 != 7 else None for i in range(64 * shards)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet", row_group_size=256)
    bucket.copy(tmp_path / "in", "counted-in")
    without_ray(monkeypatch)
    call = {"input": bucket.uri("counted-in"), "output": bucket.uri("counted")}
    for run in ("all", "none"):
        bucket.requests.clear()
        outcome = run_corpus("classify", **call, model=str(checkpoint))
        there = bucket.requests
        parts = shards if run == "all" else 0
        assert outcome.outcome == "complete"
        assert outcome.rejected == parts
        assert there["PUT", "counted/data"] == parts
        assert there["PUT", "counted/_rejected"] == parts
        assert there["LIST", "counted/data"] == (2 if parts else 1)
        of_input = sum(count for (_, key), count in there.items() if key == "counted-in")
        others = there.total() - of_input - 2 * parts
        assert not [key for what, key in there if what == "UPLOAD"]
        assert others <= 50
        assert of_input <= 10 + 5 * parts


@pytest.mark.slow
def test_a_lease_in_object_storage(bucket, monkeypatch):
    folder = Folder(bucket.uri("leased"))
    monkeypatch.setattr(lease, "_RENEWED_S", 0.1)
    with lease.lease(folder) as held:
        with (
            pytest.raises(UserError, match=f"is being written by process {os.getpid()} on"),
            lease.lease(folder),
        ):
            pass
        held.check()
        for _ in range(30):  # a renewal that has read the lease before may write over it
            folder.write_atomic(lease.LEASE, b"{}")  # another run that thought this one dead
            if held.lost.wait(1):
                break
        assert held.lost.is_set()
        with pytest.raises(JobError, match="was taken over by another run"):
            held.check()
        assert folder.read(lease.LEASE) == b"{}"
    folder.remove(lease.LEASE)
    folder.remove(lease.LEASE)
    monkeypatch.setattr(lease, "_EXPIRES_S", 1.0)
    folder.write_atomic(lease.LEASE, b'{"host": "dead", "process": 1, "processes": "elsewhere"}')
    time.sleep(3)
    with lease.lease(folder):
        pass
    assert folder.files() == {}


def test_a_checkpoint_is_copied_once_and_again_when_it_has_changed(
    bucket, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "training_args.bin").write_bytes(b"a pickle")
    bucket.copy(tmp_path / "model", "changing")
    opened = Checkpoint.open(bucket.uri("changing"))
    assert {file.name for file in opened.folder.iterdir()} == {
        file.name for file in checkpoint.iterdir()
    }
    assert Checkpoint.open(bucket.uri("changing")) == opened
    assert len(list(tmp_path.glob("cache/modernbert-ray/*"))) == 1
    time.sleep(1.1)  # times in S3 are whole seconds
    bucket.copy(tmp_path / "model", "changing")
    assert download_checkpoint(bucket.uri("changing")) != opened.folder
    with pytest.raises(UserError, match=r"model 's3://bucket/nowhere' holds no checkpoint"):
        Checkpoint.open(bucket.uri("nowhere"))


def test_locations_that_cannot_be_an_output_are_refused():
    assert Folder.at("file:///tmp/there").uri == "/tmp/there"
    for location in ("ftp://there/x", "hdfs://there/x"):
        with pytest.raises(UserError, match=f"'{location}'"):
            Folder.at(location)
    assert redact_credentials("s3://key:secret@bucket/a?endpoint_override=x") == "s3://bucket/a"


def test_text_files_in_object_storage_are_staged_there(bucket, tmp_path):
    """Ranges of lines, gzip and a broken file; a run that finds them staged reads none again, and they are removed."""
    rows = [{"id": i, "text": f"the cat {i}"} for i in range(300)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines)
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "in" / "c.jsonl.gz").write_bytes(gzip.compress(lines)[:-9])
    bucket.copy(tmp_path / "in", "text")
    source, out = bucket.uri("text"), bucket.uri("staged-out")
    corpus = plan(source, out)
    assert {Path(path).name: reason for path, reason in corpus.broken.items()} == {
        "c.jsonl.gz": "Truncated compressed stream"
    }
    table, bad = read_all(corpus, source, out)
    assert (table.to_pylist(), bad) == (rows * 2, [])
    inspection = inspect_input(Location.of_user(source), TextOptions())
    folder, task = Folder.at(out), inspection.stage_tasks("bucket/text/a.jsonl")[0]
    staged = read_staged(folder, task, set(folder.files(STAGED)))
    assert staged is not None
    assert (staged.rows, staged.parts) == (300, list(corpus.files[0].scan.parts))
    remove_staged(folder)
    assert folder.files(STAGED) == {}


def test_keys_with_an_empty_part_are_read(bucket, tmp_path):
    """S3 allows a//b; Arrow lists such a key and does not open it. Text, Parquet and Arrow files, and hive keys."""
    rows = pa.table({"id": range(50), "text": [f"the cat {i}" for i in range(50)]})
    contents = {"jsonl": "".join(json.dumps(row) + "\n" for row in rows.to_pylist()).encode()}
    for ending, write in (("parquet", pq.write_table), ("arrow", feather.write_feather)):
        write(rows, tmp_path / f"a.{ending}")
        contents[ending] = (tmp_path / f"a.{ending}").read_bytes()
    for ending, content in contents.items():
        for key in (
            f"a.{ending}",
            f"/a.{ending}",
            f"month=1//a.{ending}",
            f"month=1///b//a.{ending}",
        ):
            bucket.client.put_object(Bucket="bucket", Key=f"empty-{ending}/{key}", Body=content)
        source, out = bucket.uri(f"empty-{ending}"), str(tmp_path / ending)
        corpus = plan(source, out)
        assert not corpus.broken
        assert len({shard.name for shard in corpus.shards}) == 4
        table, bad = read_all(corpus, source, out, ["id", "text"])
        assert (table.to_pylist(), bad) == (rows.to_pylist() * 4, [])
        assert len(plan(bucket.uri(f"empty-{ending}/**/*.{ending}"), out).files) == 4
    with pytest.raises(UserError, match="an empty part"):
        plan(bucket.uri("empty-arrow//a.arrow"), str(tmp_path / "other"))


def test_keys_with_an_empty_part_are_named_where_nothing_opens_them(bucket, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("id,text\n1,cat\n")
    fs.copy_files(
        str(tmp_path / "a.csv"), "bucket/named/a.csv", destination_filesystem=bucket.filesystem
    )
    bucket.client.put_object(Bucket="bucket", Key="named//a.csv", Body=b"id,text\n2,dog\n")
    monkeypatch.setattr("pipelines.input.listing.has_s3_client", lambda: False)
    corpus = plan(bucket.uri("named"), str(tmp_path / "out"))
    assert [file.path for file in corpus.files] == ["bucket/named/a.csv"]
    assert list(corpus.broken) == ["bucket/named//a.csv"]
    assert "modernbert-ray[s3]" in corpus.broken["bucket/named//a.csv"]


def test_tables_in_object_storage(bucket, tmp_path, monkeypatch):
    """Their libraries connect as Arrow does, by what the URI says."""
    table = pa.table({"id": range(5), "text": [f"the cat {number} sat" for number in range(5)]})
    location = bucket.uri("tables")
    _, options = store_options(Location(location))
    write_deltalake("s3://bucket/tables/delta", table, storage_options=options)
    lance.write_dataset(table, "s3://bucket/tables/lance", storage_options=options)
    catalog = SqlCatalog(
        "local",
        uri=f"sqlite:///{tmp_path}/catalog.db",
        warehouse="s3://bucket/tables",
        **{
            "s3.endpoint": options["aws_endpoint"],
            "s3.access-key-id": options["aws_access_key_id"],
            "s3.secret-access-key": options["aws_secret_access_key"],
            "s3.region": options["aws_region"],
        },
    )
    catalog.create_namespace("n")
    iceberg = catalog.create_table("n.iceberg", schema=table.schema)
    iceberg.append(table)
    iceberg.delete("id = 1")
    with iceberg.update_schema() as schema:
        schema.add_column("more", IntegerType())  # so that pyiceberg reads the file
    for name, ids in (("delta", range(5)), ("lance", range(5)), ("n/iceberg", [0, 2, 3, 4])):
        source = bucket.uri(f"tables/{name}")
        out = tmp_path / name.replace("/", "-")
        place = inspect_input(Location.of_user(source), TextOptions()).source
        assert "some-secret" not in f"{place} {place!r}"
        got, _ = read_all(plan(source, out), place, out)
        assert got["id"].to_pylist() == list(ids)
