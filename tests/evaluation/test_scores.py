"""Statistics against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtag_fast.data.references import ReferenceScores, references_for
from dtag_fast.evaluation.result import Comparison, EpisodeResult, Evaluation, compare
from dtag_fast.evaluation.scores import (
    interquartile_mean,
    normalized_score,
    stratified_bootstrap,
)


def evaluation_of(returns: list[float], seed: int = 0, **changes: Any) -> Evaluation:
    episodes = tuple(
        EpisodeResult(
            episode=i,
            env=0,
            seed=None if changes.get("seedless") else seed + i,
            total_return=value,
            length=changes.get("lengths", [10] * len(returns))[i],
            terminated=True,
            truncated=False,
            policy_ms=float(i),
            refinement_ms=0.5,
            env_ms=0.25,
            q_gain=changes.get("q_gain"),
        )
        for i, value in enumerate(returns)
    )
    return Evaluation(episodes, seed, 1, changes.get("references", ()), wall_s=2.0)


def test_normalized_score() -> None:
    hopper = references_for("Hopper-v5")[0]
    scores = normalized_score([hopper.minimum, hopper.maximum, 1607.01384], hopper)
    np.testing.assert_allclose(scores, [0.0, 100.0, 50.0], atol=1e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),
        ([100.0, 1.0, 3.0, 2.0], 2.5),
        ([5.0, 1.0, 2.0, 3.0, -90.0, 4.0, 6.0, 800.0], 3.5),
    ],
)
def test_interquartile_mean(values: list[float], expected: float) -> None:
    assert interquartile_mean(values) == expected


@settings(deadline=None)  # scipy is slow to import
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_interquartile_mean_is_scipys_trimmed_mean(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    expected = stats.trim_mean(values, 0.25)
    assert interquartile_mean(values) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_interquartile_mean_works_along_the_last_axis() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 9))
    result = interquartile_mean(values)
    assert result.shape == (3, 5)
    assert result[2, 4] == pytest.approx(interquartile_mean(values[2, 4]))
    with pytest.raises(ValueError, match="values: expected at least one"):
        interquartile_mean([])


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        sample = rng.normal(3.0, 2.0, size=60)
        low, high = stratified_bootstrap([sample], "mean", resamples=400, seed=trial)
        hits += low <= 3.0 <= high
    assert 180 <= hits <= 198  # 95 % of 200, less what the bootstrap is known to fall short


def test_bootstrap_resamples_within_strata() -> None:
    """Between strata that differ, but do not vary in themselves, there is nothing to resample."""
    low, high = stratified_bootstrap([[1.0] * 5, [9.0] * 5], "mean")
    assert low == high == 5.0
    low, high = stratified_bootstrap([[1.0] * 5 + [9.0] * 5], "mean")
    assert low < 4.0 < 6.0 < high


def test_bootstrap_is_reproducible_and_takes_any_statistic() -> None:
    values = np.random.default_rng(1).normal(size=30)
    assert stratified_bootstrap([values], seed=4) == stratified_bootstrap([values], seed=4)
    assert stratified_bootstrap([values], seed=4) != stratified_bootstrap([values], seed=5)
    assert stratified_bootstrap([values], "median") == stratified_bootstrap(
        [values], lambda x: np.median(x, axis=-1)
    )
    narrow = stratified_bootstrap([values], "mean", confidence=0.5)
    wide = stratified_bootstrap([values], "mean", confidence=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("strata", "options", "message"),
    [
        ([], {}, "strata: expected at least one"),
        ([[]], {}, r"strata\[0\]: expected a vector of at least one"),
        ([[1.0], [np.nan]], {}, r"strata\[1\]: expected finite"),
        ([[1.0]], {"confidence": 1.0}, "confidence: expected a number between 0 and 1"),
        ([[1.0]], {"resamples": 0}, "resamples: expected at least 1"),
        ([[1.0]], {"statistic": "mode"}, "statistic: expected one of mean, iqm, median"),
    ],
)
def test_bad_bootstraps(strata: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stratified_bootstrap(strata, **options)


def test_evaluation_sums_up() -> None:
    evaluation = evaluation_of([1.0, 2.0, 3.0, 10.0], lengths=[1, 1, 2, 6], q_gain=0.5)
    assert evaluation.returns.tolist() == [1.0, 2.0, 3.0, 10.0]
    assert (evaluation.mean, evaluation.iqm, evaluation.actions) == (4.0, 2.5, 10)
    assert evaluation.std == pytest.approx(np.std([1, 2, 3, 10]))
    assert evaluation.policy_ms == (0 + 1 + 2 * 2 + 3 * 6) / 10, "per action, not per episode"
    assert evaluation.q_gain == 0.5
    low, high = evaluation.interval()
    assert 1.0 <= low < 4.0 < high <= 10.0
    assert evaluation.interval("iqm", confidence=0.5) != (low, high)


def test_scores_keep_their_labels_apart() -> None:
    references = (ReferenceScores("d4rl", 0.0, 10.0), ReferenceScores("minari", 0.0, 100.0))
    evaluation = evaluation_of([5.0, 10.0], references=references)
    assert evaluation.scores("d4rl").tolist() == [50.0, 100.0]
    assert evaluation.scores(references[1]).tolist() == [5.0, 10.0]
    with pytest.raises(ValueError, match=r"expected one of this evaluation's \(d4rl, minari\)"):
        evaluation.scores()
    with pytest.raises(ValueError, match=r"evaluation's \(none\), got 'd4rl'"):
        evaluation_of([5.0]).scores("d4rl")
    summary = evaluation.to_dict()
    assert summary["score"]["D4RL"]["mean"] == 75.0
    assert summary["score"]["Minari"]["mean"] == 7.5
    assert summary["return"]["mean_interval"] == list(evaluation.interval())
    one = evaluation_of([5.0], references=references[:1])
    assert one.scores().tolist() == [50.0]


def test_compare_pairs_by_seed() -> None:
    before = evaluation_of([10.0, 200.0, 3000.0, 5.0])
    after = evaluation_of([11.0, 203.0, 3002.0, 5.0])
    comparison = compare(before, after)
    assert isinstance(comparison, Comparison)
    assert comparison.differences.tolist() == [1.0, 3.0, 2.0, 0.0]
    assert (comparison.mean, comparison.wins, comparison.losses) == (1.5, 3, 0)
    assert 0.0 <= comparison.interval[0] < 1.5 < comparison.interval[1] <= 3.0, (
        "paired: the spread between seeds does not enter"
    )
    backwards = Evaluation(tuple(reversed(after.episodes)), 0, 1, (), 1.0)
    assert compare(before, backwards).mean == 1.5
    assert compare(after, before).mean == -1.5
    assert comparison.to_dict()["interval"] == list(comparison.interval)


def test_what_can_not_be_compared() -> None:
    with pytest.raises(ValueError, match="expected the same seeds, got 2 from 0"):
        compare(evaluation_of([1.0, 2.0]), evaluation_of([1.0, 2.0], seed=1))
    with pytest.raises(ValueError, match="before: expected episodes with a seed of their own"):
        compare(evaluation_of([1.0, 2.0], seedless=True), evaluation_of([1.0, 2.0]))
