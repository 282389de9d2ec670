"""The files of an input: each real file once, outputs and tables never by accident, and nothing left out in silence."""

from __future__ import annotations

import glob
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from corpora import plan, read_all

from pipelines.errors import UserError
from pipelines.input import files, listing
from pipelines.input.files import find_files
from pipelines.input.inspection import inspect_input
from pipelines.input.text import TextOptions
from pipelines.storage import Folder, Location


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"text": list(texts or ["a"])}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts or ["a"]))
    return path


def found(source: Path | str, output: Path | None = None) -> list[str]:
    inputs = find_files(Location.of_user(str(source)), Folder.at(str(output)) if output else None)
    return sorted(inputs.name(path) for path in inputs.versions)


RECORD = json.dumps({"fingerprint": {}, "attempts": []})


@pytest.mark.parametrize("parts", ["", "data"])
@pytest.mark.parametrize(
    "pattern", ["**/*.parquet", "*/*/*.parquet", "**/*", "labelled*/*/*.parquet", "*/*.parquet"]
)
def test_an_output_is_never_read_by_a_glob(tmp_path, pattern, parts):
    write(tmp_path / "in" / "x" / "a.parquet")
    write(tmp_path / "labelled_by_hand" / "x" / "b.parquet")
    out = tmp_path / "labelled"
    before = found(tmp_path / pattern, out) if pattern != "*/*.parquet" else []
    for folder in (out, tmp_path / "another output"):
        write(folder / parts / "a.parquet-00000000-000000000-000000001.parquet")
        write(folder / "_rejected" / "a.parquet-00000000-000000000-000000001.parquet")
        (folder / "_run.json").write_text(RECORD)
    if before:
        assert found(tmp_path / pattern, out) == before
    else:
        with pytest.raises(UserError, match=r"holds no data file"):
            find_files(Location.of_user(str(tmp_path / pattern)), Folder.at(str(out)))


def test_an_output_that_is_given_is_read_and_one_below_it_is_not(tmp_path):
    write(tmp_path / "data" / "a.parquet")
    write(tmp_path / "_rejected" / "a.parquet")
    (tmp_path / "_run.json").write_text(RECORD)
    write(tmp_path / "again" / "data" / "a.parquet")
    (tmp_path / "again" / "_run.json").write_text(RECORD)
    assert found(tmp_path) == ["data/a.parquet"]
    assert found(tmp_path / "data" / "*.parquet") == ["a.parquet"]


@pytest.mark.parametrize(
    "form", ["{0}/in/out", "{0}/link/out", "file://{0}/in/out", "{0}/in/../in/x/../out/deeper"]
)
def test_an_output_in_the_input_folder_is_refused(tmp_path, form):
    write(tmp_path / "in" / "a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for source in (tmp_path / "in", tmp_path / "link", f"file://{tmp_path}/in"):
        with pytest.raises(UserError, match="lies in the input folder"):
            find_files(Location.of_user(str(source)), Folder.at(form.format(tmp_path)))


def test_links_are_read_once_whatever_they_lead_to(tmp_path):
    for day in ("2024-01-01", "2024-01-02"):
        write(tmp_path / "in" / day / "a.parquet", day)
    (tmp_path / "in" / "latest").symlink_to("2024-01-02")
    (tmp_path / "in" / "2024-01-01" / "loop").symlink_to("..")
    (tmp_path / "in" / "again.parquet").symlink_to("2024-01-01/a.parquet")
    write(tmp_path / "elsewhere" / "b.parquet", "elsewhere")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "z").symlink_to(tmp_path)
    (tmp_path / "in" / "gone.parquet").symlink_to(tmp_path / "nowhere")
    want = ["2024-01-01/a.parquet", "2024-01-02/a.parquet", "more/b.parquet"]
    inputs = find_files(Location.of_user(str(tmp_path / "in")))
    assert sorted(map(inputs.name, inputs.versions)) == want
    assert {Path(path).name: reason for path, reason in inputs.broken.items()} == {
        "gone.parquet": f"is a link to {tmp_path / 'nowhere'}, which cannot be read"
    }
    assert "5 paths are links to what is read already" in inputs.notes[0]
    assert found(tmp_path / "in" / "**" / "*.parquet") == want
    assert found(tmp_path / "in" / "latest" / "*.parquet") == ["a.parquet"]
    (tmp_path / "in" / "latest").unlink()
    (tmp_path / "in" / "latest").symlink_to(
        "2024-01-01"
    )  # the next day: the same files have the same paths
    assert found(tmp_path / "in") == want


@pytest.mark.parametrize("source", ["in", "in/**/*", "in/*.parquet"])
def test_a_link_to_a_file_that_is_not_read_by_its_own_name_is_read(tmp_path, source):
    write(tmp_path / "in" / "x.parquet")
    write(tmp_path / "blob.parquet").rename(tmp_path / "blob")
    (tmp_path / "in" / "blobs").mkdir()
    (tmp_path / "blob").rename(tmp_path / "in" / "blobs" / "abc")
    (tmp_path / "in" / "y.parquet").symlink_to("blobs/abc")
    assert found(tmp_path / source) == ["x.parquet", "y.parquet"]


def test_names_that_are_not_utf8_are_named(tmp_path):
    write(tmp_path / "a.jsonl")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve.jsonl")).write_text('{"text": "b"}\n')
    for source in (tmp_path, tmp_path / "*.jsonl"):
        inputs = find_files(Location.of_user(str(source)))
        assert inputs.broken == {f"{tmp_path}/na\\xefve.jsonl": "its name is not UTF-8; rename it"}
        assert list(inputs.versions) == [str(tmp_path / "a.jsonl")]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "closed" / "b.jsonl")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    inputs = find_files(Location.of_user(str(tmp_path)))
    assert inputs.broken == {str(tmp_path / "closed"): "Permission denied"}


def test_whatever_may_be_data_and_is_not_read_is_named(tmp_path):
    for name in (
        "a.jsonl",
        "b.jsonlines",
        "c.ndjson.gz",
        "_SUCCESS",
        ".a.jsonl.crc",
        "README.md",
        "LICENSE",
    ):
        write(tmp_path / name)
    left_out = ["archive.tar", "notes.txt", "part-00000", "sheet.xlsx", "table.avro", "x.unknown"]
    for name in left_out:
        write(tmp_path / name)
    inputs = find_files(Location.of_user(str(tmp_path)))
    assert sorted(map(inputs.name, inputs.versions)) == ["a.jsonl", "b.jsonlines", "c.ndjson.gz"]
    assert sorted(inputs.left_out) == left_out


def test_text_files_are_data_where_they_are_alone(tmp_path):
    for name in ("a.txt", "b.txt.gz", "README.txt", "LICENSE.txt"):
        write(tmp_path / "texts" / name)
    assert found(tmp_path / "texts") == ["a.txt", "b.txt.gz"]
    assert found(tmp_path / "texts" / "README.txt") == ["README.txt"]  # where it is named itself
    for name in ("c.jsonl", "README.txt", "requirements.txt"):
        write(tmp_path / "rows" / name)
    inputs = find_files(Location.of_user(str(tmp_path / "rows")))
    assert sorted(map(inputs.name, inputs.versions)) == ["c.jsonl"]
    assert inputs.left_out == ["requirements.txt"]


def test_hidden_folders_are_passed_over_but_for_those_of_hive_tables(tmp_path):
    for name in (
        "_year=2024/a",
        "year=2024/_month=5/a",
        "_temporary/a",
        ".hidden/a",
        "x/_a",
        "x/.a",
        "x/a",
    ):
        write(tmp_path / f"{name}.parquet")
    want = ["_year=2024/a.parquet", "x/a.parquet", "year=2024/_month=5/a.parquet"]
    assert found(tmp_path) == want
    mock = fs._MockFileSystem()
    for file in tmp_path.rglob("*.parquet"):
        mock.create_dir(f"b/{file.parent.relative_to(tmp_path)}", recursive=True)
        with mock.open_output_stream(f"b/{file.relative_to(tmp_path)}") as stream:
            stream.write(b"x")
    assert sorted(entry.path[2:] for entry in listing.list_remote(mock, "b").entries) == want


def test_a_glob_of_object_storage_matches_what_it_matches_on_disk(tmp_path):
    dice = random.Random(3)
    names = [
        "a.parquet",
        "b1.parquet",
        "[x].parquet",
        ".h.parquet",
        "_u.parquet",
        "é ü.parquet",
        "a.b^c.parquet",
    ]
    paths = {"/".join([*dice.choices(["in", "sub", ".dot", "d1", "a.b"], k=dice.randint(0, 3)), dice.choice(names)])
             for _ in range(150)}  # fmt: skip
    mock = fs._MockFileSystem()
    for path in paths:
        write(tmp_path / path)
        mock.create_dir(f"b/{path}".rpartition("/")[0], recursive=True)
        with mock.open_output_stream(f"b/{path}") as stream:
            stream.write(b"x")
    pieces = [
        "*",
        "**",
        "?",
        "in",
        "sub",
        "d[0-9]",
        "*.parquet",
        "a*",
        "[!a]*",
        "[[]x].parquet",
        "[^a]*",
        "*.b*",
        ".*",
        "é*",
    ]
    for _ in range(300):
        pattern = "/".join(dice.choices(pieces, k=dice.randint(1, 4)))
        on_disk = {
            os.path.relpath(path, tmp_path)
            for path in glob.glob(f"{tmp_path}/{pattern}", recursive=True)
            if os.path.isfile(path)
        }
        remote = {entry.path[2:] for entry in listing.list_glob(mock, "b", f"b/{pattern}").entries}
        assert remote == on_disk, pattern
        local = listing.list_glob(fs.LocalFileSystem(), str(tmp_path), f"{tmp_path}/{pattern}")
        assert {os.path.relpath(entry.path, tmp_path) for entry in local.entries} == on_disk, (
            pattern
        )


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        ("metadata/v1.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("_versions/1.manifest", "Lance"),
    ],
)
def test_files_of_a_table_are_refused_where_they_are_entered_beside_its_log(tmp_path, mark, kind):
    write(tmp_path / "warehouse" / "t" / "data" / "day=1" / "a.parquet")
    write(tmp_path / "warehouse" / "other" / "b.parquet")
    (tmp_path / "warehouse" / "t" / mark).parent.mkdir(parents=True)
    (tmp_path / "warehouse" / "t" / mark).write_text("{}")
    sources = [
        "",
        "/t/data",
        "/t/data/day=1",
        "/t/data/*/*.parquet",
        "/**/*.parquet",
        "/t/data/day=1/a.parquet",
    ]
    for source in sources:
        with pytest.raises(UserError, match=f"holds the files of a {kind} table"):
            found(f"{tmp_path}/warehouse{source}")
    assert found(tmp_path / "warehouse" / "other") == ["b.parquet"]
    with pytest.raises(UserError, match=f"t' is a {kind} table"):  # of which there is only a mark
        found(tmp_path / "warehouse" / "t")


def test_what_datasets_writes_beside_data_is_no_data(tmp_path):
    rows = pa.table({"text": ["a", "b"]})
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        with pa.ipc.new_stream(
            tmp_path / "saved" / split / "data-00000-of-00001.arrow", rows.schema
        ) as writer:
            writer.write_table(rows)
        (tmp_path / "saved" / split / "state.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    corpus = plan(tmp_path / "saved", tmp_path / "out")
    table, _ = read_all(corpus, tmp_path / "saved", tmp_path / "out")
    assert table.to_pydict() == {"text": ["a", "b"] * 2, "split": ["test"] * 2 + ["train"] * 2}
    write(tmp_path / "hub" / "data" / "train.parquet")
    (tmp_path / "hub" / "dataset_infos.json").write_text("{}")
    assert found(tmp_path / "hub") == ["data/train.parquet"]


KEYS = {
    "numbers": (["1", "2", "-3", "0"], [1, 2, -3, 0]),
    "zeros": (["02139", "10001"], ["02139", "10001"]),
    "a word": (["1", "all"], ["1", "all"]),
    "an empty one": (["", "1"], ["", "1"]),
    "a null": (["__HIVE_DEFAULT_PARTITION__", "1"], [None, 1]),
    "escaped": (["a%2Fb", "a%3Db=c"], ["a/b", "a=b=c"]),
    "plus": (["+1", "1"], ["+1", "1"]),
    "long": (["1" * 19, "1"], ["1" * 19, "1"]),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_of_folders_are_text_unless_all_are_numbers(tmp_path, case):
    values, want = KEYS[case]
    for value in values:
        write(tmp_path / f"k={value}" / "a.parquet", value)
    table, _ = read_all(plan(tmp_path, tmp_path), tmp_path, tmp_path)
    assert dict(zip(table["text"].to_pylist(), table["k"].to_pylist(), strict=True)) == dict(
        zip(values, want, strict=True)
    )


def test_a_key_keeps_its_type_in_an_output(tmp_path):
    write(tmp_path / "k=1" / "a.parquet")
    earlier = plan(tmp_path, tmp_path / "out")
    bad = write(tmp_path / "k=2b" / "a.parquet")
    write(tmp_path / "k=3" / "a.parquet")
    corpus = plan(tmp_path, tmp_path / "out", earlier=earlier)
    assert corpus.broken == {str(bad): "its folder has k='2b', where the output has int64"}
    assert read_all(corpus, tmp_path, tmp_path)[0]["k"].to_pylist() == [1, 3]


@pytest.mark.parametrize("key", ["text", "Text"])
def test_a_key_with_the_name_of_a_column_is_refused_unless_it_is_left_out(tmp_path, key):
    write(tmp_path / f"{key}=1" / "a.parquet")
    with pytest.raises(UserError, match=f"input has the column 'text' and folders {key}="):
        plan(tmp_path, tmp_path / "out")
    if key != "text":
        assert plan(tmp_path, tmp_path / "out", wanted=frozenset({"text"})).rows == 1


def test_a_file_that_changes_while_it_is_labelled_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", "one", "two")
    corpus = plan(tmp_path, tmp_path / "out")
    for texts in (["two", "one"], ["one"], ["one", "two", "three"]):
        write(path, *texts)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ValueError, match=r"a\.parquet has changed since the job began"):
            read_all(corpus, tmp_path, tmp_path / "out")
    assert files.current_version(fs.LocalFileSystem(), str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.avro", "Avro is not read: convert it to Parquet"),
        ("a.tar.gz", "WebDataset (.tar) is not read: unpack it"),
    ],
)
def test_data_in_a_known_format_that_is_not_read_is_refused_by_name(tmp_path, name, advice):
    write(tmp_path / name)
    with pytest.raises(UserError, match="holds no data file") as refused:
        found(tmp_path)
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)
    write(tmp_path / "b.jsonl")
    notes = inspect_input(Location.of_user(str(tmp_path)), TextOptions()).notes
    assert any(note.startswith(advice) for note in notes)
