"""The tests that a README names exist."""

from __future__ import annotations

import re

from conftest import REPOSITORY


def test_every_test_in_the_table_of_what_can_break_exists():
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", (REPOSITORY / "pipelines" / "README.md").read_text())
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}(" in (REPOSITORY / "tests" / file).read_text(), test
