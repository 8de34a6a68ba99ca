"""What all trainings of a critic share: the dataset as rows, the Q-heads and their target copy.

One file a method: iql.py, td3_bc.py, cql.py, ensemble.py. Each of them leaves the same `Critic`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtag_fast import checkpoint
from dtag_fast.data.rewards import scale_rewards
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training import native_layers
from dtag_fast.training.captured import CapturedUpdate
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.loop import Evaluate, Learner, TrainingResult, run
from dtag_fast.training.optimizer_state import load_optimizer_tensors, optimizer_tensors

# By `CriticConfig.method`; imported when used, as they import what is below.
LEARNERS = {
    "iql": "dtag_fast.training.iql:CriticLearner",
    "td3-bc": "dtag_fast.training.td3_bc:Td3BcLearner",
    "cql": "dtag_fast.training.cql:CqlLearner",
    "ensemble": "dtag_fast.training.ensemble:EnsembleLearner",
}

# s [B, S], a [B, A], s' [B, S], scaled r [B, 1], and [B, 1], 0 after a termination and 1 otherwise
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

ORTHOGONAL_GAIN = math.sqrt(2.0)
SMALL_OUTPUT_GAIN = 1e-2


def train_critic(
    data: Trajectories,
    config: CriticConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> TrainingResult:
    """Train a critic on a dataset, by `config.method`.

    Args:
        data: the dataset, with raw rewards: `config.reward_scaling` is applied here.
        config: the settings; `critic_preset` has the published ones.
        directory, resume, evaluate: as in `train_policy`; `evaluate` gets the critic.

    Raises:
        As `train_policy`; ValueError also for a `reward_scaling` that does not suit the data.
    """
    build = functools.partial(learner_class(config), data, config)
    return run(build, data, config, directory, resume=resume, evaluate=evaluate)


def learner_class(config: CriticConfig) -> Callable[..., TransitionLearner]:
    """The learner of `config.method`."""
    module, _, name = LEARNERS[config.method].partition(":")
    found: Callable[..., TransitionLearner] = getattr(importlib.import_module(module), name)
    return found


def load_critic(
    path: str | Path, which: str = "last", device: str | torch.device = "cpu"
) -> tuple[Critic, dict[str, Any]]:
    """The critic of a critic checkpoint, of whatever method, and the checkpoint's state.

    Args:
        path: a run's folder or a checkpoint's.
        which: of a run, its "last" or "best" checkpoint.
        device: where the critic goes.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a critic's.
    """
    source = checkpoint.resolve(path, which)
    state = checkpoint.read_state(source, kind="critic")
    config = CriticConfig.from_dict(state["config"])
    critic = build_critic(config, state["observation_dim"], state["action_dim"])
    checkpoint.load_into(critic, checkpoint.load_tensors(source), source)
    return critic.to(device).eval(), state


def build_critic(
    config: CriticConfig,
    observation_dim: int,
    action_dim: int,
    normalizer: Normalizer | None = None,
) -> Critic:
    """The critic of these settings, with fresh weights."""
    critic = Critic(
        observation_dim,
        action_dim,
        config.hidden,
        config.heads,
        config.activation,
        config.layer_norm,
        normalizer,
    )
    if config.initialization != "default":
        gains = [ORTHOGONAL_GAIN] * len(critic.weights)
        if config.initialization == "orthogonal-small":
            gains[-1] = SMALL_OUTPUT_GAIN
        for weight, bias, gain in zip(critic.weights, critic.biases, gains, strict=True):
            for head in weight:
                nn.init.orthogonal_(head, gain)
            nn.init.zeros_(bias)
    return critic


class TransitionLearner(Learner):
    """Q-heads and their target copy, with the dataset on the device: the base of each method.

    A method adds what else it trains, lists it in `modules` and its optimisers in `optimizers`,
    which is what resuming restores, and says in `update` what it does with a `batch`. Random
    numbers are torch's global ones, which the loop restores.
    """

    kind = "critic"
    model: Critic
    captured: CapturedUpdate | None = None
    """What updates, where it is one CUDA graph; see `of_rows`."""

    def __init__(self, data: Trajectories, config: CriticConfig, device: torch.device) -> None:
        if config.normalize_observations:
            normalizer = Normalizer.fit(data.observations, config.observation_epsilon)
        else:
            normalizer = Normalizer.identity(data.observation_dim)
        self.config = config
        self.device = device
        self.native_layers = _takes_native_layers(config, data, device)
        self.normalizer = normalizer
        self.sizes = [data.observation_dim, data.action_dim, data.observation_dim, 1, 1]
        scaled = scale_rewards(data, config.reward_scaling)
        scaling = scaled.info.provenance["reward_scaling"]
        self.reward_scaling = torch.tensor([scaling["factor"], scaling["shift"]])
        self.rows = _packed(scaled, config).to(device)
        self.generator = np.random.Generator(np.random.PCG64(config.seed))
        self.model = build_critic(config, data.observation_dim, data.action_dim, normalizer)
        self.model = self.model.to(device)
        self.target = copy.deepcopy(self.model).requires_grad_(False)
        self.q_parameters: list[Tensor] = list(self.model.parameters())
        self.target_parameters: list[Tensor] = list(self.target.parameters())
        self.q_optimizer = torch.optim.Adam(self.q_parameters, config.learning_rate, fused=True)
        self.modules: dict[str, nn.Module] = {"target": self.target}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"q_optimizer": self.q_optimizer}

    def drawn_rows(self) -> NDArray[np.int64]:
        """The rows [B] of the next random batch."""
        return self.generator.integers(len(self.rows), size=self.config.batch_size)

    def batch(self) -> Batch:
        """A random batch of the dataset."""
        index = torch.from_numpy(self.drawn_rows()).to(self.device, non_blocking=True)
        return torch.split(self.rows.index_select(0, index), self.sizes, dim=1)  # type: ignore[return-value]

    def of_rows(
        self, update: Callable[[Batch], Tensor], others: Sequence[Tensor] = ()
    ) -> CapturedUpdate:
        """An update of a batch as a CUDA graph, from the gather of its rows on.

        For when all modules and optimisers are there. `others` are tensors that it changes and
        that belong to neither.
        """

        def of_index(index: Tensor) -> Tensor:
            batch: Any = torch.split(self.rows.index_select(0, index), self.sizes, dim=1)
            return update(batch)

        modules = self.modules.values()
        followers = [p for module in modules for p in module.parameters() if not p.requires_grad]
        return CapturedUpdate(
            of_index,
            (self.config.batch_size,),
            list(self.optimizers.values()),
            [*followers, *others],
            self.device,
        )

    def targets(self, rewards: Tensor, continues: Tensor, next_values: Tensor) -> Tensor:
        """r + gamma V(s') [B] or, with a value a head [E, B], [E, B]; V = 0 after a termination."""
        return rewards[:, 0] + self.config.discount * continues[:, 0] * next_values

    def q_error(self, q: Tensor, targets: Tensor) -> Tensor:
        """Squared error of Q [E, B], mean over the batch, over the heads as `q_reduction` says."""
        losses = (q - targets).square().mean(dim=1)  # [E]
        return losses.sum() if self.config.q_reduction == "sum" else losses.mean()

    def compiled(self, function: Callable[..., Any]) -> Any:
        """The function, compiled where the settings say so."""
        return torch.compile(function) if self.config.compile else function

    def precision(self) -> AbstractContextManager[None]:
        """Within this networks are evaluated: in bfloat16, or by native layers."""
        if self.native_layers:
            return native_layers.native_layers(True)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.autocast)

    def training_tensors(self) -> dict[str, Tensor]:
        tensors = {"reward_scaling": self.reward_scaling}  # for those who want raw units
        for prefix, module in self.modules.items():
            tensors |= {f"{prefix}.{name}": x for name, x in module.state_dict().items()}
        for prefix, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(prefix, optimizer)
        return tensors

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, module in self.modules.items():
            module.load_state_dict(
                {name: tensors[f"{prefix}.{name}"] for name in module.state_dict()}
            )
        for prefix, optimizer in self.optimizers.items():
            load_optimizer_tensors(prefix, optimizer, tensors)

    def sampler_state(self) -> dict[str, Any]:
        return dict(self.generator.bit_generator.state)

    def load_sampler_state(self, state: Mapping[str, Any]) -> None:
        self.generator.bit_generator.state = state


def _takes_native_layers(config: CriticConfig, data: Trajectories, device: torch.device) -> bool:
    if config.backend == "torch":
        return False
    reason = native_layers.unsupported_reason(config, device)
    if reason is None and config.autocast:
        reason = "it has no autocast"
    if reason is None and config.method == "ensemble" and config.ensemble.diversity > 0:
        reason = "it has no second derivatives, which ensemble.diversity takes"
    if config.backend == "native" and config.method != "iql" and reason is not None:
        raise ValueError(f"backend: 'native' cannot train this critic: {reason}")
    if config.backend == "native" or reason is not None:
        return reason is None
    # Where no layer is large enough for a kernel, looking for one costs more than nothing.
    rows = config.batch_size * (3 * config.cql.samples if config.method == "cql" else 1)
    widths = [data.observation_dim + data.action_dim, *config.hidden, 1]
    return rows * max(i * o for i, o in pairwise(widths)) >= native_layers.LEAST_WORK


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A loss that is computed within this has no gradients by the module's parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down a loss of the optimiser's parameters; no others get a gradient."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss, inputs=parameters)
    optimizer.step()


def follow(target: nn.Module, source: nn.Module, polyak: float) -> None:
    """Move a target network's parameters a share `polyak` of the way to their sources."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), polyak)


def _packed(data: Trajectories, config: CriticConfig) -> Tensor:
    """One row a transition, so that a batch is one gather: s, a, s', r, 1 - terminal."""
    low, high = np.asarray(data.info.action_low), np.asarray(data.info.action_high)
    margin = config.action_margin * (high - low) / 2
    rows = np.concatenate(
        (
            data.observations,
            np.clip(data.actions, low + margin, high - margin),
            data.next_observations,
            data.rewards[:, None],
            ~data.terminations[:, None],
        ),
        axis=1,
        dtype=np.float32,
        casting="same_kind",
    )
    return torch.from_numpy(rows)
