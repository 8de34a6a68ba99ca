"""The demo on settings so small that its stages take a second each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation.result import Evaluation
from dtag_fast.studies.demo import STAGES, DemoConfig, run_demo
from dtag_fast.training.logs import read_log

pytest.importorskip("mujoco", reason="the extra envs is not installed")
pytest.importorskip("gymnasium_robotics", reason="the extra envs is not installed")

EPISODES = 4


def tiny_config() -> DemoConfig:
    config = DemoConfig(dataset_steps=4000, episodes=EPISODES)
    model = replace(config.policy.model, blocks=1, embedding_dim=32, attention_heads=2)
    shared: dict[str, Any] = {"device": "cpu", "progress": False, "log_every": 10}
    return replace(
        config,
        policy=replace(config.policy, model=model, steps=30, batch_size=16, **shared),
        critic=replace(config.critic, hidden=(16, 16), steps=60, batch_size=32, **shared),
    )


def record(folder: Path) -> dict[str, bytes]:
    return {run: (folder / "runs" / run / "log.jsonl").read_bytes() for run in ("policy", "critic")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))


@pytest.fixture(scope="module")
def first_run(folder: Path) -> tuple[dict[str, Evaluation], dict[str, bytes]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        return run_demo(folder / "report", tiny_config()), record(folder / "report")


def test_it_makes_trains_and_plays_what_it_was_asked_to(
    folder: Path, first_run: tuple[dict[str, Evaluation], dict[str, bytes]]
) -> None:
    results, _ = first_run
    config = tiny_config()
    assert Trajectories.from_minari(config.dataset).steps == config.dataset_steps
    runs = folder / "report" / "runs"
    assert read_log(runs / "policy")[-1]["step"] == 30
    assert read_log(runs / "critic")[-1]["step"] == 60
    unrefined, refined = results.values()
    for result in (unrefined, refined):
        assert [episode.seed for episode in result.episodes] == list(range(EPISODES))
        assert result.references  # so there are normalised scores
    assert unrefined.q_gain is None
    assert refined.q_gain is not None
    assert refined.q_gain >= 0


def test_the_report_holds_everything(
    folder: Path, first_run: tuple[dict[str, Evaluation], dict[str, bytes]]
) -> None:
    results, _ = first_run
    report = folder / "report"
    page = (report / "report.html").read_text()
    for name in results:
        assert name in page
    assert "data:image/" in page or "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # nothing to load
    assert 'src="https://' not in page
    for plot in ("scores", "landscape", "training"):
        (image,) = report.rglob(f"*{plot}*.png")
        assert image.read_bytes().startswith(b"\x89PNG")
    document = json.loads((report / "results.json").read_text())
    found = document.get("results", document)
    for name, result in results.items():
        assert found["evaluations"][name]["return"]["mean"] == pytest.approx(result.mean)
    assert found["policy"]["steps"] == 30
    assert found["refinement"]["steps"] == 10
    assert set(found["latency_ms"]) == {"dtag_fast.refine", "dtag_fast.reference.refine"}


def test_a_second_run_does_nothing_again_and_finds_the_same(
    folder: Path,
    first_run: tuple[dict[str, Evaluation], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, logs = first_run
    again = run_demo(folder / "report", tiny_config())
    assert record(folder / "report") == logs
    assert list(again) == list(results)
    for name, result in results.items():
        assert again[name].returns.tolist() == result.returns.tolist()
    out = capsys.readouterr().out
    assert "reused" in out
    for number, stage in enumerate(STAGES, 1):
        assert f"{number}/{len(STAGES)} {stage}" in out
    assert "to go" in out
    for name in results:
        assert name in out


def test_another_setting_is_not_passed_off_as_the_trained_one(
    folder: Path, first_run: tuple[dict[str, Evaluation], dict[str, bytes]]
) -> None:
    config = tiny_config()
    other = replace(config, policy=replace(config.policy, learning_rate=1e-3))
    with pytest.raises(ValueError, match="learning_rate"):
        run_demo(folder / "report", other)
    with pytest.raises(FileExistsError, match="other parameters"):
        run_demo(folder / "report", replace(config, dataset_steps=5000))
    assert record(folder / "report") == first_run[1]
