"""What the commands in jobs/ share: options from the command line, and users' mistakes as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from pydantic import ValidationError

from pipelines.errors import JobError, UserError
from pipelines.options import ENV_PREFIX, CorpusOptions, Options, TaskOptions


def run_command(task: str, options_class: type[CorpusOptions], defaults: dict[str, str] | None = None) -> int:
    """Parse sys.argv, run the job of the task `task`, and return the exit code: 2 with a line for a user's mistake."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options = parse(options_class, sys.argv[1:], defaults or {})
        from pipelines.corpus.cluster import Stopped  # torch and Ray take seconds, which a wrong option should not
        from pipelines.corpus.run import run_corpus

        try:
            return run_corpus(options, task)
        except Stopped:
            return _stopped("stopped", 143)
    except ValueError as error:  # UserError, ConfigError, CheckpointError
        print(f"error: {prefix_flag(str(error), options_class)}", file=sys.stderr)
        return 2
    except JobError as error:
        print(f"error: {error}; what is done stays, and the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _stopped("interrupted", 130)


def _stopped(how: str, code: int) -> int:
    print(f"{how}; the same command goes on where this one stopped", file=sys.stderr)
    return code


def prefix_flag(message: str, options_class: type[TaskOptions]) -> str:
    """`message`, with the flag in place of the name of an option that it begins with."""
    option, space, rest = message.partition(" ")
    return f"--{option.replace('_', '-')}{space}{rest}" if option in options_class.model_fields else message


def parse(options_class: type[Options], arguments: Sequence[str], defaults: dict[str, str]) -> Options:
    """Options from `arguments`, the environment and the YAML file that --config names, in this order.

    `defaults` name the sample corpus, its model and its output, for a call with neither input nor model. Raises
    UserError that names each wrong option.
    """
    parser = argparse.ArgumentParser(
        description=options_class.__doc__,
        epilog=f"All options can come from a YAML file (--config) or the environment ({ENV_PREFIX}MAX_LENGTH=512) too.",
        allow_abbrev=False,
    )
    for name, field in options_class.model_fields.items():
        kind = next((k for k in get_args(field.annotation) if k is not type(None)), field.annotation)
        flag, text = "--" + name.replace("_", "-"), field.description
        if kind is bool:
            action = "store_true" if field.default is False else argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        metavar = {int: "N", float: "X"}.get(kind, name.split("_")[-1].upper())  # type: ignore[arg-type]
        metavar = "{" + ",".join(choices) + "}" if choices else metavar
        if field.default not in (None, ""):
            text = f"{text} (default: {field.default})"
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text)
    try:
        options = options_class(**vars(parser.parse_args(arguments)))
    except ValidationError as error:
        wrong = [f"--{str(e['loc'][0]).replace('_', '-')} {e['input']!r}: {_plain(e['msg'])}" for e in error.errors()]
        raise UserError("; ".join(wrong)) from error
    if any(getattr(options, name, None) is not None for name in ("input", "model")):
        return options
    return options.model_copy(update={name: getattr(options, name) or value for name, value in defaults.items()})


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
