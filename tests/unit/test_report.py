"""The report of a corpus job: its contents, and that it is inert, complete and small whatever the values."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest

from pipelines.report.charts import compact, percent
from pipelines.report.html import render

VOID = {"meta"}
NAMED = ("settings", "versions", "failed")
HEADINGS = [
    "Throughput", "Window lengths", "Time", "Labels", "Scores", "Rejected rows", "Slowest shards", "Attempts",
    "By attempt", "Settings", "Versions",
]  # fmt: skip
HOSTILE = """</td></title></style></svg>"'><script>document.title="ran"</script><img src=x onerror=alert(1)>"""


def sample(**changes):
    """A report with all sections."""
    report = {
        "title": "classify",
        "output": "/data/labelled",
        "complete": True,
        "created_at": "2026-11-24T16:40:00Z",
        "settings": {"input": "/data/corpus", "device": "cpu in float32"},
        "versions": {"python": "3.11.2", "ray": "2.60.0"},
        "attempts": [
            {"started": "2026-11-24T16:00:00Z", "seconds": None, "outcome": None, "host": "node-1", "rows": 200,
             "tokens": 25000},
            {"started": "2026-11-24T16:10:00Z", "seconds": 10.0, "outcome": "stopped", "host": "node-2", "rows": 200,
             "tokens": 24066},
            {"started": "2026-11-24T16:30:00Z", "seconds": 30.0, "outcome": "complete", "host": "node-1", "rows": 600,
             "tokens": 80000},
        ],
        "totals": {
            "shards": 16, "rows": 1000, "labelled": 994, "rejected": 6, "tokens": 129066, "windows": 994,
            "truncated": 12, "batches": 40, "padded_tokens": 281234, "tokenise_s": 3.1, "predict_s": 38.2,
            "waited_s": 2.2, "fill": 0.788,
        },
        "throughput": [
            {"seconds": [0, 5], "tokens_per_s": [2000.0, 2813.2], "attempt": 1},
            {"seconds": [0, 5, 10, 15, 20, 25], "tokens_per_s": [1000.0, 3000.0, 3000.0, 3000.0, 3000.0, 3000.0],
             "attempt": 2},
        ],
        "lengths": {"edges": [1, 2, 4, 8, 16, 32, 64, 128, 256], "windows": [0, 0, 4, 40, 100, 300, 400, 150]},
        "labels": [["greeting", 500], ["question", 300], ["other", 194]],
        "scores": {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [0, 100, 200, 694]},
        "rejects": [["text is null", 4], ["text is empty", 2]],
        "slowest": [
            {"name": "part-0001.parquet-1a2b", "rows": 64, "tokens": 8000, "tokenise_s": 1.2, "predict_s": 4.0},
        ],
        "failed": {},
        "by_attempt": [
            {"attempt": 1, "started": "2026-11-24T16:10:00Z", "rows": 200, "rejected": 2,
             "labels": {"greeting": 99, "question": 99}},
            {"attempt": 2, "started": "2026-11-24T16:30:00Z", "rows": 800, "rejected": 4,
             "labels": {"greeting": 401, "question": 201, "other": 194}},
        ],
    }  # fmt: skip
    return report | changes


class Document(HTMLParser):
    """The tags, attributes and text of a document; raises AssertionError where tags do not pair."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.headings = (
            [],
            Counter(),
            set(),
            [],
            [],
        )
        self.feed(source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "rect")  # only in SVG does the slash end an element
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def section(source, heading):
    """The markup of the section with this heading."""
    return next(part for part in source.split("<section") if f"<h2>{heading}</h2>" in part)


def hostile(value):
    """Appends markup to every string in `value` that is not the name of a field."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return (
        {name: hostile(item) for name, item in value.items()} if isinstance(value, dict) else value
    )


def hostile_report():
    report = sample(failed={"b.parquet": "cannot be read"}, complete=False)
    named = {part: {hostile(name): value for name, value in report[part].items()} for part in NAMED}
    return hostile(report | named)


def test_the_figures_that_matter():
    text = Document(render(sample())).text
    assert "classify: complete" in text
    assert "Rows labelled 994 of 1,000 rows in 16 shards" in text
    assert "Rejected 0.6% 6 rows, kept in _rejected" in text
    assert "Tokens 129,066 130 for each row labelled" in text
    assert (
        "Tokens per second 2,602 40 s in 3 attempts" in text
    )  # of the two attempts whose end is known
    assert "Padding saved 54.1% 281,234 tokens in padded batches of 32" in text
    assert "Batch fill 78.8% 40 batches" in text


def test_each_section_explains_what_it_shows():
    text = Document(render(sample())).text
    assert "The dashed line is the mean, 2,602 tokens/s." in text
    assert (
        "The median window has 64 to 128 tokens, the mean one 130. 12 documents were truncated."
        in text
    )
    assert "10.1% of answers (100 of 994) score below 0.5." in text
    assert "greeting 500 50.3% question 300 30.2% other 194 19.5%" in text
    assert "text is null 4 66.7% text is empty 2 33.3%" in text
    assert "part-0001.parquet-1a2b 64 8,000 1.2 s 4.0 s 2,000" in text
    assert "3 2026-11-24 16:30 UTC ✓ complete node-1 30 s 600 80,000 2,667" in text
    assert "1 2026-11-24 16:00 UTC ✕ ended without notice node-1 – 200 25,000 –" in text
    assert "device cpu in float32" in text
    assert "ray 2.60.0" in text


@pytest.mark.parametrize(
    ("predict_s", "waited_s", "note"),
    [
        (95.0, 5.0, "The model is the bottleneck: it was busy 95.0% of its time"),
        (60.0, 40.0, "Tokenising is the bottleneck: the model waited 40.0% of its time"),
        (80.0, 20.0, "Nearly balanced: the model waited 20.0% of its time"),
        (2.0, 8.0, "too short to say"),
    ],
)
def test_the_time_section_names_the_bottleneck(predict_s, waited_s, note):
    totals = sample()["totals"] | {"predict_s": predict_s, "waited_s": waited_s}
    assert note in Document(render(sample(totals=totals))).text


def test_no_bottleneck_is_named_where_the_waiting_is_not_known():
    text = Document(render(sample(totals=sample()["totals"] | {"waited_s": None}))).text
    assert "predict 38 s" in text
    assert "bottleneck" not in text
    assert "balanced" not in text


def test_failures_come_before_the_figures():
    failed = {
        "b.parquet": "cannot be read: not a Parquet file",
        "c.parquet": "cannot be committed: disk full",
    }
    text = Document(render(sample(complete=False, failed=failed))).text
    assert "Not complete, 2 failed" in text
    assert (
        "b.parquet cannot be read: not a Parquet file c.parquet cannot be committed: disk full"
        in text
    )
    assert text.index("2 files or shards failed") < text.index("Rows labelled")
    assert "failed" not in Document(render(sample())).text


def test_the_error_that_ended_the_last_attempt_comes_first():
    attempts = [
        *sample()["attempts"][:2],
        sample()["attempts"][2] | {"outcome": "error: no space left on /data"},
    ]
    text = Document(render(sample(complete=False, attempts=attempts))).text
    assert text.index("The last attempt ended with an error no space left on /data") < text.index(
        "Rows labelled"
    )


def test_values_are_escaped_everywhere():
    plain, document = Document(render(sample())), Document(render(hostile_report()))
    shown = " ".join(HOSTILE.split())
    # twice the title; output and date; settings, versions and failures; labels, reasons, a shard; three attempts;
    # what two of them added, and three labels above that
    assert document.text.count(shown) == 2 + 2 + 10 + 3 + 2 + 1 + (3 + 2 + 3) + (2 + 3)
    assert document.tags.keys() <= plain.tags.keys() | {"code"}
    assert document.attributes <= plain.attributes
    assert "script" not in document.tags


def test_text_that_utf8_cannot_hold_is_escaped():
    assert "broken \\ud800 name" in render(sample(title="broken \ud800 name")).encode().decode()


def test_long_text_keeps_its_ends():
    source = render(sample(output="a" * 1000 + "z" * 1000))
    assert f'<p class="path">{"a" * 160} … {"z" * 80}</p>' in source


@pytest.mark.parametrize("empty", [None, "same type"])
@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ("settings", "Settings"), ("versions", "Versions"), ("attempts", "Attempts"), ("throughput", "Throughput"),
        ("lengths", "Window lengths"), ("labels", "Labels"), ("scores", "Scores"), ("rejects", "Rejected rows"),
        ("slowest", "Slowest shards"), ("totals", "Time"), ("by_attempt", "By attempt"),
    ],
)  # fmt: skip
def test_a_part_that_is_empty_is_left_out_and_nothing_else(part, heading, empty):
    document = Document(render(sample(**{part: None if empty is None else type(sample()[part])()})))
    assert sorted(document.headings) == sorted(title for title in HEADINGS if title != heading)


def test_an_empty_report():
    document = Document(render({}))
    text = document.text
    assert document.headings == []
    assert "Not complete" in text
    assert text.count("– not known") == 6


def test_one_row_in_one_shard_is_singular():
    totals = sample()["totals"] | {
        "shards": 1,
        "rows": 1,
        "labelled": 1,
        "rejected": 1,
        "batches": 1,
    }
    text = Document(render(sample(totals=totals, attempts=sample()["attempts"][2:]))).text
    for words in ("of 1 row in 1 shard ", "1 row, kept", "1 batch ", "30 s in 1 attempt "):
        assert words in text


def test_the_size_is_bounded_and_the_counts_include_what_is_not_shown():
    many = range(100_000)
    source = render(
        sample(
            labels=[[f"label {i}" * 100, 20_000 - i] for i in range(10_000)],
            throughput=[
                {
                    "seconds": [5 * i for i in many],
                    "tokens_per_s": [float(i) for i in many],
                    "attempt": 2,
                }
            ],
            rejects=[[f"reason {i} " * 1000, 1] for i in range(10_000)],
            slowest=sample()["slowest"] * 100_000,
            failed={f"part-{i}.parquet": f"{chr(0x4E00 + i % 1000)} {'x' * 10_000}" for i in many},
            attempts=sample()["attempts"] * 3000,
            settings={f"setting {i}": "y" * 10_000 for i in range(10_000)},
            lengths={"edges": list(range(10_001)), "windows": [1] * 10_000},
        )
    )
    assert len(source.encode()) < 200_000
    text = Document(source).text
    shown = 12 * 20_000 - sum(range(12))
    assert f"9,988 others {10_000 * 20_000 - sum(range(10_000)) - shown:,}" in text
    assert "9,994 other reasons 9,994" in text
    assert "100,000 files or shards failed" in text
    assert "part-0.parquet and 99 others \u4e00 x" in text
    assert "… and 98,000 others" in text
    assert (
        "The last 10 of 9,000. Attempts no. started outcome host ran rows tokens tokens/s 9,000 2026"
        in text
    )


def test_the_page_refers_to_nothing_elsewhere():
    source = render(sample())
    for reference in (
        "http:",
        "https:",
        "//",
        "src=",
        "href=",
        "url(",
        "@import",
        "<link",
        "<script",
        "@font-face",
    ):
        assert reference not in source
    assert "default-src 'none'" in source


def test_drawings_and_tables_can_be_read_without_seeing_them():
    document = Document(render(sample()))
    assert document.tags["svg"] == 3
    assert document.tags["desc"] == 3
    assert document.tags["table"] == document.tags["caption"]
    assert {"scope", "role", "lang"} <= document.attributes


def test_many_bins_are_merged_without_changing_the_mean():
    values = [float((i * 7919) % 1000) for i in range(10_007)]
    series = {"seconds": list(range(10_007)), "tokens_per_s": values, "attempt": 0}
    source = section(render(sample(throughput=[series], attempts=[])), "Throughput")
    assert 'class="mean"' not in source
    shown = [
        float(n.replace(",", "")) for n in re.findall(r"<title>after [^:]*: ([\d,]+) ", source)
    ]
    widths = [
        float(n) for n in re.findall(r'class="hit" x="[\d.]+" y="0" width="([\d.]+)"', source)
    ]
    assert 200 < len(shown) <= 240
    mean = sum(n * width for n, width in zip(shown, widths, strict=True)) / sum(widths)
    assert mean == pytest.approx(sum(values) / len(values), rel=2e-3)


def test_attempts_are_laid_end_to_end():
    source = render(sample())  # 10 s of attempt 2, then 30 s of attempt 3
    assert re.findall(r'class="named" style="left:([\d.]+)%">(\d+)<', source) == [("25.0", "3")]
    assert '<path class="mark" d="M250.0 0V100"/>' in source
    assert "after 35 s: 3,000 tokens/s" in source


def test_what_each_attempt_added_is_compared_with_the_whole_output():
    table = section(render(sample()), "By attempt")
    cells = [re.findall(r'<td class="number">(.*?)</td>', row) for row in table.split("<tr>")[2:]]
    assert cells == [
        ["800", "0.5%", "50.4% (+0.1)", "25.3% (-4.9)", "24.4% (+4.9)"],
        ["200", "1.0%", "50.0% (-0.3)", "50.0% (+19.8)", "0% (-19.5)"],
    ]
    assert (
        "By attempt" not in Document(render(sample(by_attempt=sample()["by_attempt"][:1]))).headings
    )


def test_an_attempt_is_drawn_from_its_start_to_its_end():
    attempts = [{"seconds": 8.0, "tokens": 56}]
    source = render(
        sample(attempts=attempts, throughput=[{"seconds": [2, 4, 6], "tokens_per_s": [9, 10, 8]}])
    )
    assert re.findall(r"<title>after (\d+ s: \d+) tokens/s", source) == [
        "0 s: 0",
        "2 s: 9",
        "4 s: 10",
        "6 s: 8",
    ]
    attempts = [{"seconds": 7.0, "tokens": 56}]  # it ends in the middle of the last bin
    source = render(
        sample(attempts=attempts, throughput=[{"seconds": [2, 4, 6], "tokens_per_s": [9, 10, 8]}])
    )
    widths = re.findall(
        r'class="hit" x="[\d.]+" y="0" width="([\d.]+)"', source.partition("</svg>")[0]
    )
    assert widths == ["285.7", "285.7", "285.7", "142.9"]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 9, 10, 11, 99, 100, 101, 1234, 250_000, 987_654_321])
def test_a_histogram_has_a_few_round_whole_ticks_up_to_its_highest_column(most):
    source = section(
        render(sample(lengths={"edges": [1, 2, 4], "windows": [0, most]})), "Window lengths"
    )
    ticks = re.findall(r'class="left" style="bottom:([\d.]+)%">([^<]+)<', source)
    assert ticks[0] == ("0.0", "0")
    assert ticks[-1][0] == "100.0"
    assert 2 <= len(ticks) <= 6
    highest = max(
        float(height) for height in re.findall(r'class="count".* height="([\d.]+)"', source)
    )
    assert 50 < highest <= 100
    assert not any("." in label and label[-1].isdigit() for _, label in ticks)


def test_bars_are_as_long_as_their_counts(monkeypatch):
    monkeypatch.setattr("pipelines.report.html._SHOWN_LABELS", 2)
    source = render(sample(labels=[("a", 40), ("b", 10), ("c", 30), ("d", 20)]))
    assert re.findall(r"width:([\d.]+)%", section(source, "Labels")) == ["100.00", "25.00"]
    text = Document(source).text
    assert "2 others a" not in text
    assert "a 40 40.0% b 10 10.0% 2 others 50 50.0% Rejected rows" in text


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, "–"),
        (0, "0%"),
        (0.0004, "<0.1%"),
        (0.006, "0.6%"),
        (0.9996, ">99.9%"),
        (1, "100%"),
        (1.25, "125.0%"),
    ],
)
def test_percent_never_rounds_to_nothing_or_all(share, expected):
    assert percent(share) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (1.5e9, "1.5B"),
        (2e12, "2T"),
    ],
)
def test_compact_numbers(value, expected):
    assert compact(value) == expected


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_hostile_report(tmp_path):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("needs chromium")
    (tmp_path / "report.html").write_text(render(hostile_report()), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    command = [browser, *options, "--dump-dom", (tmp_path / "report.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>classify&lt;/td&gt;" in seen
    assert not re.search(r"<(script|img)\b", seen)
    assert seen.count("<section") == Document(render(hostile_report())).tags["section"]
