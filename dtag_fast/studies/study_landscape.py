"""What a study's critic thinks of the actions in one state, and where refinement goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dtag_fast.acting.policy import Policy
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.evaluation.environments import make_env
from dtag_fast.models.critic import Critic
from dtag_fast.studies import datasets, work
from dtag_fast.studies.landscape import critic_landscape, refinement_paths
from dtag_fast.studies.report import Item, Plot
from dtag_fast.studies.results import Record, Results
from dtag_fast.studies.style import FAINT, REFINED, UNREFINED, WIDTH, styled

Floats = NDArray[np.float64]
# What `reference.refine` does not take.
_NOT_REFINING = ("context_action", "backend", "algorithm", "precision", "threads", "select")


def landscape(results: Results) -> Sequence[Item]:
    """The landscape of the first refined record whose trainings are here; nothing without one."""
    for record in results.records:
        if record.run.refinement is None or record.diverged or record.run.critic is None:
            continue
        folders = {t.key: results.trainings / t.key for t in record.run.trainings}
        if all(work.is_trained(t, folders[t.key]) for t in record.run.trainings):
            return [_landscape(record, folders)]
    return []


def _landscape(record: Record, folders: dict[str, Path]) -> Plot:
    run = record.run
    data = datasets.load(run.data)
    critic = work.load_critic(run.critic, folders)
    assert critic is not None
    assert run.refinement is not None
    policy = work.actor(replace(run, refinement=None, samples=1), data, folders)
    observation = _start(data, run.env_seed)
    policy.reset()
    own = policy.act(observation)
    options = {k: v for k, v in run.refinement if k not in _NOT_REFINING}
    if not options.get("steps", 10):
        options["steps"] = 10
    options.setdefault("bounds", (policy.action_low, policy.action_high))
    starts = np.vstack([own, _around(own, policy)])
    paths = refinement_paths(critic, observation, starts, **options)
    ensemble = options.get("ensemble", "min")
    who = f"{record.labels.get('method', 'policy')} on {run.data.name}"
    if policy.action_dim == 1:
        figure = _line(critic, observation, paths[0], data, policy, options["bounds"])
        caption = (
            f"{who}: the critic's value of every action at the start of an episode. The line ends "
            "at the action that is executed; bars show how often the data has an action."
        )
    else:
        figure = critic_landscape(
            critic, observation, paths, bounds=options["bounds"], ensemble=ensemble
        )
        caption = (
            f"{who}: the critic's value over two of {policy.action_dim} action dimensions at the "
            "start of an episode, with the paths from the policy's action and from four others."
        )
    alt = "The critic's value over the action, with refinement paths climbing it"
    return Plot("landscape", figure, caption, alt)


def _start(data: Trajectories, seed: int) -> NDArray[np.float32]:
    assert data.info.env_spec is not None
    env = make_env(data.info.env_spec)
    observation: NDArray[np.float32]
    observation, _ = env.reset(seed=seed)
    env.close()
    return observation


def _around(own: NDArray[np.float32], policy: Policy) -> NDArray[np.float32]:
    """Four actions that differ from the policy's in the first two dimensions."""
    if policy.action_dim == 1:
        return np.zeros((0, 1), dtype=np.float32)
    middle = (policy.action_low + policy.action_high) / 2
    half = (policy.action_high - policy.action_low) / 2
    others = np.tile(own, (4, 1))
    corners = np.array([[-0.7, -0.7], [-0.7, 0.7], [0.7, -0.7], [0.7, 0.7]], dtype=np.float32)
    others[:, :2] = middle[:2] + corners * half[:2]
    return others


@styled
def _line(
    critic: Critic,
    observation: NDArray[np.float32],
    path: Floats,
    data: Trajectories,
    policy: Policy,
    bounds: Any,
) -> Figure:
    """Q over a single action dimension, the data's actions below."""
    low, high = float(policy.action_low[0]), float(policy.action_high[0])
    actions = np.linspace(low, high, 201)
    q = _lowest(critic, observation, actions)
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.add_subplot()
    axes.plot(actions, q, color=FAINT, linewidth=1.8)
    counts, edges = np.histogram(data.actions[:, 0], bins=40, range=(low, high))
    heights = counts / counts.max() * 0.25 * (q.max() - q.min())
    axes.bar(
        edges[:-1],
        heights,
        np.diff(edges),
        bottom=q.min() - 0.3 * (q.max() - q.min()),
        align="edge",
        color=FAINT,
        alpha=0.35,
        lw=0,
    )
    values = _lowest(critic, observation, path[:, 0])
    best = int(values.argmax())
    axes.plot(path[: best + 1, 0], values[: best + 1], ".-", color=REFINED, linewidth=1.8, zorder=3)
    start: dict[str, Any] = {
        "marker": "o",
        "linestyle": "",
        "markersize": 7,
        "markerfacecolor": "white",
        "markeredgecolor": UNREFINED,
        "markeredgewidth": 1.8,
    }
    chosen: dict[str, Any] = {
        "marker": "*",
        "linestyle": "",
        "markersize": 13,
        "markerfacecolor": REFINED,
        "markeredgecolor": "white",
    }
    axes.plot(path[0, 0], values[0], zorder=5, **start)
    axes.plot(path[best, 0], values[best], zorder=6, **chosen)
    axes.set(xlabel="action", ylabel="Q, the lowest head", xlim=(low, high))
    handles = [
        Line2D([], [], label="policy's action", **start),
        Line2D([], [], color=REFINED, linewidth=1.8, marker=".", label="steps"),
        Line2D([], [], label="executed", **chosen),
        Line2D([], [], color=FAINT, alpha=0.35, linewidth=6, label="data"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.0)
    return figure


def _lowest(critic: Critic, observation: NDArray[np.float32], actions: Floats) -> Floats:
    import torch

    with torch.inference_mode():
        q = critic(
            torch.from_numpy(np.tile(observation, (len(actions), 1))),
            torch.from_numpy(actions.astype(np.float32)[:, None]),
        )
    lowest: Floats = q.min(dim=0).values.double().numpy()
    return lowest
