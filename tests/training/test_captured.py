"""Captured updates: recorded on the CPU, beside eager ones; and on a GPU, where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.data.windows import WindowSampler
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.training import captured as captured_module
from dtag_fast.training import native_layers, sequence
from dtag_fast.training.captured import captures, prepare, unchanged
from dtag_fast.training.config import Backend, CriticConfig, PolicyConfig
from dtag_fast.training.critic import (
    TransitionLearner,
    learner_class,
    load_critic,
    train_critic,
)
from dtag_fast.training.device_windows import DeviceWindows
from dtag_fast.training.iql import CriticLearner
from dtag_fast.training.lamb import Lamb
from dtag_fast.training.loop import TrainingDiverged
from dtag_fast.training.method_config import CqlConfig, EnsembleConfig, Td3BcConfig
from dtag_fast.training.sequence import PolicyLearner, load_policy_model, train_policy
from dtag_fast.training.td3_bc import Td3BcLearner
from tests.training import recording
from tests.training.conftest import critic_config

CPU = torch.device("cpu")
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def policy_config(kind: Any, model: dict[str, Any] | None = None, **changes: Any) -> PolicyConfig:
    """Small, with all that changes from step to step: warm-up, clipping, decay and dropout."""
    shape = {
        "context_length": 1 if kind == "mlp" else 4,
        "blocks": 2,
        "embedding_dim": 16,
        "attention_heads": 2,
        "dropout": 0.1,
        "block_norm": "pre" if kind == "dt" else "post",
        "max_timestep": 20,
        "rtg_scale": 5.0,
        "hidden": (16, 16),
        **(model or {}),
    }
    config = PolicyConfig(
        model=ModelConfig(kind=kind, **shape),
        steps=30,
        batch_size=16,
        learning_rate=1e-2,
        optimizer="lamb" if kind == "reinformer" else "adamw",
        weight_decay=1e-2,
        warmup_steps=20,
        gradient_clip=0.1,
        temperature_learning_rate=1e-2,
        sampling="length" if kind == "dt" else "trajectory",
        padding="left" if kind == "dt" else "right",
        target_return=1.0,
        device="cpu",
        backend="torch",
        progress=False,
        log_every=5,
        checkpoint_every=1000,
    )
    return dataclasses.replace(config, **changes)


POLICIES = {
    "reinformer": policy_config("reinformer"),
    "reinformer adamw": policy_config("reinformer", optimizer="adamw", gradient_clip=0.0),
    "reinformer no decay": policy_config("reinformer", weight_decay=0.0, warmup_steps=0),
    "reinformer bf16": policy_config("reinformer", autocast=True),
    "dt": policy_config("dt"),
    "dt streaming": policy_config("dt", {"attention": "sliding", "context_length": 3}),
    "bc": policy_config("mlp", action_loss="likelihood"),
}


ACTOR: dict[str, Any] = {"actor_hidden": (16,), "actor_learning_rate": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "iql": {},
    "iql joint": {"update_order": "joint"},
    "td3-bc": {"method": "td3-bc", "td3_bc": Td3BcConfig(**ACTOR)},
    "cql": {"method": "cql", "cql": CqlConfig(samples=3, **ACTOR)},
    "cql lagrange": {"method": "cql", "cql": CqlConfig(samples=3, lagrange=True, **ACTOR)},
    "ensemble": {"method": "ensemble", "heads": 3},
    "edac": {"method": "ensemble", "heads": 3, "ensemble": EnsembleConfig(diversity=1.0)},
}
CRITICS = {
    name: critic_config(backend="torch", learning_rate=1e-2, batch_size=16, **options)
    for name, options in METHODS.items()
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[recording.Recording]:
    """Graphs are recorded on the CPU; which ones."""
    found: list[recording.Recording] = []
    monkeypatch.setattr(captured_module, "capture", recording.capturing(found))
    # On a GPU no one looks at the timesteps.
    monkeypatch.setattr(SequenceModel, "_check_timesteps", lambda self, timesteps: None)
    return found


def curve(learner: PolicyLearner | TransitionLearner, updates: int, first: int = 1) -> Tensor:
    """The terms of updates from number `first` on, [updates, terms]."""
    torch.manual_seed(1)
    return torch.stack([learner.update(first + i) for i in range(updates)]).cpu()


def test_a_warm_up_changes_nothing() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weights], 0.1)
    prepare(optimizer)
    assert optimizer.param_groups[0]["capturable"]
    state = [weights, *optimizer.state[weights].values()]
    before = [tensor.detach().clone() for tensor in state]
    generator = torch.get_rng_state()
    with unchanged(state, CPU), torch.no_grad():
        for tensor in state:
            tensor.add_(torch.rand(()))
        assert not torch.equal(state[0], before[0])
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(RuntimeError, match="in between"), unchanged(state, CPU):  # noqa: PT012
        weights.data.zero_()
        raise RuntimeError("in between")
    assert torch.equal(weights, torch.ones(3))


def test_what_is_captured(toy_data: Trajectories) -> None:
    cuda = torch.device("cuda", 0)
    for config in (PolicyConfig(), CriticConfig()):
        assert captures(config, cuda)
        assert not captures(config, CPU)
        assert not captures(dataclasses.replace(config, backend="torch"), cuda)
        assert not captures(dataclasses.replace(config, compile=True), cuda)
    assert PolicyLearner(toy_data, POLICIES["dt"], CPU).captured is None
    config = CriticConfig(hidden=(8,), batch_size=4, device="cpu", backend="torch")
    assert CriticLearner(toy_data, config, CPU).captured is None


def test_a_policy_that_cannot_be_native_is_refused(toy_data: Trajectories) -> None:
    config = policy_config("dt", backend="native", compile=True)
    with pytest.raises(ValueError, match="backend: 'native' cannot train this policy: it has no c"):
        PolicyLearner(toy_data, config, CPU)
    with pytest.raises(ValueError, match="on the CPU, not on cuda"):
        PolicyLearner(toy_data, policy_config("dt", backend="native"), torch.device("cuda", 0))
    if native_layers.available():
        assert PolicyLearner(toy_data, policy_config("dt", backend="native"), CPU).native
        assert PolicyLearner(toy_data, policy_config("dt", backend="auto"), CPU).native
    assert not PolicyLearner(toy_data, policy_config("dt", backend="torch"), CPU).native


@pytest.mark.parametrize("name", POLICIES)
def test_a_recorded_policy_trains_as_an_eager_one(
    name: str, toy_data: Trajectories, recorded: list[recording.Recording]
) -> None:
    curves, models = [], []
    for captured in (False, True):
        torch.manual_seed(0)
        learner = PolicyLearner(toy_data, POLICIES[name], CPU)
        if captured:
            learner.capture()
        curves.append(curve(learner, 40))
        # The loss does not depend on the keys' biases: they move by rounding alone.
        weights = learner.model.state_dict().items()
        models.append({name: x for name, x in weights if not name.endswith("key.bias")})
    assert len(recorded) == 1
    tolerance = 1e-2 if "bf16" in name else 2e-5
    torch.testing.assert_close(curves[1], curves[0], rtol=tolerance, atol=tolerance)
    if "bf16" not in name:
        torch.testing.assert_close(models[1], models[0], rtol=1e-3, atol=1e-4)
    assert not torch.equal(curves[0][0], curves[0][1]), "something is learned"


@pytest.mark.parametrize("weighted", [False, True], ids=["climbs Q", "weighs by advantage"])
def test_a_recorded_policy_with_a_critic(
    weighted: bool,
    toy_data: Trajectories,
    tmp_path: Path,
    recorded: list[recording.Recording],
) -> None:
    train_critic(toy_data, critic_config(steps=20), tmp_path)
    options: dict[str, Any] = {"advantage_weight": 3.0} if weighted else {"q_weight": 0.5}
    config = policy_config("mlp" if weighted else "dt", critic=str(tmp_path), **options)
    curves = []
    for captured in (False, True):
        torch.manual_seed(0)
        learner = PolicyLearner(toy_data, config, CPU)
        if captured:
            learner.capture()
        curves.append(curve(learner, 20))
    assert recorded
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CRITICS)
def test_a_recorded_critic_trains_as_an_eager_one(
    name: str, toy_data: Trajectories, recorded: list[recording.Recording]
) -> None:
    config = CRITICS[name]
    curves, targets = [], []
    for captured in (False, True):
        torch.manual_seed(0)
        learner: Any = learner_class(config)(toy_data, config, CPU)
        if captured:
            learner.capture()
        curves.append(curve(learner, 40))
        targets.append(list(learner.target.parameters()))
    assert len(recorded) == (2 if config.method == "td3-bc" else 1)
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(targets[1], targets[0], rtol=1e-3, atol=1e-4)
    assert not torch.equal(curves[0][0], curves[0][-1]), "something is learned"


def test_a_recorded_critic_goes_on_from_an_eager_one(
    toy_data: Trajectories, recorded: list[recording.Recording]
) -> None:
    """After one update, before the actor's optimiser has any state."""
    torch.manual_seed(0)
    eager = Td3BcLearner(toy_data, CRITICS["td3-bc"], CPU)
    curve(eager, 1)
    recorded_one = Td3BcLearner(toy_data, CRITICS["td3-bc"], CPU)
    recorded_one.capture()
    recorded_one.model.load_state_dict(eager.model.state_dict())
    state = {name: tensor.clone() for name, tensor in eager.training_tensors().items()}
    assert not any(name.startswith("actor_optimizer") for name in state)
    recorded_one.load_training_tensors(state)
    recorded_one.load_sampler_state(eager.sampler_state())
    curves = [curve(learner, 20, first=2) for learner in (eager, recorded_one)]
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-4)


def test_a_recorded_run_resumes_bit_for_bit(
    toy_data: Trajectories,
    tmp_path: Path,
    recorded: list[recording.Recording],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence, "captures", lambda config, device: True)
    config = POLICIES["reinformer"]
    train_policy(toy_data, config, tmp_path / "whole")
    train_policy(toy_data, dataclasses.replace(config, steps=17), tmp_path / "parts")
    train_policy(toy_data, config, tmp_path / "parts", resume=True)
    assert len(recorded) == 3
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        whole, parts = (
            checkpoint.load_tensors(tmp_path / name, file=file) for name in ("whole", "parts")
        )
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    # and goes on with the eager update
    monkeypatch.setattr(sequence, "captures", lambda config, device: False)
    train_policy(toy_data, dataclasses.replace(config, steps=32), tmp_path / "parts", resume=True)


def test_a_recorded_run_that_diverges_stops(
    toy_data: Trajectories,
    tmp_path: Path,
    recorded: list[recording.Recording],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = []
    for captured in (False, True):
        monkeypatch.setattr(sequence, "captures", lambda config, device, yes=captured: yes)
        config = policy_config("dt", learning_rate=1e30, warmup_steps=0, gradient_clip=0.0)
        with pytest.raises(TrainingDiverged, match="at step") as error:
            train_policy(toy_data, config, tmp_path / str(captured))
        messages.append(str(error.value).partition(": ")[2])
    assert messages[0] == messages[1]
    assert len(recorded) == 1


def test_what_cannot_be_captured_is_noticed(toy_data: Trajectories) -> None:
    x = torch.arange(3.0)
    for operation in (
        lambda: x[0].item(),
        lambda: float(x.sum()),
        lambda: torch.tensor([1, 2]),
        lambda: x[x > 1],
        lambda: bool((x > 1).any()),
    ):
        with pytest.raises(AssertionError, match="cannot be part of a CUDA graph"):
            recording.Recording().run(operation)
    # LAMB as it is without a graph reads its count of steps
    learner = PolicyLearner(toy_data, policy_config("dt", optimizer="lamb"), CPU)
    batch = learner._batch()
    learner.model._check_timesteps = lambda timesteps: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        recording.Recording().run(lambda: learner.update_on(batch, 1e-3))


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_lamb_is_the_same_when_it_may_be_captured(decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 7), torch.zeros(3), torch.tensor(0.5)]
    ends = []
    gradients = [[10.0 * torch.randn_like(p) for p in start] for _ in range(30)]
    for captured in (False, True):
        params = [torch.nn.Parameter(p.clone()) for p in start]
        optimizer = Lamb(params, lr=0.05, weight_decay=decay, native=False)
        if captured:
            prepare(optimizer)
            optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
        for grads in gradients:
            for p, gradient in zip(params, grads, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        assert float(optimizer.state[params[0]]["step"]) == 30.0
        ends.append([p.detach() for p in params])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sampling", ["trajectory", "length"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("history", [0, 3])
def test_windows_of_the_device_are_those_of_the_sampler(
    sampling: Any, padding: Any, history: int, toy_data: Trajectories
) -> None:
    words: dict[str, Any] = {"sampling": sampling, "padding": padding, "history": history}
    samplers = [WindowSampler(toy_data, 5, seed=3, **words) for _ in range(2)]
    on_device = DeviceWindows(samplers[1], CPU)
    for _ in range(3):
        expected = samplers[0].sample(40)
        found = on_device(torch.from_numpy(samplers[1].draw(40)))
        for array, tensor in zip(vars(expected).values(), found, strict=True):
            assert tensor.numpy().dtype == array.dtype
            np.testing.assert_array_equal(tensor.numpy(), array)


# --- on a GPU ---


def eager_and_captured(
    build: Callable[[Backend], PolicyLearner | TransitionLearner],
) -> list[Tensor]:
    """The losses of 40 updates on a GPU, eagerly and by a graph, from equal starts."""
    curves = []
    backends: tuple[Backend, ...] = ("torch", "auto")
    for backend in backends:
        torch.manual_seed(0)
        learner = build(backend)
        assert (learner.captured is not None) == (backend == "auto")
        curves.append(curve(learner, 40))
    return curves


@gpu
@needs_gpu
@pytest.mark.parametrize("name", CRITICS)
def test_a_captured_critic_trains_as_an_eager_one(name: str, toy_data: Trajectories) -> None:
    """With noise, too: a graph draws what eager operations do."""

    def build(backend: Backend) -> TransitionLearner:
        config = dataclasses.replace(CRITICS[name], backend=backend, hidden=(64, 64))
        return learner_class(config)(toy_data, config, torch.device("cuda", 0))

    eager, captured = eager_and_captured(build)
    torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-3)


@gpu
@needs_gpu
@pytest.mark.parametrize("name", POLICIES)
def test_a_captured_policy_trains_as_an_eager_one(name: str, toy_data: Trajectories) -> None:
    """With dropout, too."""

    def build(backend: Backend) -> PolicyLearner:
        config = dataclasses.replace(POLICIES[name], backend=backend)
        return PolicyLearner(toy_data, config, torch.device("cuda", 0))

    eager, captured = eager_and_captured(build)
    tolerance = 5e-2 if "bf16" in name else 1e-3
    torch.testing.assert_close(captured, eager, rtol=tolerance, atol=tolerance)


@gpu
@needs_gpu
def test_a_captured_run_resumes(toy_data: Trajectories, tmp_path: Path) -> None:
    config = CriticConfig(
        hidden=(64, 64), batch_size=32, steps=40, device="cuda", progress=False, log_every=5
    )
    train_critic(toy_data, config, tmp_path / "whole")
    train_critic(toy_data, dataclasses.replace(config, steps=17), tmp_path / "parts")
    train_critic(toy_data, config, tmp_path / "parts", resume=True)
    whole, parts = (load_critic(tmp_path / name)[0] for name in ("whole", "parts"))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@gpu
@needs_gpu
@pytest.mark.parametrize("name", ["reinformer", "dt"])
def test_a_captured_policy_resumes(name: str, toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(POLICIES[name], device="cuda", backend="auto", evaluation_every=10)

    def evaluate(model: SequenceModel, step: int) -> dict[str, float]:
        torch.rand(3, device="cuda")  # what an evaluation draws changes nothing
        return {"score": float(step)}

    train_policy(toy_data, config, tmp_path / "whole", evaluate=evaluate)
    stopped = dataclasses.replace(config, steps=17)
    train_policy(toy_data, stopped, tmp_path / "parts", evaluate=evaluate)
    train_policy(toy_data, config, tmp_path / "parts", resume=True, evaluate=evaluate)
    whole, parts = (load_policy_model(tmp_path / folder)[0] for folder in ("whole", "parts"))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
