"""Token predictors that ask a critic which return to aim for."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dtag_fast.acting.context import Context
from dtag_fast.acting.inference import predict_actions
from dtag_fast.acting.token_predictors import check_finite, check_tokens
from dtag_fast.models.decision_transformer import SequenceModel

Rule = Literal["max", "softmax"]
Countdown = Literal["rewards", "linear"]


@dataclass(frozen=True)
class ValuePrompt:
    """V(s) of a critic as the return to aim for, at every step anew.

    V-ADT, Ma et al. 2024 (mamengyiyi/Autotuned-Decision-Transformer, algorithms/V-ADT.py), where
    the model is trained on Q(s, a) in the place of returns. A model trained on returns-to-go takes
    V for one: it is discounted, and may need a `scale` for that; ours.

    Args:
        value: V [B] of observations [B, S], raw, in raw units of return; `load` makes one.
        scale: factor of V.
    """

    value: nn.Module
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite("scale", self.scale)

    @classmethod
    def load(
        cls, path: str | Path, scale: float = 1.0, device: str | torch.device = "cpu"
    ) -> ValuePrompt:
        """With the V of a critic's run, or of one checkpoint, of method iql or ensemble.

        Raises:
            CheckpointError: missing, damaged, of another version, or not a critic's.
            ValueError: a critic without V, or one trained on rewards that were shifted.
        """
        from dtag_fast.training.guide import load_raw_value

        return cls(load_raw_value(path, device), scale)

    @property
    def needs_rewards(self) -> bool:
        return False

    def check_model(self, model: SequenceModel) -> None:
        check_tokens(self, model)
        check_sizes(self.value, model, "value")

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        context.write_token(self.scale * self.value(context.current(context.observations)))
        return predict_actions(model, context)


@dataclass(frozen=True)
class ReturnGrid:
    """Several returns to aim for, an action for each, of which the critic's Q picks one.

    With rule "max" and a linear countdown, DTR (tu2021/dtr, AAAI 2025); with "softmax" and the
    rewards' countdown, the fixed targets of QT, Hu et al. 2024 (charleshsc/QT,
    decision_transformer/models/ql_DT.py), which also tries targets near them and one from Q at the
    step before. Q is the lowest of the heads'.

    Args:
        critic: Q [E, B] of observations [B, S] and actions [B, A], raw.
        targets: R_0 of each, raw units of return.
        rule: the action of highest Q, or one drawn with probabilities softmax(Q / temperature).
        countdown: R_t = R_0 less the rewards received, or R_0 (1 - t / horizon).
        horizon: steps of an episode, for the linear countdown.
        temperature: of "softmax", in units of Q.
        seed: of "softmax". A draw depends on it, on the step and on the observation alone: not on
            the batch.
    """

    critic: nn.Module
    targets: Sequence[float]
    rule: Rule = "max"
    countdown: Countdown = "rewards"
    horizon: int | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise ValueError("targets: expected at least one return to aim for, got none")
        for target in self.targets:
            check_finite("targets", target)
        for name, words in (("rule", Rule), ("countdown", Countdown)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(
                    f"{name}: expected {' or '.join(get_args(words))}, got {getattr(self, name)!r}"
                )
        if self.countdown == "linear" and (self.horizon is None or self.horizon < 1):
            raise ValueError(
                f"horizon: expected the number of an episode's steps for the linear countdown, got "
                f"{self.horizon}"
            )
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer of at least 0, got {self.seed}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")

    @property
    def needs_rewards(self) -> bool:
        return self.countdown == "rewards"

    def check_model(self, model: SequenceModel) -> None:
        check_tokens(self, model)
        check_sizes(self.critic, model, "critic")

    def choose(self, model: SequenceModel, context: Context, rewards: Tensor | None) -> Tensor:
        observations = context.current(context.observations)
        tokens = self._tokens(context, rewards)  # [N, B]
        actions = []
        for candidate in tokens:
            context.write_token(candidate)
            actions.append(predict_actions(model, context).clone())
        q = torch.stack([self.critic(observations, each).amin(dim=0) for each in actions])
        q = q.nan_to_num(nan=-math.inf)
        if self.rule == "softmax":
            q = q / self.temperature + self._noise(observations, context)
        chosen = q.argmax(dim=0, keepdim=True)  # [1, B]
        context.write_token(tokens.gather(0, chosen)[0])
        candidates = torch.stack(actions)
        index = chosen.unsqueeze(2).expand(1, *candidates.shape[1:])
        return candidates.gather(0, index)[0]

    def _tokens(self, context: Context, rewards: Tensor | None) -> Tensor:
        """R_t [N, B] of every target."""
        targets = torch.tensor(self.targets, device=context.device).unsqueeze(1)
        if self.countdown == "linear":
            assert self.horizon is not None
            steps = torch.from_numpy(context.steps).to(context.device)
            return targets * (1.0 - steps / self.horizon).clamp(min=0.0)
        if rewards is not None:
            context.received += rewards
        context.received.masked_fill_(context.first, 0.0)  # also a NaN that came before an episode
        return targets - context.received

    def _noise(self, observations: Tensor, context: Context) -> Tensor:
        """Gumbel noise [N, B]: the argmax of logits plus it is a draw from their softmax."""
        columns = [
            np.random.Generator(
                np.random.PCG64([self.seed, int(step), zlib.crc32(row.tobytes())])
            ).gumbel(size=len(self.targets))
            for row, step in zip(observations.cpu().numpy(), context.steps, strict=True)
        ]
        noise = np.stack(columns, axis=1, dtype=np.float32, casting="same_kind")
        return torch.from_numpy(noise).to(context.device)


def check_sizes(network: nn.Module, model: SequenceModel, name: str) -> None:
    """ValueError where a network that says its sizes is for others than the model."""
    for size in ("observation_dim", "action_dim"):
        own = getattr(network, size, None)
        if isinstance(own, int) and own != getattr(model, size):
            raise ValueError(
                f"{name}: expected {size}={getattr(model, size)}, the policy's, got {own}"
            )
