"""Several seeds at once end as one after another, to the last bit."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.interrupt import TrainingInterrupted
from dtag_fast.training.logs import read_log
from dtag_fast.training.together import train_critics

SEEDS = (3, 0, 5)
TIMES = ("seconds", "steps_per_second")
CONFIG = CriticConfig(
    hidden=(16, 16),
    steps=60,
    batch_size=8,
    device="cpu",
    threads=2,
    initialization="default",  # an orthogonal one depends on the number of threads
    progress=False,
    log_every=7,
    checkpoint_every=25,
)


def assert_same(one: Path, other: Path) -> None:
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        first, second = (checkpoint.load_tensors(folder, file=file) for folder in (one, other))
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert checkpoint.read_state(one)["sampler"] == checkpoint.read_state(other)["sampler"]
    curves = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_log(folder)]
        for folder in (one, other)
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backend": "torch", "threads": 1},
        {"method": "td3-bc", "threads": 1},
        {"method": "cql"},
        {"method": "ensemble", "heads": 3, "threads": 1},
        {"evaluation_every": 20},
    ],
    ids=["native", "torch", "td3-bc", "cql", "ensemble", "evaluated"],
)
def test_as_one_after_another(
    toy_data: Trajectories, any_size: None, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **changes)

    def evaluate(model: object, step: int) -> dict[str, float]:
        torch.rand(3)
        return {"score": float(step % 40)}

    results = train_critics(toy_data, config, SEEDS, tmp_path / "together", evaluate=evaluate)
    for seed, result in zip(SEEDS, results, strict=True):
        own = dataclasses.replace(config, seed=seed)
        alone = train_critic(toy_data, own, tmp_path / f"alone-{seed}", evaluate=evaluate)
        assert result.directory == tmp_path / "together" / f"seed-{seed}"
        assert (result.step, result.losses, result.best) == (60, alone.losses, alone.best)
        assert_same(tmp_path / f"alone-{seed}", result.directory)


def test_resume(toy_data: Trajectories, tmp_path: Path) -> None:
    train_critics(toy_data, CONFIG, SEEDS, tmp_path / "whole")
    half = dataclasses.replace(CONFIG, steps=31)
    train_critics(toy_data, half, SEEDS[:2], tmp_path / "parts")
    train_critics(toy_data, CONFIG, SEEDS, tmp_path / "parts", resume=True)
    for seed in SEEDS:
        for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
            whole, parts = (
                checkpoint.load_tensors(tmp_path / name / f"seed-{seed}", file=file)
                for name in ("whole", "parts")
            )
            assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_an_interruption_saves_each(toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=10_000, evaluation_every=30)

    def evaluate(model: object, step: int) -> dict[str, float]:
        if step == 30:
            signal.raise_signal(signal.SIGINT)
        return {"score": 0.0}

    with pytest.raises(TrainingInterrupted, match="stopped at step"):
        train_critics(toy_data, config, SEEDS, tmp_path, evaluate=evaluate)
    assert checkpoint.read_state(tmp_path / "seed-3")["step"] == 30
    train_critics(
        toy_data, dataclasses.replace(config, steps=40), SEEDS, tmp_path, resume=True,
        evaluate=lambda model, step: {"score": 0.0},
    )  # fmt: skip
    for seed in SEEDS:
        assert checkpoint.read_state(tmp_path / f"seed-{seed}")["step"] == 40


@pytest.mark.parametrize("seeds", [(), (1, 2, 1)])
def test_bad_seeds(toy_data: Trajectories, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"seeds: expected different integers, at least one, got"):
        train_critics(toy_data, CONFIG, seeds, tmp_path)
