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
    from rich import box
    from rich.table import Table

    labels = list(dict.fromkeys(k for e in evaluations.values() for k in e.labelled_scores()))
    counts = sorted({len(evaluation) for evaluation in evaluations.values()})
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{' or '.join(map(str, counts))} episodes each, means with 95 % intervals; ms per "
        "action in a batch of environments",
        caption_justify="left",
    )
    table.add_column("policy")
    for column in ("return", "IQM", *(f"{label} score" for label in labels)):
        table.add_column(column, justify="right")
    for column in ("ms", "of it refining"):
        table.add_column(column, justify="right", max_width=8)
    for name, evaluation in evaluations.items():
        scores = evaluation.labelled_scores()
        cells = [
            with_interval(
                float(scores[label].mean()), stratified_bootstrap([scores[label]], "mean")
            )
            if label in scores
            else "-"
            for label in labels
        ]
        table.add_row(
            name,
            with_interval(evaluation.mean, evaluation.interval()),
            f"{evaluation.iqm:.1f}",
            *cells,
            f"{evaluation.policy_ms + evaluation.refinement_ms:.3f}",
            f"{evaluation.refinement_ms:.3f}",
        )
    return table


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """12.3 [10.1, 14.2]; with more digits behind the point where all of it is small."""
    largest = max(abs(value), *map(abs, interval))
    digits = 1 if largest >= 10 or largest == 0 else 2 if largest >= 1 else 3
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
