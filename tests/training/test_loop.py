"""Exact resume, kills, divergence, evaluation, checkpoints kept."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dtag_fast
from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import CriticConfig, PolicyConfig, TrainingConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.interrupt import TrainingInterrupted
from dtag_fast.training.logs import read_log
from dtag_fast.training.loop import TrainingDiverged, TrainingResult, resolve_device
from dtag_fast.training.sequence import load_policy_model, train_policy

SHARED: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "progress": False,
    "log_every": 5,
    "checkpoint_every": 10,
}
MODEL: dict[str, Any] = {
    "context_length": 3,
    "blocks": 1,
    "embedding_dim": 16,
    "attention_heads": 2,
}
CONFIGS: dict[str, Any] = {
    "reinformer": PolicyConfig(
        model=ModelConfig(**MODEL, dropout=0.2), steps=60, batch_size=8, **SHARED
    ),
    "dt": PolicyConfig(
        model=ModelConfig(**MODEL, kind="dt", block_norm="pre", dropout=0.2),
        optimizer="adamw",
        sampling="length",
        padding="left",
        steps=60,
        batch_size=8,
        **SHARED,
    ),
    "critic": CriticConfig(hidden=(16, 16), steps=60, batch_size=8, **SHARED),
}
KINDS = pytest.mark.parametrize("kind", list(CONFIGS))

# The dataset's arrays come as a file: the parent's own, to the last bit.
PROGRAM = """
import pickle, sys, time
from pathlib import Path
from dtag_fast.training.interrupt import TrainingInterrupted
from dtag_fast.training.critic import train_critic
from dtag_fast.training.sequence import train_policy
data, config, directory = pickle.loads(Path(sys.argv[1]).read_bytes())
train = train_policy if hasattr(config, "model") else train_critic
def evaluate(model, step):
    time.sleep(0.05)  # so that there is time to kill
    return {"score": 0.0}
try:
    train(data, config, directory, evaluate=evaluate)
except TrainingInterrupted as error:
    print(error)
    sys.exit(130)
"""


def train(
    data: Trajectories, config: TrainingConfig, directory: Path, **options: Any
) -> TrainingResult:
    if isinstance(config, PolicyConfig):
        return train_policy(data, config, directory, **options)
    assert isinstance(config, CriticConfig)
    return train_critic(data, config, directory, **options)


def saved_tensors(directory: Path) -> dict[str, Tensor]:
    training = checkpoint.load_tensors(directory, file=checkpoint.TRAINING_FILE)
    return {**checkpoint.load_tensors(directory), **training}


def assert_same_end(one: Path, other: Path) -> None:
    first, second = saved_tensors(one), saved_tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    states = [checkpoint.read_state(directory) for directory in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    assert states[0]["sampler"] == states[1]["sampler"]


def run_until(
    data: Trajectories, config: TrainingConfig, directory: Path, number: int, step: int
) -> tuple[int, str]:
    """Train in a process of its own; send it a signal when its log has passed `step`."""
    import pickle

    arguments = directory.with_suffix(".pickle")
    config = dataclasses.replace(config, evaluation_every=1, log_every=1)
    arguments.write_bytes(pickle.dumps((data, config, directory)))
    root = str(Path(dtag_fast.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(arguments)],
        env={**os.environ, "PYTHONPATH": root},
        cwd=directory.parent,  # the folder of these tests may have a package that is not built
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            log = directory / "log.jsonl"
            if log.exists() and any(row["step"] >= step for row in read_log(directory)):
                child.send_signal(number)
                break
            time.sleep(0.005)
        output, _ = child.communicate(timeout=30)
    return child.returncode, output


@KINDS
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    kind: str, toy_data: Trajectories, tmp_path: Path
) -> None:
    config = CONFIGS[kind]
    train(toy_data, config, tmp_path / "whole")
    train(toy_data, dataclasses.replace(config, steps=37), tmp_path / "parts")
    torch.manual_seed(123)  # what the caller does with torch's generator is no matter
    result = train(toy_data, config, tmp_path / "parts", resume=True)
    assert result.step == 60
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("kind", ["reinformer", "critic"])
def test_sigkill_and_resume(kind: str, toy_data: Trajectories, tmp_path: Path) -> None:
    config = CONFIGS[kind]
    code, output = run_until(toy_data, config, tmp_path / "run", signal.SIGKILL, 23)
    assert code == -signal.SIGKILL, output
    state = checkpoint.read_state(tmp_path / "run")
    assert 20 <= state["step"] < 60
    train(toy_data, config, tmp_path / "run", resume=True)
    train(toy_data, config, tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    steps = [row["step"] for row in read_log(tmp_path / "run") if row["event"] == "train"]
    assert steps == sorted(set(steps))


def test_sigint_saves_and_resumes(toy_data: Trajectories, tmp_path: Path) -> None:
    config = CONFIGS["dt"]
    code, output = run_until(toy_data, config, tmp_path / "run", signal.SIGINT, 13)
    assert code == 130, output
    state = checkpoint.read_state(tmp_path / "run")
    assert 13 <= state["step"] < 60
    assert f"stopped at step {state['step']}; the checkpoint is in {tmp_path / 'run'}" in output
    assert "resume=True" in output
    assert read_log(tmp_path / "run")[-1]["event"] == "interrupted"
    train(toy_data, config, tmp_path / "run", resume=True)
    train(toy_data, config, tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def test_sigint_during_an_evaluation_stops_it(toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["critic"], evaluation_every=7)
    calls = []

    def evaluate(model: object, step: int) -> dict[str, float]:
        calls.append(step)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the evaluation went on")
        return {"score": float(step)}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="step 7"):
        train(toy_data, config, tmp_path, evaluate=evaluate)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.read_state(tmp_path)["step"] == 7
    result = train(toy_data, config, tmp_path, resume=True, evaluate=evaluate)
    assert calls == [7, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert result.best == {"step": 60, "score": 60.0}


def test_evaluation_decides_the_best_and_changes_no_weight(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIGS["reinformer"], evaluation_every=15, keep_checkpoints=1)
    scores = {15: 1.0, 30: 5.0, 45: math.nan, 60: 4.0}
    seen = []

    def evaluate(model: torch.nn.Module, step: int) -> dict[str, float]:
        assert not model.training
        torch.rand(100)
        seen.append(step)
        return {"score": scores[step], "length": 7}

    train(toy_data, CONFIGS["reinformer"], tmp_path / "without")
    result = train(toy_data, config, tmp_path / "with", evaluate=evaluate)
    assert seen == [15, 30, 45, 60]
    assert result.best == {"step": 30, "score": 5.0, "length": 7.0}
    assert result.last_evaluation == {"step": 60, "score": 4.0, "length": 7.0}
    assert not result.model.training
    assert_same_end(tmp_path / "without", tmp_path / "with")
    kept = sorted(path.name for path in (tmp_path / "with" / "checkpoints").iterdir())
    assert kept == ["step-00000030", "step-00000060"]
    assert load_policy_model(tmp_path / "with", "best")[1]["step"] == 30
    assert load_policy_model(tmp_path / "with")[1]["step"] == 60
    rows = [row for row in read_log(tmp_path / "with") if row["event"] == "evaluation"]
    assert [row["score"] for row in rows] == [1.0, 5.0, None, 4.0]


def test_evaluate_must_return_a_score(toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["critic"], evaluation_every=5)
    with pytest.raises(ValueError, match=r"evaluate: expected a mapping with 'score'"):
        train(toy_data, config, tmp_path, evaluate=lambda model, step: {"return": 1.0})


def poisoned(data: Trajectories) -> Trajectories:
    """Rewards so large that the critic's loss overflows as soon as one is drawn."""
    rewards = data.rewards.copy()
    rewards[7] = 3e38
    return dataclasses.replace(data, rewards=rewards)


def test_a_loss_that_is_not_finite_stops_at_its_step(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    data = poisoned(toy_data)
    config = dataclasses.replace(CONFIGS["critic"], reward_scaling="none", checkpoint_every=3)
    generator = np.random.Generator(np.random.PCG64(config.seed))
    draws = [generator.integers(data.steps, size=8) for _ in range(60)]
    first = next(step for step, rows in enumerate(draws, start=1) if 7 in rows)
    assert first > 3
    with pytest.raises(
        TrainingDiverged, match=rf"q_loss is inf at step {first}; the last"
    ) as error:
        train(data, config, tmp_path)
    good = checkpoint.resolve(tmp_path)
    assert good.name in str(error.value)
    assert checkpoint.read_state(good)["step"] == (first - 1) // 3 * 3
    assert all(tensor.isfinite().all() for tensor in checkpoint.load_tensors(good).values())
    last = read_log(tmp_path)[-1]
    assert (last["event"], last["step"]) == ("diverged", first)


def test_weights_that_are_not_finite_are_never_saved(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    # with "joint" the first losses are those of the initial weights; Adam's step overflows
    config = dataclasses.replace(
        CONFIGS["critic"], learning_rate=1e39, steps=1, update_order="joint"
    )
    with pytest.raises(TrainingDiverged, match=r"not finite after step 1; there is no checkpoint"):
        train(toy_data, config, tmp_path)
    assert checkpoint.pointed(tmp_path, "last") is None


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("dt", {"batch_size": 9}, "batch_size: .* has 8, to resume it cannot become 9"),
        ("dt", {"learning_rate": 1.0}, "learning_rate"),
        ("dt", {"seed": 5}, "seed"),
        ("dt", {"steps": 5}, "steps: .* has done 10, expected at least that, got 5"),
        ("critic", {"hidden": (16, 8)}, r"hidden: .* has \[16, 16\]"),
        ("critic", {"reward_scaling": "none"}, "reward_scaling"),
    ],
)
def test_resuming_with_other_settings_names_the_field(
    toy_data: Trajectories, tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(CONFIGS[kind], steps=10)
    train(toy_data, config, tmp_path)
    with pytest.raises(ValueError, match=message):
        train(toy_data, dataclasses.replace(config, **change), tmp_path, resume=True)


def test_resuming_names_a_field_of_the_model_the_data_and_the_kind(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = CONFIGS["dt"]
    assert isinstance(config, PolicyConfig)
    config = dataclasses.replace(config, steps=2)
    train(toy_data, config, tmp_path)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.3))
    with pytest.raises(ValueError, match=r"^model\.dropout: .* has 0\.2"):
        train(toy_data, other, tmp_path, resume=True)
    rewards = toy_data.rewards.copy()
    rewards[0] += 1
    data = dataclasses.replace(toy_data, rewards=rewards)
    with pytest.raises(ValueError, match=r"^data: .*other data \(arrays, fingerprint"):
        train(data, config, tmp_path, resume=True)
    with pytest.raises(ValueError, match="expected a critic, it holds a 'policy'"):
        train(toy_data, CONFIGS["critic"], tmp_path, resume=True)


def test_cadence_may_change_on_resuming(toy_data: Trajectories, tmp_path: Path) -> None:
    config = CONFIGS["reinformer"]
    train(toy_data, dataclasses.replace(config, steps=20), tmp_path / "parts")
    cadence: dict[str, Any] = {
        "log_every": 3,
        "checkpoint_every": 7,
        "keep_checkpoints": 5,
        "evaluation_every": 4,
    }
    changed = dataclasses.replace(config, **cadence)
    train(
        toy_data,
        changed,
        tmp_path / "parts",
        resume=True,
        evaluate=lambda model, step: {"score": 0},
    )
    train(toy_data, config, tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_folder_with_a_run_is_not_overwritten(toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["critic"], steps=2)
    train(toy_data, config, tmp_path)
    with pytest.raises(ValueError, match="already holds a run; resume it"):
        train(toy_data, config, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    result = train(toy_data, config, tmp_path, resume=True)  # nothing left to do
    assert result.step == 2
    assert result.losses.keys() == {"q_loss", "value_loss", "q_mean", "value_mean"}
    assert (tmp_path / "log.jsonl").read_text() == before


def test_resuming_before_the_first_checkpoint_starts_afresh(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = CONFIGS["critic"]

    def broken(model: object, step: int) -> dict[str, float]:
        raise RuntimeError("power cut")

    early = dataclasses.replace(config, evaluation_every=3)
    with pytest.raises(RuntimeError, match="power cut"):
        train(toy_data, early, tmp_path / "run", evaluate=broken)
    assert checkpoint.pointed(tmp_path / "run", "last") is None
    other = dataclasses.replace(config, batch_size=3)
    with pytest.raises(ValueError, match="batch_size"):
        train(toy_data, other, tmp_path / "run", resume=True)
    train(toy_data, config, tmp_path / "run", resume=True)
    train(toy_data, config, tmp_path / "whole", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def test_the_callers_torch_settings_stay(toy_data: Trajectories, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(toy_data, dataclasses.replace(CONFIGS["dt"], steps=2, threads=2), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_log_rows(toy_data: Trajectories, tmp_path: Path) -> None:
    train(toy_data, dataclasses.replace(CONFIGS["dt"], steps=12), tmp_path)
    rows = read_log(tmp_path)
    assert [(row["event"], row["step"]) for row in rows] == [
        ("start", 0),
        ("train", 5),
        ("train", 10),
        ("checkpoint", 10),
        ("train", 12),
        ("checkpoint", 12),
    ]
    assert rows[1]["steps_per_second"] > 0
    assert 0 < rows[1]["loss"] < 2


def test_bad_devices_are_named() -> None:
    with pytest.raises(ValueError, match=r"device: expected auto, cpu or cuda\[:n\], got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match=r"device: expected auto, cpu or cuda"):
        resolve_device("meta")
    if torch.cuda.device_count() == 0:
        with pytest.raises(ValueError, match="device: 'cuda', but torch sees 0 GPUs"):
            resolve_device("cuda")
        assert resolve_device("auto") == torch.device("cpu")
