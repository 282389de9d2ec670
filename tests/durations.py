"""How long each test file takes, kept as JSON beside a budget for each.

`pytest --durations-json=FILE` writes FILE and names the files that took longer than the budget they have in
tests/durations.json. That is a report: no test fails by the clock. `seconds` is wall time, which other work on the
machine makes longer; `cpu_seconds` is what the tests' process took, with the processes that it has started and waited
for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict

import pytest

KEPT = Path(__file__).with_name("durations.json")
NEW_FILE_BUDGET_S = 15


class FileDurations(TypedDict, total=False):
    budget_s: int
    seconds: float
    cpu_seconds: float
    tests: int


def read_kept() -> dict[str, FileDurations]:
    """What tests/durations.json holds: the budgets, and the last durations that were kept."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


class Durations:
    """A plugin that adds up what tests take, in each worker of xdist and in their controller."""

    def __init__(self, target: Path):
        self.target = target
        self.budgets = {file: kept["budget_s"] for file, kept in read_kept().items()}
        self.files: dict[str, FileDurations] = {}
        self.cpu_before = cpu_seconds()

    def pytest_collection_finish(self) -> None:
        self.cpu_before = cpu_seconds()  # what the imports took is no test's

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        """Give a report the CPU time since the one before it: setup, call and teardown follow each other."""
        report = yield
        now = cpu_seconds()
        report.cpu_seconds = now - self.cpu_before  # xdist hands it to the controller
        self.cpu_before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        if file not in self.files:
            budget_s = self.budgets.get(file, NEW_FILE_BUDGET_S)
            self.files[file] = FileDurations(
                budget_s=budget_s, seconds=0.0, cpu_seconds=0.0, tests=0
            )
        durations = self.files[file]
        durations["seconds"] += report.duration
        durations["cpu_seconds"] += getattr(
            report, "cpu_seconds", 0.0
        )  # a worker that crashed has none
        durations["tests"] += report.when == "call"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total_s = sum(file["seconds"] for file in self.files.values())
        terminalreporter.section(f"durations: {total_s:.0f} s in {len(self.files)} files")
        for name, file in sorted(self.files.items()):
            file["seconds"] = round(file["seconds"], 1)
            file["cpu_seconds"] = round(file["cpu_seconds"], 1)
            if file["seconds"] > file["budget_s"]:
                terminalreporter.line(
                    f"{name} took {file['seconds']:.0f} s; its budget is {file['budget_s']} s"
                )
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.target.write_text(json.dumps(self.files, indent=1, sort_keys=True) + "\n")


def cpu_seconds() -> float:
    """The CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
