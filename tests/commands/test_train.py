"""`dtag train policy` and `dtag train critic` on the toy problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.cli import main
from dtag_fast.commands.train import load_data
from dtag_fast.data.generate import make
from dtag_fast.models.critic import Critic
from dtag_fast.training.logs import read_log


def train(kind: str, workspace: Any, out: Path, *options: str) -> int:
    tiny = workspace.tiny_policy if kind == "policy" else workspace.tiny_critic
    data = ("--data", workspace.dataset, "--out", str(out))
    return main(["train", kind, *data, *tiny, *options])


def test_a_policy_is_trained_and_evaluated_meanwhile(workspace: Any) -> None:
    state = checkpoint.read_state(workspace.policy, kind="policy")
    assert state["step"] == 20
    assert state["dataset"]["id"] == workspace.dataset
    assert state["config"]["model"]["embedding_dim"] == 16
    evaluations = [row for row in read_log(workspace.policy) if row["event"] == "evaluation"]
    assert [row["step"] for row in evaluations] == [10, 20]
    assert all(row["return"] <= 1.0 for row in evaluations)
    best = max(evaluations, key=lambda row: row["score"])
    assert checkpoint.read_state(workspace.policy, "best")["step"] == best["step"]


def test_a_critic_is_trained(workspace: Any) -> None:
    assert checkpoint.read_state(workspace.critic, kind="critic")["step"] == 30
    assert Critic.load(workspace.critic).hidden == (16, 8)


def test_a_folder_with_a_run_is_not_trained_into_by_mistake(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("policy", workspace, workspace.policy) == 1
    err = capsys.readouterr().err
    assert str(workspace.policy) in err
    assert "already holds a run" in err


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_resume_goes_on_as_if_never_stopped(workspace: Any, tmp_path: Path, kind: str) -> None:
    at_once = workspace.policy if kind == "policy" else workspace.critic
    steps = str(checkpoint.read_state(at_once)["step"])
    out = tmp_path / "run"
    assert train(kind, workspace, out, "--steps", "10") == 0
    assert checkpoint.read_state(out)["step"] == 10
    assert train(kind, workspace, out, "--steps", steps, "--resume") == 0
    resumed, whole = checkpoint.load_tensors(out), checkpoint.load_tensors(at_once)
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_resume_with_nothing_to_resume_begins(workspace: Any, tmp_path: Path) -> None:
    assert train("critic", workspace, tmp_path / "run", "--resume", "--steps", "2") == 0
    assert checkpoint.read_state(tmp_path / "run")["step"] == 2


def test_resume_with_another_setting_is_refused(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("critic", workspace, tmp_path / "run", "--steps", "2") == 0
    options = ("--resume", "--steps", "4", "--discount", "0.5")
    assert train("critic", workspace, tmp_path / "run", *options) == 1
    assert "discount" in capsys.readouterr().err
    assert checkpoint.read_state(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_a_missing_dataset_is_told_before_anything_is_written(
    workspace: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", kind, "--data", "dtag/no/such-v0", "--out", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"dtag train {kind}: FileNotFoundError: no Minari dataset")
    assert "dtag/no/such-v0" in err
    assert not (tmp_path / "run").exists()


def test_a_decision_transformer_needs_a_return_to_ask_for(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train("policy", workspace, out, "--preset", "dt") == 1
    assert "target_return: needed" in capsys.readouterr().err
    assert not out.exists()
    assert train("policy", workspace, out, "--preset", "dt", "--target-return", "1") == 0
    assert checkpoint.read_state(out)["config"]["model"]["kind"] == "dt"


def test_a_policy_is_trained_without_evaluation_if_wished(workspace: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train("policy", workspace, out, "--preset", "dt", "--evaluation-every", "0") == 0
    assert {row["event"] for row in read_log(out)} == {"start", "train", "checkpoint"}
    assert checkpoint.pointed(out, "best") is None


def test_clones_and_iqls_policy_are_trained_and_evaluated_as_any(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, options in (
        ("bc", ("--best-share", "0.5")),
        ("iql", ("--critic", str(workspace.critic), "--advantage-weight", "2")),
    ):
        out = tmp_path / name
        tiny = ("--model.context-length", "1", "--model.hidden", "16")
        assert train("policy", workspace, out, "--preset", name, *tiny, *options) == 0
        assert checkpoint.read_state(out)["config"]["model"]["kind"] == "mlp"
        command = ["evaluate", "--policy", str(out), "--critic", str(workspace.critic)]
        assert main([*command, "--compare", "--episodes", "3"]) == 0
        printed = capsys.readouterr().out
        assert "last, unrefined" in printed
        assert "last, refined" in printed


def test_a_critic_alone_cannot_be_evaluated(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("critic", workspace, tmp_path / "run", "--evaluation-every", "5") == 1
    assert "--evaluation-every: expected 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mazes_are_trained_on_in_the_view_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="the extra envs is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    id = make("pointmaze-umaze", steps=2000, progress=False).id
    off, horizon = load_data(id, "off"), load_data(id)
    assert load_data(id, "horizon").fingerprint() == horizon.fingerprint()
    assert off.steps == 2000
    assert off.fingerprint() != horizon.fingerprint()
    assert horizon.info.horizon is not None
    assert horizon.lengths().max() == horizon.info.horizon
    older = load_data(id, "reinformer-v1")
    assert older.fingerprint() not in (off.fingerprint(), horizon.fingerprint())


def test_what_is_no_maze_is_trained_on_as_it_is(workspace: Any) -> None:
    assert load_data(workspace.dataset, "horizon").fingerprint() == (
        load_data(workspace.dataset, "off").fingerprint()
    )
