"""The tests and files that READMEs name exist; the README is short."""

from __future__ import annotations

import re

import pytest
from checkpoints import write_task
from conftest import REPOSITORY

DOCUMENTS = [
    file.relative_to(REPOSITORY)
    for pattern in ("*.md", "[!.]*/*.md", "pipelines/*/*.md", "jobs/demo/*/*.md")
    for file in sorted(REPOSITORY.glob(pattern))
]


def test_every_test_in_the_table_of_what_can_break_exists():
    named = re.findall(
        r"`(\w+/test_\w+\.py)::(test_\w+)`", (REPOSITORY / "pipelines" / "README.md").read_text()
    )
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}(" in (REPOSITORY / "tests" / file).read_text(), test


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_to_a_file(document):
    links = re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / document).read_text())
    for link in links:
        assert (
            link.startswith("https://") or (REPOSITORY / document).parent.joinpath(link).exists()
        ), link


def test_the_example_of_the_models_runs(tmp_path):
    """The code block of modernbert/README.md, with a tiny checkpoint in place of the one on the hub."""
    folder = write_task(tmp_path / "model", "ModernBertForMaskedLM")
    block = re.search(
        r"```python\n(.*?)```", (REPOSITORY / "modernbert" / "README.md").read_text(), re.DOTALL
    )[1]
    block = block.replace("answerdotai/ModernBERT-base", str(folder)).replace(
        '"trained"', repr(str(tmp_path / "out"))
    )
    exec(block, {})
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_readme_fits_a_few_screens():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120
