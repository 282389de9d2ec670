"""One typed model behind command line, environment and YAML; each mistake named."""

from __future__ import annotations

import pytest

from pipelines.command import parse
from pipelines.errors import UserError
from pipelines.options import corpus_command_options

DEFAULTS = {"input": "sample", "model": "demo", "output": "out"}


def options(*arguments):
    return parse(corpus_command_options("classify"), arguments, DEFAULTS)


def test_command_line_over_environment_over_yaml(tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text("max-length: 100\ntop_k: 3\nkeep-columns: [a, b]\nactors: 2\ninput: from-yaml\n")
    monkeypatch.setenv("MODERNBERT_TOP_K", "4")
    monkeypatch.setenv("MODERNBERT_TEXT_COLUMN", "body")
    result = options("--config", str(file), "--max-length", "200")
    assert (result.max_length, result.top_k, result.text_column, result.actors) == (200, 4, "body", "2")
    assert (result.keep_columns, result.input) == (["a", "b"], "from-yaml")
    monkeypatch.setenv("MODERNBERT_CONFIG", str(file))
    assert options("--keep-columns", "x,y,z").keep_columns == ["x", "y", "z"]
    assert options("--keep-columns", "").keep_columns == []


def test_the_sample_stands_in_only_when_nothing_is_named():
    assert (options().input, options().model, options().output) == ("sample", "demo", "out")
    assert options("--output", "mine").output == "mine"
    assert options("--input", "corpus").model is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "0"], "--top-k '0': must be greater than or equal to 1"),
        (["--actors", "4:2"], "--actors '4:2': MIN 4 is above MAX 2"),
        (["--actors", "many"], "--actors 'many'"),
        (["--device", "tpu"], "--device 'tpu': must be 'auto', 'cpu' or 'cuda'"),
        (["--max-length", "long"], "--max-length 'long'"),
        (["--threshold", "1.5"], "--threshold '1.5'"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: "),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError) as caught:
        options(*arguments)
    assert message in str(caught.value)


def test_unknown_names_in_yaml(tmp_path):
    (tmp_path / "job.yaml").write_text("max_lenght: 3\n")
    with pytest.raises(UserError, match="--max-lenght"):
        options("--config", str(tmp_path / "job.yaml"))


def test_an_option_with_words_for_its_values(tmp_path, monkeypatch):
    """`--as query|document`, which is `as_query` in Python."""

    def as_query(*arguments):
        return parse(corpus_command_options("multi_vector"), arguments, DEFAULTS).as_query

    assert [as_query(), as_query("--as", "query"), as_query("--as", "document")] == [False, True, False]
    (tmp_path / "job.yaml").write_text("as: query\n")
    assert as_query("--config", str(tmp_path / "job.yaml"))
    monkeypatch.setenv("MODERNBERT_AS_QUERY", "true")
    assert as_query()
    with pytest.raises(UserError, match=r"^--as 'both': must be query or document$"):
        as_query("--as", "both")
