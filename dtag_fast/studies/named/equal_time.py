"""The table of `test-time`: for each time that AG takes, what else fits into it."""

from __future__ import annotations

from collections.abc import Sequence

from dtag_fast.studies.report import Estimate, Item, Table
from dtag_fast.studies.results import Results
from dtag_fast.studies.tables import caption

# Measured times differ by this much from run to run.
SLACK = 1.15


def equal_time(results: Results) -> Sequence[Item]:
    """A row for each dataset and n of AG: the largest N of each other way that is as quick."""
    ways = [way for way in results.values("way") if way != "AG"]
    rows: list[list[object]] = []
    for (dataset,), group in results.where({"refined": True}).groups(("dataset",)):
        climbing = group.where({"way": "AG"})
        for n in climbing.values("n"):
            own = climbing.where({"n": n})
            time = own.estimate("refinement_us")
            if time is None:
                continue
            cells: list[object] = []
            for way in ways:
                found = _largest_within(group.where({"way": way}), time.value)
                cells += ["", None] if found is None else [f"N = {found[0]}", found[1]]
            rows.append([dataset, n, time, own.estimate("difference"), *cells])
    if not rows:
        return []
    columns = ["data", "AG, n", "µs refining", "AG: change"]
    for way in ways:
        columns += [way, f"{way}: change"]
    note = (
        f"{caption(('difference', 'refinement_us'), results)} "
        f"Beside each AG the largest N that takes no longer, up to {100 * (SLACK - 1):.0f} %; "
        "nothing where even the smallest does."
    )
    return [Table(columns, rows, caption=note)]


def _largest_within(group: Results, time: float) -> tuple[int, Estimate | None] | None:
    """The largest N whose refinement takes no longer than that many µs, and its change."""
    best = None
    for count in group.values("N"):
        chosen = group.where({"N": count})
        taken = chosen.estimate("refinement_us")
        if taken is not None and taken.value <= SLACK * time and (best is None or count > best):
            best = count
    return None if best is None else (best, group.where({"N": best}).estimate("difference"))
