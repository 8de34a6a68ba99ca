"""What the training loop trains, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dtag_fast.training.distributed import ALONE, Group


class TrainingDiverged(RuntimeError):
    """A loss or a weight became NaN or infinite; the message says at which step."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves."""

    directory: Path
    """The run's folder, for `Policy.load` and `Critic.load`."""
    step: int
    """Gradient updates done in all."""
    model: nn.Module
    """The trained model as of the last step, in evaluation mode."""
    losses: dict[str, float]
    """Means over the last logged interval; empty where this call had nothing left to do."""
    best: dict[str, Any] | None
    """The best evaluation: "step", "score" and what else it gave; None without evaluations."""
    last_evaluation: dict[str, Any] | None
    """The latest evaluation, likewise; None stands for a number that was not finite."""
    seconds: float
    """Wall time of this call."""


class Learner(ABC):
    """A model, its optimisers and its batches; one `update` is one step of the loop."""

    kind: ClassVar[str]
    """Of the checkpoint: "policy" or "critic"."""
    terms: tuple[str, ...]
    """Names of what `update` returns."""
    model: nn.Module
    """What the checkpoint's model file holds."""
    group: Group = ALONE
    """The processes that train together."""

    def join(self, group: Group) -> None:
        """Train as one of several processes from now on.

        Raises:
            ValueError: it cannot; the message says why.
        """
        if not group.alone:
            raise ValueError(f"{type(self).__name__} trains in one process, not in {group.world}")

    @abstractmethod
    def update(self, step: int) -> Tensor:
        """Update number `step`, counted from 1; the values of `terms`, on the device, detached.

        With several processes, this one's share of them: the sum over all processes counts.
        """

    @abstractmethod
    def training_tensors(self) -> dict[str, Tensor]:
        """What resuming needs besides the model and torch's global generators."""

    @abstractmethod
    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `training_tensors`."""

    @abstractmethod
    def sampler_state(self) -> dict[str, Any]:
        """State of what draws the batches, JSON values."""

    @abstractmethod
    def load_sampler_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `sampler_state`."""
