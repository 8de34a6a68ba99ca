"""The table of `selection`: what each rule would have chosen without the environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dtag_fast.evaluation.scores import interquartile_mean
from dtag_fast.studies import recipes
from dtag_fast.studies.judge import spearman
from dtag_fast.studies.report import Item, Table, Text
from dtag_fast.studies.results import Record, Results, estimate, interval, value_of, warning

# What of the claimed gain a setting needs to have confirmed.
SHARE = 0.8


def _default(records: Sequence[Record]) -> Record | None:
    """The default refinement; None where it is not among the settings."""
    default = (recipes.REFINEMENT["step_size"], recipes.REFINEMENT["steps"], None)
    for record in records:
        if (record.labels["eta"], record.labels["n"], record.labels["limit"]) == default:
            return record
    return None


def _most(measure: str) -> Callable[[Sequence[Record]], Record | None]:
    return lambda records: max(records, key=lambda r: value_of(r, measure) or 0.0)


def _confirmed(records: Sequence[Record]) -> Record | None:
    """The largest confirmed gain of those whose share is confirmed; None if of none."""
    sure = [r for r in records if (value_of(r, "confirmed_share") or 0.0) >= SHARE]
    return _most("confirmed")(sure) if sure else None


def _cautious(records: Sequence[Record]) -> Record | None:
    """The largest confirmed gain less what the critics disagree by; None if none is positive."""

    def sure(record: Record) -> float:
        claimed, confirmed = (value_of(record, m) or 0.0 for m in ("claimed", "confirmed"))
        return confirmed - 2.0 * abs(claimed - confirmed)

    best = max(records, key=sure)
    return best if sure(best) > 0 else None


DEFAULT = "always the default"
# A rule sees the refined records of one training seed, and picks one, or None: do not refine.
RULES: dict[str, Callable[[Sequence[Record]], Record | None]] = {
    DEFAULT: _default,
    "largest claimed gain": _most("claimed"),
    "largest confirmed gain": _most("confirmed"),
    f"largest confirmed gain, {SHARE:.0%} or more confirmed": _confirmed,
    "confirmed gain less twice the disagreement": _cautious,
    "best in hindsight": _most("difference"),
}


def rules(results: Results) -> Sequence[Item]:
    """For each dataset and rule the true change of its choices, and rank correlations."""
    rows: list[list[object]] = []
    said = []
    for (dataset,), group in results.where({"refined": True}).groups(("dataset",)):
        usable = [r for r in group.records if value_of(r, "difference") is not None]
        seeds = {
            seed: [r for r in usable if r.labels["seed"] == seed] for seed in group.values("seed")
        }
        seeds = {seed: records for seed, records in seeds.items() if records}
        if not seeds:
            continue
        for name, rule in RULES.items():
            chosen = [rule(records) for records in seeds.values()]
            if name == DEFAULT and None in chosen:
                continue  # there is no such setting, which says nothing of not refining
            changes = np.array(
                [0.0 if r is None else value_of(r, "difference") or 0.0 for r in chosen]
            )
            low, high = interval([changes], "iqm")
            refined = sum(r is not None for r in chosen)
            rows.append(
                [
                    dataset,
                    name,
                    estimate(float(interquartile_mean(changes)), low, high),
                    f"{refined} of {len(chosen)}",
                ]
            )
        correlations = {
            label: spearman(
                np.array([value_of(r, measure) or 0.0 for r in usable]),
                np.array([value_of(r, "difference") or 0.0 for r in usable]),
            )
            for measure, label in (
                ("claimed", "claimed gain"),
                ("confirmed", "confirmed gain"),
                ("confirmed_share", "confirmed share"),
            )
        }
        listed = ", ".join(f"{name} {value:.2f}" for name, value in correlations.items())
        said.append(f"{dataset}: rank correlation with the true change: {listed}.")
    if not rows:
        return []
    note = (
        "A rule chooses for each training seed by itself, among all settings or not to refine; "
        "interquartile means with 95 % bootstrap intervals over training seeds. The last rule "
        f"knows the true change. {warning(results.seeds)}"
    ).rstrip()
    return [
        Table(["data", "rule", "true change", "seeds refined"], rows, caption=note),
        Text("\n\n".join(said)),
    ]
