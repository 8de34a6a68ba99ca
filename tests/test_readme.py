"""What the documents say can be done, can be done."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.cli import COMMANDS, main
from dtag_fast.commands.parse import parse
from dtag_fast.refinement import BACKENDS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_DOCUMENT = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)

# What may stand before a command in a line of shell.
WORDS = {"do", "then", "else", "time", "!", "{"}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def blocks(document: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE
    )


def shell_commands(block: str) -> Iterator[list[str]]:
    """The simple commands of a block as lists of words, variables replaced."""
    values = dict(re.findall(r"^\s*(?:export )?(\w+)=(\S+)", block, re.MULTILINE))
    values |= dict(re.findall(r"\bfor (\w+) in ([^\s;]+)", block))
    block = re.sub(r"\\\n", " ", block)
    # A variable that the block does not set may be a number as well as a name.
    block = re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], "1"), block)
    for line in block.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";|&<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set(";|&<>"):
                command.append(token)
                continue
            while command and (command[0] in WORDS or re.match(r"\w+=", command[0])):
                command.pop(0)
            if command:
                yield command
            command = []


def dtag_lines() -> list[Any]:
    lines = []
    for document in DOCUMENTS:
        if not document.exists():
            continue
        for block in blocks(document, "sh"):
            for command in shell_commands(block):
                if Path(command[0]).name == "dtag":
                    lines.append(pytest.param(command[1:], id=" ".join(command)[:80]))
    return lines


# --- the example ---


def test_the_example_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    source = blocks(README, "python")[0]
    exec(compile(source, str(README), "exec"), {"__name__": "__main__"})
    printed = [float(line) for line in capsys.readouterr().out.split()]
    (comment,) = re.findall(r"print\(.*#(.*)", source)
    promised = [float(number) for number in NUMBER.findall(comment)]
    assert printed == pytest.approx(promised, abs=0.05)
    assert {path.name for path in tmp_path.iterdir()} == {"datasets", "runs"}


# --- the command lines ---


def test_there_are_command_lines_to_check() -> None:
    names = {" ".join(line.values[0][:2]) for line in dtag_lines()}
    assert {"train policy", "train critic"} <= names


@pytest.mark.parametrize("arguments", dtag_lines())
def test_a_command_line_is_one(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name = next(
        (" ".join(arguments[:n]) for n in (2, 1) if " ".join(arguments[:n]) in COMMANDS), None
    )
    if name is None:
        assert main(arguments) == 0, f"no such command: dtag {' '.join(arguments)}"
        return
    rest = [word for word in arguments[len(name.split()) :] if word != "..."]
    module, _, attribute = COMMANDS[name][0].partition(":")
    command_type = getattr(importlib.import_module(module), attribute)
    try:
        parse(command_type, f"dtag {name}", rest)
    except SystemExit as exit_:
        if exit_.code != 0:  # 0 is --help
            pytest.fail(f"dtag {' '.join(arguments)}: {''.join(capsys.readouterr())}")


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            for command in shell_commands(block):
                if command[0] == "make":
                    asked = {word for word in command[1:] if "=" not in word}
                    assert asked <= targets, f"{document.name}: {' '.join(command)}"


def test_the_words_of_a_shell_block_are_found() -> None:
    block = """
$ dtag data list   # a comment; with dtag in it
for seed in 3 4; do CUDA_VISIBLE_DEVICES=0 dtag train policy --seed $seed \\
    --out runs/${seed} && .venv/bin/dtag doctor | tee log; done
"""
    assert [c for c in shell_commands(block) if Path(c[0]).name == "dtag"] == [
        ["dtag", "data", "list"],
        ["dtag", "train", "policy", "--seed", "3", "--out", "runs/3"],
        [".venv/bin/dtag", "doctor"],
    ]


# --- the text ---


@EVERY_DOCUMENT
def test_links_to_files_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)|src=\"([^\"]+)\"", text)
    for link in (markdown or html for markdown, html in links):
        if not re.match(r"[a-z]+:|#", link):
            assert (document.parent / link.partition("#")[0]).exists(), link


@EVERY_DOCUMENT
def test_nothing_of_the_workshop_is_left(document: Path) -> None:
    text = document.read_text()
    for left in (f"..{os.sep}shared", "/work/", "/tmp/", "PLACEHOLDER", "TODO", "FIXME"):
        assert left not in text, left


def test_the_backend_table_lists_every_backend() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE)
    assert [row for row in rows if row in BACKENDS] == list(BACKENDS)
