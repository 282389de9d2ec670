"""Tables as inputs: each night the output has the rows of the table's own reader, and only what is new is run."""

from __future__ import annotations

import datetime
import json
import shutil
import struct
from collections import Counter
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
from corpora import plan, read_all
from deltalake import DeltaTable, write_deltalake
from pyarrow import fs
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import IntegerType

from pipelines.corpus.run import dry_run
from pipelines.errors import UserError
from pipelines.input import iceberg as iceberg_tables
from pipelines.input import snapshots
from pipelines.input.files import find_files
from pipelines.job_options import corpus_options
from pipelines.storage import Location

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
