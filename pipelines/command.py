"""What the commands in jobs/ share: options from the command line, and users' mistakes as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Literal, get_args, get_origin

from pydantic import ValidationError

from pipelines.config import ENV_PREFIX, Options, UserError


def run_command(run: Callable[[Options], int], options_class: type[Options], defaults: dict[str, str]) -> int:
    """Parse sys.argv, run the job, and return the exit code: 2 with one line on stderr for a user's mistake."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return run(parse(options_class, sys.argv[1:], defaults))
    except ValueError as error:  # UserError, ConfigError, CheckpointError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


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
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
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
    if options.input is not None or options.model is not None:
        return options
    return options.model_copy(update={name: getattr(options, name) or value for name, value in defaults.items()})


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")
