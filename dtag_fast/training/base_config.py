"""What the settings of all trainings share, and settings as JSON. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from dtag_fast.models.config import check_at_least, check_interval, check_positive, check_words

ConfigT = TypeVar("ConfigT", bound="TrainingConfig")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What both training phases share."""

    steps: int = 50_000
    """Gradient updates in total."""

    batch_size: int = 128
    """Rows of a batch: windows of the policy, transitions of the critic."""

    learning_rate: float = 1e-4
    """Learning rate, after the warm-up if there is one."""

    seed: int = 0
    """Of the initial weights, the batches and dropout."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU where torch sees one."""

    threads: int | None = None
    """CPU threads torch may use; None leaves torch's own choice."""

    compile: bool = False
    """torch.compile the update: a minute of compilation, then faster steps."""

    autocast: bool = False
    """Forward passes in bfloat16; weights and optimiser stay in float32."""

    normalize_observations: bool = True
    """Standardise observations by the dataset's mean and standard deviation."""

    observation_epsilon: float = 1e-6
    """Added to the standard deviation."""

    log_every: int = 100
    """Steps between rows of log.jsonl; a non-finite loss is noticed here too."""

    checkpoint_every: int = 5_000
    """Steps between checkpoints; the last step always gets one."""

    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best one is kept besides."""

    evaluation_every: int = 5_000
    """Steps between evaluations, where there is something to evaluate with; 0 for none."""

    evaluation_episodes: int = 10
    """Episodes of one evaluation."""

    evaluation_envs: int = 10
    """Environments stepped together in an evaluation."""

    evaluation_seed: int = 0
    """Episode j of every evaluation starts from seed evaluation_seed + j."""

    tensorboard: bool = False
    """Write TensorBoard files besides log.jsonl."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_words(self)
        check_at_least(
            self,
            1,
            "steps",
            "batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "evaluation_episodes",
            "evaluation_envs",
        )
        check_at_least(self, 0, "seed", "evaluation_every", "evaluation_seed")
        if self.threads is not None:
            check_at_least(self, 1, "threads")
        check_positive(self, "learning_rate")
        check_interval(self, "observation_epsilon", 0.0, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `from_dict` is the inverse."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The config with these fields; a field left out keeps its default.

        Raises:
            ValueError: a field that does not exist, or a value out of range; the message names it.
        """
        return _from_dict(cls, values)


def _from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    arguments = dict(values)
    _check_names(cls, arguments, "")
    groups: dict[str, Any] = get_type_hints(cls)
    for name, group in groups.items():
        is_group = dataclasses.is_dataclass(group)
        if is_group and isinstance(arguments.get(name), Mapping):
            _check_names(group, arguments[name], f"{name}.")
            arguments[name] = group(**arguments[name])
    return cls(**arguments)


def _plain(value: Any) -> Any:
    """Settings as JSON has them: tuples are lists."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _check_names(cls: type[Any], values: Mapping[str, Any], prefix: str) -> None:
    names = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in names:
            raise ValueError(f"{prefix}{name}: {cls.__name__} has no such field")
