"""A trained critic in a policy's loss. It is not trained on, and the policy keeps a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast import checkpoint
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training.config import CriticConfig, PolicyConfig
from dtag_fast.training.critic import build_critic, load_critic
from dtag_fast.training.distributed import ALONE, Group
from dtag_fast.training.ensemble import values_of_heads
from dtag_fast.training.iql import ValueFunction

LARGEST_WEIGHT = 100.0  # of ikostrikov/implicit_q_learning (actor.py)


class Guide(nn.Module):
    """Q and, where it is asked for, V; neither changes.

    Its state goes into the policy's checkpoint. So a run resumes with the critic that it began
    with, although the critic may have been trained on since.

    Args:
        critic: the trained critic.
        value: V of the same training, for advantages: `ValueFunction`, or the critic of an
            ensemble's.
    """

    def __init__(self, critic: Critic, value: ValueFunction | Critic | None) -> None:
        super().__init__()
        self.critic = critic
        self.value = value
        self.requires_grad_(False).eval()

    def q_loss(
        self, observations: Tensor, actions: Tensor, mask: Tensor, group: Group = ALONE
    ) -> Tensor:
        """-Q of a policy's actions [B, K, A], mean over the steps where the mask [B, K] is True.

        In units of Q's mean size, which gets no gradient: each head's mean is divided by the size
        of the next head, and the heads' mean is taken. QT (Hu et al. 2024, charleshsc/QT,
        training/ql_trainer.py) does so with one of its two heads, drawn at random. The steps are
        those of this process; Q's size is that of all processes' together.
        """
        q = self.critic(observations.flatten(0, 1), actions.flatten(0, 1)).float()  # [E, B K]
        real, count = mask.flatten(), mask.sum()
        means = torch.where(real, q, 0.0).sum(dim=1) / count
        absolute = torch.where(real, q.abs(), 0.0).sum(dim=1)
        totals = group.sum(torch.cat((absolute, count.to(q.dtype).unsqueeze(0))))
        sizes = totals[:-1] / totals[-1]
        # Q may be 0 everywhere, as it is at the start of a problem without rewards.
        sizes = sizes.clamp(min=torch.finfo(torch.float32).tiny)
        return -(means / sizes.roll(-1)).mean()

    def advantages(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q(s, a) - V(s) [N] of observations [N, S] and actions [N, A], raw.

        Q is the heads' minimum; an ensemble's heads have a V each, and the mean counts.
        """
        assert self.value is not None, "load_guide has let another method through"
        with torch.no_grad():
            q = self.critic(observations, actions).float()  # [E, N]
            if isinstance(self.value, Critic):
                return torch.mean(q - values_of_heads(self.value, observations), dim=0)
            values: Tensor = self.value(observations).float()
            advantages: Tensor = q.amin(dim=0) - values
            return advantages


def load_guide(config: PolicyConfig, model: SequenceModel, device: torch.device) -> Guide | None:
    """The critic that the settings name, for the policy `model`; None where they name none.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a critic's.
        ValueError: a critic that is needed and not named or the reverse, one of other sizes than
            the policy's, or without V where V is needed.
    """
    if config.advantage_weight > 0 and config.model.kind != "mlp":
        raise ValueError(
            f"advantage_weight: expected 0 for a model of kind {config.model.kind}, as only mlp "
            f"weighs actions; got {config.advantage_weight}"
        )
    used = {name: getattr(config, name) for name in ("q_weight", "advantage_weight")}
    used = {name: weight for name, weight in used.items() if weight > 0}
    if config.critic is None:
        for name, weight in used.items():
            raise ValueError(
                f"critic: needed, the folder of a critic's run, as {name}={weight}; got None"
            )
        return None
    if not used:
        raise ValueError(
            f"critic: expected None, as nothing in the loss uses it; got {config.critic!r}"
        )
    source = checkpoint.resolve(config.critic)
    critic, state = load_critic(source)
    for name in ("observation_dim", "action_dim"):
        own, expected = getattr(critic, name), getattr(model, name)
        if own != expected:
            raise ValueError(f"critic: {source} has {name}={own}, the data has {expected}")
    value = None
    if config.advantage_weight > 0:
        value = _load_value(source, state, "advantage_weight")
    return Guide(critic, value).to(device)


def advantage_weights(advantages: Tensor, inverse_temperature: float) -> Tensor:
    """exp(beta A), at most 100 (Kostrikov et al. 2021, eq. 7; the bound is of their code)."""
    return torch.exp(inverse_temperature * advantages).clamp(max=LARGEST_WEIGHT)


class RawValue(nn.Module):
    """V in raw units of return.

    Args:
        value: as `Guide` takes it.
        factor: that the rewards it was trained on were multiplied by.
    """

    def __init__(self, value: ValueFunction | Critic, factor: float) -> None:
        super().__init__()
        self.value = value
        self.factor = factor
        self.observation_dim = value.normalizer.mean.shape[0]
        self.requires_grad_(False).eval()

    def forward(self, observations: Tensor) -> Tensor:
        """V [B] of observations [B, S], raw; of an ensemble, the mean of its heads'."""
        if isinstance(self.value, Critic):
            return values_of_heads(self.value, observations).mean(dim=0) / self.factor
        values: Tensor = self.value(observations)
        return values / self.factor


def load_raw_value(path: str | Path, device: str | torch.device = "cpu") -> RawValue:
    """The V of a critic's run, its last checkpoint, or of one checkpoint.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a critic's.
        ValueError: a critic without V, or one trained on rewards that were shifted.
    """
    source = checkpoint.resolve(path)
    state = checkpoint.read_state(source, kind="critic")
    value = _load_value(source, state, "value")
    scaling = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE).get("reward_scaling")
    if scaling is None:
        raise checkpoint.CheckpointError(f"{source}: does not say how its rewards were scaled")
    factor, shift = scaling.tolist()
    if shift != 0:
        raise ValueError(
            f"value: expected a critic of rewards that were not shifted; those of {source} were, "
            f"by {shift:g}, and V cannot be told in raw units"
        )
    return RawValue(value, factor).to(device)


def _load_value(source: Path, state: Mapping[str, Any], argument: str) -> ValueFunction | Critic:
    """V of a checkpoint; ValueError, naming the argument that needs it, where there is none."""
    config = CriticConfig.from_dict(state["config"])
    value: ValueFunction | Critic
    if config.method == "iql":
        value = ValueFunction(config, Normalizer.identity(state["observation_dim"]))
    elif config.method == "ensemble":
        value = build_critic(config, state["observation_dim"], 1)
    else:
        raise ValueError(
            f"{argument}: needs a critic with V, of method iql or ensemble; {source} is of method "
            f"{config.method}"
        )
    tensors = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE)
    prefix = "value."
    own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    checkpoint.load_into(value, own, source)
    return value
