"""Training updates written plainly: eager torch, one small operation after another.

The critic's as corl-team/CORL writes it (algorithms/offline/iql.py): a Sequential a head, one
Adam a network, a deep copy as target, a soft update by a loop over tensors, three losses read back
every step. The sequence model's as Dragon-Zhuang/Reinformer (model/reinformer.py, trainer.py,
lamb.py) writes it: a mask that is kept and applied, softmax by hand, dropout where that code has
it, and an optimiser that loops over tensors. Both take their weights and their batches from one of
the package's learners, so that the two can be held against each other step by step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.data.windows import WindowSampler
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import Block, Reinformer
from dtag_fast.training.config import CriticConfig, PolicyConfig
from dtag_fast.training.iql import CriticLearner
from dtag_fast.training.sequence import PolicyLearner


def mlp(layers: Iterable[tuple[Tensor, Tensor]]) -> nn.Sequential:
    """Linear, ReLU, ..., Linear with a copy of these (weight [out, in], bias [out])."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class TwinQ(nn.Module):
    """CORL's: a network a head."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            mlp((w[e], b[e]) for w, b in zip(critic.weights, critic.biases, strict=True))
            for e in range(critic.heads)
        )

    def both(self, state: Tensor, action: Tensor) -> list[Tensor]:
        x = torch.cat([state, action], 1)
        return [head(x).squeeze(-1) for head in self.heads]

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.min(*self.both(state, action))


class PlainIql:
    """The critic's half of CORL's ImplicitQLearning, on raw observations.

    Args:
        learner: whose initial weights it copies and whose batches it draws as well.
    """

    def __init__(self, learner: CriticLearner) -> None:
        self.config: CriticConfig = learner.config
        self.generator = np.random.Generator(np.random.PCG64(self.config.seed))
        columns = torch.split(learner.rows, learner.sizes, dim=1)
        self.columns = [column.clone() for column in columns]
        self.qf = TwinQ(learner.model)
        self.q_target = copy.deepcopy(self.qf).requires_grad_(False)
        layers = [(layer.weight, layer.bias) for layer in learner.value.layers]
        self.vf = mlp(layers)  # type: ignore[arg-type]
        rate = self.config.learning_rate
        self.q_optimizer = torch.optim.Adam(self.qf.parameters(), lr=rate)
        self.v_optimizer = torch.optim.Adam(self.vf.parameters(), lr=rate)

    def update(self) -> list[float]:
        """One update; the Q loss and the value loss."""
        rows = self.generator.integers(len(self.columns[0]), size=self.config.batch_size)
        s, a, next_s, reward, mask = (column[rows] for column in self.columns)
        reward, mask = reward.squeeze(-1), mask.squeeze(-1)
        joint = self.config.update_order == "joint"
        if joint:
            with torch.no_grad():
                next_v = self.vf(next_s).squeeze(-1)

        with torch.no_grad():
            target_q = self.q_target(s, a)
        advantage = target_q - self.vf(s).squeeze(-1)
        weight = torch.abs(self.config.expectile - (advantage < 0).float())
        v_loss = torch.mean(weight * advantage**2)
        value_loss = v_loss.item()
        self.v_optimizer.zero_grad()
        v_loss.backward()  # type: ignore[no-untyped-call]
        self.v_optimizer.step()

        if not joint:
            with torch.no_grad():
                next_v = self.vf(next_s).squeeze(-1)
        targets = reward + mask * self.config.discount * next_v
        qs = self.qf.both(s, a)
        losses = [F.mse_loss(q, targets) for q in qs]
        total = torch.stack(losses).sum()
        q_loss = total if self.config.q_reduction == "sum" else total / len(qs)
        loss = q_loss.item()
        self.q_optimizer.zero_grad()
        q_loss.backward()  # type: ignore[no-untyped-call]
        self.q_optimizer.step()

        tau = self.config.polyak
        pairs = zip(self.q_target.parameters(), self.qf.parameters(), strict=True)
        for target_param, source_param in pairs:
            target_param.data.copy_((1 - tau) * target_param.data + tau * source_param.data)
        return [loss, value_loss]


class PlainBlock(nn.Module):
    """A post-norm block with attention by hand."""

    mask: Tensor

    def __init__(self, block: Block, length: int, dropout: float) -> None:
        super().__init__()
        self.layers = copy.deepcopy(block)
        self.heads = block.attention.heads
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", torch.tril(torch.ones(length, length))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        attention = self.layers.attention
        q, k, v = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (attention.query, attention.key, attention.value)
        )
        weights = q @ k.transpose(2, 3) / math.sqrt(q.size(-1))
        weights = weights.masked_fill(self.mask[..., :length, :length] == 0, float("-inf"))
        attended = self.dropout(F.softmax(weights, dim=-1) @ v)
        attended = attended.transpose(1, 2).contiguous().view(batch, length, width)
        x = x + self.dropout(attention.projection(attended))
        x = self.layers.attention_norm(x)
        hidden = F.gelu(self.layers.expand(x))
        x = x + self.dropout(self.layers.contract(hidden))
        normed: Tensor = self.layers.mlp_norm(x)
        return normed


class PlainReinformer:
    """Reinformer's model, losses and two optimisers.

    Args:
        data: the dataset.
        learner: whose initial weights it copies and whose batches it draws as well.
    """

    def __init__(self, data: Trajectories, learner: PolicyLearner) -> None:
        assert isinstance(learner.model, Reinformer)
        self.config: PolicyConfig = learner.config
        model, sizes = copy.deepcopy(learner.model), learner.config.model
        self.blocks = nn.ModuleList(
            PlainBlock(block, 3 * sizes.context_length, sizes.dropout)  # type: ignore[arg-type]
            for block in model.blocks
        )
        model.blocks = nn.ModuleList()
        self.model = model
        self.sampler = WindowSampler(
            data,
            sizes.context_length,
            sampling=self.config.sampling,
            padding=self.config.padding,
            seed=self.config.seed,
        )
        self.parameters = [*model.parameters(), *self.own_parameters()]
        self.optimizer = PlainLamb(self.parameters, self.config.weight_decay)
        self.log_temperature = torch.tensor(math.log(self.config.temperature), requires_grad=True)
        self.temperature_optimizer = torch.optim.Adam(
            [self.log_temperature], lr=self.config.temperature_learning_rate
        )
        self.steps = 0

    def own_parameters(self) -> list[nn.Parameter]:
        """Those of the blocks."""
        return list(self.blocks.parameters())

    def update(self) -> list[float]:
        """One update; the loss."""
        self.steps += 1
        windows = self.sampler.sample(self.config.batch_size)
        s, a, rtg, timesteps, mask = (
            torch.from_numpy(array)
            for array in (
                windows.observations,
                windows.actions,
                windows.returns_to_go,
                windows.timesteps,
                windows.mask,
            )
        )
        model, scale = self.model, self.config.model.rtg_scale
        time = model.embed_timestep(timesteps)
        s_tokens = model.embed_observation(model.normalizer(s)) + time
        a_tokens = model.embed_action(model.unit_actions(a)) + time
        r_tokens = model.embed_return(rtg.unsqueeze(-1) / scale) + time
        batch, steps, width = s_tokens.shape
        h = torch.stack((s_tokens, r_tokens, a_tokens), dim=1).permute(0, 2, 1, 3)
        h = model.embed_norm(h.reshape(batch, 3 * steps, width))
        for block in self.blocks:
            h = block(h)
        h = h.reshape(batch, steps, 3, width).permute(0, 2, 1, 3)
        predicted_rtg = model.predict_return(h[:, 0]).squeeze(-1) * scale
        mean = torch.tanh(model.predict_action(h[:, 1]))
        log_std = model.log_std.clamp(-20.0, 2.0)

        real = mask.reshape(-1)
        target, predicted = rtg.reshape(-1)[real], predicted_rtg.reshape(-1)[real]
        u = (target - predicted) / target.abs().mean()
        expectile = torch.abs(self.config.expectile - (u < 0).float())
        return_loss = torch.mean(expectile * u**2)
        distribution = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        unit = model.unit_actions(a)
        log_likelihood = distribution.log_prob(unit).sum(dim=2)[mask].mean()  # type: ignore[no-untyped-call]
        entropy = distribution.entropy().sum(dim=2).mean()  # type: ignore[no-untyped-call]
        loss = return_loss - (log_likelihood + self.log_temperature.exp().detach() * entropy)

        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        warmup = self.config.warmup_steps
        self.optimizer.step(self.config.learning_rate * min(self.steps / max(warmup, 1), 1.0))

        self.temperature_optimizer.zero_grad()
        target_entropy = -float(a.shape[-1])
        difference = (entropy - target_entropy).detach()
        temperature_loss = self.log_temperature.exp() * difference
        temperature_loss.backward()
        self.temperature_optimizer.step()
        return [loss.item()]


class PlainLamb:
    """lamb.py: a loop over the tensors, a handful of operations each."""

    def __init__(self, parameters: list[nn.Parameter], weight_decay: float) -> None:
        self.parameters, self.weight_decay = parameters, weight_decay
        self.average = [torch.zeros_like(p) for p in parameters]
        self.square = [torch.zeros_like(p) for p in parameters]
        self.steps = 0

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        total = torch.zeros(1)
        for p in self.parameters:
            if p.grad is not None:
                total.add_(p.grad.pow(2).sum())
        clip = torch.clamp(torch.sqrt(total), min=1.0)
        self.steps += 1
        correction1, correction2 = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for p, average, square in zip(self.parameters, self.average, self.square, strict=True):
            if p.grad is None:
                continue
            gradient = p.grad.div_(clip)
            average.mul_(0.9).add_(gradient, alpha=1 - 0.9)
            square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            denominator = (square.sqrt() / math.sqrt(correction2)).add_(1e-8)
            update = (average / correction1).div_(denominator)
            update.add_(p, alpha=self.weight_decay)
            norm, of_update = p.norm(2.0), update.norm(2.0)
            positive = (norm > 0) & (of_update > 0)
            ratio = torch.where(positive, norm / of_update, torch.ones_like(norm))
            p.add_(update.mul_(ratio), alpha=-rate)
