"""Tables as inputs: each night the output has the rows of the table's own reader, and only what is new is run."""

from __future__ import annotations

import datetime
import json
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pyroaring
import pytest
from commands import run_job
from conftest import SOAK, own_ray
from corpora import plan, read_all
from deltalake import DeltaTable, write_deltalake
from pyarrow import fs
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import IntegerType

from pipelines import run_corpus
from pipelines.corpus import execute
from pipelines.corpus.pipeline import Round
from pipelines.corpus.run import dry_run
from pipelines.errors import UserError
from pipelines.input import delta as delta_tables
from pipelines.input import iceberg as iceberg_tables
from pipelines.input import lance as lance_tables
from pipelines.input import snapshots
from pipelines.input.files import find_files
from pipelines.input.reading import read_shard
from pipelines.input.shards import Shard
from pipelines.job_options import corpus_options
from pipelines.storage import Folder, Location

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pyiceberg: nothing to delete


def rows(*numbers: int, **more: list) -> pa.Table:
    texts = [f"the cat {number} sat" for number in numbers]
    return pa.table({"id": pa.array(numbers, pa.int64()), "text": texts, **more})


class Nights:
    """A job over a table, run again and again."""

    def __init__(self, source: Path, output: Path, model: Path):
        self.options = {"input": str(source), "output": str(output), "model": str(model)}
        self.output = output

    def night(self, expected: pa.Table, committed: int, snapshot: object, **options) -> pa.Table:
        """Run the job; its output has the expected texts, and so many rows were run for them."""
        assert run_job("classify", **self.options, **options) == 0
        parts = ds.dataset(self.output / "data").to_table()
        rejected = sorted((self.output / "_rejected").glob("*.parquet"))
        texts = Counter(parts["text"].to_pylist())
        for path in rejected:
            texts.update(pq.read_table(path)["text"].to_pylist())
        assert texts == Counter(expected["text"].to_pylist())
        record = json.loads((self.output / "_run.json").read_text())
        last = record["attempts"][-1]
        assert (last["outcome"], last["rows"], last["snapshot"]) == (
            "complete",
            committed,
            snapshot,
        )
        assert record["totals"]["rows"] == len(expected)
        return parts


@pytest.fixture
def delta(tmp_path) -> str:
    return str(tmp_path / "table")


def test_small_files_of_a_table_share_shards(delta, tmp_path, checkpoint, in_process):
    """Where one of them is removed, its rows go, and those that shared its shard are run again."""
    nights = Nights(tmp_path / "table", tmp_path / "out", checkpoint)
    for number in range(0, 160, 2):
        write_deltalake(delta, rows(number, number + 1), mode="append")
    nights.night(DeltaTable(delta).to_pyarrow_table(), 160, "Delta version 79")
    shared = list((tmp_path / "out" / "data").glob("*-and-*-more-*"))
    parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "out" / "data").iterdir()}
    assert shared
    assert len(parts) < 80
    table = next(pq.read_table(part) for part in shared)
    removed = table["id"][0].as_py() // 2 * 2
    DeltaTable(delta).delete(f"id >= {removed} and id < {removed + 2}")
    expected = DeltaTable(delta).to_pyarrow_table()
    assert len(expected) == 158
    nights.night(expected, len(table) - 2, "Delta version 80")
    kept = [
        part for part, time in parts.items() if part.exists() and part.stat().st_mtime_ns == time
    ]
    assert len(kept) == len(parts) - 1


@pytest.mark.slow
def test_nights_of_a_partitioned_delta_table(delta, tmp_path, checkpoint, in_process, capfd):
    nights = Nights(tmp_path / "table", tmp_path / "out", checkpoint)
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), None]
    write_deltalake(delta, rows(1, 2, 3, day=days), partition_by=["day"])
    parts = nights.night(DeltaTable(delta).to_pyarrow_table(), 3, "Delta version 0")
    assert parts.schema.field("day").type == pa.date32()
    assert dict(zip(parts["id"].to_pylist(), parts["day"].to_pylist(), strict=True)) == dict(
        zip([1, 2, 3], days, strict=True)
    )

    # An append, a deleted file, and a file that an update writes again: both of its rows are run.
    write_deltalake(delta, rows(4, 5, day=days[:1] * 2), mode="append")
    DeltaTable(delta).delete("id = 2")
    DeltaTable(delta).update({"text": "'changed'"}, predicate="id = 5")
    capfd.readouterr()
    nights.night(DeltaTable(delta).to_pyarrow_table(), 2, "Delta version 3")
    assert (
        "1  files are no longer in the table, and their rows are removed" in capfd.readouterr().out
    )

    # Another column, a text that is rejected, a checkpoint of the log, and old files that are gone.
    more = rows(6, day=days[:1], extra=[1.5])
    none = pa.table({"id": [7], "text": pa.array([None], pa.string()), "day": days[1:2]})
    write_deltalake(
        delta,
        pa.concat_tables([more, none], promote_options="default"),
        mode="append",
        schema_mode="merge",
    )
    table = DeltaTable(delta)
    table.create_checkpoint()
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    parts = nights.night(table.to_pyarrow_table(), 2, "Delta version 6")
    extra = ds.dataset(tmp_path / "out" / "data", schema=table.to_pyarrow_table().schema).to_table()
    assert extra.filter(pc.equal(extra["id"], 6))["extra"].to_pylist() == [1.5]

    # A rejected row whose file is removed goes, too; nothing is run for it.
    table.delete("id = 7")
    nights.night(DeltaTable(delta).to_pyarrow_table(), 0, "Delta version 7")
    assert not list((tmp_path / "out" / "_rejected").iterdir())


def with_deletion_vector(table: str, deleted: list[int]) -> None:
    """Commit the deletion of some rows of a table's only file, as Spark does: a bitmap in the log."""
    (log,) = Path(table, "_delta_log").glob("*.json")
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    (add,) = (action["add"] for action in actions if "add" in action)
    bitmap = struct.pack("<i", 1681511377) + pyroaring.BitMap64(deleted).serialize()
    padded = bitmap + bytes(-len(bitmap) % 4)
    vector = {
        "storageType": "i",
        "pathOrInlineDv": z85(padded),
        "sizeInBytes": len(bitmap),
        "cardinality": len(deleted),
    }
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    remove = {
        "path": add["path"],
        "dataChange": True,
        "deletionTimestamp": 1,
        "partitionValues": {},
    }
    commit = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7} | features},
        {"remove": remove},
        {"add": add | {"deletionVector": vector}},
    ]
    lines = "\n".join(json.dumps(action) for action in commit)
    log.with_name("00000000000000000001.json").write_text(lines)


def z85(data: bytes) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = ""
    for start in range(0, len(data), 4):
        number = int.from_bytes(data[start : start + 4], "big")
        text += "".join(digits[number // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text


@pytest.mark.slow
def test_rows_that_a_deletion_vector_deletes_are_not_read(delta, tmp_path, checkpoint, in_process):
    nights = Nights(tmp_path / "table", tmp_path / "out", checkpoint)
    write_deltalake(delta, rows(*range(200)))
    nights.night(rows(*range(200)), 200, "Delta version 0")
    deleted = [0, 5, 63, 64, 65, 130]
    with_deletion_vector(delta, deleted)
    left = [number for number in range(200) if number not in deleted]
    nights.night(rows(*left), 194, "Delta version 1")


@pytest.fixture
def iceberg(tmp_path) -> Table:
    """A table of a catalog on this disk, in the folder n/table."""
    catalog = SqlCatalog(
        "local", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}"
    )
    catalog.create_namespace("n")
    return catalog.create_table("n.table", schema=rows(1, day=[datetime.date(2024, 1, 1)]).schema)


@pytest.mark.slow
def test_nights_of_an_iceberg_table(iceberg, tmp_path, checkpoint, in_process):
    day = datetime.date(2024, 1, 1)
    folder = tmp_path / "n" / "table"
    nights = Nights(folder, tmp_path / "out", checkpoint)

    def night(committed: int) -> pa.Table:
        (identity,) = {iceberg.refresh().current_snapshot().snapshot_id}
        return nights.night(iceberg.scan().to_arrow(), committed, f"Iceberg snapshot {identity}")

    iceberg.append(rows(1, 2, 3, day=[day] * 3))
    iceberg.append(rows(4, 5, day=[None, day]))
    night(5)

    # A partition, a file that a deletion writes again, and one that is deleted as a whole.
    with iceberg.update_spec() as spec:
        spec.add_identity("day")
    iceberg.append(rows(6, 7, day=[day, None]))
    iceberg.delete("id = 2")
    iceberg.delete("id >= 4 and id <= 5")
    night(4)

    # Columns that are renamed, added and widened; the old files are as they were, and not run.
    with iceberg.update_schema() as schema:
        schema.rename_column("day", "date")
        schema.add_column("extra", IntegerType())
    extra = pa.array([8], pa.int32())
    added = rows(8).append_column("date", pa.array([day])).append_column("extra", extra)
    iceberg.append(added)
    night(1)
    iceberg.overwrite(added)
    night(1)


def test_files_of_an_earlier_schema_are_read_as_the_table_is_now(iceberg, tmp_path):
    day = datetime.date(2024, 1, 1)
    iceberg.append(rows(1, 2, day=[day, None]))
    with iceberg.update_schema() as schema:
        schema.rename_column("text", "body")
        schema.delete_column("day")
    with iceberg.update_schema() as schema:  # another column, whose name an old file has
        schema.add_column("day", IntegerType())
    old_then_new = pa.table({"id": [3], "body": ["the mat"], "day": pa.array([7], pa.int32())})
    iceberg.append(old_then_new)
    read_like_the_table(tmp_path / "n" / "table", iceberg.scan().to_arrow(), tmp_path / "out")


def read_like_the_table(folder: Path, expected: pa.Table, out: Path) -> None:
    corpus = plan(folder, out)
    got, _ = read_all(corpus, find_files(Location.of_user(str(folder))).snapshot.location, out)
    order = [("id", "ascending")]
    assert got.schema.names == expected.schema.names
    assert got.sort_by(order).to_pydict() == expected.sort_by(order).to_pydict()
    assert [str(field.type) for field in got.schema] == [
        str(field.type) for field in expected.schema
    ]


def position_delete(table: Table, deleted: list[int]) -> None:
    """Commit the deletion of some rows of a table's only file by a file of their positions."""
    (task,) = table.scan().plan_files()
    path = Path(task.file.file_path.removeprefix("file://")).with_name("deleted.parquet")
    fields = [
        pa.field("file_path", pa.string(), False, {"PARQUET:field_id": "2147483546"}),
        pa.field("pos", pa.int64(), False, {"PARQUET:field_id": "2147483545"}),
    ]
    positions = [[task.file.file_path] * len(deleted), deleted]
    pq.write_table(pa.table(positions, schema=pa.schema(fields)), path)
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=f"file://{path}",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(deleted),
        file_size_in_bytes=path.stat().st_size,
        column_sizes={},
        value_counts={},
        null_value_counts={},
        nan_value_counts={},
        lower_bounds={},
        upper_bounds={},
        split_offsets=[],
    )
    file.spec_id = 0
    with table.transaction() as change, change.update_snapshot().fast_append() as append:
        append.append_data_file(file)


@pytest.mark.slow
def test_rows_that_iceberg_deletes_by_position_are_not_read(
    iceberg, tmp_path, checkpoint, in_process, capfd
):
    nights = Nights(tmp_path / "n" / "table", tmp_path / "out", checkpoint)
    iceberg.append(rows(*range(200), day=[datetime.date(2024, 1, 1)] * 200))
    identity = iceberg.current_snapshot().snapshot_id
    nights.night(iceberg.scan().to_arrow(), 200, f"Iceberg snapshot {identity}")
    position_delete(iceberg, [0, 63, 64, 130])
    expected = iceberg.refresh().scan().to_arrow()
    assert len(expected) == 196
    identity = iceberg.current_snapshot().snapshot_id
    capfd.readouterr()
    nights.night(expected, 196, f"Iceberg snapshot {identity}")
    assert "reading 1 iceberg file(s) into" in capfd.readouterr().out
    nights.night(expected, 0, f"Iceberg snapshot {identity}")
    assert "reading" not in capfd.readouterr().out


@pytest.mark.slow
def test_nights_of_a_lance_dataset(tmp_path, checkpoint, in_process):
    folder = tmp_path / "table"
    nights = Nights(folder, tmp_path / "out", checkpoint)

    def night(committed: int) -> None:
        dataset = lance.dataset(folder)
        nights.night(dataset.to_table(), committed, f"Lance version {dataset.version}")

    lance.write_dataset(rows(*range(100)), folder)
    lance.write_dataset(rows(100, 101, 102), folder, mode="append")
    night(103)
    lance.write_dataset(rows(200, 201), folder, mode="append")
    lance.dataset(folder).delete("id = 65")  # of the first fragment, all of which is run again
    lance.dataset(folder).delete("id >= 100 and id < 110")  # all of the second
    night(99 + 2)
    lance.dataset(folder).update({"text": "'changed'"}, "id = 201")
    night(1 + 1)
    night(0)
    lance.dataset(folder).optimize.compact_files()
    night(101)


def test_what_is_not_understood_of_a_table_is_refused_in_one_line(delta, tmp_path, monkeypatch):
    write_deltalake(delta, rows(1))
    (log,) = Path(delta, "_delta_log").glob("*.json")
    written = log.read_text()

    def refusal() -> str:
        with pytest.raises(UserError) as refused:
            find_files(Location.of_user(delta))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    mapped = (
        '"configuration":{"delta.columnMapping.mode":"name","delta.columnMapping.maxColumnId":"2"}'
    )
    log.write_text(
        written.replace('"configuration":{}', mapped).replace(
            '"minReaderVersion":1', '"minReaderVersion":2'
        )
    )
    assert "is a Delta table that cannot be read" in refusal()
    log.write_text(written.replace('"path":"', '"path":"file:///elsewhere/'))
    assert "outside of its folder" in refusal()
    log.write_text(written)
    DeltaTable(delta).delete()
    assert "has no rows (Delta version 1)" in refusal()

    monkeypatch.setattr(snapshots, "find_spec", lambda _: None)
    assert refusal() == (
        f"input '{delta}' is a Delta table: to read it, pip install 'modernbert-ray[delta]' on each node"
    )
    (tmp_path / "table" / ".hoodie").mkdir()
    shutil.rmtree(tmp_path / "table" / "_delta_log")
    assert "is a Hudi table, which is not read; write a snapshot of it as Parquet" in refusal()


@pytest.mark.slow
def test_a_job_goes_on_with_the_snapshot_that_it_was_planned_with(delta, tmp_path, checkpoint):
    write_deltalake(delta, rows(1, 2), partition_by=["id"])
    location = find_files(Location.of_user(delta)).snapshot.location
    corpus = plan(delta, tmp_path / "out")
    write_deltalake(delta, rows(3), mode="overwrite")
    table, _ = read_all(corpus, location, tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == [1, 2]
    options = corpus_options("classify")(
        input=delta, output=str(tmp_path / "out"), model=str(checkpoint)
    )
    assert "the input is a table, read as of Delta version 1" in dry_run(options)


def changed_delta(folder: Path) -> Callable[[], None]:
    """Write a table of two files; what is returned replaces their rows and removes the files."""
    write_deltalake(str(folder), rows(1, 2))
    write_deltalake(str(folder), rows(3, 4), mode="append")

    def change() -> None:
        write_deltalake(str(folder), rows(5), mode="overwrite")
        table = DeltaTable(str(folder))
        table.vacuum(0, dry_run=False, enforce_retention_duration=False)
        table.create_checkpoint()
        for commit in Path(folder, "_delta_log").glob("*[01].json"):  # old ones are not kept
            commit.unlink()

    return change


def changed_iceberg(folder: Path) -> Callable[[], None]:
    """As `changed_delta`, for a table of Iceberg, whose snapshot expires with its metadata."""
    warehouse = folder.parent.parent
    catalog = SqlCatalog(
        "local", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=f"file://{warehouse}"
    )
    catalog.create_namespace(folder.parent.name)
    table = catalog.create_table(f"{folder.parent.name}.{folder.name}", schema=rows(1).schema)
    table.append(rows(1, 2))
    table.append(rows(3, 4))

    def change() -> None:
        old = [task.file.file_path for task in table.scan().plan_files()]
        old.append(table.metadata_location)
        table.overwrite(rows(5))
        for path in old:  # as engines remove them, which pyiceberg does not
            Path(path.removeprefix("file://")).unlink()

    return change


def changed_lance(folder: Path) -> Callable[[], None]:
    """As `changed_delta`, for a dataset of Lance."""
    lance.write_dataset(rows(1, 2), folder)
    lance.write_dataset(rows(3, 4), folder, mode="append")

    def change() -> None:
        lance.write_dataset(rows(5), folder, mode="overwrite")
        now = datetime.timedelta(0)
        lance.dataset(folder).cleanup_old_versions(older_than=now, delete_unverified=True)

    return change


CHANGED = {"Delta": changed_delta, "Iceberg": changed_iceberg, "Lance": changed_lance}


@pytest.mark.parametrize("is_new_process", [False, True])
@pytest.mark.parametrize("kind", CHANGED)
def test_a_table_whose_old_files_are_removed_while_a_job_runs(kind, is_new_process, tmp_path):
    """Its shards have the rows of their plan until then; later an error says what happened, and no row is wrong."""
    folder, out = tmp_path / "n" / "table", tmp_path / "out"
    change = CHANGED[kind](folder)
    location = find_files(Location.of_user(str(folder))).snapshot.location
    corpus = plan(folder, out)

    def ids_of(shard: Shard) -> list[int]:
        read = read_shard(location, Folder(str(out)), shard, corpus.schema, ["id"])
        return read.table["id"].to_pylist()

    assert sorted(map(ids_of, corpus.shards)) == [[1, 2], [3, 4]]
    change()
    if is_new_process:
        forget_tables()
    for shard in corpus.shards:
        with pytest.raises(ValueError, match=f"^the table has changed since {location.title} was"):
            ids_of(shard)
    now = find_files(Location.of_user(str(folder))).snapshot.location
    table, _ = read_all(plan(folder, out), now, out)
    assert table["id"].to_pylist() == [5]


def forget_tables() -> None:
    """Forget what is known of tables, as a process that has read none."""
    for module in (delta_tables, iceberg_tables, lance_tables):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def test_a_table_that_is_emptied_keeps_its_parts_until_it_has_rows_again(
    delta, tmp_path, checkpoint, in_process
):
    nights = Nights(tmp_path / "table", tmp_path / "out", checkpoint)
    write_deltalake(delta, rows(1, 2))
    nights.night(rows(1, 2), 2, "Delta version 0")
    DeltaTable(delta).delete()
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no rows \(Delta version 1\): an output keeps the parts"):
        run_job("classify", **nights.options)
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    write_deltalake(delta, rows(3), mode="append")
    nights.night(rows(3), 1, "Delta version 2")


def test_values_of_partitions_have_the_types_of_the_table(delta, tmp_path):
    stamp = datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.UTC)
    keys = {
        "day": pa.array([datetime.date(2024, 2, 29), None], pa.date32()),
        "code": ["02139", "a b/c=%d"],
        "at": pa.array([stamp, None], pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        "small": pa.array([-3, None], pa.int16()),
        "is_new": [True, None],
        "share": [0.1, None],
    }
    write_deltalake(delta, rows(1, 2, **keys), partition_by=list(keys))
    read_like_the_table(tmp_path / "table", DeltaTable(delta).to_pyarrow_table(), tmp_path / "out")


@pytest.mark.skipif(not SOAK, reason="nine jobs on a cluster of its own: .ci/soak runs it")
def test_tables_on_workers_of_two_nodes(tmp_path, checkpoint, monkeypatch):
    """A night each; then one in whose middle the files of the plan are removed, and the next one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(execute, "MAX_SHARDS", 1)  # a round each
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        with own_ray(cluster.address):
            for kind, table_to_change in CHANGED.items():
                folder, output = tmp_path / kind / "table", tmp_path / f"{kind}-out"
                change = table_to_change(folder)
                call = {"input": str(folder), "model": str(checkpoint), "actors": "1"}
                done = run_corpus("classify", output=str(output), **call)
                assert (done.outcome, done.rows) == ("complete", 4), done
                assert sorted(ids_of_parts(output)) == [1, 2, 3, 4]

                output = tmp_path / f"{kind}-changed"
                with after_the_first_round(change):
                    done = run_corpus("classify", output=str(output), **call)
                assert (done.outcome, done.rows) == ("failed", 2), done
                (reason,) = done.failed.values()
                assert reason.startswith(f"cannot be read: the table has changed since {kind}")
                assert sorted(ids_of_parts(output)) in ([1, 2], [3, 4])
                done = run_corpus("classify", output=str(output), **call)
                assert (done.outcome, done.rows) == ("complete", 1), done
                assert ids_of_parts(output) == [5]
    finally:
        cluster.shutdown()


@contextmanager
def after_the_first_round(change: Callable[[], None]) -> Iterator[None]:
    """Call `change` when the first round of a job in the block has ended."""
    run_round = execute.Execution._run_round

    def then_change(self: execute.Execution, round_: Round, *arguments) -> list[Shard]:
        lost = run_round(self, round_, *arguments)
        if round_.number == 1:
            change()
        return lost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute.Execution, "_run_round", then_change)
        yield


def ids_of_parts(output: Path) -> list[int]:
    return ds.dataset(output / "data").to_table()["id"].to_pylist()


def test_the_metadata_of_an_iceberg_table_is_named_or_the_last_one(tmp_path):
    folder = tmp_path / "table" / "metadata"
    folder.mkdir(parents=True)

    def current() -> str:
        path = iceberg_tables._current_metadata(fs.LocalFileSystem(), str(folder.parent))
        return Path(path).name

    for name in (
        "00009-a.metadata.json",
        "00010-b.metadata.json",
        "snap-99.avro",
        "v3.metadata.json",
    ):
        (folder / name).touch()
    assert current() == "00010-b.metadata.json"
    (folder / "00010-c.metadata.json").touch()  # a commit that has lost its race
    with pytest.raises(ValueError, match="several files say that they are its last metadata"):
        current()
    for hint in ("3", "v3", "v3.metadata.json"):
        (folder / "version-hint.text").write_text(f"{hint}\n")
        assert current() == "v3.metadata.json"
    (folder / "version-hint.text").write_text("11")
    with pytest.raises(ValueError, match="names '11', of which there is no metadata"):
        current()
