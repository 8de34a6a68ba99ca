"""Evaluations as one table, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dtag_fast.evaluation.result import Evaluation
from dtag_fast.evaluation.scores import stratified_bootstrap

if TYPE_CHECKING:
    from rich.table import Table


def evaluation_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row each: return and every normalised score with its 95 % interval, ms per action."""
    from rich.table import Table

    labels = list(dict.fromkeys(k for e in evaluations.values() for k in e.labelled_scores()))
    table = Table("policy", "episodes", "return", "IQM")
    for label in labels:
        table.add_column(f"{label} score")
    for column in ("policy ms", "refine ms", "Q gain"):
        table.add_column(column, justify="right")
    for name, evaluation in evaluations.items():
        scores = evaluation.labelled_scores()
        gain = evaluation.q_gain
        table.add_row(
            name,
            str(len(evaluation)),
            with_interval(evaluation.mean, evaluation.interval()),
            with_interval(evaluation.iqm, evaluation.interval("iqm")),
            *(
                with_interval(
                    float(scores[label].mean()), stratified_bootstrap([scores[label]], "mean")
                )
                if label in scores
                else "-"
                for label in labels
            ),
            f"{evaluation.policy_ms:.3f}",
            f"{evaluation.refinement_ms:.4f}",
            "-" if gain is None else f"{gain:.3g}",
        )
    return table


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """12.3 [10.1, 14.2]"""
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
