"""What a study is: a question, a grid of runs that answers it, and how the rows are shown.

Everything is a frozen dataclass of plain values. A run and a training have a key, the hash of all
that determines their result: a row is found again by it, and a training that several runs need is
done once. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from dtag_fast.training.config import CriticConfig, PolicyConfig, TrainingConfig

if TYPE_CHECKING:
    from dtag_fast.studies.show import Show

Budget = Literal["smoke", "small", "paper"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
Scale = Literal["tiny", "small", "published"]
Options = tuple[tuple[str, Any], ...]

# Settings that change what is shown or how fast, never what is computed.
_COSMETIC = ("progress", "tensorboard")


def options(**values: Any) -> Options:
    """Keywords as a value that can be hashed, in an order of its own."""
    return tuple(sorted(values.items()))


@dataclass(frozen=True, kw_only=True)
class Data:
    """A dataset, or a share of one.

    Attributes:
        id: of a local Minari dataset.
        made_by: None, or what writes it if it is not there: a name of `dtag data make`; or
            "bandit", which is computed anew each time it is used.
        steps: of a made dataset.
        seed: of a made dataset, and of which trajectories a share has.
        share: of the trajectories, in (0, 1]. A larger share contains every smaller one.
        best_share: of the steps, in (0, 1]: of what `share` leaves, the episodes of highest return
            (`data.trajectories.best_episodes`).
        action_dim: of "bandit".
    """

    id: str
    made_by: str | None = None
    steps: int | None = None
    seed: int = 0
    share: float = 1.0
    best_share: float = 1.0
    action_dim: int = 1

    def __post_init__(self) -> None:
        for name in ("share", "best_share"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name}: expected a number in (0, 1], got {value}")
        if self.made_by is not None and (self.steps is None or self.steps < 1):
            raise ValueError(
                f"steps: expected at least 1 for data made by {self.made_by!r}, got {self.steps}"
            )

    @property
    def name(self) -> str:
        """For people: the id, and the shares that are not all."""
        share = "" if self.share == 1.0 else f", {100 * self.share:g} %"
        best = "" if self.best_share == 1.0 else f", best {100 * self.best_share:g} %"
        return f"{self.id}{share}{best}"

    def content(self) -> dict[str, Any]:
        """JSON values."""
        values = dataclasses.asdict(self)
        if self.best_share == 1.0:
            del values["best_share"]  # rows from before there was one keep their keys
        return values


@dataclass(frozen=True, kw_only=True)
class Training:
    """A policy or a critic to train.

    Attributes:
        trainer: an entry of `work.TRAINERS`.
        data: what it is trained on.
        config: all its settings, but for the folder of a guide.
        guide: a critic that a policy's loss uses, to be trained before.
    """

    trainer: str
    data: Data
    config: TrainingConfig
    guide: Training | None = None

    def content(self) -> dict[str, Any]:
        """JSON values, without what does not change the result."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in _COSMETIC}
        if self.kind == "policy" and config["backend"] == "auto":
            del config["backend"]  # rows from before policies had one keep their keys
        guide = {} if self.guide is None else {"guide": self.guide.key}
        return {"trainer": self.trainer, "data": self.data.content(), "config": config, **guide}

    @cached_property
    def key(self) -> str:
        """The hash of its content."""
        return hashed(self.content())

    @property
    def kind(self) -> Literal["policy", "critic"]:
        return "critic" if isinstance(self.config, CriticConfig) else "policy"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy, acted with in one way, in the environment of its data: one row.

    Attributes:
        data: names the environment; the critic's and the policy's own data may be shares of it.
        policy, critic: what has to be trained before.
        judge: a second critic, trained apart, which says how much of the gain that the first one
            claims it confirms, on the data's observations (`judge.py`).
        checkpoint: of the policy's run.
        predictor, predictor_options: a name of `acting/predictor_options.py` and its options, with
            `of_best` for a target that is a multiple of the best return in the data.
        refinement: keywords of `Policy.with_refinement`; None leaves actions as they are.
        samples, noise: with more than one sample, that many starting points: the policy's action
            and others around it, with that standard deviation in units of half the action box.
        probes: entries of `work.PROBES`, further figures to take.
        episodes, env_seed: episode j starts from seed env_seed + j.
        labels: how tables and plots find the row. They do not determine the result and are not
            part of the key.
    """

    data: Data
    policy: Training
    critic: Training | None = None
    judge: Training | None = None
    checkpoint: Literal["last", "best"] = "last"
    predictor: str = "own"
    predictor_options: Options = ()
    refinement: Options | None = None
    samples: int = 1
    noise: float = 0.0
    probes: tuple[str, ...] = ()
    episodes: int
    env_seed: int = 0
    labels: Options = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.refinement is not None and self.critic is None:
            raise ValueError("critic: needed by a run with refinement, got None")
        if self.probes and self.critic is None:
            raise ValueError("critic: needed by a run with probes, got None")
        if self.samples < 1 or (self.samples > 1 and self.refinement is None):
            raise ValueError(
                f"samples: expected 1, or more with refinement, got {self.samples} with "
                f"refinement={self.refinement}"
            )

    @property
    def trainings(self) -> tuple[Training, ...]:
        """What it depends on, a guide before what it guides."""
        found = (self.policy.guide, self.policy, self.critic, self.judge)
        return tuple(dict.fromkeys(training for training in found if training is not None))

    def content(self) -> dict[str, Any]:
        """JSON values; a training is named by its key."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Training):
                value = value.key
            elif isinstance(value, Data):
                value = value.content()
            elif f.name in ("predictor_options", "refinement") and value is not None:
                value = dict(value)
            if f.name != "labels":
                values[f.name] = value
        return values

    @cached_property
    def key(self) -> str:
        """The hash of its content."""
        return hashed(self.content())

    @property
    def label(self) -> dict[str, Any]:
        """The labels as a mapping."""
        return dict(self.labels)


def hashed(content: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of JSON values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work a budget is. Any field can be set on the command line."""

    seeds: int
    """Training seeds, from 0."""

    episodes: int
    """Of each run."""

    policy_steps: int | None = None
    """Gradient updates of a policy; as published unless given."""

    critic_steps: int | None = None
    """Gradient updates of a critic; as published unless given."""

    scale: Scale = "small"
    """Of the sequence model: tiny and small are ours, published is the paper's."""

    device: str = "cpu"
    """Where training happens; acting is on the CPU."""

    methods: tuple[str, ...] = ()
    """Policies (`recipes.METHODS`); those of the study unless given."""

    critics: tuple[str, ...] = ()
    """Kinds of critics (`recipes.CRITICS`), where a study compares them; all unless given."""

    budget: Budget = "small"
    """How fine the grid is."""

    def __post_init__(self) -> None:
        for name in ("seeds", "episodes", "policy_steps", "critic_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("methods", "critics"):  # twice would count each seed twice
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))

    def pick(self, *, smoke: Any, small: Any, paper: Any) -> Any:
        """What of three belongs to the budget."""
        return {"smoke": smoke, "small": small, "paper": paper}[self.budget]


Grid = Callable[[Size, Sequence[Data]], Iterator[Run]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and how it is answered.

    Attributes:
        name: of the command line.
        title, question: for people.
        source: where the question comes from.
        data: what it runs on, by budget, unless told otherwise.
        sizes: by budget.
        grid: the runs for a size and datasets.
        shows: tables and plots of the rows, in their order.
        choices: what the source leaves open and what was chosen.
        published: tables of `published.py` to print beside.
        methods: the policies it can have, where these are not all of `recipes.METHODS`.
        critics: whether it compares kinds of critics.
        data_fixed: whether it makes sense on its own data alone.
    """

    name: str
    title: str
    question: str
    source: str
    data: Mapping[Budget, tuple[Data, ...]]
    sizes: Mapping[Budget, Size]
    grid: Grid
    shows: tuple[Show, ...]
    choices: str
    published: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None
    critics: bool = False
    data_fixed: bool = False

    def takes_methods(self, methods: Sequence[str]) -> bool:
        """Whether it can have these policies."""
        return self.methods is None or set(methods) <= set(self.methods)

    def runs(self, size: Size, data: Sequence[Data]) -> list[Run]:
        """The grid: at least one run, no two with the same labels.

        Raises:
            ValueError: the size or the data asks for what this study does not have.
        """
        self._refuse_unused(size, data)
        # A dataset given twice would count each seed twice.
        runs = list(self.grid(size, tuple(dict.fromkeys(data))))
        if not runs:
            raise ValueError(f"{self.name}: no runs for {[d.name for d in data]}")
        seen: dict[str, Run] = {}
        for run in runs:
            name = json.dumps(run.label, sort_keys=True)
            if name in seen and seen[name].key != run.key:
                raise ValueError(f"{self.name}: two different runs are labelled {name}")
            seen[name] = run
        return runs

    def _refuse_unused(self, size: Size, data: Sequence[Data]) -> None:
        if not self.takes_methods(size.methods):
            raise ValueError(
                f"size.methods: {self.name} has {', '.join(self.methods or ())}, "
                f"got {', '.join(size.methods)}"
            )
        if size.critics and not self.critics:
            raise ValueError(
                f"size.critics: {self.name} does not compare critics, got {', '.join(size.critics)}"
            )
        own = {each for found in self.data.values() for each in found}
        other = [each.name for each in data if each not in own]
        if self.data_fixed and other:
            raise ValueError(f"data: {self.name} has its own alone, got {', '.join(other)}")


def policy_config(training: Training) -> PolicyConfig:
    """The settings of a policy's training."""
    assert isinstance(training.config, PolicyConfig), training.trainer
    return training.config
