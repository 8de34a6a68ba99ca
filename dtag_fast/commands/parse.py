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
    must therefore be known before the other options are parsed.
    """
    with_preset: Any = getattr(command_type, "with_preset", None)
    if with_preset is None:
        return tyro.cli(command_type, prog=prog, args=list(arguments))
    try:
        default = with_preset(_preset(arguments))
    except ValueError as error:
        print(f"{prog}: --preset: {error}", file=sys.stderr)
        raise SystemExit(2) from None  # the status tyro ends with, too
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
