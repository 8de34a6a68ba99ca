"""The critic seen from above: Q over two action dimensions, and how refinement climbs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import nn

from dtag_fast.refinement import reference
from dtag_fast.refinement.options import Bounds, Ensemble, RefineOptions
from dtag_fast.studies.style import REFINED, UNREFINED, WIDTH, styled

Floats = NDArray[np.float64]

# Without the darkest part of the map, on which the paths would be hard to see.
_COLOURS = LinearSegmentedColormap.from_list(
    "landscape", colormaps["YlGnBu"](np.linspace(0.0, 0.7, 64))
)
_START: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "markersize": 7,
    "markerfacecolor": "white",
    "markeredgecolor": UNREFINED,
    "markeredgewidth": 1.8,
}
_CHOSEN: dict[str, Any] = {
    "marker": "*",
    "linestyle": "",
    "markersize": 12,
    "markerfacecolor": REFINED,
    "markeredgecolor": "white",
    "markeredgewidth": 1.0,
}


def refinement_paths(
    critic: nn.Module, observation: ArrayLike, starts: ArrayLike, *, steps: int = 10, **options: Any
) -> list[Floats]:
    """Candidates 0 to n of every start, by the reference implementation.

    Args:
        critic: (observations [B, S], actions [B, A]) -> [E, B].
        observation: [S], raw.
        starts: [P, A], the actions to refine.
        steps: n.
        options: as `dtag_fast.refine` takes them, less `select`, `backend` and `return_info`.

    Returns:
        P paths [n + 1, A].
    """
    actions = np.asarray(starts, dtype=np.float32)
    observations = np.tile(np.asarray(observation, dtype=np.float32), (len(actions), 1))
    # Every prefix anew: any optimiser's state, and the ball around candidate 0, stay right.
    iterates = [
        reference.refine(critic, observations, actions, steps=i, select="last", **options)
        for i in range(steps + 1)
    ]
    return list(np.stack(iterates, axis=1).astype(np.float64))


@styled
def critic_landscape(
    critic: nn.Module,
    observation: ArrayLike,
    paths: Sequence[ArrayLike],
    *,
    dims: tuple[int, int] = (0, 1),
    bounds: Bounds = (-1.0, 1.0),
    ensemble: Ensemble = "min",
    names: tuple[str, str] | None = None,
    resolution: int = 121,
) -> Figure:
    """Q over two action dimensions, with refinement paths.

    The other dimensions are held where the first path starts; a path that moves in those too is
    drawn as its projection. The candidate of highest Q, which is the one executed, is marked.

    Args:
        critic: (observations [B, S], actions [B, A]) -> [E, B].
        observation: [S], raw.
        paths: each [n + 1, A], see `refinement_paths`.
        dims: the two dimensions.
        bounds: of the actions, as `dtag_fast.refine` takes them.
        ensemble: how the heads are made one: "min", "mean" or "lcb".
        names: of the two dimensions.
        resolution: points of the grid a side.
    """
    tracks = [np.asarray(path, dtype=np.float64) for path in paths]
    if not tracks or any(track.ndim != 2 or len(track) == 0 for track in tracks):
        shapes = [list(track.shape) for track in tracks]
        raise ValueError(f"paths: expected at least one, each [n + 1, A], got shapes {shapes}")
    action_dim = tracks[0].shape[1]
    if len(set(dims)) != 2 or not all(0 <= dim < action_dim for dim in dims):
        raise ValueError(f"dims: expected two of the {action_dim} action dimensions, got {dims}")
    low, high = _box(bounds, action_dim)
    x, y = (np.linspace(low[dim], high[dim], resolution) for dim in dims)
    grid = np.tile(tracks[0][0], (resolution * resolution, 1))
    grid[:, dims[0]] = np.tile(x, resolution)
    grid[:, dims[1]] = np.repeat(y, resolution)
    q = _values(critic, observation, grid, ensemble).reshape(resolution, resolution)

    figure = Figure(figsize=(WIDTH, 4.5))
    axes = figure.add_subplot()
    # Also where Q is the same everywhere; and where it is not finite nothing is filled.
    finite = q[np.isfinite(q)]
    if not finite.size:
        raise ValueError("critic: expected a finite Q somewhere in the plane, got none")
    levels = MaxNLocator(18).tick_values(finite.min(), finite.max())
    filled = axes.contourf(x, y, np.ma.masked_invalid(q), levels=levels, cmap=_COLOURS)
    if finite.min() < finite.max():
        axes.contour(filled, levels=levels, colors="white", linewidths=0.5, linestyles="solid")
    bar = figure.colorbar(filled, ax=axes, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(6)
    bar.set_label({"min": "Q, the lowest head", "mean": "Q, mean of heads"}.get(ensemble, "Q, LCB"))
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    for track in tracks:
        u, v = track[:, dims[0]], track[:, dims[1]]
        along = _values(critic, observation, track, ensemble)
        best = int(np.where(np.isfinite(along), along, -np.inf).argmax())
        axes.plot(u, v, color=REFINED, linewidth=1.8, path_effects=halo, zorder=3, clip_on=False)
        axes.plot(u[1:], v[1:], ".", color=REFINED, markersize=5, zorder=4, clip_on=False)
        axes.plot(u[0], v[0], zorder=5, clip_on=False, **_START)
        axes.plot(u[best], v[best], zorder=6, clip_on=False, **_CHOSEN)
    first, second = names or (f"action[{dims[0]}]", f"action[{dims[1]}]")
    axes.set(xlabel=first, ylabel=second, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.grid(visible=False)
    handles = [
        Line2D([], [], label="policy's action", **_START),
        Line2D([], [], color=REFINED, linewidth=1.8, marker=".", label="steps"),
        Line2D([], [], label="executed", **_CHOSEN),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _values(
    critic: nn.Module, observation: ArrayLike, actions: Floats, ensemble: Ensemble
) -> Floats:
    """The ensemble's Q [B] of actions [B, A]: a refinement of no steps says it."""
    observations = np.tile(np.asarray(observation, dtype=np.float32), (len(actions), 1))
    _, info = reference.refine(
        critic,
        observations,
        actions.astype(np.float32),
        steps=0,
        bounds=None,
        ensemble=ensemble,
        return_info=True,
    )
    q: Floats = info.q.cpu().double().numpy()
    return q


def _box(bounds: Bounds, action_dim: int) -> tuple[Floats, Floats]:
    options = RefineOptions.check(
        steps=0,
        step_size=0.0,
        optimizer="sgd",
        bounds=bounds,
        ensemble="min",
        lcb_k=1.0,
        select="best",
        max_distance=None,
        gradient="raw",
    )
    options.check_action_dim(action_dim)
    low, high = (np.broadcast_to(np.array(b), (action_dim,)) for b in (options.low, options.high))
    return low, high
