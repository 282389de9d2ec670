"""The options of a command, from its arguments, the environment and a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError

from pipelines.errors import UserError
from pipelines.job_options import ENV_PREFIX, CommandOptions
from pipelines.options import Words, marker, plain_message
from pipelines.report.text import printable

Options = TypeVar("Options", bound=CommandOptions)


class _Parser(argparse.ArgumentParser):
    """Names a wrong argument without what it may do to the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _describe(error: Mapping[str, Any]) -> str:
    named = [
        f"{_flag(str(name))} {error['input']!r}: " for name in error["loc"][:1]
    ]  # else the message names it
    return "".join(named) + plain_message(error["msg"])


def prefix_flag(message: str, options_class: type[CommandOptions]) -> str:
    """`message`, with the flag in place of the name of an option that it begins with."""
    option, space, rest = message.partition(" ")
    return f"{_flag(option)}{space}{rest}" if option in options_class.model_fields else message


def parse(
    options_class: type[Options], arguments: Sequence[str], defaults: dict[str, str]
) -> Options:
    """Options from `arguments`, the environment and the YAML file that --config names, in this
    order.

    `defaults` name the sample corpus, its model and its output, for a call with neither input nor
    model. Raises UserError that names each wrong option.
    """
    parser = _Parser(
        usage="%(prog)s [options]",
        description=options_class.__doc__,
        epilog=(
            "All options can come from a YAML file (--config) or the environment "
            f"({ENV_PREFIX}MAX_LENGTH=512) too."
        ),
        allow_abbrev=False,
    )
    for name, field in options_class.model_fields.items():
        optional = type(None) in get_args(field.annotation)
        type_: Any = get_args(field.annotation)[0] if optional else field.annotation
        flag, text, words = _flag(name), field.description, marker(field, Words)
        if words:
            metavar = "{" + ",".join(words.values) + "}"
            parser.add_argument(
                f"--{words.name}", metavar=metavar, default=argparse.SUPPRESS, help=text
            )
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
        options = options_class.from_command_line(vars(parser.parse_args(arguments)))
    except ValidationError as error:
        raise UserError("; ".join(_describe(wrong) for wrong in error.errors())) from error
    if any(getattr(options, name, None) is not None for name in ("input", "model")):
        return options
    return options.model_copy(
        update={name: getattr(options, name) or value for name, value in defaults.items()}
    )
