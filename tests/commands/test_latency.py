"""`dtag latency` on the toy problem; nothing here asserts a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.acting.native import unavailable_reason
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.cli import main


def test_it_measures_prints_and_writes(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["latency", str(workspace.policy), "--critic", str(workspace.critic)]
    command += ["--hz", "2000", "--steps", "40", "--warm-up", "5", "--refinement.steps", "3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for word in ("p50", "p99", "max", "deadlines of 500 µs missed", "refinement", "█"):
        assert word in printed
    document = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert document["settings"]["refinement"]["steps"] == 3
    assert document["steps"] == 40
    assert len(document["times_us"]["response"]) == 40
    assert 0 <= document["missed"] <= 40
    assert min(document["times_us"]["refinement"]) > 0
    assert (tmp_path / "out" / "latency.png").stat().st_size > 1000
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "already holds a measurement" in capsys.readouterr().err


def test_seconds_are_steps_of_the_loop(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["latency", str(workspace.policy), "--hz", "500", "--seconds", "0.05"]
    assert main([*command, "--warm-up", "0", "--which", "best"]) == 0
    assert "of 25 deadlines of 2000 µs missed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["{policy}", "--hz", "-1", "--steps", "3"], "hz: expected a positive number"),
        (["{policy}", "--seconds", "0"], "--seconds: expected at least one step"),
        (["{policy}", "--steps", "0"], "steps: expected an integer of at least 1"),
        (["{policy}", "--critic", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_errors(
    workspace: Any, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", *(each.format(policy=workspace.policy) for each in options)]) == 1
    assert said in capsys.readouterr().err


def test_a_streaming_policy_is_trained_evaluated_and_measured(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option of training decides; acting finds it in the checkpoint."""
    command = ["train", "policy", "--data", workspace.dataset, "--out", "run"]
    assert main([*command, *workspace.tiny_policy, "--model.attention", "sliding"]) == 0
    assert isinstance(Policy.load("run", inference="torch")._context, StreamingContext)
    assert main(["evaluate", "--policy", "run", "--episodes", "2", "--checkpoint", "last"]) == 0
    assert main(["latency", "run", "--steps", "5", "--hz", "2000"]) == 0
    assert "of 5 deadlines" in capsys.readouterr().out


def test_what_computes_is_chosen_by_a_word(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = ["latency", str(workspace.policy), "--steps", "3", "--hz", "2000"]
    assert main([*measure, "--inference", "torch"]) == 0
    assert main([*measure, "--inference", "torch", "--precision", "bf16"]) == 1
    assert "precision: bf16 is of native inference" in capsys.readouterr().err
    if unavailable_reason() is None:
        assert main([*measure, "--inference", "native", "--precision", "bf16"]) == 0
