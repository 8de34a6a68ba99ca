"""`dtag` without its commands' work: which command is meant, help, errors, exit statuses."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dtag_fast
from dtag_fast.cli import COMMANDS, main
from dtag_fast.commands.doctor import Doctor
from dtag_fast.training.interrupt import TrainingInterrupted

PACKAGE_PARENT = str(Path(dtag_fast.__file__).parents[1])
EVERY_COMMAND = pytest.mark.parametrize("name", list(COMMANDS))


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Code in a fresh interpreter that imports the same dtag_fast as these tests."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
        **options,
    )


# --- the overview ---


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, (_, description) in COMMANDS.items():
        assert f"  {name} " in out
        assert description in out


def test_the_overview_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "train policy" in out
    assert "train critic" in out
    assert "data make" not in out
    assert "doctor" not in out


def test_a_group_alone_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "data import-d4rl" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "no command 'fly'"),
        (["fly", "--help"], "no command 'fly'"),
        (["data", "burn"], "no command 'data burn'"),
        (["train", "--steps", "5"], "no command 'train 5'"),
        (["--nonsense"], "no option '--nonsense'"),
        (["--seed=3"], "no option '--seed=3'"),
    ],
)
def test_what_is_unknown_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "usage: dtag COMMAND" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dtag-fast {dtag_fast.__version__}\n"


def test_arguments_come_from_the_process_if_not_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dtag", "--version"])
    assert main() == 0
    assert dtag_fast.__version__ in capsys.readouterr().out


# --- help ---


@EVERY_COMMAND
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*name.split(), "--help"])
    assert exit_.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"usage: dtag {name} " in out
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.__doc__.splitlines()[0] in " ".join(out.split())


def test_help_imports_nothing_heavy() -> None:
    """No torch, and nothing else that takes long: `--help` is to answer at once."""
    code = """
import contextlib, io, json, sys
from dtag_fast.cli import COMMANDS, main
blamed = {}
for name in [*COMMANDS, "", "data"]:
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    tops = {module.partition(".")[0] for module in set(sys.modules) - before}
    blamed[name] = sorted(tops & set(sys.argv[1].split()))
print(json.dumps(blamed))
"""
    heavy = "torch gymnasium minari h5py matplotlib scipy safetensors stable_baselines3 mujoco"
    result = run_python(code, heavy)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {name: [] for name in [*COMMANDS, "", "data"]}


def test_help_into_a_pipe_that_nobody_reads_ends_quietly() -> None:
    code = "import sys; from dtag_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, "train", "policy", "--help"],
            env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(write)
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "policy", "--out", "x"], "--data"),
        (["train", "critic", "--data", "x"], "--out"),
        (["evaluate"], "--policy"),
        (["data", "info"], "ID"),
        (["data", "make", "moon"], "moon"),
        (["evaluate", "--policy", "x", "--no-such-option", "1"], "--no-such-option"),
        (["train", "policy", "--data", "x", "--out", "y", "--steps", "many"], "many"),
        (["evaluate", "--policy", "x", "--refinement.optimizer", "lion"], "lion"),
    ],
)
def test_bad_options_are_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert said in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--steps", "0"], "steps: expected an integer of at least 1, got 0"),
        (["--expectile", "2"], "expectile: expected a number in (0, 1), got 2.0"),
        (["--learning-rate", "-1"], "learning_rate: expected a number in (0, inf), got -1.0"),
    ],
)
def test_values_out_of_range_are_told_without_a_traceback(
    option: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "policy", "--data", "x", "--out", "y", *option]) == 1
    assert capsys.readouterr().err == f"dtag train policy: ValueError: {said}\n"


# --- how a command ends ---


@pytest.fixture
def doctor_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes `dtag doctor` raise or return what the test says."""

    def replace(outcome: Any) -> None:
        def run(self: Doctor) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(Doctor, "run", run)

    monkeypatch.delenv("DTAG_TRACEBACK", raising=False)
    return replace


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_gives_its_status(
    outcome: Any, status: int, doctor_gives: Callable[[Any], None]
) -> None:
    doctor_gives(outcome)
    assert main(["doctor"]) == status


@pytest.mark.parametrize(
    "error",
    [
        ValueError("steps: too few"),
        TypeError("no number"),
        RuntimeError("out of luck"),
        FileNotFoundError("no such thing"),
        ModuleNotFoundError("not installed"),
        KeyError("key"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_one_line_on_stderr(
    error: Exception, doctor_gives: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    doctor_gives(error)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"dtag doctor: {type(error).__name__}: {error}\n"


def test_the_traceback_is_for_whoever_asks(
    monkeypatch: pytest.MonkeyPatch, doctor_gives: Callable[[Any], None]
) -> None:
    doctor_gives(ValueError("steps: too few"))
    monkeypatch.setenv("DTAG_TRACEBACK", "1")
    with pytest.raises(ValueError, match="too few"):
        main(["doctor"])


def test_a_mistake_of_ours_keeps_its_traceback(doctor_gives: Callable[[Any], None]) -> None:
    doctor_gives(AssertionError("cannot be"))
    with pytest.raises(AssertionError):
        main(["doctor"])


def test_an_interrupt_gives_the_shells_status(
    doctor_gives: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    doctor_gives(KeyboardInterrupt())
    assert main(["doctor"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == ""


def test_interrupted_training_says_where_it_stopped(
    doctor_gives: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    doctor_gives(TrainingInterrupted(30, Path("runs/a")))
    assert main(["doctor"]) == 130
    err = capsys.readouterr().err
    assert "step 30" in err
    assert str(Path("runs/a")) in err


def test_every_command_can_be_loaded() -> None:
    for module, _, attribute in (place.partition(":") for place, _ in COMMANDS.values()):
        command = getattr(importlib.import_module(module), attribute)
        assert callable(command.run)
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    assert not groups & set(COMMANDS), "a group's name must not be a command's"
