"""What is printed: one line whatever a text holds, and no harm whoever reads it, or nobody."""

from __future__ import annotations

import io
import json
import random
import sys
import time
import unicodedata

import pytest

from pipelines.corpus import summary
from pipelines.report import progress
from pipelines.report.text import json_line, printable, printable_lines, say

HARMFUL = [
    "\x1b[31m",
    "\x07",
    "\r",
    "\n",
    "\x9b2J",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\ufeff",
    "\udce9",
    "\0",
]
HARMLESS = [
    "the cat ",
    "é",
    "日本語",
    "👨\u200d👩\u200d👧",
    "می\u200cخواهم",
    "\\x1b",
    "\xa0",
    "\U000e0100",
]
CONTROLS = "؜\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def is_harmful(character: str) -> bool:
    """By Unicode's own categories: controls, surrogates and separators of lines; and the bidirectional controls."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in CONTROLS


def texts(count: int) -> list[str]:
    dice = random.Random(count)
    return ["".join(dice.choices(HARMFUL + HARMLESS, k=dice.randrange(12))) for _ in range(count)]


def test_every_character_that_a_terminal_obeys_is_escaped_and_no_other():
    for code in range(sys.maxunicode + 1):
        shown = printable(chr(code))
        assert not any(map(is_harmful, shown)), hex(code)
        if is_harmful(chr(code)):
            assert shown.encode().decode("unicode_escape") == chr(code)
        elif unicodedata.category(chr(code)) != "Cf" and not 0xE0000 <= code < 0xE0080:
            assert shown == chr(code)


def test_a_text_is_one_line_that_any_stream_takes():
    for text in texts(2000):
        shown = printable(text)
        assert len(shown.splitlines()) <= 1
        shown.encode("utf-8")
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"
    assert [printable(text) for text in HARMLESS] == HARMLESS


def test_json_lines_mean_the_same_and_hold_no_control_character():
    for text in texts(2000):
        line = json_line({"word": text, text: [1, None]})
        assert json.loads(line) == {"word": text, text: [1, None]}
        assert not any(map(is_harmful, line))
        line.encode("utf-8")


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def ascii_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken, closed, ascii_stream, lambda: None])
def test_lines_and_progress_that_nobody_can_read_stop_nothing(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(sys, "stdout", stream())
    say("a lábel")
    say("a lábel", sys.stderr)
    monkeypatch.setattr(progress, "_LOG_S", 0.01)
    calls = []

    def read() -> tuple[int, int]:
        calls.append(1)
        return len(calls), 1

    with progress.progress_bar(10, read):
        while len(calls) < 4:
            time.sleep(0.001)


def test_progress_goes_on_whatever_its_counts_raise(monkeypatch, capsys):
    """And what is shown are the counts: the rates are those since the first rows."""
    monkeypatch.setattr(progress, "_LOG_S", 0.001)
    dice = random.Random(7)
    counted, shown_rows = [0, 0], []

    def read() -> tuple[int, int]:
        counted[1] += 1
        if dice.randrange(8) == 0:
            raise ConnectionError
        if counted[1] > 20:
            counted[0] += dice.randrange(50)
        return counted[0], 10 * counted[0]

    with progress.progress_bar(1000, read):
        while counted[1] < 300:
            time.sleep(0.001)
    lines = capsys.readouterr().err.splitlines()
    for line in lines:
        shown_rows.append(int(line.split("% ")[1].split(" of ")[0].replace(",", "")))
    assert len(shown_rows) > 20
    assert shown_rows == sorted(set(shown_rows))
    assert "rows/s" not in lines[0]
    assert all("rows/s" in line and line.endswith("left") for line in lines[1:])


@pytest.mark.parametrize(
    ("rows", "total", "seconds"), [(0, 0, 0), (0, 10, 5), (1, 10, 0), (20, 10, 1e-9), (0, 10, 0)]
)
def test_progress_of_nothing_and_of_too_much_is_a_line(rows, total, seconds):
    line = progress.progress_line(rows, total, 0, seconds, (rows, 0), bar=True)
    assert f"{rows} of {total} rows" in line
    assert ("rows/s" in line) == bool(rows and seconds)


def test_failures_are_grouped_by_reason_and_few_of_them_are_named():
    failed = {
        f"part-{i}": f"reason {chr(97 + i % 20)}" if i < 100 else "the disk is full"
        for i in range(1000)
    }
    lines = summary._failures(failed | {"a\x1b[2Jb": "bad\nname"})
    assert (
        lines[0]
        == "failed     900 files or shards, part-100, part-101, part-102, …: the disk is full"
    )
    assert lines[1] == "failed     5 files or shards, part-0, part-20, part-40, …: reason a"
    assert len(lines) == 13
    assert lines[-1] == "failed     46 others, for 10 other reasons: see _run.json"
    assert summary._failures({"a\x1b[2Jb": "bad\nname"}) == ["failed     a\\x1b[2Jb: bad\\nname"]


def test_reasons_that_differ_in_details_alone_are_a_line_with_an_example():
    failed = {
        f"{i}.parquet": f"cannot be read: column '{i}' ends at byte {i}, on node w{i} (10.0.0.{i})"
        for i in range(500)
    }
    assert summary._failures(failed | {"a": "cannot be read: it's empty"}) == [
        "failed     500 files or shards, 0.parquet, 1.parquet, 2.parquet, …: cannot be read: column '0' ends at byte 0, "
        "on node w0 (10.0.0.0)",
        "failed     a: cannot be read: it's empty",
    ]
    rejects = {f"malformed JSON: '{i}' at {i}": 2 for i in range(100)} | {"text is null": 300}
    others = {f"reason {chr(97 + i)}": 1 for i in range(14)}
    lines = summary._rejects(rejects | others)
    assert lines[:3] == [
        "rejected         300  text is null",
        "rejected         200  malformed JSON: '0' at 0 (one of 100 such reasons)",
        "rejected           1  reason a",
    ]
    assert lines[-1] == "                   4  4 other reasons: see _rejected"
