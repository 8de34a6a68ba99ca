"""The plots of a study: curves over a setting, one measure against another, pairs by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from dtag_fast.studies import plots
from dtag_fast.studies.report import Item, Plot
from dtag_fast.studies.results import MEASURES, Results, ranked, value_of
from dtag_fast.studies.show import NAMES, CurveShow, PairShow, ScatterShow
from dtag_fast.studies.style import FAINT, WIDTH, colours, styled
from dtag_fast.studies.tables import caption, file_name, word


def curves(show: CurveShow, results: Results) -> list[Item]:
    """A panel for each value of a label, a line with its band for each value of another."""
    drawn = results.where(dict(show.where))
    panels = [(None, drawn)]
    if show.panel is not None:
        panels = [(value, drawn.where({show.panel: value})) for value in drawn.values(show.panel)]
    panels = [(value, panel) for value, panel in panels if len(panel.values(show.x)) > 1]
    panels = [(value, panel) for value, panel in panels if panel.strata(show.y)]
    if not panels:
        return []
    figure = _curves(show, results, panels)
    y, x = MEASURES[show.y].label, NAMES.get(show.x, show.x)
    text = f"{caption((show.y,), drawn)} {show.note}".strip()
    if show.baseline:
        text += " Dashed: without refinement."
    return [Plot(file_name(show.title), figure, text, f"{y} against {x}, with intervals")]


@styled
def _curves(show: CurveShow, results: Results, panels: Sequence[tuple[Any, Results]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 0.5 + 2.1 * len(panels)))
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    lines: list[Any] = [None]
    if show.lines is not None:
        lines = list(
            dict.fromkeys(v for _, panel in panels for v in panel.values(show.lines or ""))
        )
    names = [_legend(show, line) for line in lines]
    palette = colours(names)
    for axes, (value, panel) in zip(all_axes, panels, strict=True):
        for line, name in zip(lines, names, strict=True):
            chosen = panel if show.lines is None else panel.where({show.lines: line})
            points = [
                (float(x), found)
                for x in ranked(chosen.values(show.x))
                if (found := chosen.where({show.x: x}).estimate(show.y)) is not None
            ]
            if not points:
                continue
            xs = [x for x, _ in points]
            colour = palette[name]
            low, high = [e.low for _, e in points], [e.high for _, e in points]
            if any(e.has_interval for _, e in points):
                axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                xs, [e.value for _, e in points], color=colour, marker="o", markersize=4, label=name
            )
            _baseline(show, chosen, axes, colour)
        if show.panel is not None:
            axes.set_title(word(show.panel, value), fontweight="normal")
        axes.set_ylabel(_label(show.y, panel))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if show.log:
            axes.set_xscale("log")
            axes.set_xticks(ranked(panel.values(show.x)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=_whole(panel.values(show.x))))
    all_axes[-1].set_xlabel(NAMES.get(show.x, show.x))
    if show.lines is not None and len(lines) > 1:
        handles = [
            Line2D([], [], color=palette[n], marker="o", markersize=4, label=n) for n in names
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(names)))
    return figure


def _baseline(show: CurveShow, chosen: Results, axes: Any, colour: str) -> None:
    """What the partners of the line's records reach, once for each set of partners."""
    if not show.baseline:
        return
    found = chosen.partners().estimate(show.y)
    if found is not None:
        axes.axhline(found.value, color=colour, linestyle="--", linewidth=1.2, alpha=0.8)


def _legend(show: CurveShow, value: Any) -> str:
    if show.lines is None:
        return ""
    text = word(show.lines, value)
    return text if isinstance(value, str | bool) else f"{NAMES.get(show.lines, show.lines)} {text}"


def _label(measure: str, results: Results) -> str:
    label = MEASURES[measure].label
    return results.scale() if measure == "score" else label


def _whole(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def scatter(show: ScatterShow, results: Results) -> list[Item]:
    """A point for each run that has both measures."""
    points = [
        (record.labels.get(show.color), x, y)
        for record in results.records
        if (x := value_of(record, show.x)) is not None
        and (y := value_of(record, show.y)) is not None
        and (x > 0 or not show.log)
    ]
    if len(points) < 2:
        return []
    figure = _scatter(show, points)
    text = f"A point for each run, one training seed each. {show.note}".strip()
    alt = f"Scatter of {MEASURES[show.y].label} against {MEASURES[show.x].label}"
    return [Plot(file_name(show.title), figure, text, alt)]


@styled
def _scatter(show: ScatterShow, points: Sequence[tuple[Any, float, float]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(word(show.color, value) for value, _, _ in points))
    palette = colours(names)
    for name in names:
        own = [(x, y) for value, x, y in points if word(show.color, value) == name]
        xs, ys = [x for x, _ in own], [y for _, y in own]
        axes.scatter(xs, ys, s=26, color=palette[name], alpha=0.6, lw=0, label=name)
    if show.y == "difference":
        axes.axhline(0.0, color=FAINT, linewidth=1)
    if show.log:
        axes.set_xscale("log")
    axes.set(xlabel=MEASURES[show.x].label, ylabel=MEASURES[show.y].label)
    if len(names) > 1 or names != [""]:
        figure.legend(loc="outside upper left", ncols=1 if max(map(len, names)) > 24 else 3)
    return figure


def pairs(show: PairShow, results: Results) -> list[Item]:
    """Each group's training seeds, unrefined above refined, joined.

    The unrefined of a group that has none of its own, as its labels vary refinement, are those
    that its refined records are compared with; these get no group of their own.
    """
    rows = []
    partners = {id(r.partner) for r in results.records if r.partner is not None}
    one = len(results.values("dataset")) == 1
    names = tuple(name for name in show.rows if name != "dataset" or not one) or show.rows
    for values, group in results.groups(names):
        name = ", ".join(word(n, v) for n, v in zip(names, values, strict=True) if v is not None)
        refined_ones, unrefined = (group.where({"refined": flag}) for flag in (True, False))
        if not refined_ones.records and all(id(r) in partners for r in group.records):
            continue
        if not unrefined.records:
            unrefined = refined_ones.partners()
        for refined, chosen in ((False, unrefined), (True, refined_ones)):
            found = chosen.estimate("score")
            if found is None:
                continue
            scores = {
                r.labels["seed"]: float(np.mean(r.scores)) for r in chosen.records if not r.diverged
            }
            rows.append(
                plots.ScoreRow(
                    name,
                    refined,
                    list(scores.values()),
                    (found.low, found.high),
                    list(scores),
                    found.value,
                )
            )
    if not rows:
        return []
    label = results.scale()
    figure = plots.scores(rows, label=label, point="one training seed", center="IQM")
    text = (
        f"{caption(('score',), results)} Lines join runs of one training seed. {show.note}".strip()
    )
    alt = f"{label} of every training seed with interquartile means, unrefined and refined"
    return [Plot(file_name(show.title), figure, text, alt)]
