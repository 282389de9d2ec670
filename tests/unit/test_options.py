"""One typed model behind command line, environment and YAML; each mistake named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from pipelines.arguments import parse
from pipelines.errors import UserError
from pipelines.job_options import (
    ENV_PREFIX,
    OTHER_VARIABLES,
    CommandOptions,
    command_options,
    corpus_command_options,
    option_names,
)
from pipelines.option_types import Words, marker
from pipelines.options import TASKS
from pipelines.serve.config import ServedModel, ServiceOptions
from pipelines.serve.http.limits import HttpLimits

DEFAULTS = {"input": "sample", "model": "demo", "output": "out"}


def options(*arguments):
    return parse(corpus_command_options("classify"), arguments, DEFAULTS)


def test_command_line_over_environment_over_yaml(tmp_path, monkeypatch):
    file = tmp_path / "job.yaml"
    file.write_text(
        "max-length: 100\ntop_k: 3\nkeep-columns: [a, b]\nactors: 2\ninput: from-yaml\n"
    )
    monkeypatch.setenv("MODERNBERT_TOP_K", "4")
    monkeypatch.setenv("MODERNBERT_TEXT_COLUMN", "body")
    result = options("--config", str(file), "--max-length", "200")
    assert (result.max_length, result.top_k, result.text_column, result.actors) == (
        200,
        4,
        "body",
        "2",
    )
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

    assert [as_query(), as_query("--as", "query"), as_query("--as", "document")] == [
        False,
        True,
        False,
    ]
    (tmp_path / "job.yaml").write_text("as: query\n")
    assert as_query("--config", str(tmp_path / "job.yaml"))
    monkeypatch.setenv("MODERNBERT_AS_QUERY", "true")
    assert as_query()
    monkeypatch.delenv("MODERNBERT_AS_QUERY")
    with pytest.raises(UserError, match=r"^--as 'both': must be query or document$"):
        as_query("--as", "both")


@pytest.mark.parametrize("name", ["MODERNBERT_AS", "MODERNBERT_AS_QUERY"])
def test_the_other_name_of_an_option_changes_no_precedence(tmp_path, monkeypatch, name):
    """Command line, environment and YAML may each call it by another name."""
    file, words = tmp_path / "job.yaml", {"query": "true", "document": "false"}

    def as_query(*arguments):
        return parse(
            corpus_command_options("sparse"), ["--config", str(file), *arguments], DEFAULTS
        ).as_query

    for yaml in ("as: query", "as: document", "as_query: true", "as-query: false"):
        file.write_text(yaml)
        assert as_query() is (yaml in ("as: query", "as_query: true"))
        for word, value in words.items():
            monkeypatch.setenv(name, word if name == "MODERNBERT_AS" else value)
            assert as_query() is (word == "query")
            assert as_query("--as", "query") is True
            assert as_query("--as", "document") is False
        monkeypatch.delenv(name)
    file.write_text("as: query\nas_query: false")
    with pytest.raises(
        UserError, match=r"^--as 'query' and as_query are the same option: give --as alone$"
    ):
        as_query()


def values_of(name: str, options_class: type[CommandOptions]) -> list[str]:
    """Values to give for an option as text, good and bad ones."""
    field = options_class.model_fields[name]
    words = marker(field, Words)
    kinds = [
        kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)
    ]
    values = ["0", "3", "7.5", "", "a, b ,a", "1:2", "é\u2028 {}", "utf-16"]
    for kind in [*kinds, field.annotation]:
        values += get_args(kind) if get_origin(kind) is Literal else ()
    return [*values, *(words.values if words else ())]


def outcome(parsed: Callable[[], CommandOptions]) -> tuple[dict[str, Any], str]:
    """The options, or the message of the mistake."""
    try:
        return parsed().model_dump(), ""
    except UserError as error:
        return {}, str(error)


@pytest.mark.parametrize(
    "options_class",
    [*map(command_options, TASKS), corpus_command_options("answer")],
    ids=lambda options_class: options_class.__name__,
)
def test_the_environment_gives_every_option_as_the_command_line_does(monkeypatch, options_class):
    """The same value or, where it is not allowed, the same message."""
    compared = 0
    for name, field in options_class.model_fields.items():
        if name == "config":
            continue
        if "models" in options_class.model_fields and name in ("model", "models"):
            continue  # --model adds to the list that MODERNBERT_MODELS is
        words = marker(field, Words)
        shown = words.name if words else name
        flag, variable = f"--{shown.replace('_', '-')}", f"{ENV_PREFIX}{shown.upper()}"
        flags = {}
        if not words and field.annotation in (bool, bool | None):  # a flag without a value
            flags = {
                "true": [flag],
                "false": [] if field.default is False else [f"--no-{flag[2:]}"],
            }
        for value in flags or values_of(name, options_class):
            arguments = flags.get(value, [f"{flag}={value}"])
            want = outcome(lambda arguments=arguments: parse(options_class, arguments, {}))
            monkeypatch.setenv(variable, value)
            assert outcome(lambda: parse(options_class, [], {})) == want, (variable, value)
            monkeypatch.delenv(variable)
            compared += 1
    assert compared > 50


def test_variables_of_other_commands_and_of_the_service_are_no_mistake(monkeypatch):
    """An environment may serve several jobs."""
    names = {
        *OTHER_VARIABLES,
        "stride",
        "labels_file",
        "pool_factor",
        "as",
        "as_query",
        "question_column",
    }
    for options_class in (ServedModel, ServiceOptions, HttpLimits):
        names |= set(options_class.model_fields)
    for task in TASKS:
        names |= set(option_names(command_options(task))) | set(
            option_names(corpus_command_options(task))
        )
    own = set(option_names(command_options("embed")))
    for name in names - own:
        monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", "x")
    assert parse(command_options("embed"), [], {}) == command_options("embed")(_env_prefix="")


def test_what_the_project_reads_from_the_environment_is_known(monkeypatch):
    """Every variable that a file of the repository names is an option, or in OTHER_VARIABLES."""
    root = Path(__file__).parents[2]
    files = [root / "cluster.yaml", root / "README.md"]
    for folder in ("pipelines", "modernbert", "jobs", "benchmarks", ".ci"):
        files += [
            file
            for file in (root / folder).rglob("*")
            if file.suffix not in (".json", ".safetensors")
        ]
    found = set()
    for file in files:
        if file.is_file():
            found |= set(
                re.findall(rf"{ENV_PREFIX}[A-Z][A-Z_]*", file.read_text("utf-8", errors="replace"))
            )
    assert {f"{ENV_PREFIX}API_KEY", f"{ENV_PREFIX}MAX_LENGTH"} <= found
    for name in found:
        monkeypatch.setenv(name, "7")
    parse(corpus_command_options("rerank"), ["--model", "m"], {})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            ["MAX_LENGHT"],
            "MAX_LENGHT in the environment is not an option (did you mean MODERNBERT_MAX_LENGTH?): ",
        ),
        (["ASS"], "ASS in the environment is not an option (did you mean MODERNBERT_AS?): "),
        (
            ["ZZZ"],
            "ZZZ in the environment is not an option: correct it or unset it; after MODERNBERT_ stands one of ",
        ),
        (
            ["QUESTIONCOLUMN"],
            "QUESTIONCOLUMN in the environment is not an option (did you mean MODERNBERT_QUESTION_COL",
        ),
        (
            ["A_B", "TOPK"],
            "A_B in the environment is not an option; MODERNBERT_TOPK in the environment is not an option",
        ),
    ],
)
def test_an_unknown_variable_is_named(monkeypatch, variables, message):
    for name in variables:
        monkeypatch.setenv(f"MODERNBERT_{name}", "1")
    with pytest.raises(UserError) as caught:
        parse(corpus_command_options("multi_vector"), [], DEFAULTS)
    assert str(caught.value).startswith(f"MODERNBERT_{message}")
    allowed = str(caught.value).rpartition("one of ")[2].split(", ")
    assert allowed == [
        name.upper() for name in option_names(corpus_command_options("multi_vector"))
    ]
    assert "\n" not in str(caught.value)


def test_a_configuration_with_a_byte_order_mark(tmp_path):
    (tmp_path / "job.yaml").write_text("max-length: 100\n", encoding="utf-8-sig")
    assert options("--config", str(tmp_path / "job.yaml")).max_length == 100
