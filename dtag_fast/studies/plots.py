"""The plots of training logs and of scores."""

from __future__ import annotations

import math
import numbers
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.result import Evaluation
from dtag_fast.evaluation.scores import normalized_score
from dtag_fast.studies.style import FAINT, REFINED, UNREFINED, WIDTH, styled

Floats = NDArray[np.float64]

# What a training log says of its own progress rather than of what is learnt.
BOOKKEEPING = ("step", "steps_per_second", "seconds")
TERMS = {
    "q_loss": "Q loss",
    "value_loss": "V loss",
    "q_mean": "mean Q",
    "value_mean": "mean V",
    "action_nll": "action NLL",
}


# --- training -------------------------------------------------------------------------------------


@styled
def training_curves(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], *, max_terms: int = 4
) -> Figure:
    """A panel for each number that a run logged: as it was, faint, and smoothed.

    Args:
        logs: the rows of each run's log.jsonl by the run's name (`training.logs.read_log`). What a
            row of training or evaluation has besides "step" is plotted where it is a finite number.
        max_terms: panels per run at most: an evaluation's score, if there is one, then the terms
            in the order in which the log has them.
    """
    runs = {name: _series(rows) for name, rows in logs.items()}
    for name, series in runs.items():
        if not series:
            raise ValueError(f"logs[{name!r}]: expected rows of 'step' and finite numbers")
    if not runs:
        raise ValueError("logs: expected at least one run")
    columns = 2
    chosen = {name: list(series)[:max_terms] for name, series in runs.items()}
    heights = [0.35 + 1.55 * math.ceil(len(terms) / columns) for terms in chosen.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    blocks = figure.subfigures(len(runs), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, (name, terms) in zip(blocks, chosen.items(), strict=True):
        block.suptitle(name, x=0.02, ha="left", fontsize=11, fontweight="bold")
        rows = math.ceil(len(terms) / columns)
        for index, term in enumerate(terms):
            axes = block.add_subplot(rows, columns, index + 1)
            steps, values = runs[name][term]
            smooth = moving_average(values)
            if len(values) > 12:
                axes.plot(steps, values, color=UNREFINED, alpha=0.3, linewidth=0.8)
                axes.plot(steps, smooth, color=UNREFINED, linewidth=1.8)
                axes.set_ylim(*_limits(values, smooth))
            else:
                axes.plot(
                    steps,
                    values,
                    color=UNREFINED,
                    linewidth=1.8,
                    marker="o",
                    markersize=4,
                    clip_on=False,
                )
            axes.set_title(TERMS.get(term, term.replace("_", " ")), fontweight="normal")
            axes.set_xlim(0, max(steps[-1] for steps, _ in runs[name].values()))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
            if index >= len(terms) - columns:
                axes.set_xlabel("step")
    return figure


def moving_average(values: ArrayLike, fraction: float = 0.05) -> Floats:
    """Centred means [N] over a window of that fraction of all values; cut short at the ends."""
    array = np.asarray(values, dtype=np.float64)
    half = int(len(array) * fraction / 2)
    sums = np.concatenate([[0.0], np.cumsum(array)])
    index = np.arange(len(array))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(array))
    means: Floats = (sums[last] - sums[first]) / (last - first)
    return means


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Floats, Floats]]:
    """Steps and values of every plotted term, a score first."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("event", "train") not in ("train", "evaluation"):
            continue
        for term, value in row.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if term not in BOOKKEEPING and is_number and math.isfinite(value):
                points.setdefault(term, []).append((row["step"], float(value)))
    # One point says nothing, except of an evaluation: an only one is at the end.
    kept = {term: p for term, p in points.items() if len(p) > 1 or term == "score"}
    return {
        term: (np.array([s for s, _ in kept[term]], float), np.array([v for _, v in kept[term]]))
        for term in sorted(kept, key=lambda term: term != "score")
    }


def _limits(values: Floats, smooth: Floats) -> tuple[float, float]:
    """All of the smooth curve and 98 % of the values: a single spike does not flatten the rest."""
    low = min(float(np.quantile(values, 0.01)), float(smooth.min()))
    high = max(float(np.quantile(values, 0.99)), float(smooth.max()))
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.06
    return low - margin, high + margin


def _thousands(step: float, _: int | None = None) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"


# --- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreRow:
    """The episodes of one policy.

    Attributes:
        method: its name; an unrefined and a refined row of one name are drawn as a pair.
        refined: whether actions were refined.
        values: return or score of each episode.
        interval: of their mean, 95 %; NaN, NaN for none.
        seeds: of the environment in each episode; episodes of one seed are joined by a line.
        center: what the interval is of; the mean unless given.
    """

    method: str
    refined: bool
    values: Sequence[float]
    interval: tuple[float, float]
    seeds: Sequence[int | None] | None = None
    center: float | None = None

    def __post_init__(self) -> None:
        if len(self.values) == 0:
            raise ValueError(f"values: expected at least one episode of {self.method!r}, got none")
        if self.seeds is not None and len(self.seeds) != len(self.values):
            raise ValueError(
                f"seeds: expected {len(self.values)}, one an episode, got {len(self.seeds)}"
            )

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def middle(self) -> float:
        return self.mean if self.center is None else self.center

    @classmethod
    def of(
        cls,
        method: str,
        refined: bool,
        evaluation: Evaluation,
        reference: ReferenceScores | None = None,
    ) -> ScoreRow:
        """The row of an evaluation: its returns, or its normalised scores with a reference."""
        interval = evaluation.interval("mean")
        values = evaluation.returns
        if reference is not None:
            values = evaluation.scores(reference)
            low, high = normalized_score(interval, reference)
            interval = (float(low), float(high))
        seeds = [episode.seed for episode in evaluation.episodes]
        return cls(method, refined, values.tolist(), interval, seeds)


@styled
def scores(
    rows: Sequence[ScoreRow],
    *,
    label: str = "return",
    point: str = "one episode",
    center: str = "mean",
) -> Figure:
    """Every value as a point, each policy's center with its interval, refined below unrefined.

    Args:
        rows: in the order in which to show the methods.
        label: what the values are, for the axis.
        point: what one of them belongs to.
        center: what the rows' centers are.
    """
    if not rows:
        raise ValueError("rows: expected at least one")
    methods = list(dict.fromkeys(row.method for row in rows))
    keys = [(row.method, row.refined) for row in rows]
    if len(set(keys)) < len(keys):
        raise ValueError(f"rows: expected one of each method and refinement, got {keys}")
    lines = len(rows) + len(methods)  # a line for each name
    figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * lines))
    axes = figure.add_subplot()
    line = 0.0
    for method in methods:
        pair = sorted((row for row in rows if row.method == method), key=lambda row: row.refined)
        name = axes.text(
            0.0,
            line,
            textwrap.fill(method, 44),
            transform=axes.get_yaxis_transform(),
            va="center",
            weight="bold",
            linespacing=1.05,
        )
        name.set_in_layout(False)  # however long it is, the axes stay
        _join_seeds(axes, pair, line + 1)
        for row in pair:
            line += 1
            _draw_row(axes, row, line)
        line += 1
    axes.text(
        1.02,
        0.0,
        f"{center} [95 %]",
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=FAINT,
    )
    axes.set_ylim(line - 0.3, -0.6)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label)
    colours = {False: ("unrefined", UNREFINED), True: ("refined", REFINED)}
    handles = [
        Line2D([], [], color=colour, marker="D", markersize=6, linewidth=2, label=name)
        for refined, (name, colour) in colours.items()
        if refined in {row.refined for row in rows}
    ]
    handles.append(Line2D([], [], color=FAINT, marker="o", markersize=4, linestyle="", label=point))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _draw_row(axes: Any, row: ScoreRow, line: float) -> None:
    colour = REFINED if row.refined else UNREFINED
    axes.scatter(row.values, np.full(len(row.values), line), s=14, color=colour, alpha=0.35, lw=0)
    # Beside the points, away from the lines to the other row.
    offset = line + (0.3 if row.refined else -0.3)
    axes.plot(row.interval, (offset, offset), color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(
        row.middle, offset, "D", color=colour, markersize=7, markeredgecolor="white", zorder=4
    )
    low, high = row.interval
    axes.text(
        1.02,
        line,
        _short(row.middle) + ("" if math.isnan(low) else f" [{_short(low)}, {_short(high)}]"),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=colour,
    )


def _join_seeds(axes: Any, pair: Sequence[ScoreRow], line: float) -> None:
    if len(pair) < 2:
        return
    before, after = (
        {s: v for s, v in zip(row.seeds or (), row.values, strict=False) if s is not None}
        for row in pair
    )
    for seed in before.keys() & after.keys():
        axes.plot(
            (before[seed], after[seed]), (line, line + 1), color=FAINT, alpha=0.35, linewidth=0.8
        )


def _short(value: float) -> str:
    """Three digits or so: 3.14, 31.4, 314, 3141."""
    return f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1))))}f}"
