"""A trained critic in a policy's loss. It is not trained on, and the policy keeps a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtag_fast import checkpoint
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training.config import CriticConfig, PolicyConfig
from dtag_fast.training.critic import build_critic, load_critic
from dtag_fast.training.ensemble import values_of_heads
from dtag_fast.training.iql import ValueFunction

LARGEST_WEIGHT = 100.0  # of ikostrikov/implicit_q_learning (actor.py)


class Guide(nn.Module):
    """Q and, where the critic's method has it, V; neither changes.

    Its state goes into the policy's checkpoint. So a run resumes with the critic that it began
    with, although the critic may have been trained on since.

    Args:
        critic: the trained critic.
        value: V of the same training: `ValueFunction`, or the critic of an ensemble's; None for
            methods without.
    """

    def __init__(self, critic: Critic, value: ValueFunction | Critic | None) -> None:
        super().__init__()
        self.critic = critic
        self.value = value
        self.requires_grad_(False).eval()

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
    if config.critic is None:
        if config.advantage_weight > 0:
            raise ValueError(
                f"critic: needed, the folder of a critic's run, as "
                f"advantage_weight={config.advantage_weight}"
            )
        return None
    if config.advantage_weight == 0:
        raise ValueError(
            f"critic: expected None, as nothing in the loss uses it; got {config.critic!r}"
        )
    source = checkpoint.resolve(config.critic)
    critic, state = load_critic(source)
    for name in ("observation_dim", "action_dim"):
        own, expected = getattr(critic, name), getattr(model, name)
        if own != expected:
            raise ValueError(f"critic: {source} has {name}={own}, the data has {expected}")
    trained = CriticConfig.from_dict(state["config"])
    value = _value(trained, critic.observation_dim)
    if value is None:
        raise ValueError(
            f"advantage_weight: needs a critic with V, of method iql or ensemble; {source} is of "
            f"method {trained.method}"
        )
    tensors = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE)
    prefix = "value."
    own_tensors = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
    checkpoint.load_into(value, own_tensors, source)
    return Guide(critic, value).to(device)


def advantage_weights(advantages: Tensor, inverse_temperature: float) -> Tensor:
    """exp(beta A), at most 100 (Kostrikov et al. 2021, eq. 7; the bound is of their code)."""
    return torch.exp(inverse_temperature * advantages).clamp(max=LARGEST_WEIGHT)


def _value(config: CriticConfig, observation_dim: int) -> ValueFunction | Critic | None:
    if config.method == "iql":
        return ValueFunction(config, Normalizer.identity(observation_dim))
    if config.method == "ensemble":
        return build_critic(config, observation_dim, 1)
    return None
