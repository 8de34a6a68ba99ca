"""The whole path in minutes: make a maze dataset, train both parts, act with and without
refinement on the same starts, report."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dtag_fast.acting.policy import Policy
from dtag_fast.data.generate import make
from dtag_fast.data.maze import maze_view
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation.environments import make_env
from dtag_fast.evaluation.result import Comparison, Evaluation, compare
from dtag_fast.evaluation.rollout import evaluate
from dtag_fast.evaluation.table import evaluation_table, with_interval
from dtag_fast.models.critic import Critic
from dtag_fast.studies import plots
from dtag_fast.studies.landscape import critic_landscape, refinement_paths
from dtag_fast.studies.report import Facts, Plot, Section, Table, Text, write_report
from dtag_fast.threads import torch_threads
from dtag_fast.training.config import CriticConfig, PolicyConfig, critic_preset, policy_preset
from dtag_fast.training.critic import train_critic
from dtag_fast.training.logs import read_log
from dtag_fast.training.sequence import train_policy

DATASET = "dtag/pointmaze/umaze-v0"


def _policy() -> PolicyConfig:
    """Reinformer, smaller than published: the full one takes hours on two cores.

    One thread, here and for the critic: at these sizes a second one gains little on idle cores and
    costs much on busy ones.
    """
    preset = policy_preset("reinformer", "maze2d-umaze")
    return replace(
        preset,
        model=replace(preset.model, blocks=3, embedding_dim=128, attention_heads=4),
        steps=2_000,
        batch_size=64,
        learning_rate=5e-4,
        warmup_steps=300,
        checkpoint_every=1_000,
        evaluation_every=0,
        threads=1,
    )


def _critic() -> CriticConfig:
    """The IQL authors' critic with the expectile they use for AntMaze, for fewer steps."""
    return replace(
        critic_preset("iql", "maze2d-umaze"),
        expectile=0.9,
        normalize_observations=True,
        steps=20_000,
        checkpoint_every=5_000,
        threads=1,
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo does; the defaults take minutes on two cores."""

    dataset: str = DATASET
    dataset_steps: int = 300_000
    policy: PolicyConfig = field(default_factory=_policy)
    critic: CriticConfig = field(default_factory=_critic)
    episodes: int = 100
    seed: int = 0
    # A step of fixed length, since the gradient's scale is that of the rewards.
    refinement: dict[str, Any] = field(
        default_factory=lambda: {"steps": 10, "step_size": 0.05, "gradient": "unit"}
    )


CAVEAT = (
    "The Reinformer is small and trained for minutes, on data of a controller that was sent to a "
    "new goal each time it had reached one. It copies how that controller moves; where to move to, "
    "the critic knows better."
)
# Seconds on two cores, for the estimate of what remains.
STAGES = {"dataset": 30.0, "policy": 220.0, "critic": 240.0, "evaluation": 60.0, "report": 10.0}


def run_demo(directory: Path, config: DemoConfig | None = None) -> dict[str, Evaluation]:
    """Make, train, evaluate and report into a folder; print one table at the end.

    A dataset that is there and training that was finished are not done again, and training that
    was interrupted goes on: a second run is quick, and gives the same.

    Args:
        directory: of the report; the two runs go to `directory/runs`.
        config: see `DemoConfig`.
    """
    config = config or DemoConfig()
    console = Console()
    stages = _Stages(console)
    with stages.stage(
        "dataset", f"{config.dataset_steps} steps of a controller in PointMaze-UMaze"
    ):
        made = make(
            "pointmaze-umaze", steps=config.dataset_steps, seed=config.seed, id=config.dataset
        )
        console.print(made.message)
        data = maze_view(Trajectories.from_minari(made.id))
    runs = directory / "runs"
    with stages.stage("policy", f"Reinformer, {config.policy.steps} updates"):
        train_policy(data, config.policy, runs / "policy", resume=True)
    with stages.stage("critic", f"IQL critic, {config.critic.steps} updates"):
        train_critic(data, config.critic, runs / "critic", resume=True)
    policy = Policy.load(runs / "policy")
    critic = Critic.load(runs / "critic")
    with (
        stages.stage("evaluation", f"{config.episodes} episodes, unrefined and refined"),
        torch_threads(1),
    ):
        results = _evaluate(policy, critic, data, config)
    with stages.stage("report", str(directory)):
        page = _report(directory, data, policy, critic, results, config)
    pair = compare(*results.values())
    console.print(evaluation_table(results))
    console.print(
        f"Refinement changes the return by {with_interval(pair.mean, pair.interval)}, paired by "
        f"seed: {pair.wins} episodes better, {pair.losses} worse."
    )
    console.print(f"All of it took {_minutes(stages.elapsed)}. Report: {page}")
    return results


def _evaluate(
    policy: Policy, critic: Critic, data: Trajectories, config: DemoConfig
) -> dict[str, Evaluation]:
    assert data.info.env_spec is not None
    policies = {
        "Reinformer": policy,
        "Reinformer + AG": policy.with_refinement(critic, **config.refinement),
    }
    return {
        name: evaluate(
            actor,
            data.info.env_spec,
            config.episodes,
            config.seed,
            num_envs=min(20, config.episodes),
            references=data.info.references,
            progress=True,
        )
        for name, actor in policies.items()
    }


def _report(
    directory: Path,
    data: Trajectories,
    policy: Policy,
    critic: Critic,
    results: dict[str, Evaluation],
    config: DemoConfig,
) -> Path:
    runs = directory / "runs"
    pair = compare(*results.values())
    latency = _latency(policy, critic, data, config)
    landscape, point = _landscape(policy, critic, data, config)
    curves = plots.training_curves(
        {"Reinformer": read_log(runs / "policy"), "IQL critic": read_log(runs / "critic")}
    )
    rows = [
        plots.ScoreRow.of("Reinformer", refined, result)
        for refined, result in zip((False, True), results.values(), strict=True)
    ]
    sections = [
        Section("Scores", [_score_table(results), Text(CAVEAT), _score_plot(rows)]),
        Section("Time of an action, one environment", [_latency_table(latency)]),
        Section(
            "The critic's landscape",
            [
                Text(
                    "What the critic thinks of every force that could be applied where an episode "
                    f"starts, at {point}, and the paths that refinement takes from the policy's "
                    "action and from four others."
                ),
                Plot(
                    "landscape",
                    landscape,
                    "Q over the two action dimensions, with refinement paths.",
                    "Contours of the critic's value over the two action dimensions with paths "
                    "climbing towards higher values",
                ),
            ],
        ),
        Section(
            "Training",
            [
                Plot(
                    "training",
                    curves,
                    "Losses and other figures, as logged and smoothed.",
                    "Curves of the training losses of the Reinformer and of the critic",
                )
            ],
        ),
        Section("Data", [Facts(_data_facts(data))]),
    ]
    return write_report(
        directory,
        "PointMaze-UMaze: Reinformer with and without Action Gradient",
        sections,
        summary=_finding(pair, config),
        results={
            "evaluations": {name: result.to_dict() for name, result in results.items()},
            "difference": pair.to_dict(),
            "latency_ms": latency,
            "policy": config.policy.to_dict(),
            "critic": config.critic.to_dict(),
            "refinement": config.refinement,
        },
        commands=["make demo"],
    )


def _score_table(results: dict[str, Evaluation]) -> Table:
    from dtag_fast.evaluation.scores import stratified_bootstrap
    from dtag_fast.studies.report import Estimate

    labels = list(next(iter(results.values())).labelled_scores())
    rows: list[list[object]] = []
    for name, result in results.items():
        scores = result.labelled_scores()
        cells = [Estimate(result.mean, *result.interval())]
        for label in labels:
            interval = stratified_bootstrap([scores[label]], "mean")
            cells.append(Estimate(float(scores[label].mean()), *interval))
        milliseconds = result.policy_ms + result.refinement_ms
        rows.append([name, len(result), *cells, f"{milliseconds:.3f}"])
    columns = ["policy", "episodes", "return", *(f"{label} score" for label in labels)]
    return Table(
        [*columns, "ms per action"],
        rows,
        caption="Last checkpoint; 95 % bootstrap intervals over episodes. Time of an action in a "
        "batch of environments.",
        emphasized=[len(rows) - 1],
    )


def _score_plot(rows: list[plots.ScoreRow]) -> Plot:
    return Plot(
        "scores",
        plots.scores(rows, label="return"),
        "Every episode; lines join episodes of one environment seed.",
        "Returns of all episodes with their mean and interval, unrefined and refined",
    )


def _finding(pair: Comparison, config: DemoConfig) -> str:
    low, high = pair.interval
    verdict = "raises" if low > 0 else "lowers" if high < 0 else "does not clearly change"
    return (
        f"Refining every action with {config.refinement['steps']} gradient steps {verdict} the "
        f"return: {with_interval(pair.mean, pair.interval)}, paired by environment seed "
        f"({pair.wins} episodes better, {pair.losses} worse of {len(pair.differences)}). One "
        "training seed; the interval is over episodes."
    )


def _latency(
    policy: Policy, critic: Critic, data: Trajectories, config: DemoConfig
) -> dict[str, dict[str, Any]]:
    """Median ms of the parts of `Policy.act`, one environment, one thread."""
    assert data.info.env_spec is not None
    env = make_env(data.info.env_spec)
    found: dict[str, dict[str, Any]] = {}
    with contextlib.closing(env), torch_threads(1):
        for name, backend in (
            ("dtag_fast.refine", "auto"),
            ("dtag_fast.reference.refine", "reference"),
        ):
            actor = policy.with_refinement(critic, backend=backend, **config.refinement)
            actor.reset()
            observation, _ = env.reset(seed=config.seed)
            times: list[tuple[float, float]] = []
            for _ in range(60):
                observation, *_ = env.step(actor.act(observation))
                assert actor.last_timing is not None
                times.append((actor.last_timing.model_ms, actor.last_timing.refinement_ms))
            assert actor.refiner is not None
            found[name] = {
                "backend": actor.refiner.backend,
                "model": statistics.median(t for t, _ in times[10:]),
                "refinement": statistics.median(t for _, t in times[10:]),
            }
    return found


def _latency_table(latency: dict[str, dict[str, Any]]) -> Table:
    return Table(
        ["refinement by", "backend", "model ms", "refinement ms"],
        [
            [name, str(row["backend"]), f"{row['model']:.3f}", f"{row['refinement']:.4f}"]
            for name, row in latency.items()
        ],
        caption="Medians over 50 steps, one thread.",
    )


def _landscape(
    policy: Policy, critic: Critic, data: Trajectories, config: DemoConfig
) -> tuple[Any, str]:
    """The landscape where the policy starts, with paths from its action and four others."""
    assert data.info.env_spec is not None
    env = make_env(data.info.env_spec)
    observation, _ = env.reset(seed=config.seed)
    env.close()
    actor = policy.without_refinement()
    actor.reset()
    own: NDArray[np.float32] = actor.act(observation)
    others = np.array([[-0.7, -0.7], [-0.7, 0.7], [0.7, -0.7], [0.7, 0.7]], dtype=np.float32)
    paths = refinement_paths(critic, observation, np.vstack([own, others]), **config.refinement)
    figure = critic_landscape(critic, observation, paths, names=("force in x", "force in y"))
    return figure, f"({observation[0]:.2f}, {observation[1]:.2f})"


def _data_facts(data: Trajectories) -> dict[str, object]:
    returns = data.returns()
    return {
        "dataset": data.info.id,
        "trajectories": f"{data.episodes} of {int(data.lengths().mean())} steps",
        "return": f"{returns.mean():.1f} ± {returns.std():.1f}, best {returns.max():.1f}",
        "fingerprint": data.fingerprint()[:16],
    }


class _Stages:
    """Says before each stage how long the rest will take, judged by the stages already done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.done = 0.0  # nominal seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.start

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """One of `STAGES`."""
        number = list(STAGES).index(name) + 1
        pace = self.elapsed / self.done if self.done else 1.0
        rest = pace * (sum(STAGES.values()) - self.done)
        self.console.print(
            f"[bold]{number}/{len(STAGES)} {name}[/bold]: {description} "
            f"({_minutes(self.elapsed)} so far, about {_minutes(rest)} to go)"
        )
        yield
        self.done += STAGES[name]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
