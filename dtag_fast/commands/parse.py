"""Command lines to dataclasses by tyro, with presets that set the defaults of other options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

CommandT = TypeVar("CommandT")


def parse(command_type: type[CommandT], prog: str, arguments: Sequence[str]) -> CommandT:
    """The command that the arguments describe. tyro prints help and errors, and exits.

    A command with a classmethod `with_preset(name or None)` gets its defaults from it; `--preset`
    must therefore be known before the other options are parsed. Options that a command lists in
    `once` take all their values together: given again they are refused, as of an option given
    twice tyro drops what came first.
    """
    names = [argument.partition("=")[0].replace("_", "-") for argument in arguments]
    for option in getattr(command_type, "once", ()):
        if names.count(option) > 1:
            print(
                f"{prog}: {option}: expected once, with all values after it, "
                f"got it {names.count(option)} times",
                file=sys.stderr,
            )
            raise SystemExit(2)  # the status tyro ends with, too
    with_preset: Any = getattr(command_type, "with_preset", None)
    if with_preset is None:
        return tyro.cli(command_type, prog=prog, args=list(arguments))
    try:
        default = with_preset(_preset(arguments))
    except ValueError as error:
        print(f"{prog}: --preset: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    command: CommandT = tyro.cli(command_type, prog=prog, args=list(arguments), default=default)
    return command


def _preset(arguments: Sequence[str]) -> str | None:
    found = None
    for index, argument in enumerate(arguments):
        if argument == "--preset" and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif argument.startswith("--preset="):
            found = argument.partition("=")[2]
    return found
