"""The plots show the numbers they are given."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.result import EpisodeResult, Evaluation
from dtag_fast.studies.plots import ScoreRow, moving_average, scores, training_curves
from dtag_fast.studies.style import DPI, REFINED, STYLE, UNREFINED, WIDTH


def render(figure: Figure) -> np.ndarray:
    """[height, width, 4], as the report writes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    image: np.ndarray = imread(buffer)
    return image


def run(terms: tuple[str, ...], rows: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    log: list[dict[str, Any]] = [{"event": "start", "step": 0, "steps": 10 * rows}]
    log.append({"event": "start", "step": 0, "steps": 10 * rows})  # once more: it was resumed
    for i in range(rows):
        values = {term: float(rng.normal() + k) for k, term in enumerate(terms)}
        log.append({"event": "train", "step": 10 * (i + 1), **values, "steps_per_second": 5.0})
    return log


def by_title(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.get_axes()}


def test_training_curves_show_the_log() -> None:
    policy = run(("loss",))
    policy.insert(20, {"event": "evaluation", "step": 200, "score": 31.0, "seconds": 2.0})
    policy.append({"event": "evaluation", "step": 400, "score": 42.0, "seconds": 2.0})
    logs = {"policy": policy, "critic": run(("q_loss", "value_loss", "q_mean", "value_mean"))}
    figure = training_curves(logs)

    axes = by_title(figure)
    assert list(axes) == ["score", "loss", "Q loss", "V loss", "mean Q", "mean V"]
    np.testing.assert_array_equal(axes["score"].lines[0].get_xydata(), [[200, 31], [400, 42]])
    raw, smooth = axes["Q loss"].lines
    values = [row["q_loss"] for row in logs["critic"][2:]]
    np.testing.assert_array_equal(raw.get_ydata(), values)
    np.testing.assert_array_equal(raw.get_xdata(), range(10, 401, 10))
    np.testing.assert_allclose(smooth.get_ydata(), moving_average(values))
    assert [block.get_suptitle() for block in figure.subfigs] == ["policy", "critic"]
    assert render(figure).shape[1] == WIDTH * DPI


def test_training_curves_skip_what_is_not_finite_and_limit_panels() -> None:
    rows = run(("a", "b", "c", "d", "e"))
    rows[4]["a"] = None  # as RunLog writes a NaN
    rows[5]["a"] = math.inf
    rows[6]["flag"] = True
    axes = by_title(training_curves({"x": rows}, max_terms=3))
    assert list(axes) == ["a", "b", "c"]
    steps = axes["a"].lines[0].get_xdata()
    assert len(steps) == 38
    assert not {30, 40} & set(steps)


def test_one_spike_does_not_flatten_a_curve() -> None:
    rows = run(("loss",), rows=400)
    rows[200]["loss"] = 1e6
    low, high = by_title(training_curves({"x": rows}))["loss"].get_ylim()
    assert high - low < 1e5
    constant = [{"step": i, "loss": 2.0} for i in range(50)]
    low, high = by_title(training_curves({"x": constant}))["loss"].get_ylim()
    assert low < 2.0 < high


@pytest.mark.parametrize("logs", [{}, {"x": []}, {"x": [{"step": 1, "loss": None}]}])
def test_training_curves_need_something_to_show(logs: dict[str, list[dict[str, object]]]) -> None:
    with pytest.raises(ValueError, match="logs"):
        training_curves(logs)


def test_moving_average() -> None:
    values = np.arange(100.0) ** 2
    smooth = moving_average(values, fraction=0.1)
    assert smooth[50] == values[45:56].mean()
    assert smooth[0] == values[:6].mean()
    assert smooth[-1] == values[-6:].mean()
    np.testing.assert_array_equal(moving_average([3.0, 1.0]), [3.0, 1.0])


ROWS = [
    ScoreRow("DT", True, [60.0, 80.0, 85.5], (65.0, 84.0), [2, 1, 7]),
    ScoreRow("DT", False, [50.0, 70.0, 75.0], (55.0, 74.0), [1, 2, 3]),
    ScoreRow("Reinformer", False, [1234.5, 1100.0], (1100.0, 1234.5)),
]


def test_scores_show_episodes_means_and_pairs() -> None:
    figure = scores(ROWS, label="normalised score (D4RL)")
    axes: Any = figure.get_axes()[0]
    assert axes.get_xlabel() == "normalised score (D4RL)"

    clouds = [(c.get_offsets(), mpl.colors.to_hex(c.get_facecolor()[0])) for c in axes.collections]
    assert [list(offsets[:, 0]) for offsets, _ in clouds] == [
        [50.0, 70.0, 75.0],
        [60.0, 80.0, 85.5],
        [1234.5, 1100.0],
    ]
    assert [colour.upper() for _, colour in clouds] == [UNREFINED, REFINED, UNREFINED]
    first, second = (offsets[0, 1] for offsets, _ in clouds[:2])

    lines = [line.get_xydata().tolist() for line in axes.lines]
    joined = [line for line in lines if len(line) == 2 and line[0][1] != line[1][1]]
    assert sorted(joined) == [  # seeds 1 and 2, in both rows
        [[50.0, first], [80.0, second]],
        [[70.0, first], [60.0, second]],
    ]
    intervals = [[p[0] for p in line] for line in lines if len(line) == 2 and line not in joined]
    assert intervals == [[55.0, 74.0], [65.0, 84.0], [1100.0, 1234.5]]
    means = [line[0][0] for line in lines if len(line) == 1]
    assert means == [row.mean for row in (ROWS[1], ROWS[0], ROWS[2])]

    texts = [text.get_text() for text in axes.texts]
    assert "65.0 [55.0, 74.0]" in texts
    assert "1167 [1100, 1234]" in texts
    assert {"DT", "Reinformer"} < set(texts)
    assert render(figure).shape[1] == WIDTH * DPI


def test_row_of_an_evaluation() -> None:
    episodes = tuple(
        EpisodeResult(
            episode=i,
            env=0,
            seed=5 + i,
            total_return=value,
            length=1,
            terminated=True,
            truncated=False,
            policy_ms=0.0,
            refinement_ms=0.0,
            env_ms=0.0,
        )
        for i, value in enumerate([10.0, 20.0, 60.0])
    )
    evaluation = Evaluation(episodes, seed=5, num_envs=1, references=(), wall_s=0.0)
    row = ScoreRow.of("DT", True, evaluation)
    assert (row.values, row.seeds, row.mean) == ([10.0, 20.0, 60.0], [5, 6, 7], 30.0)
    assert row.interval == evaluation.interval()
    low, high = row.interval
    assert low < 30 < high
    scored = ScoreRow.of("DT", True, evaluation, ReferenceScores("d4rl", 10.0, 60.0))
    assert scored.values == [0.0, 20.0, 100.0]
    assert scored.interval == pytest.approx((2 * (low - 10), 2 * (high - 10)))


def test_scores_all_the_same() -> None:
    render(scores([ScoreRow("a", False, [0.0, 0.0], (0.0, 0.0))]))


def test_scores_refuses() -> None:
    with pytest.raises(ValueError, match="rows: expected at least one"):
        scores([])
    with pytest.raises(ValueError, match="one of each method and refinement"):
        scores([ROWS[0], ROWS[0]])
    with pytest.raises(ValueError, match="at least one episode of 'a'"):
        ScoreRow("a", False, [], (0.0, 0.0))
    with pytest.raises(ValueError, match="seeds: expected 2, one an episode, got 1"):
        ScoreRow("a", False, [1.0, 2.0], (0.0, 0.0), [1])


def test_global_style_stays() -> None:
    before = {key: mpl.rcParams[key] for key in STYLE}
    training_curves({"x": run(("loss",))})
    scores(ROWS)
    assert {key: mpl.rcParams[key] for key in STYLE} == before != STYLE
