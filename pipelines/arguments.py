"""The options of a command, from its arguments, the environment and a YAML file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipelines.errors import UserError
from pipelines.job_options import ENV_PREFIX, CommandOptions
from pipelines.option_types import Repeated, Words, marker, plain_message
from pipelines.report.text import printable

Options = TypeVar("Options", bound=CommandOptions)


class _Parser(argparse.ArgumentParser):
    """Names a wrong argument without what it may do to the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Once(argparse.Action):
    """Stores the value of a flag that must not be there twice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(
                f"{option_string} is there twice: several models over one reading are the task "
                "several, --model TASK=MODEL for each"
            )
        setattr(namespace, self.dest, values)


def parse(
    options_class: type[Options],
    arguments: Sequence[str],
    defaults: dict[str, str],
    program: str | None = None,
    note: str = "",
) -> Options:
    """Return the options of `arguments`, of the environment and of the file that --config names.

    An earlier one of these wins. `defaults` name the sample corpus, its model and its output, for a
    call with neither input nor model. `program` and `note` are for --help: what the user has
    called, and the last sentence.

    Raises:
        UserError: it names each wrong option.
    """
    parser = _Parser(
        prog=program,
        usage="%(prog)s [options]",
        description=options_class.__doc__,
        epilog=(
            "All options can come from a YAML file (--config) or the environment "
            f"({ENV_PREFIX}MAX_LENGTH=512) too. {note}"
        ),
        allow_abbrev=False,
    )
    repeated: set[str] = set()
    for field in options_class.model_fields.values():
        of_list = marker(field, Repeated)
        if of_list is not None:
            repeated.add(of_list.flag)
    for name, field in options_class.model_fields.items():
        if name not in repeated:
            _add_argument(parser, name, field)
    flags = vars(parser.parse_args(arguments))
    try:
        options = options_class.from_command_line(flags)
    except ValidationError as error:
        mistakes = [_describe(mistake) for mistake in error.errors()]
        raise UserError("; ".join(mistakes)) from error

    # A call that names its input or its model is no call of the demo.
    for name in ("input", "model"):
        if getattr(options, name, None) is not None:
            return options
    missing = {name: getattr(options, name) or value for name, value in defaults.items()}
    return options.model_copy(update=missing)


def prefix_flag(message: str, options_class: type[CommandOptions]) -> str:
    """Return `message`, with the flag in place of an option's name that it begins with."""
    option, space, rest = message.partition(" ")
    if option not in options_class.model_fields:
        return message
    return f"{_flag(option)}{space}{rest}"


def _add_argument(parser: _Parser, name: str, field: FieldInfo) -> None:
    """Add the flag of an option; one that is not given is left to the other sources."""
    members = get_args(field.annotation)
    # The type without "| None", and what argparse shows for its values.
    type_: Any = members[0] if type(None) in members else field.annotation
    text = field.description
    words = marker(field, Words)
    if words is not None:
        metavar = _one_of(words.values)
        flag = _flag(words.name)
        parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text)
        return
    of_list = marker(field, Repeated)
    if of_list is not None:
        parser.add_argument(
            _flag(of_list.flag),
            dest=name,
            action="append",
            metavar=of_list.metavar,
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    flag = _flag(name)
    if name == "model":
        parser.add_argument(
            flag, action=_Once, metavar="MODEL", default=argparse.SUPPRESS, help=text
        )
        return
    if type_ is bool:
        # A flag that is off by default needs no form that switches it off.
        action = "store_true" if field.default is False else argparse.BooleanOptionalAction
        parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        return
    if get_origin(type_) is Literal:
        metavar = _one_of(get_args(type_))
    elif type_ is int:
        metavar = "N"
    elif type_ is float:
        metavar = "X"
    else:
        metavar = name.split("_")[-1].upper()
    if field.default not in (None, ""):
        text = f"{text} (default: {field.default})"
    parser.add_argument(flag, metavar=metavar, default=argparse.SUPPRESS, help=text)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _one_of(values: Sequence[str] | Mapping[str, object]) -> str:
    return "{" + ",".join(values) + "}"


def _describe(mistake: Mapping[str, Any]) -> str:
    """Return the message of one of pydantic's errors, behind the flag and its value."""
    message = plain_message(mistake["msg"])
    location = mistake["loc"]
    if not location:
        return message  # of several options together; it names them itself
    return f"{_flag(str(location[0]))} {mistake['input']!r}: {message}"
