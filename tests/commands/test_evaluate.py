"""`dtag evaluate` on the toy problem."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtag_fast import checkpoint
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.value_predictors import ReturnGrid
from dtag_fast.cli import main
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.models.critic import Critic


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def read_summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


def test_compare_writes_rows_and_summary(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    command = ["evaluate", "--policy", str(workspace.policy), "--critic", str(workspace.critic)]
    command += ["--compare", "--episodes", "5", "--num-envs", "2", "--seed", "7"]
    command += ["--refinement.steps", "4", "--refinement.step-size", "0.1"]
    assert main([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out

    rows = read_rows(out)
    variants = [(which, refined) for which in ("last", "best") for refined in (False, True)]
    assert Counter((row["checkpoint"], row["refined"]) for row in rows) == dict.fromkeys(
        variants, 5
    )
    summary = read_summary(out)
    names = [f"{which}, {'refined' if refined else 'unrefined'}" for which, refined in variants]
    assert list(summary["evaluations"]) == names
    for name, (which, refined) in zip(names, variants, strict=True):
        own = [row for row in rows if (row["checkpoint"], row["refined"]) == (which, refined)]
        assert sorted(row["seed"] for row in own) == list(range(7, 12))
        assert all((row["q_gain"] is not None) == refined for row in own)
        evaluation = summary["evaluations"][name]
        assert evaluation["episodes"] == 5
        assert evaluation["return"]["mean"] == pytest.approx(np.mean([r["return"] for r in own]))
        scores = [row["score"]["Minari"] for row in own]
        assert evaluation["score"]["Minari"]["mean"] == pytest.approx(np.mean(scores))
        assert name in printed
    for which in ("last", "best"):
        returns = {
            refined: {
                row["seed"]: row["return"]
                for row in rows
                if (row["checkpoint"], row["refined"]) == (which, refined)
            }
            for refined in (False, True)
        }
        differences = [returns[True][seed] - returns[False][seed] for seed in range(7, 12)]
        found = summary["differences"][which]
        assert sorted(found["differences"]) == pytest.approx(sorted(differences))
        assert found["wins"] == sum(d > 0 for d in differences)
    settings = summary["settings"]
    assert settings["refinement"]["steps"] == 4
    assert settings["refinement"]["step_size"] == 0.1
    assert settings["policy"] == str(workspace.policy)
    assert settings["seed"] == 7


def test_what_it_finds_is_what_python_finds(workspace: Any, tmp_path: Path) -> None:
    command = ["evaluate", "--policy", str(workspace.policy), "--critic", str(workspace.critic)]
    command += ["--checkpoint", "last", "--episodes", "3", "--refinement.gradient", "unit"]
    assert main([*command, "--out", str(tmp_path / "scores")]) == 0
    policy = Policy.load(workspace.policy).with_refinement(
        Critic.load(workspace.critic), gradient="unit"
    )
    spec = checkpoint.read_state(workspace.policy)["dataset"]["env_spec"]
    expected = evaluate(policy, spec, episodes=3).returns
    rows = read_rows(tmp_path / "scores")
    assert [row["return"] for row in rows] == pytest.approx(expected.tolist())
    assert list(read_summary(tmp_path / "scores")["evaluations"]) == ["last, refined"]


def test_token_predictors_by_name(workspace: Any, tmp_path: Path) -> None:
    """The grid takes the critic to refine with, unless it has its own; refinement comes after."""
    command = ["evaluate", "--policy", str(workspace.policy), "--critic", str(workspace.critic)]
    command += ["--checkpoint", "last", "--compare", "--episodes", "3"]
    grid = ["--predictor.name", "grid", "--predictor.targets", "0.2", "1"]
    assert main([*command, *grid, "--out", str(tmp_path / "scores")]) == 0
    policy = Policy(
        Policy.load(workspace.policy).model, ReturnGrid(Critic.load(workspace.critic), (0.2, 1.0))
    )
    spec = checkpoint.read_state(workspace.policy)["dataset"]["env_spec"]
    expected = evaluate(policy, spec, episodes=3).returns
    rows = read_rows(tmp_path / "scores")
    unrefined = [row["return"] for row in rows if not row["refined"]]
    assert unrefined == pytest.approx(expected.tolist())
    summary = read_summary(tmp_path / "scores")
    assert summary["settings"]["predictor"]["targets"] == [0.2, 1.0]
    assert summary["settings"]["predictor"]["name"] == "grid"
    assert list(summary["evaluations"]) == ["last, unrefined", "last, refined"]
    value = ["--predictor.name", "value", "--predictor.critic", str(workspace.critic)]
    assert main(["evaluate", "--policy", str(workspace.policy), *value, "--episodes", "2"]) == 0


def test_without_a_critic_nothing_is_refined(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--policy", str(workspace.policy), "--episodes", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "last, unrefined" in out
    assert "best, unrefined" in out
    assert ", refined" not in out
    assert list(Path.cwd().iterdir()) == []  # without --out nothing is written


@pytest.mark.parametrize("which", ["last", "best"])
def test_one_checkpoint_of_a_run(
    workspace: Any, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--policy", str(workspace.policy), "--episodes", "1"]
    assert main([*command, "--checkpoint", which]) == 0
    out = capsys.readouterr().out
    assert f"{which}, unrefined" in out
    assert {"last": "best", "best": "last"}[which] + "," not in out


def test_a_checkpoint_given_by_its_folder_is_evaluated_once(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.resolve(workspace.policy, "last")
    assert main(["evaluate", "--policy", str(folder), "--episodes", "1"]) == 0
    out = capsys.readouterr().out
    assert "last, unrefined" in out
    assert "best" not in out


def test_a_run_that_was_not_evaluated_has_no_best(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace.policy, tmp_path / "run")
    (tmp_path / "run" / "best.json").unlink()
    command = ["evaluate", "--policy", str(tmp_path / "run"), "--episodes", "1"]
    assert main(command) == 0
    assert "best" not in capsys.readouterr().out
    assert main([*command, "--checkpoint", "best"]) == 1
    assert "the run was not evaluated" in capsys.readouterr().err


def test_another_environment_has_no_scores(workspace: Any, tmp_path: Path) -> None:
    command = ["evaluate", "--policy", str(workspace.policy), "--episodes", "1"]
    spec = checkpoint.read_state(workspace.policy)["dataset"]["env_spec"]
    assert main([*command, "--env", spec, "--out", str(tmp_path / "scores")]) == 0
    assert read_summary(tmp_path / "scores")["evaluations"]["last, unrefined"]["score"] == {}


def test_an_evaluation_is_not_mixed_with_an_older_one(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    command = ["evaluate", "--policy", str(workspace.policy), "--episodes", "1", "--out", str(out)]
    assert main(command) == 0
    before = read_rows(out)
    assert main(command) == 1
    assert f"{out} already holds an evaluation" in capsys.readouterr().err
    assert read_rows(out) == before


# --- errors, all of them before anything is played or written ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "{critic}"], "expected a policy, it holds a 'critic'"),
        (["--policy", "nowhere"], "nowhere: no such folder"),
        (["--policy", "{policy}", "--critic", "{policy}"], "expected a critic, it holds a"),
        (["--policy", "{policy}", "--critic", "nowhere"], "nowhere: no such folder"),
        (["--policy", "{policy}", "--critic", "nowhere", "--compare"], "nowhere: no such folder"),
        (["--policy", "{policy}", "--compare"], "--compare: needs --critic"),
        (["--policy", "{policy}", "--predictor.name", "grid"], "critic: needed"),
        (["--policy", "{policy}", "--predictor.name", "fixed"], "target_return: needed"),
        (["--policy", "{policy}", "--env", "NoSuchEnv-v0"], "NoSuchEnv"),
        (["--policy", "{policy}", "--episodes", "0"], "episodes: expected an integer"),
        (
            ["--policy", "{policy}", "--critic", "{critic}", "--refinement.steps", "-1"],
            "steps: expected 0 or more, got -1",
        ),
        (
            ["--policy", "{policy}", "--critic", "{critic}", "--refinement.step-size", "nan"],
            "step_size: expected a finite number",
        ),
    ],
)
def test_errors(
    workspace: Any, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"policy": workspace.policy, "critic": workspace.critic}
    command = ["evaluate", *(option.format(**folders) for option in options), "--out", "scores"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "unrefined" not in out
    assert "dtag evaluate: " in err
    assert said in err
    assert not Path("scores", "episodes.jsonl").exists()
    assert not Path("scores", "summary.json").exists()


def test_a_policy_whose_dataset_names_no_environment_needs_one(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace.policy, tmp_path / "run")
    file = checkpoint.resolve(tmp_path / "run") / checkpoint.STATE_FILE
    state = json.loads(file.read_text())
    state["dataset"]["env_spec"] = None
    file.write_text(json.dumps(state))
    command = ["evaluate", "--policy", str(file.parent), "--episodes", "1"]
    assert main(command) == 1
    assert "--env: needed" in capsys.readouterr().err
