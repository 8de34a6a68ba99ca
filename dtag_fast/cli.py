"""The `dtag` command. Each subcommand is a dataclass in `dtag_fast.commands`, loaded when called.

Only the module of the command in hand is imported, and none of those import torch before they run:
`--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("dtag_fast.commands.demo:Demo", "train, refine, score and report a maze in minutes"),
    "data list": ("dtag_fast.commands.data:List", "local datasets"),
    "data info": ("dtag_fast.commands.data:Info", "describe a dataset"),
    "data make": ("dtag_fast.commands.data:Make", "generate a dataset: toy, pointmaze-umaze, ..."),
    "data collect": (
        "dtag_fast.commands.data:Collect",
        "train a behaviour policy, record its data",
    ),
    "data mix": ("dtag_fast.commands.data:Mix", "several datasets of one environment as one"),
    "data import-d4rl": ("dtag_fast.commands.data:ImportD4rl", "a D4RL HDF5 file into Minari"),
    "train policy": (
        "dtag_fast.commands.train:TrainPolicy",
        "Decision Transformer, Reinformer or an MLP",
    ),
    "train critic": ("dtag_fast.commands.train:TrainCritic", "critic: IQL, TD3+BC, CQL, ensemble"),
    "evaluate": ("dtag_fast.commands.evaluate:Evaluate", "act in the environment and score"),
    "study": ("dtag_fast.commands.study:Study", "a named study: rows, tables, report"),
    "latency": (
        "dtag_fast.commands.latency:Latency",
        "act in a control loop, count missed deadlines",
    ),
    "doctor": ("dtag_fast.commands.doctor:Doctor", "what runs on this machine, and why not"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dtag` with the given arguments, or those of the process; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = _command(arguments)
    if name is None:
        return _overview(arguments)
    from dtag_fast.commands.parse import parse

    module, _, attribute = COMMANDS[name][0].partition(":")
    command_type = getattr(importlib.import_module(module), attribute)
    try:
        command = parse(command_type, f"dtag {name}", arguments[len(name.split()) :])
        return int(command.run() or 0)
    except KeyboardInterrupt as interrupt:
        if str(interrupt):  # training says where it stopped
            print(f"dtag {name}: {interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, LookupError) as error:
        # Messages are written for users; the traceback is for whoever asks for it.
        if os.environ.get("DTAG_TRACEBACK") == "1":
            raise
        print(f"dtag {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _command(arguments: Sequence[str]) -> str | None:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name
    return None


def _overview(arguments: Sequence[str]) -> int:
    """Print the commands that start with the words given; 0 if they were asked for."""
    words = [a for a in arguments if not a.startswith("-")]
    asked = not arguments or "-h" in arguments or "--help" in arguments
    if arguments == ["--version"]:
        from dtag_fast import __version__

        print(f"dtag-fast {__version__}")
        return 0
    shown = {n: c for n, c in COMMANDS.items() if not words or n.split()[0] == words[0]}
    if not shown or len(words) > 1:
        print(f"dtag: no command {' '.join(words)!r}\n", file=sys.stderr)
        asked, shown = False, shown or COMMANDS
    elif not asked and not words:
        print(f"dtag: no option {arguments[0]!r} without a command\n", file=sys.stderr)
    out = sys.stdout if asked else sys.stderr
    print("usage: dtag COMMAND [--help] ...\n", file=out)
    for command, (_, description) in shown.items():
        print(f"  {command:18} {description}", file=out)
    print(
        "\n`dtag COMMAND --help` lists its options. DTAG_TRACEBACK=1 shows where errors arose.",
        file=out,
    )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
