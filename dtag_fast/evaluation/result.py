"""What an evaluation found: its episodes, their statistics, and two evaluations side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.scores import (
    SOURCE_LABELS,
    Statistic,
    interquartile_mean,
    normalized_score,
    stratified_bootstrap,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    Attributes:
        episode: its number in the evaluation, from 0.
        env: the environment of the batch that ran it.
        seed: what the environment was reset with; None where it reset itself.
        total_return: undiscounted sum of rewards.
        length: steps.
        terminated, truncated: how it ended; both may be True.
        policy_ms: mean time of an action without refinement. What a batch took is divided among
            its rows, as in all these times.
        refinement_ms: mean time of an action's refinement; 0 without.
        env_ms: mean time of the environment's step.
        q_gain: mean of Q(executed) - Q(the policy's own action) by the refining critic; None
            without refinement, as the next two.
        distance: mean L2 distance between the two actions.
        best_step: mean index of the chosen candidate.
    """

    episode: int
    env: int
    seed: int | None
    total_return: float
    length: int
    terminated: bool
    truncated: bool
    policy_ms: float
    refinement_ms: float
    env_ms: float
    q_gain: float | None = None
    distance: float | None = None
    best_step: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the return is under "return"."""
        values = dict(vars(self))
        return {("return" if k == "total_return" else k): v for k, v in values.items()}


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one policy in one environment.

    Attributes:
        episodes: in the order of their numbers.
        seed: the first episode's; episode j has seed + j.
        num_envs: how many environments ran at once.
        references: the scales on which scores are given.
        wall_s: the time it all took, without making the environments.
    """

    episodes: tuple[EpisodeResult, ...]
    seed: int
    num_envs: int
    references: tuple[ReferenceScores, ...]
    wall_s: float

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def returns(self) -> Floats:
        """[episodes]."""
        return np.array([episode.total_return for episode in self.episodes], dtype=np.float64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[episodes]."""
        return np.array([episode.length for episode in self.episodes], dtype=np.int64)

    @property
    def actions(self) -> int:
        """Steps of all episodes together."""
        return int(self.lengths.sum())

    @property
    def mean(self) -> float:
        """Of the returns."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Of the returns, over the population of episodes (divided by N)."""
        return float(self.returns.std())

    @property
    def iqm(self) -> float:
        """Interquartile mean of the returns."""
        return float(interquartile_mean(self.returns))

    def interval(
        self, statistic: Statistic = "mean", *, confidence: float = 0.95, resamples: int = 2000
    ) -> tuple[float, float]:
        """Bootstrap interval of a statistic of the returns: the spread of episodes, not of
        training seeds, for which see `stratified_bootstrap`."""
        return stratified_bootstrap(
            [self.returns], statistic, confidence=confidence, resamples=resamples
        )

    def scores(self, reference: ReferenceScores | str | None = None) -> Floats:
        """Normalised scores of the episodes, times 100.

        Args:
            reference: one, or "d4rl" or "minari" to pick from `references`; None where there is
                just one.
        """
        if isinstance(reference, ReferenceScores):
            return normalized_score(self.returns, reference)
        found = [r for r in self.references if reference in (None, r.source)]
        if len(found) != 1:
            have = ", ".join(r.source for r in self.references) or "none"
            raise ValueError(
                f"reference: expected one of this evaluation's ({have}), got {reference!r}"
            )
        return normalized_score(self.returns, found[0])

    def labelled_scores(self) -> dict[str, Floats]:
        """Normalised scores of the episodes on every scale there is, by its label."""
        return {
            SOURCE_LABELS[reference.source]: normalized_score(self.returns, reference)
            for reference in self.references
        }

    @property
    def policy_ms(self) -> float:
        """Mean time of an action without refinement, in ms."""
        return self._per_action("policy_ms")

    @property
    def refinement_ms(self) -> float:
        """Mean time of an action's refinement, in ms."""
        return self._per_action("refinement_ms")

    @property
    def env_ms(self) -> float:
        """Mean time of an environment's step, in ms."""
        return self._per_action("env_ms")

    @property
    def q_gain(self) -> float | None:
        """Mean gain in Q of an action by refinement, as its critic sees it; None without."""
        if any(episode.q_gain is None for episode in self.episodes):
            return None
        return self._per_action("q_gain")

    def _per_action(self, name: str) -> float:
        values = np.array([getattr(episode, name) for episode in self.episodes], dtype=np.float64)
        return float((values * self.lengths).sum() / self.lengths.sum())

    def to_dict(self) -> dict[str, Any]:
        """The summary in JSON values, with 95 % intervals; without the single episodes."""
        return {
            "episodes": len(self),
            "seed": self.seed,
            "num_envs": self.num_envs,
            "return": {**_summary(self.returns), "std": self.std},
            "score": {label: _summary(v) for label, v in self.labelled_scores().items()},
            "references": [reference.to_dict() for reference in self.references],
            "length": float(self.lengths.mean()),
            "ms_per_action": {
                "policy": self.policy_ms,
                "refinement": self.refinement_ms,
                "env": self.env_ms,
            },
            "q_gain": self.q_gain,
            "wall_s": self.wall_s,
        }


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same environment seeds.

    Attributes:
        differences: [episodes], return of the second less that of the first, by seed.
        mean: of the differences.
        interval: its bootstrap interval.
        confidence: of the interval.
        wins, losses: episodes in which the second did better, or worse; the rest are ties.
    """

    differences: Floats
    mean: float
    interval: tuple[float, float]
    confidence: float
    wins: int
    losses: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "mean": self.mean,
            "interval": list(self.interval),
            "confidence": self.confidence,
            "wins": self.wins,
            "losses": self.losses,
            "differences": self.differences.tolist(),
        }


def compare(
    before: Evaluation,
    after: Evaluation,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Pair the episodes of two evaluations by seed and look at the differences in return.

    Raises:
        ValueError: the seeds of the two are not the same, or not all known.
    """
    pairs = []
    for name, evaluation in (("before", before), ("after", after)):
        by_seed = {episode.seed: episode.total_return for episode in evaluation.episodes}
        if None in by_seed or len(by_seed) != len(evaluation):
            raise ValueError(
                f"{name}: expected episodes with a seed of their own each; in a vector environment "
                f"that resets itself only the first of every environment has one"
            )
        pairs.append(by_seed)
    if pairs[0].keys() != pairs[1].keys():
        raise ValueError(
            f"expected the same seeds, got {_span(before)} in before and {_span(after)} in after"
        )
    differences = np.array([pairs[1][seed_] - value for seed_, value in pairs[0].items()])
    return Comparison(
        differences=differences,
        mean=float(differences.mean()),
        interval=stratified_bootstrap(
            [differences], "mean", confidence=confidence, resamples=resamples, seed=seed
        ),
        confidence=confidence,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _summary(values: Floats) -> dict[str, Any]:
    return {
        "mean": float(values.mean()),
        "mean_interval": list(stratified_bootstrap([values], "mean")),
        "iqm": float(interquartile_mean(values)),
        "iqm_interval": list(stratified_bootstrap([values], "iqm")),
    }


def _span(evaluation: Evaluation) -> str:
    return f"{len(evaluation)} from {evaluation.seed}"
