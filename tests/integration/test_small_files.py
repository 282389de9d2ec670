"""Many small files share shards: nights of new, changed and vanished ones, against what each file holds."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from commands import without_ray
from conftest import runs
from corpora import count_parts

from pipelines.corpus import execute
from pipelines.corpus.run import run_corpus
from pipelines.signals import Stopped

FILES, ROWS = 80, 3


class Corpus:
    """Small files, and the rows that an output of them is to have."""

    def __init__(self, folder: Path, dice: random.Random, kind: str):
        self.folder, self.dice, self.kind = folder, dice, kind
        self.folder.mkdir()
        self.versions: dict[str, int] = {}
        self.rows: dict[str, list[tuple[str, int, int]]] = {}
        for _ in range(FILES):
            self.add()

    def add(self) -> None:
        """Write a new file; its name may sort before or after any other."""
        self.write(f"{self.dice.randrange(1 << 30):08x}.{self.kind}", 1)

    def write(self, name: str, version: int) -> None:
        """Write a version of a file, whose rows are known by its name, version and number."""
        count = self.dice.choice([0, 1, ROWS, ROWS, 2 * ROWS])
        texts = [self.dice.choice(["the cat sat", "a dog", None]) for _ in range(count)]
        columns = {"file": [name] * count, "version": [version] * count, "n": list(range(count))}
        table = pa.table(
            {**columns, "text": pa.array(texts, pa.string())},
            pa.schema([("file", "string"), ("version", "int64"), ("n", "int64"), ("text", "string")]),
        )  # fmt: skip
        path = self.folder / name
        if self.kind == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        os.utime(path, (version, version))
        self.versions[name] = version
        self.rows[name] = [(name, version, n) for n in range(count)]

    def change(self) -> None:
        """Write another version of a file, also of one that has vanished."""
        name = self.dice.choice(list(self.rows))
        self.write(name, self.versions[name] + 1)

    def remove(self) -> None:
        """Remove a file, whose rows stay in the output."""
        name = self.dice.choice([path.name for path in self.folder.iterdir()])
        (self.folder / name).unlink()


def rows_of(out: Path) -> Counter[tuple[str, int, int]]:
    """Count the labelled and the rejected rows of an output by file, version and number."""
    counts: Counter[tuple[str, int, int]] = Counter()
    for folder in (out / "data", out / "_rejected"):
        if folder.exists() and any(folder.iterdir()):
            table = ds.dataset(folder).to_table(["file", "version", "n"])
            counts.update(tuple(row.values()) for row in table.to_pylist())
    return counts


def run_some(self: execute.Execution, shards: int, run_all) -> None:
    """Run the first shards of a job, then end as if a signal had come."""
    todo = self.todo
    self.todo = todo[:shards]
    run_all(self, "auto", 0)
    if shards < len(todo):
        raise Stopped


@pytest.mark.parametrize("seed", range(runs("NIGHTS", few=1, many=40)))
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nights_of_new_changed_and_vanished_files(tmp_path, checkpoint, monkeypatch, kind, seed):
    """Each row of each file is there once in its last version, whenever runs were stopped."""
    dice = random.Random(seed)
    corpus = Corpus(tmp_path / "in", dice, kind)
    out = tmp_path / "out"
    without_ray(monkeypatch)
    run_all = execute.Execution.run
    call = {"input": str(corpus.folder), "output": str(out), "model": str(checkpoint)}
    for night in range(7):
        with monkeypatch.context() as patch:
            shards = dice.randrange(12)
            patch.setattr(
                execute.Execution, "run", lambda self, *_, n=shards: run_some(self, n, run_all)
            )
            if dice.random() < 0.5:
                try:
                    run_corpus("classify", **call)
                except Stopped:
                    if dice.random() < 0.5:
                        continue  # the next night finds what this one has left
        assert run_corpus("classify", **call).outcome == "complete"
        expected = Counter(row for rows in corpus.rows.values() for row in rows)
        assert rows_of(out) == expected, night
        again = run_corpus("classify", **call)
        assert (again.rows, again.outcome) == (0, "complete")
        steps = [corpus.add] * 40 if dice.random() < 0.3 else []
        steps += dice.choices([corpus.add, corpus.change, corpus.remove], k=dice.randrange(6))
        for step in steps:
            step()
        expected_before = expected
    assert expected_before


def test_files_that_share_a_shard_stay_together_until_one_changes(
    tmp_path, checkpoint, monkeypatch
):
    """A new file repeats no other's work; a changed one repeats that of its shard alone."""
    corpus = Corpus(tmp_path / "in", random.Random(1), "parquet")
    without_ray(monkeypatch)
    out = tmp_path / "out"
    call = {"input": str(corpus.folder), "output": str(out), "model": str(checkpoint)}
    rows = run_corpus("classify", **call).rows
    assert count_parts(out) < FILES / 1.5
    corpus.add()
    assert run_corpus("classify", **call).rows == len(list(corpus.rows.values())[-1])
    corpus.write(min(corpus.rows), 2)
    assert 0 <= run_corpus("classify", **call).rows < rows / 4
    assert rows_of(out) == Counter(row for rows in corpus.rows.values() for row in rows)


def test_a_file_that_cannot_be_read_costs_none_of_those_that_share_its_shard(
    tmp_path, checkpoint, monkeypatch, ray_head
):
    """Neither in the first night nor in the next: the others then have parts of their own."""
    corpus = Corpus(tmp_path / "in", random.Random(2), "parquet")
    name = next(name for name, rows in corpus.rows.items() if len(rows) > 1)
    path = corpus.folder / name
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56  # the footer is whole: the plan cannot know
    path.write_bytes(content)
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    call = {"input": str(corpus.folder), "output": str(tmp_path / "out"), "model": str(checkpoint)}
    done = run_corpus("classify", **call, actors="1")
    expected = Counter(row for file, rows in corpus.rows.items() if file != name for row in rows)
    assert rows_of(tmp_path / "out") == expected
    assert [shard.rsplit("-", 3)[0] for shard in done.failed] == [name]
    again = run_corpus("classify", **call, actors="1")
    assert (again.rows, list(again.failed)) == (0, list(done.failed))
