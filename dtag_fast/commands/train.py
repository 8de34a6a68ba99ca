"""`dtag train policy` and `dtag train critic`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dtag_fast.training.config import (
    CRITIC_PAPERS,
    POLICY_PAPERS,
    PRESET_ENVS,
    CriticConfig,
    PolicyConfig,
    critic_preset,
    policy_preset,
)

if TYPE_CHECKING:
    from dtag_fast.data.trajectories import Trajectories

Maze = Literal["horizon", "reinformer-v1", "off"]


@dataclass(frozen=True, kw_only=True)
class TrainPolicy:
    """Train a policy on a dataset: Decision Transformer, Reinformer, or an MLP for comparison.

    --preset KIND-ENV sets the published values, e.g. reinformer-hopper, dt-halfcheetah-medium,
    bc-walker2d (behaviour cloning) or iql-maze2d-umaze (the policy of IQL, after its critic, which
    --critic names); every option below overrides one of them. --critic and --q-weight put the
    critic's gradient into the loss of any of them: training-time policy gradient, as QT.
    """

    data: str
    """Minari dataset: an id such as dtag/hopper/medium-v0, or a folder."""

    out: Path
    """Folder of the run: checkpoints, config.json, log.jsonl."""

    preset: str = "reinformer"
    """dt, reinformer, bc, iql, or one of them with an environment: dt-hopper. Without an
    environment the return scale is that of hopper, and dt has no target return."""

    resume: bool = False
    """Go on from the last checkpoint in --out, bit for bit as if never stopped."""

    maze: Maze = "horizon"
    """Continuing PointMaze data: relabelled for the evaluation goal and cut to its horizon, or to
    the 1000 steps of Reinformer's first release; off leaves an episode for every goal reached."""

    config: Annotated[PolicyConfig, tyro.conf.arg(name="")] = field(default_factory=PolicyConfig)
    """Training."""

    @classmethod
    def with_preset(cls, name: str | None) -> TrainPolicy:
        """The command with the defaults of a preset; `data` and `out` remain to be given."""
        name = "reinformer" if name is None else name
        kind, dash, env = name.partition("-")
        if kind not in POLICY_PAPERS or (dash and env not in PRESET_ENVS):
            raise ValueError(
                f"expected one of {', '.join(POLICY_PAPERS)}, alone or followed by -ENV with ENV "
                f"one of {', '.join(PRESET_ENVS)}; got {name!r}"
            )
        config = policy_preset(kind, env or "hopper")
        if not env:
            config = replace(config, target_return=None)  # there is none to ask for in general
        return cls(data=tyro.MISSING, out=tyro.MISSING, preset=name, config=config)

    def run(self) -> None:
        """Train, with periodic evaluation where the dataset names its environment."""
        from dtag_fast.evaluation.periodic import policy_evaluation
        from dtag_fast.training.sequence import train_policy

        data = load_data(self.data, self.maze)
        evaluate = policy_evaluation(data, self.config) if self.config.evaluation_every else None
        train_policy(data, self.config, self.out, resume=self.resume, evaluate=evaluate)


@dataclass(frozen=True, kw_only=True)
class TrainCritic:
    """Train a critic on a dataset.

    --preset PAPER-ENV sets the method and its published values, with PAPER iql, corl (IQL by CORL),
    td3-bc, cql or ensemble (ten heads by IQL, of targets of their own; ours): iql-hopper,
    corl-hopper-medium, td3-bc-maze2d-umaze; every option below overrides one of them.
    """

    data: str
    """Minari dataset: an id such as dtag/hopper/medium-v0, or a folder."""

    out: Path
    """Folder of the run: checkpoints, config.json, log.jsonl."""

    preset: str = "iql"
    """iql, corl, td3-bc, cql or ensemble, alone or with an environment: corl-hopper-medium."""

    resume: bool = False
    """Go on from the last checkpoint in --out, bit for bit as if never stopped."""

    maze: Maze = "horizon"
    """Continuing PointMaze data: relabelled for the evaluation goal and cut to its horizon, or to
    the 1000 steps of Reinformer's first release; off leaves an episode for every goal reached."""

    config: Annotated[CriticConfig, tyro.conf.arg(name="")] = field(default_factory=CriticConfig)
    """Training."""

    @classmethod
    def with_preset(cls, name: str | None) -> TrainCritic:
        """The command with the defaults of a preset; `data` and `out` remain to be given."""
        name = "iql" if name is None else name
        presets = {
            f"{paper}-{env}" if env else paper: (paper, env or "halfcheetah")
            for paper in CRITIC_PAPERS
            for env in ("", *PRESET_ENVS)
        }
        if name not in presets:
            raise ValueError(
                f"expected one of {', '.join(CRITIC_PAPERS)}, alone or followed by -ENV with ENV "
                f"one of {', '.join(PRESET_ENVS)}; got {name!r}"
            )
        config = critic_preset(*presets[name])
        return cls(data=tyro.MISSING, out=tyro.MISSING, preset=name, config=config)

    def run(self) -> None:
        """Train."""
        if self.config.evaluation_every:
            raise ValueError(
                f"--evaluation-every: expected 0, there is no policy to act with; got "
                f"{self.config.evaluation_every} (`dtag evaluate` scores a policy with the critic)"
            )
        from dtag_fast.training.critic import train_critic

        data = load_data(self.data, self.maze)
        train_critic(data, self.config, self.out, resume=self.resume)


def load_data(id: str, maze: Maze = "horizon") -> Trajectories:
    """A Minari dataset as it is trained on: PointMaze data in the maze view asked for."""
    from dtag_fast.data.maze import is_continuing_maze, maze_view
    from dtag_fast.data.trajectories import Trajectories

    data = Trajectories.from_minari(id)
    if maze == "off" or not is_continuing_maze(data.info):
        return data
    return maze_view(data, chunking=maze)
