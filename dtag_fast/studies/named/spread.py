"""The table of `policy-gradient`: what each way reaches, how seeds differ, and what diverged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dtag_fast.evaluation.scores import interquartile_mean
from dtag_fast.studies.declare import policy_config
from dtag_fast.studies.report import Estimate, Item, Table, Text
from dtag_fast.studies.results import Floats, Record, Results, estimate, interval
from dtag_fast.studies.tables import LAST_SEED, caption, word

_LABELS = ("dataset", "method", "q_weight", "refined")


def spread(results: Results) -> Sequence[Item]:
    """A row for each dataset, policy and weight, unrefined and refined; then what diverged.

    A row stays where all its trainings diverged. Changes are against the policy of the same kind
    and training seed with neither PG nor AG, by environment seed.
    """
    if not results.records:
        return []
    plain = {
        _kin(record): record
        for record in results.records
        if record.labels.get("refined") is False and policy_config(record.run.policy).q_weight == 0
    }
    rows: list[list[object]] = []
    for values, group in results.groups(_LABELS):
        scored = [record for record in group.records if not record.diverged]
        seeds = np.array([record.scores.mean() for record in scored])
        rows.append(
            [
                *(word(name, value) for name, value in zip(_LABELS, values, strict=True)),
                group.estimate("score", "mean"),
                group.estimate("score"),
                float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
                float(seeds.min()) if len(seeds) > 0 else None,
                _change(scored, plain),
                f"{len(group.records) - len(scored)} of {len(group.records)}",
            ]
        )
    scale = results.scale() or "score"
    columns = ["data", "policy", "weight of −Q", "refined", f"{scale}, mean", "IQM"]
    columns += ["standard deviation", "lowest seed", "change against plain, IQM", "diverged"]
    note = (
        f"{caption(('score', 'difference'), results)} The first interval is of the mean. The "
        "standard deviation and the lowest are of the training seeds' means; the plain policy is "
        "that of the same kind and training seed with neither PG nor AG."
    )
    if any(record.diverged for record in results.records) and LAST_SEED not in note:
        note += f" {LAST_SEED}"
    items: list[Item] = [Table(columns, rows, caption=note)]
    said = dict.fromkeys(_what(record) for record in results.records if record.diverged)
    if said:
        items.append(Text("\n\n".join(said)))
    return items


def _kin(record: Record) -> tuple[object, ...]:
    """What a policy and the plain one beside it have in common."""
    kind = policy_config(record.run.policy).model.kind
    return (record.labels["dataset"], kind, record.labels["seed"])


def _change(records: Sequence[Record], plain: dict[tuple[object, ...], Record]) -> Estimate | None:
    """By training seed, or of a single one by episode; None without partners or for themselves."""
    found: list[Floats] = []
    for record in records:
        beside = plain.get(_kin(record))
        if beside is not None and beside is not record and not beside.diverged:
            found.append(record.scores - beside.scores)
    if not found:
        return None
    changes = found[0] if len(found) == 1 else np.array([change.mean() for change in found])
    low, high = interval([changes], "iqm")
    return estimate(float(interquartile_mean(changes)), low, high)


def _what(record: Record) -> str:
    """Which training of which policy diverged, and where."""
    weight = record.labels.get("q_weight")
    gradient = "" if weight is None else f", weight {word('q_weight', weight)}"
    return (
        f"{record.labels['dataset']}, {record.labels['method']}{gradient}, training seed "
        f"{record.labels['seed']}, diverged: {record.row['result']['what']}"
    )
