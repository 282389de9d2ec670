"""The process ends at EVERY write, rename and removal of a small job's output, one after the other.

Kills at random moments (test_kills.py) may miss one. Here the real plan, stages, commit and finish run in this process,
without Ray, and end at the k-th point: before or after a rename or a removal. From there on nothing reaches the disk
any more, as if the process were gone. The same run then goes to its end, and the output must equal that of a run
without a crash, byte for byte.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from checkpoints import write_task
from commands import without_ray

from pipelines.corpus import run
from pipelines.output import lease, shard_stats
from pipelines.storage import Folder

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def write(file: Path, rows: range) -> None:
    texts = [f"the cat {row} sat" if row % 50 else None for row in rows]
    pq.write_table(pa.table({"id": rows, "text": texts}), file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """in/ with two files of two shards each, model/, and first/: the output of the input as it was at first."""
    folder = tmp_path_factory.mktemp("crashes")
    write_task(folder / "model", "ModernBertForSequenceClassification", **SMALL, num_labels=3)
    (folder / "in").mkdir()
    write(folder / "in" / "a.parquet", range(100))
    write(folder / "in" / "b.parquet", range(100, 200))
    with pytest.MonkeyPatch.context() as patch:
        crashing(patch)
        assert job(folder, folder / "first") == 0
    write(folder / "in" / "b.parquet", range(300, 430))
    return folder


def crashing(patch: pytest.MonkeyPatch) -> None:
    """Run jobs in this process, each as if the process of the one before it were gone."""
    without_ray(patch)
    patch.setattr(lease, "_alive", lambda _: False)


def job(folder: Path, output: Path, **options) -> int:
    named = {"input": folder / "in", "output": output, "model": folder / "model", "device": "cpu"}
    outcome = run.run_corpus(
        "classify", **{name: str(path) for name, path in named.items()}, **options
    )
    return 1 if outcome.failed else 0


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crash_at(point: int) -> Iterator[None]:
    """End at the point of that number, if the block comes to it; then nothing is written or removed any more."""
    points = itertools.count()

    def tick() -> None:
        if next(points) >= point:
            raise Crash

    def around(function):
        def called(*arguments, **named):
            tick()
            result = function(*arguments, **named)
            tick()
            return result

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", around(os.replace))
        patch.setattr(Folder, "remove", around(Folder.remove))
        yield


def parts(output: Path) -> dict[str, bytes]:
    """The bytes of every file that readers see."""
    return {
        str(file.relative_to(output)): file.read_bytes() for file in output.rglob("[!.]*.parquet")
    }


CASES = {
    "a new output": (False, {}),
    "an output that is replaced": (True, {"overwrite": True, "max_length": 16}),
    "a file that has changed since": (True, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_crash_at_any_point_loses_and_doubles_nothing(case, folder, tmp_path, monkeypatch):
    crashing(monkeypatch)
    continued, options = CASES[case]

    def begin(output: Path) -> Path:
        if continued:
            shutil.copytree(folder / "first", output)
        return output

    clean = begin(tmp_path / "clean")
    assert job(folder, clean, **options) == 0
    expected, record = parts(clean), json.loads((clean / "_run.json").read_text())
    ids = [*range(100), *range(300, 430)]
    assert ds.dataset(clean).to_table()["id"].to_pylist() == [i for i in ids if i % 50]
    for point in itertools.count():
        output = begin(tmp_path / f"{point}")
        try:
            with crash_at(point):
                assert job(folder, output, **options) == 0
            break
        except Crash:
            assert job(folder, output, **options) == 0
        assert parts(output) == expected, point
        totals = json.loads((output / "_run.json").read_text())["totals"]
        kept = {name: record["totals"][name] for name in shard_stats.KEPT}
        assert {name: totals[name] for name in shard_stats.KEPT} == kept, point
        stored = pa.ipc.open_file((output / "_shards.arrow").read_bytes()).read_all()
        names = sorted(file.stem for file in (output / "data").iterdir())
        assert stored["name"].to_pylist() == names, point
        assert not (output / "_shards").exists()
        shutil.rmtree(output)
    assert point >= 2 * (
        len(expected) + 6
    )  # each part, the lease, the record twice, the files, the stats twice, the report
