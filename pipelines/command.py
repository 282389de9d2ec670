"""What the commands in jobs/ share: options from the command line, and users' mistakes as one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from pipelines.errors import JobError, UserError
from pipelines.input.files import look_up
from pipelines.options import ENV_PREFIX, CommandOptions, Words, corpus_command_options, marker, plain_message
from pipelines.storage import Location, redact

Options = TypeVar("Options", bound=CommandOptions)


def run_command(task: str, defaults: dict[str, str] | None = None) -> int:
    """Parse sys.argv, run the corpus job of a task, and return the exit code.

    `defaults`: the sample input, model and output of a call that names neither input nor model.

    Example: `sys.exit(run_command("classify"))`
    """
    options_class: Any = corpus_command_options(task)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options = parse(options_class, sys.argv[1:], defaults or {})
        look_up(Location.of_user(options.required()[0]))
        from pipelines.corpus.cluster import Stopped  # torch and Ray take seconds, which a mistake should not
        from pipelines.corpus.run import dry_run, run_job

        if options.dry_run:
            print(dry_run(options))
            return 0
        try:
            outcome = run_job(options)
            print(outcome)
            return 1 if outcome.failed else 0
        except Stopped:
            return _stopped("stopped", 143)
    except ValueError as error:
        print(f"error: {redact(prefix_flag(str(error), options_class))}", file=sys.stderr)
        return 2
    except JobError as error:
        print(
            f"error: {redact(str(error))}; what is done stays, and the same command goes on from there", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return _stopped("interrupted", 130)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _describe(error: Mapping[str, Any]) -> str:
    named = [f"{_flag(str(name))} {error['input']!r}: " for name in error["loc"][:1]]  # else the message names it
    return "".join(named) + plain_message(error["msg"])


def _stopped(how: str, code: int) -> int:
    print(f"{how}; the same command goes on where this one stopped", file=sys.stderr)
    return code


def prefix_flag(message: str, options_class: type[CommandOptions]) -> str:
    """`message`, with the flag in place of the name of an option that it begins with."""
    option, space, rest = message.partition(" ")
    return f"{_flag(option)}{space}{rest}" if option in options_class.model_fields else message


def parse(options_class: type[Options], arguments: Sequence[str], defaults: dict[str, str]) -> Options:
    """Options from `arguments`, the environment and the YAML file that --config names, in this order.

    `defaults` name the sample corpus, its model and its output, for a call with neither input nor model. Raises
    UserError that names each wrong option.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=options_class.__doc__,
        epilog=f"All options can come from a YAML file (--config) or the environment ({ENV_PREFIX}MAX_LENGTH=512) too.",
        allow_abbrev=False,
    )
    for name, field in options_class.model_fields.items():
        optional = type(None) in get_args(field.annotation)
        type_: Any = get_args(field.annotation)[0] if optional else field.annotation
        flag, text, words = _flag(name), field.description, marker(field, Words)
        if words:
            metavar = "{" + ",".join(words.values) + "}"
            parser.add_argument(f"--{words.name}", metavar=metavar, default=argparse.SUPPRESS, help=text)
            continue
        if type_ is bool:
            action = "store_true" if field.default is False else argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        choices = get_args(type_) if get_origin(type_) is Literal else None
        metavar = {int: "N", float: "X"}.get(type_, name.split("_")[-1].upper())
        metavar = "{" + ",".join(choices) + "}" if choices else metavar
        if field.default not in (None, ""):
            text = f"{text} (default: {field.default})"
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text)
    try:
        options = options_class(**vars(parser.parse_args(arguments)))
    except ValidationError as error:
        raise UserError("; ".join(_describe(wrong) for wrong in error.errors())) from error
    if any(getattr(options, name, None) is not None for name in ("input", "model")):
        return options
    return options.model_copy(update={name: getattr(options, name) or value for name, value in defaults.items()})
