"""Training of the sequence models: their losses, and `train_policy`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories, best_episodes
from dtag_fast.data.windows import Windows, WindowSampler
from dtag_fast.models.decision_transformer import SequenceModel, build_model
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.training import native_layers
from dtag_fast.training.captured import CapturedUpdate, captures
from dtag_fast.training.config import PolicyConfig
from dtag_fast.training.device_windows import Batch, DeviceWindows
from dtag_fast.training.distributed import Group
from dtag_fast.training.guide import advantage_weights, load_guide
from dtag_fast.training.lamb import Lamb
from dtag_fast.training.loop import Evaluate, Learner, TrainingResult, run
from dtag_fast.training.losses import (
    action_mse,
    action_nll,
    masked_mean,
    normal_entropy,
    return_expectile_loss,
)
from dtag_fast.training.optimizer_state import load_optimizer_tensors, optimizer_tensors


def train_policy(
    data: Trajectories,
    config: PolicyConfig,
    directory: str | Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> TrainingResult:
    """Train a Decision Transformer, a Reinformer or an MLP on a dataset.

    Args:
        data: the dataset.
        config: the settings; `policy_preset` has the published ones.
        directory: the run's folder, for checkpoints and logs (see `dtag_fast.checkpoint`).
        resume: go on from the folder's last checkpoint; start afresh where there is none.
        evaluate: called as `evaluate(model, step)` every `config.evaluation_every` steps and at the
            end; returns numbers, among them "score", whose largest value decides which checkpoint
            is the best.

    Raises:
        ValueError: a folder that holds a run already, or on resuming settings or data that differ
            from the run's; the message names the field.
        TrainingDiverged: a loss or weight became NaN or infinite. Checkpoints stay as they are.
        TrainingInterrupted: Ctrl-C; a checkpoint was written first.
    """
    longest = int(data.lengths().max())
    if longest > config.model.max_timestep:
        raise ValueError(
            f"model.max_timestep: the data has an episode of {longest} steps, "
            f"got {config.model.max_timestep}"
        )
    build = functools.partial(PolicyLearner, data, config)
    return run(build, data, config, directory, resume=resume, evaluate=evaluate)


def load_policy_model(
    path: str | Path, which: str = "last", device: str | torch.device = "cpu"
) -> tuple[SequenceModel, dict[str, Any]]:
    """The model of a policy checkpoint, in evaluation mode, and the checkpoint's state.

    Args:
        path: a run's folder or a checkpoint's.
        which: of a run, its "last" or "best" checkpoint.
        device: where the model goes.

    Raises:
        CheckpointError: missing, damaged, of another version, or not a policy's.
    """
    source = checkpoint.resolve(path, which)
    state = checkpoint.read_state(source, kind="policy")
    model = build_model(
        PolicyConfig.from_dict(state["config"]).model,
        state["observation_dim"],
        state["action_dim"],
        state["action_low"],
        state["action_high"],
    )
    checkpoint.load_into(model, checkpoint.load_tensors(source), source)
    return model.to(device).eval(), state


class PolicyLearner(Learner):
    """A sequence model with its optimiser and window sampler."""

    kind = "policy"
    model: SequenceModel
    captured: CapturedUpdate | None = None
    """What updates, where it is one CUDA graph."""

    def __init__(self, data: Trajectories, config: PolicyConfig, device: torch.device) -> None:
        self.native = _takes_native(config, device)
        if config.normalize_observations:
            normalizer = Normalizer.fit(data.observations, config.observation_epsilon)
        else:
            normalizer = Normalizer.identity(data.observation_dim)
        self.config = config
        self.device = device
        self.model = build_model(
            config.model,
            data.observation_dim,
            data.action_dim,
            data.info.action_low,
            data.info.action_high,
            normalizer,
        ).to(device)
        self.sampler = WindowSampler(
            best_episodes(data, config.best_share),
            config.model.context_length,
            sampling=config.sampling,
            padding=config.padding,
            seed=config.seed,
            # So that nothing is predicted in training that acting, which never cuts off the past of
            # a streaming model, would predict from more.
            history=config.model.history,
        )
        self.parameters = list(self.model.parameters())
        self.optimizer = _optimizer(config, self.parameters)
        self.optimizers = {"optimizer": self.optimizer}
        self.reinformer = config.model.kind == "reinformer"
        if self.reinformer:
            self.terms = ("loss", "return_loss", "action_nll", "entropy", "temperature")
            self.log_temperature = torch.tensor(
                math.log(config.temperature), device=device, requires_grad=True
            )
            self.temperature_optimizer = torch.optim.Adam(
                [self.log_temperature], lr=config.temperature_learning_rate, fused=True
            )
            self.optimizers["temperature_optimizer"] = self.temperature_optimizer
            entropy = config.target_entropy
            self.target_entropy = -float(data.action_dim) if entropy is None else entropy
        else:
            self.terms = ("loss",)
        self.guide = load_guide(config, self.model, device)
        if config.advantage_weight > 0:
            self.terms = (*self.terms, "weight")
        if config.q_weight > 0:
            self.terms = (*self.terms, "critic_loss")
        losses = {
            "reinformer": self._reinformer_losses,
            "dt": self._dt_losses,
            "mlp": self._mlp_losses,
        }[config.model.kind]
        self._losses = torch.compile(losses) if config.compile else losses
        # Of the whole batch, where this process has a part of it; see `_batch`.
        self.share = 1.0
        self.return_norm: Tensor | None = None
        if captures(config, device):
            self.capture()

    def join(self, group: Group) -> None:
        self.group, self.captured = group, None

    def capture(self) -> None:
        """Update by a CUDA graph from now on: windows are picked on the device, too."""
        windows = DeviceWindows(self.sampler, self.device)
        self.learning_rate = torch.zeros((), device=self.device)

        def update(drawn: Tensor) -> Tensor:
            return self.update_on(windows(drawn), self.learning_rate)

        self.captured = CapturedUpdate(
            update,
            (2, self.config.batch_size),
            list(self.optimizers.values()),
            [],
            self.device,
        )

    def update(self, step: int) -> Tensor:
        rate = self.config.learning_rate * _warmup(step, self.config.warmup_steps)
        if self.captured is None:
            return self.update_on(self._batch(), rate)
        self.learning_rate.fill_(rate)
        return self.captured(self.sampler.draw(self.config.batch_size))

    def update_on(self, batch: Batch, learning_rate: float | Tensor) -> Tensor:
        """One update on windows, or on this process's part of them; what `update` returns."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with native_layers.native_layers(self.native):
            losses: Tensor = self._losses(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses[0] * self.share)
        self.group.sum_gradients(self.parameters)
        if self.config.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)
        self.optimizer.step()
        losses = losses.detach()
        if self.reinformer:
            self._update_temperature(entropy=losses[3])
        return losses * self.share

    def _batch(self) -> Batch:
        windows: Windows = self.sampler.sample(self.config.batch_size)
        if not self.group.alone:
            windows = self._part(windows)
        observations, actions, returns_to_go, timesteps, mask, drawn = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (
                windows.observations,
                windows.actions,
                windows.returns_to_go,
                windows.timesteps,
                windows.mask,
                windows.drawn,
            )
        )
        return observations, actions, returns_to_go, timesteps, mask, drawn

    def _part(self, windows: Windows) -> Windows:
        """This process's windows; its share of the steps that all means are over."""
        drawn = torch.from_numpy(windows.drawn)
        norm = masked_mean(torch.from_numpy(windows.returns_to_go).abs(), drawn)
        self.return_norm = norm.to(self.device)
        part = self.group.part(self.config.batch_size)
        self.share = float(windows.drawn[part].sum() / windows.drawn.sum())
        return Windows(**{name: array[part] for name, array in vars(windows).items()})

    def _dt_losses(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        with self._precision():
            output = self.model(observations, actions, returns_to_go, timesteps, mask)
        loss = action_mse(
            self.model.unit_actions(output.actions), self.model.unit_actions(actions), drawn
        )
        return self._with_critic(loss.unsqueeze(0), observations, output.actions, drawn)

    def _reinformer_losses(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        """Loss = return expectile loss + NLL - temperature * entropy (trainer.py)."""
        with self._precision():
            output = self.model(observations, actions, returns_to_go, timesteps, mask)
        return_loss = return_expectile_loss(
            output.returns_to_go,
            returns_to_go,
            drawn,
            self.config.expectile,
            self.config.model.rtg_scale,
            self.return_norm,
        )
        nll = action_nll(
            self.model.unit_actions(output.actions),
            output.log_std,
            self.model.unit_actions(actions),
            drawn,
        )
        entropy = normal_entropy(output.log_std)
        temperature = self.log_temperature.detach().exp()
        loss = return_loss + nll - temperature * entropy
        losses = torch.stack((loss, return_loss, nll, entropy, temperature))
        return self._with_critic(losses, observations, output.actions, drawn)

    def _mlp_losses(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        drawn: Tensor,
    ) -> Tensor:
        """Behaviour cloning, or with weights the policy extraction of IQL (its eq. 7)."""
        with self._precision():
            output = self.model(observations, actions, returns_to_go, timesteps, mask)
        weights = None
        if self.config.advantage_weight > 0:
            assert self.guide is not None, "load_guide has let a missing critic through"
            advantages = self.guide.advantages(observations.flatten(0, 1), actions.flatten(0, 1))
            weights = advantage_weights(advantages, self.config.advantage_weight).view(mask.shape)
        predicted = self.model.unit_actions(output.actions)
        targets = self.model.unit_actions(actions)
        if self.config.action_loss == "likelihood":
            loss = action_nll(predicted, output.log_std, targets, drawn, weights)
        else:
            loss = action_mse(predicted, targets, drawn, weights)
        losses = torch.stack((loss,) if weights is None else (loss, weights.mean()))
        return self._with_critic(losses, observations, output.actions, drawn)

    def _with_critic(
        self, losses: Tensor, observations: Tensor, predicted: Tensor, drawn: Tensor
    ) -> Tensor:
        """The losses with a term that climbs the critic, in the first and by itself at the end."""
        if self.config.q_weight == 0:
            return losses
        assert self.guide is not None, "load_guide has let a missing critic through"
        with self._precision():
            critic_loss = self.guide.q_loss(observations, predicted, drawn, self.group).unsqueeze(0)
        loss = losses[:1] + self.config.q_weight * critic_loss
        return torch.cat((loss, losses[1:], critic_loss))

    def _update_temperature(self, entropy: Tensor) -> None:
        """The temperature falls while the entropy is above its target, and rises below it."""
        self.temperature_optimizer.zero_grad(set_to_none=True)
        loss = self.log_temperature.exp() * (entropy - self.target_entropy)
        torch.autograd.backward(loss)
        self.temperature_optimizer.step()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.autocast)

    def training_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for prefix, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(prefix, optimizer)
        if self.reinformer:
            tensors["log_temperature"] = self.log_temperature.detach()
        if self.guide is not None:
            tensors |= {f"guide.{name}": x for name, x in self.guide.state_dict().items()}
        return tensors

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, optimizer in self.optimizers.items():
            load_optimizer_tensors(prefix, optimizer, tensors)
        if self.reinformer:
            with torch.no_grad():
                self.log_temperature.copy_(tensors["log_temperature"])
        if self.guide is not None:
            self.guide.load_state_dict(
                {name: tensors[f"guide.{name}"] for name in self.guide.state_dict()}
            )

    def sampler_state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_sampler_state(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)


def _optimizer(config: PolicyConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "lamb":
        return Lamb(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            native=config.backend != "torch",
        )
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _takes_native(config: PolicyConfig, device: torch.device) -> bool:
    if config.backend == "torch":
        return False
    reason = native_layers.unsupported_reason(config, device)
    if config.backend == "native" and reason is not None:
        raise ValueError(f"backend: 'native' cannot train this policy: {reason}")
    return reason is None


def _warmup(step: int, warmup_steps: int) -> float:
    """Factor of the learning rate at update `step`, counted from 1."""
    return min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
