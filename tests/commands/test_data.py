"""`dtag data ...`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.cli import main
from dtag_fast.data.catalog import describe
from dtag_fast.data.trajectories import Trajectories


def words(text: str) -> str:
    """Without table rules and line breaks."""
    return " ".join(text.translate(str.maketrans("│┃─━", "    ")).split())


def test_make_keeps_what_is_there(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "toy", "--steps", "100"]) == 0
    out = capsys.readouterr().out
    assert "reused" in out
    assert workspace.dataset in out


def test_make_refuses_other_settings_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make = ["data", "make", "toy", "--id", "my/bandit-v3", "--seed", "5", "--steps"]
    assert main([*make, "6"]) == 0
    assert main([*make, "7"]) == 1
    assert "my/bandit-v3 exists with other parameters" in capsys.readouterr().err
    assert Trajectories.from_minari("my/bandit-v3").steps == 6
    assert main([*make, "7", "--force"]) == 0
    assert Trajectories.from_minari("my/bandit-v3").steps == 7


def test_list(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    out = words(capsys.readouterr().out)
    assert f"{workspace.dataset} QuadraticBandit-v0 100 100" in out


def test_list_of_nothing_says_how_to_get_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    assert main(["data", "list"]) == 0
    assert "dtag data make toy" in capsys.readouterr().out


def test_list_names_what_is_broken(
    workspace: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    datasets = tmp_path / "a [copy]"  # a name that rich would read as markup
    shutil.copytree(workspace.datasets, datasets)
    (datasets / workspace.dataset / "data" / "main_data.hdf5").unlink()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets))
    assert main(["data", "list"]) == 1
    out = words(capsys.readouterr().out)
    assert f"broken: {workspace.dataset}:" in out
    assert "main_data.hdf5 is missing" in out
    assert "[copy]" in out


def test_info_as_json_is_the_description(
    workspace: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "info", workspace.dataset, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == describe(Trajectories.from_minari(workspace.dataset))
    assert figures["episodes"] == 100
    assert figures["scores"].keys() == {"minari"}


def test_info_as_tables(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # A folder will do as well as an id.
    assert main(["data", "info", str(workspace.datasets / workspace.dataset)]) == 0
    out = words(capsys.readouterr().out)
    figures = describe(Trajectories.from_minari(workspace.dataset))
    assert "episodes 100" in out
    assert f"return {figures['returns']['mean']:.2f} {figures['returns']['std']:.2f}" in out
    assert f"action 0 {figures['actions']['min'][0]:.3f}" in out
    assert f"(minari references) {figures['scores']['minari']['mean']:.2f}" in out
    assert "generator_version" in out


def test_info_of_a_missing_dataset(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "dtag/toy/bandit-v7"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dtag data info: FileNotFoundError: no Minari dataset")
    assert "'dtag/toy/bandit-v7'" in err
    assert workspace.dataset in err  # the similar one that is there


def test_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    once = "dtag/toy/bandit-v0"
    assert main(["data", "make", "toy", "--steps", "20"]) == 0
    command = ["data", "mix", once, once, "--id", "dtag/mine/twice-v0"]
    assert main(command) == 0
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "dtag/mine/twice-v0: written" in out
    assert "dtag/mine/twice-v0: already there" in out
    assert Trajectories.from_minari("dtag/mine/twice-v0").steps == 40
    assert main([*command[:2], once, "--id", "dtag/mine/once-v0"]) == 1
    assert "expected at least two datasets, got 1" in capsys.readouterr().err


def test_import_of_a_missing_file(workspace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import-d4rl", "nowhere.hdf5"]) == 1
    assert "nowhere.hdf5" in capsys.readouterr().err


def test_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py
    import numpy as np

    rng = np.random.default_rng(0)
    observations = rng.normal(size=(21, 11)).astype(np.float32)
    with h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as file:
        file["observations"], file["next_observations"] = observations[:-1], observations[1:]
        file["actions"] = rng.uniform(-1, 1, size=(20, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=20).astype(np.float32)
        file["terminals"] = np.arange(20) == 9
        file["timeouts"] = np.arange(20) == 19
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    command = ["data", "import-d4rl", str(tmp_path / "hopper_medium-v2.hdf5")]
    assert main([*command, "--id", "dtag/mine/hopper-v0"]) == 0
    assert "dtag/mine/hopper-v0" in capsys.readouterr().out
    assert Trajectories.from_minari("dtag/mine/hopper-v0").lengths().tolist() == [10, 10]


def test_collect_hands_its_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    class Made:
        message = "made it"

    def collect(env: str, tier: str, **options: Any) -> Made:
        asked.update(env=env, tier=tier, **options)
        return Made()

    monkeypatch.setattr("dtag_fast.data.collect.collect", collect)
    command = ["data", "collect", "--env", "Hopper-v5", "--tier", "expert", "--steps", "12"]
    assert main([*command, "--training-steps", "34", "--seed", "2", "--force"]) == 0
    assert capsys.readouterr().out == "made it\n"
    assert asked == {
        "env": "Hopper-v5",
        "tier": "expert",
        "steps": 12,
        "seed": 2,
        "training_steps": 34,
        "id": None,
        "force": True,
    }
