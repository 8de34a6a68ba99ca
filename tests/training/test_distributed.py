"""Several processes train as one does: real processes, started as torchrun starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dtag_fast
from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.training.config import CriticConfig, PolicyConfig, TrainingConfig
from dtag_fast.training.critic import train_critic
from dtag_fast.training.distributed import Group
from dtag_fast.training.logs import read_log
from dtag_fast.training.sequence import train_policy

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

PROGRAM = """
import os, pickle, signal, sys, time
from pathlib import Path
from dtag_fast.training import native_layers
from dtag_fast.training.critic import train_critic
from dtag_fast.training.interrupt import TrainingInterrupted
from dtag_fast.training.sequence import train_policy
data, runs, doomed = pickle.loads(Path(sys.argv[1]).read_bytes())
rank = int(os.environ["RANK"])
native_layers.LEAST_WORK = native_layers.LEAST_ELEMENTS = 0  # here, where one process has torch's
if len(runs) > 1:  # one group for all of them
    import torch
    torch.distributed.init_process_group("gloo")
def evaluate(model, step):
    assert rank == 0, "only the first process evaluates"
    return {"score": float(step)}
for config, directory, resume in runs:
    train = train_policy if hasattr(config, "model") else train_critic
    if doomed == rank:
        from dtag_fast.training.sequence import PolicyLearner
        update = PolicyLearner.update
        PolicyLearner.update = lambda self, step: os._exit(9) if step == 4 else update(self, step)
    try:
        train(data, config, directory, resume=resume, evaluate=evaluate)
    except TrainingInterrupted as error:
        print(error)
        sys.exit(130)
    except (RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)
"""

SHARED: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "progress": False,
    "log_every": 1,
    "checkpoint_every": 10,
    "evaluation_every": 0,
    "batch_size": 9,  # does not divide by two
    "steps": 20,
}
MODEL = {"context_length": 4, "blocks": 1, "embedding_dim": 32, "attention_heads": 2}
CONFIGS: dict[str, TrainingConfig] = {
    "reinformer": PolicyConfig(
        model=ModelConfig(**MODEL, dropout=0.0, rtg_scale=5.0),  # type: ignore[arg-type]
        warmup_steps=0,
        learning_rate=1e-3,
        **SHARED,
    ),
    "dt": PolicyConfig(
        model=ModelConfig(**MODEL, kind="dt", block_norm="pre", dropout=0.0),  # type: ignore[arg-type]
        optimizer="adamw",
        padding="left",
        sampling="length",
        warmup_steps=0,
        learning_rate=1e-3,
        **SHARED,
    ),
    "critic": CriticConfig(hidden=(16, 16), learning_rate=1e-3, backend="torch", **SHARED),
    "critic by native layers": CriticConfig(hidden=(16, 16), learning_rate=1e-3, **SHARED),
}
Run = tuple[TrainingConfig, Path, bool]


@contextlib.contextmanager
def processes(
    data: Trajectories, runs: list[Run], folder: Path, doomed: int = -1
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that do these trainings together."""
    arguments = folder / "arguments.pickle"
    arguments.write_bytes(pickle.dumps((data, runs, doomed)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(dtag_fast.__file__).parents[1])
    started = []
    for rank in range(2):
        variables = {
            "PYTHONPATH": root,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(arguments)],
                env={**os.environ, **variables},
                cwd=folder,  # that of these tests may have a package that is not built
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Aborted(Exception):
    """A process was aborted by gloo's own threads: seen in one of some fifty runs, at its end."""


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    outputs = [process.communicate(timeout=120)[0] for process in started]
    if any(process.returncode == -signal.SIGABRT for process in started):
        raise Aborted(outputs)
    return [(process.returncode, out) for process, out in zip(started, outputs, strict=True)]


def again_if_aborted(test: Callable[..., None]) -> Callable[..., None]:
    """The test, done anew in another folder after an `Aborted`, twice at most."""

    @functools.wraps(test)
    def attempts(*args: Any, tmp_path: Path, **kwargs: Any) -> None:
        for attempt in range(3):
            folder = tmp_path / str(attempt)
            folder.mkdir()
            try:
                return test(*args, tmp_path=folder, **kwargs)
            except Aborted:
                if attempt == 2:
                    raise

    return attempts


def train_alone(
    data: Trajectories, config: TrainingConfig, directory: Path, **options: Any
) -> None:
    if isinstance(config, PolicyConfig):
        train_policy(data, config, directory, **options)
    else:
        assert isinstance(config, CriticConfig)
        train_critic(data, config, directory, **options)


def curve(directory: Path) -> list[dict[str, float]]:
    rows = [row for row in read_log(directory) if row["event"] == "train"]
    return [
        {k: v for k, v in row.items() if k not in ("event", "steps_per_second")} for row in rows
    ]


def assert_same_training(one: Path, other: Path) -> None:
    """Curves and weights agree to rounding."""
    assert len(curve(one)) == len(curve(other)) == 20
    for first, second in zip(curve(one), curve(other), strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-5)
    weights = [checkpoint.load_tensors(directory) for directory in (one, other)]
    for name, tensor in weights[0].items():
        if name.endswith("key.bias"):  # has no influence: Adam makes steps of its mere rounding
            continue
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-4)


@again_if_aborted
def test_two_processes_train_as_one_and_either_resumes_the_other(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    runs: list[Run] = []
    dt = CONFIGS["dt"]
    assert isinstance(dt, PolicyConfig)
    guided = dataclasses.replace(dt, q_weight=0.5, critic=str(tmp_path / "critic-alone"))
    configs = {**CONFIGS, "guided": guided}
    for name, config in configs.items():
        train_alone(toy_data, config, tmp_path / f"{name}-alone")
        runs.append((config, tmp_path / f"{name}-both", False))
    first_half = dataclasses.replace(CONFIGS["dt"], steps=10)
    train_alone(toy_data, first_half, tmp_path / "alone-then-both")
    runs.append((CONFIGS["dt"], tmp_path / "alone-then-both", True))
    runs.append((first_half, tmp_path / "both-then-alone", False))
    evaluated = dataclasses.replace(CONFIGS["critic"], evaluation_every=10)
    runs.append((evaluated, tmp_path / "evaluated", False))
    with processes(toy_data, runs, tmp_path) as started:
        ended = finish(started)
        assert [code for code, _ in ended] == [0, 0], ended
    for name in configs:
        assert_same_training(tmp_path / f"{name}-alone", tmp_path / f"{name}-both")
    assert_same_training(tmp_path / "dt-alone", tmp_path / "alone-then-both")
    train_alone(toy_data, CONFIGS["dt"], tmp_path / "both-then-alone", resume=True)
    assert_same_training(tmp_path / "dt-alone", tmp_path / "both-then-alone")
    assert checkpoint.read_state(tmp_path / "evaluated")["best"] == {"step": 20, "score": 20.0}


@again_if_aborted
def test_dropout_differs_between_processes_and_resumes_exactly(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = CONFIGS["reinformer"]
    assert isinstance(config, PolicyConfig)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.3))
    runs: list[Run] = [
        (config, tmp_path / "whole", False),
        (dataclasses.replace(config, steps=7), tmp_path / "parts", False),
        (config, tmp_path / "parts", True),
    ]
    with processes(toy_data, runs, tmp_path) as started:
        ended = finish(started)
        assert [code for code, _ in ended] == [0, 0], ended
    saved = []
    for name in ("whole", "parts"):
        training = checkpoint.load_tensors(tmp_path / name, file=checkpoint.TRAINING_FILE)
        saved.append({**checkpoint.load_tensors(tmp_path / name), **training})
    assert saved[0].keys() == saved[1].keys()
    assert [name for name, x in saved[0].items() if not torch.equal(x, saved[1][name])] == []
    generators = saved[0]["generator.cpu"], saved[0]["generator.cpu.1"]
    assert not torch.equal(*generators)


@again_if_aborted
def test_a_lost_process_ends_the_others_with_a_message(
    toy_data: Trajectories, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIGS["reinformer"], checkpoint_every=2)
    with processes(toy_data, [(config, tmp_path / "run", False)], tmp_path, doomed=1) as started:
        (code, output), (lost, _) = finish(started)
    assert lost == 9
    assert code == 1, output
    assert "ProcessLost: process 0 of 2 cannot reach the others" in output
    assert "--resume" in output
    assert checkpoint.read_state(tmp_path / "run")["step"] == 2


@again_if_aborted
def test_sigint_saves_once_for_all(toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["critic"], steps=100_000, checkpoint_every=100_000)
    with processes(toy_data, [(config, tmp_path / "run", False)], tmp_path) as started:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            log = tmp_path / "run" / "log.jsonl"
            if log.exists() and any(row["step"] >= 3 for row in read_log(tmp_path / "run")):
                break
            time.sleep(0.05)
        started[1].send_signal(signal.SIGINT)  # a terminal tells all; one is enough
        started[1].send_signal(signal.SIGINT)
        results = finish(started)
    assert [code for code, _ in results] == [130, 130]
    step = checkpoint.read_state(tmp_path / "run")["step"]
    assert 3 <= step < 100_000
    assert all(f"stopped at step {step}; the checkpoint is in" in output for _, output in results)


@again_if_aborted
def test_errors_of_the_first_reach_all(toy_data: Trajectories, tmp_path: Path) -> None:
    train_alone(toy_data, dataclasses.replace(CONFIGS["dt"], steps=2), tmp_path / "run")
    with processes(toy_data, [(CONFIGS["dt"], tmp_path / "run", False)], tmp_path) as started:
        results = finish(started)
    assert [code for code, _ in results] == [1, 1], results
    assert all("already holds a run; resume it" in output for _, output in results)
    assert results[1][1].startswith("ValueError: process 0: ")


def test_a_batch_is_divided_without_rest() -> None:
    for world in (1, 2, 3, 5):
        parts = [Group(rank, world).part(7) for rank in range(world)]
        assert [i for part in parts for i in range(7)[part]] == list(range(7))
        assert all(range(7)[part] for part in parts)


def test_what_does_not_train_in_several_processes(
    toy_data: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)  # by the caller
    config = CONFIGS["critic"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 1}, "batch_size: expected at least a row for each of 2 processes, got 1"),
        ({"method": "cql"}, "CqlLearner trains in one process, not in 2"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            train_alone(toy_data, dataclasses.replace(config, **changes), tmp_path / "run")
