"""From rows to plots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dtag_fast.studies.declare import options
from dtag_fast.studies.report import Plot
from dtag_fast.studies.results import Results
from dtag_fast.studies.show import CurveShow, PairShow, ScatterShow
from dtag_fast.studies.style import COLOURS, colours
from tests.studies.conftest import DATA


def test_curves_have_a_panel_a_dataset(results: Results) -> None:
    show = CurveShow(title="Score", x="n", y="score", lines="method", log=True)
    (plot,) = show.items(results)
    assert isinstance(plot, Plot)
    assert len(plot.figure.axes) == 2
    for axes, data in zip(plot.figure.axes, DATA, strict=True):
        assert axes.get_title(loc="left") == data.name
        curve, dashed = axes.get_lines()
        assert np.asarray(curve.get_xdata()).tolist() == [1, 5, 20]
        centers = [results.where({"dataset": data.name, "n": n}) for n in (1, 5, 20)]
        expected = [e.value for r in centers if (e := r.estimate("score")) is not None]
        assert np.asarray(curve.get_ydata()).tolist() == expected
        assert set(np.asarray(dashed.get_ydata()).tolist()) == {51.0}
        assert len(axes.collections) == 1  # the band


def test_a_curve_needs_two_points(results: Results) -> None:
    show = CurveShow(title="Score", x="n", y="score", where=options(n=5))
    assert list(show.items(results)) == []
    assert list(replace(show, where=(), y="critic_rank").items(results)) == []


def test_a_scatter_has_a_point_a_run(results: Results) -> None:
    show = ScatterShow(title="Gain", x="distance", y="difference")
    (plot,) = show.items(results)
    assert isinstance(plot, Plot)
    (axes,) = plot.figure.axes
    points = np.vstack([c.get_offsets() for c in axes.collections])
    assert sorted(map(tuple, points.round(9).tolist())) == sorted(
        (round(0.01 * n, 9), float(sign * n))
        for n in (1, 5, 20) for sign in (1, -1) for _ in range(3)
    )  # fmt: skip


def test_pairs_show_every_seed(results: Results) -> None:
    show = PairShow(title="Seeds", rows=("dataset",), where=options(dataset=DATA[0].name))
    (plot,) = show.items(results)
    assert isinstance(plot, Plot)
    offsets = [c.get_offsets() for c in plot.figure.axes[0].collections]
    assert sorted(np.vstack(offsets)[:, 0].tolist())[:3] == [50.0, 51.0, 52.0]
    assert "IQM [95 %]" in {text.get_text() for text in plot.figure.axes[0].texts}


def test_pairs_take_the_unrefined_that_a_group_is_compared_with(results: Results) -> None:
    show = PairShow(title="Seeds", rows=("dataset", "n"), where=options(dataset=DATA[0].name))
    (plot,) = show.items(results)
    assert isinstance(plot, Plot)
    axes = plot.figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert "" not in texts
    assert [text for text in texts if text in ("1", "5", "20")] == ["1", "5", "20"]
    offsets = [np.asarray(c.get_offsets())[:, 0].tolist() for c in axes.collections]
    expected = [[50.0 + n + s for s in range(3)] for k in (1, 5, 20) for n in (0, k)]
    assert sorted(map(sorted, offsets)) == sorted(expected)
    joined = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    for n in (1, 5, 20):
        assert all([50.0 + s, 50.0 + n + s] in joined for s in range(3))


def test_pairs_keep_a_policy_that_is_never_refined(results: Results) -> None:
    alone = tuple(r for r in results.records if r.partner is None)
    (plot,) = PairShow(title="Seeds", rows=("method",)).items(replace(results, records=alone))
    assert isinstance(plot, Plot)
    assert len(plot.figure.axes[0].collections) == 1


def test_a_method_has_its_colour_wherever_it_stands() -> None:
    for names in (["Reinformer", "x", "y"], ["y", "x", "Reinformer"]):
        found = colours(names)
        assert found["Reinformer"] == COLOURS["Reinformer"]
        assert len(set(found.values())) == 3
