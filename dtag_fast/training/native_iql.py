"""The IQL update in one native call (csrc/simd/iql.h), on the tensors that torch trains.

Batch, forward and backward passes by hand, Adam and the target's step: what `CriticLearner` does in
torch, with sums in another order, so that the two agree to rounding. Parameters, Adam's state and
the target stay torch's own tensors; checkpoints are the same whichever of the two ran.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.models.critic import DEFAULT_NEGATIVE_SLOPE
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.native_layers import missing_reason

SLOPES = {"relu": 0.0, "leaky_relu": DEFAULT_NEGATIVE_SLOPE}


def unsupported_reason(config: CriticConfig, device: torch.device) -> str | None:
    """Why the native update cannot train with these settings on this device, or None."""
    reason = missing_reason()
    if reason is not None:
        return reason
    if device.type != "cpu":
        return f"it computes on the CPU, not on {device}"
    if config.activation not in SLOPES:
        return f"its activations are {', '.join(SLOPES)}, not {config.activation}"
    if not config.hidden:
        return "it takes one hidden layer or more"
    for name in ("layer_norm", "autocast", "compile"):
        if getattr(config, name):
            return f"it has no {name}"
    return None


@dataclass(frozen=True)
class Trained:
    """What is trained: parameters in layers' order, weight and bias in turn, and their optimiser.

    Weights are [E, out, in] or [out, in], biases [E, out] or [out]; `targets` are parameters of the
    same shapes that follow slowly, or none.
    """

    parameters: list[Tensor]
    optimizer: torch.optim.Adam
    targets: list[Tensor] | None = None

    def states(self) -> list[dict[str, Tensor]]:
        """Adam's, made where the optimiser has done no step yet."""
        for p in self.parameters:
            if not self.optimizer.state[p]:
                self.optimizer.state[p] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        return [self.optimizer.state[p] for p in self.parameters]


class NativeIql:
    """Updates of Q-heads with targets, and of V.

    Args:
        config: of the training; `unsupported_reason` has nothing to say of it.
        rows: [N, 2 S + A + 2], observation, action, next observation, scaled reward, 0 after a
            termination and 1 otherwise.
        mean, std: [S], of the observations.
        q, value: what is trained. Tensors may be replaced, by `load_state_dict` say, but not
            change their shapes.
    """

    def __init__(
        self,
        config: CriticConfig,
        rows: Tensor,
        mean: Tensor,
        std: Tensor,
        q: Trained,
        value: Trained,
    ) -> None:
        self._config = config
        self._rows, self._mean, self._std = rows.contiguous(), mean, std
        self._q, self._value = q, value
        self._bound: list[Tensor] = []
        self.threads: int | None = None
        """Threads of a step; None takes as many as torch does."""
        self._addresses: list[int] = []

    def step(self, rows: NDArray[np.int64]) -> Tensor:
        """One update on the dataset's rows [batch]; Q loss, V loss, mean Q and mean V, [4]."""
        steps = self._bind()
        torch._foreach_add_(steps, 1.0)
        group = self._q.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        step = float(steps[0])
        adam = (
            group["lr"] / (1.0 - beta1**step),
            (1.0 - beta2**step) ** -0.5,
            beta1,
            beta2,
            group["eps"],
        )
        index = np.ascontiguousarray(rows, dtype=np.int64)
        losses = torch.empty(4)
        self._trainer.step(
            self._rows.data_ptr(),
            index.ctypes.data,
            adam,
            losses.data_ptr(),
            self.threads or torch.get_num_threads(),
        )
        _load().count_optimizer_step()  # critics packed for refinement are not current any more
        return losses

    def _bind(self) -> list[Tensor]:
        """Let the kernel know where the tensors are now; Adam's counts of steps."""
        states = [trained.states() for trained in (self._q, self._value)]
        tensors = [
            tensor
            for trained, own in zip((self._q, self._value), states, strict=True)
            for i, (p, state) in enumerate(zip(trained.parameters, own, strict=True))
            for tensor in (
                p,
                state["exp_avg"],
                state["exp_avg_sq"],
                *(() if trained.targets is None else (trained.targets[i],)),
            )
        ]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._make_trainer(tensors)
            self._bound, self._addresses = tensors, addresses
        return [state["step"] for own in states for state in own]

    def _make_trainer(self, tensors: list[Tensor]) -> None:
        for tensor in [*tensors, self._rows, self._mean, self._std]:
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(
                    f"tensors: expected contiguous float32, got {tensor.dtype} with shape "
                    f"{list(tensor.shape)} and strides {list(tensor.stride())}"
                )
        config, heads = self._config, self._config.heads
        addresses = [tensor.data_ptr() for tensor in tensors]
        of_q = 4 * len(self._q.parameters)
        self._trainer = _load().IqlTrainer(
            observation_dim=len(self._mean),
            action_dim=self._rows.shape[1] - 2 * len(self._mean) - 2,
            batch=config.batch_size,
            hidden=list(config.hidden),
            heads=heads,
            negative_slope=SLOPES[config.activation],
            discount=config.discount,
            expectile=config.expectile,
            polyak=config.polyak,
            joint=config.update_order == "joint",
            q_loss_factor=1.0 if config.q_reduction == "sum" else 1.0 / heads,
            mean=self._mean.data_ptr(),
            std=self._std.data_ptr(),
            q=[addresses[i : i + 4] for i in range(0, of_q, 4)],
            value=[[*addresses[i : i + 3], 0] for i in range(of_q, len(addresses), 3)],
        )


def _load() -> ModuleType:
    return importlib.import_module("dtag_fast._native")
