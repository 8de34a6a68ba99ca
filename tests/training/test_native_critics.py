"""Critics whose update is torch's, with layers on the native kernels, against torch's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.training import native_layers
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import TransitionLearner, learner_class, train_critic
from dtag_fast.training.method_config import EnsembleConfig
from tests.training.conftest import critic_config
from tests.training.test_critics import METHODS

pytestmark = pytest.mark.skipif(
    not native_layers.available(), reason="the native module is not built"
)

CPU = torch.device("cpu")
CONFIGS: dict[str, CriticConfig] = {
    "td3-bc": METHODS["td3-bc"],
    "cql": METHODS["cql"],
    "ensemble": dataclasses.replace(METHODS["ensemble"], ensemble=EnsembleConfig()),
    "iql with LayerNorm": critic_config(layer_norm=True),
}


def make_learner(data: Trajectories, config: CriticConfig, **changes: Any) -> TransitionLearner:
    torch.manual_seed(0)
    return learner_class(config)(data, dataclasses.replace(config, **changes), CPU)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_updates_are_torchs(name: str, toy_data: Trajectories) -> None:
    ours, torchs = (
        make_learner(toy_data, CONFIGS[name], backend=backend) for backend in ("auto", "torch")
    )
    assert ours.native_layers
    assert not torchs.native_layers
    losses = []
    for learner in (ours, torchs):
        torch.manual_seed(1)
        losses.append(torch.stack([learner.update(step) for step in range(1, 13)]))
    assert not torch.equal(*losses), "torch's own layers ran"
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("iql")])
def test_a_run_goes_on_to_the_same_bits(name: str, toy_data: Trajectories, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIGS[name], backend="native", steps=16, log_every=4, checkpoint_every=100
    )
    train_critic(toy_data, config, tmp_path / "whole")
    train_critic(toy_data, dataclasses.replace(config, steps=7), tmp_path / "parts")
    train_critic(toy_data, config, tmp_path / "parts", resume=True)
    for file in (checkpoint.MODEL_FILE, checkpoint.TRAINING_FILE):
        whole, parts = (
            checkpoint.load_tensors(tmp_path / run, file=file) for run in ("whole", "parts")
        )
        assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cql", "autocast": True}, "it has no autocast"),
        ({"method": "td3-bc", "compile": True}, "it has no compile"),
        (
            {"method": "ensemble", "ensemble": EnsembleConfig(diversity=0.1)},
            "no second derivatives, which ensemble.diversity takes",
        ),
    ],
)
def test_what_they_cannot_train(
    toy_data: Trajectories, changes: dict[str, Any], message: str
) -> None:
    config = critic_config(**changes)
    with pytest.raises(ValueError, match=f"'native' cannot train this critic: .*{message}"):
        make_learner(toy_data, config, backend="native")
    if not config.compile:  # which takes its time
        assert not make_learner(toy_data, config, backend="auto").native_layers


@pytest.mark.parametrize("name", list(CONFIGS))
def test_small_networks_are_left_to_torch(name: str, toy_data: Trajectories) -> None:
    """No kernel would take a layer, and each call would be looked at for nothing."""
    assert not make_learner(toy_data, CONFIGS[name], backend="auto").native_layers
    large = dataclasses.replace(CONFIGS[name], hidden=(256, 256), backend="auto")
    assert make_learner(toy_data, large).native_layers
