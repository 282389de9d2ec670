"""The tests and files that READMEs name exist; the README is short."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from checkpoints import write_task
from conftest import REPOSITORY

DOCUMENTS = [
    file.relative_to(REPOSITORY)
    for pattern in (
        "*.md",
        "[!.]*/*.md",
        "pipelines/*/*.md",
        "jobs/demo/*/*.md",
    )  # docs/ is in them
    for file in sorted(REPOSITORY.glob(pattern))
]


def test_every_test_in_the_table_of_what_can_break_exists():
    named = re.findall(
        r"`(\w+/test_\w+\.py)::(test_\w+)`", (REPOSITORY / "pipelines" / "README.md").read_text()
    )
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}(" in (REPOSITORY / "tests" / file).read_text(), test


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_document_on_the_code_names_exists(document):
    """In its text and figures: a path from the root, or from within pipelines/ or modernbert/."""
    text = (REPOSITORY / document).read_text()
    named = {*re.findall(r"\b\w+(?:/\w+)*/\w+\.py\b", text), *re.findall(r"`([\w/]+/)`", text)}
    assert len(named) > 8
    places = [REPOSITORY, REPOSITORY / "pipelines", REPOSITORY / "modernbert"]
    of_the_output = {"data/", "_rejected/", "_shards/"}
    for path in named - of_the_output:
        if "length" not in path:  # the toy task that the reader adds
            assert any(place.joinpath(path).exists() for place in places), path


def test_the_version_is_the_same_wherever_it_stands():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d\S*)\] - (\S+)$", changelog, re.MULTILINE)
    assert newest, "the newest release has a version and a date"
    assert project["version"] == citation["version"] == newest[1]
    assert str(citation["date-released"]) == newest[2]
    assert citation["title"] == project["name"]
    assert citation["license"] == project["license"]
    assert changelog.index("## [Unreleased]") < newest.start()


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
