"""The rows of a study as numbers: measures, estimates over training seeds, paired differences.

Aggregation follows Agarwal et al. 2021 (arXiv 2108.13264): a training seed counts as one value, the
mean over its episodes; the estimate is the interquartile mean; its interval is bootstrapped over
seeds within each dataset. With a single training seed there is no spread over seeds, and the
episodes are resampled instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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
from dtag_fast.studies.declare import Run
from dtag_fast.studies.report import Estimate

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Record:
    """A run, its row, and the record of the same policy without refinement."""

    run: Run
    labels: dict[str, Any]
    row: Mapping[str, Any]
    partner: Record | None = None

    @property
    def diverged(self) -> bool:
        return bool(self.row["status"] == "diverged")

    @property
    def scores(self) -> Floats:
        """Of the episodes, on the first of the data's scales; their returns where there is none."""
        returns = np.array(self.row["result"]["returns"], dtype=np.float64)
        references = self.row["result"]["references"]
        if not references:
            return returns
        return normalized_score(returns, ReferenceScores.from_dict(references[0]))

    @property
    def scale(self) -> str:
        """What `scores` are."""
        references = self.row["result"]["references"]
        if not references:
            return "return"
        return f"{SOURCE_LABELS[references[0]['source']]} score"

    def matches(self, labels: Mapping[str, Any]) -> bool:
        """Whether it has these labels."""
        return all(k in self.labels and self.labels[k] == v for k, v in labels.items())


# Records by the names of their other labels, which are few kinds, and then by what these are.
Unrefined = dict[tuple[str, ...], dict[tuple[Any, ...], Record]]


@dataclass(frozen=True)
class Measure:
    """A figure of a record: one value an episode where it is `episodic`, else one in all."""

    label: str
    of: Callable[[Record], Floats | float | None]
    digits: int | None = None  # as many as make sense for the size
    episodic: bool = False


def _score(record: Record) -> Floats:
    return record.scores


def _return(record: Record) -> Floats:
    return np.array(record.row["result"]["returns"], dtype=np.float64)


def _difference(record: Record) -> Floats | None:
    """Score less that of the unrefined policy, by environment seed."""
    partner = record.partner
    if partner is None or partner.diverged:
        return None
    return record.scores - partner.scores


def _result(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.row["result"].get(name)


def _timing(*names: str) -> Callable[[Record], float | None]:
    def total(record: Record) -> float | None:
        found = [record.row["timing"].get(name) for name in names]
        return None if None in found else float(sum(found))

    return total


MEASURES = {
    "score": Measure("score", _score, episodic=True),
    "return": Measure("return", _return, episodic=True),
    "difference": Measure("change by refinement", _difference, episodic=True),
    "q_gain": Measure("Q gain", _result("q_gain")),
    "distance": Measure("moved", _result("distance")),
    "best_step": Measure("chosen candidate", _result("best_step"), digits=1),
    "refinement_us": Measure("µs refining", _timing("refinement_us")),
    "action_us": Measure("µs an action", _timing("model_us", "refinement_us")),
    "critic_bias": Measure("critic's bias", _result("critic_bias"), digits=2),
    "critic_rank": Measure("critic's rank correlation", _result("critic_rank"), digits=2),
    "claimed": Measure("claimed gain", _result("claimed")),
    "confirmed": Measure("confirmed gain", _result("confirmed")),
    "confirmed_share": Measure("confirmed share", _result("confirmed_share"), digits=2),
    "relative_gain": Measure("claimed gain / |Q|", _result("relative_gain"), digits=4),
    "moved": Measure("moved, on the data", _result("moved"), digits=2),
}


@dataclass(frozen=True)
class Results:
    """All records of a study, in the order of its grid, and where its trainings are."""

    records: tuple[Record, ...]
    trainings: Path
    missing: int = 0
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, runs: Sequence[Run], rows: Mapping[str, Mapping[str, Any]], trainings: Path
    ) -> Results:
        """The records of those runs that have a row.

        The unrefined record whose other labels a refined one has as well is its partner.
        """
        plain = [Record(run, run.label, rows[run.key]) for run in runs if run.key in rows]
        unrefined: Unrefined = {}
        for record in plain:
            if record.labels.get("refined") is False:
                names = tuple(sorted(name for name in record.labels if name != "refined"))
                values = tuple(record.labels[name] for name in names)
                unrefined.setdefault(names, {}).setdefault(values, record)
        records = [
            replace(record, partner=_partner_of(record, unrefined))
            if record.labels.get("refined") is True
            else record
            for record in plain
        ]
        missing = len({run.key for run in runs if run.key not in rows})
        return cls(tuple(records), trainings, missing)

    def where(self, labels: Mapping[str, Any]) -> Results:
        """Those records that have these labels."""
        kept = tuple(record for record in self.records if record.matches(labels))
        return Results(kept, self.trainings, self.missing)

    def partners(self) -> Results:
        """The unrefined records that these are compared with, each once."""
        found = {id(r.partner): r.partner for r in self.records if r.partner is not None}
        return Results(tuple(found.values()), self.trainings, self.missing)

    def values(self, label: str) -> list[Any]:
        """What a label is, in the order of appearance; records without it play no part."""
        return list(dict.fromkeys(r.labels[label] for r in self.records if label in r.labels))

    def groups(self, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Results]]:
        """The records by the values of some labels, in the order of appearance; None without."""
        found: dict[tuple[Any, ...], list[Record]] = {}
        for record in self.records:
            found.setdefault(tuple(record.labels.get(n) for n in names), []).append(record)
        for values, records in found.items():
            yield values, Results(tuple(records), self.trainings, self.missing)

    def scale(self) -> str:
        """What the scores are; several names where datasets differ."""
        return " or ".join(dict.fromkeys(r.scale for r in self.records if not r.diverged))

    def estimate(self, measure: str, statistic: Statistic = "iqm") -> Estimate | None:
        """The measure over all records; None where none of them has it.

        Without an interval where every dataset has a single value.
        """
        strata = self.strata(measure)
        if not strata:
            return None
        values = np.concatenate(strata)
        center = interquartile_mean(values) if statistic == "iqm" else values.mean()
        low, high = interval(strata, statistic)
        return estimate(float(center), low, high, MEASURES[measure].digits)

    def total(self, measure: str) -> Estimate | None:
        """The sum over datasets of the mean, as papers print it; None if there are not several."""
        strata = self.strata(measure)
        if len(strata) < 2:
            return None
        ends = np.cumsum([len(values) for values in strata])[:-1]

        def sum_of_means(values: Floats) -> Floats:
            parts = np.split(values, ends, axis=-1)
            total: Floats = np.sum([part.mean(axis=-1) for part in parts], axis=0)
            return total

        center = float(sum_of_means(np.concatenate(strata)))
        low, high = interval(strata, sum_of_means)
        return estimate(center, low, high, MEASURES[measure].digits)

    def strata(self, measure: str) -> list[Floats]:
        """A vector for each dataset: a value for each record, or with one record its episodes."""
        found: dict[Any, list[Floats]] = {}
        for record in self.records:
            value = None if record.diverged else MEASURES[measure].of(record)
            if value is not None:
                name = record.labels.get("dataset")
                found.setdefault(name, []).append(np.atleast_1d(np.asarray(value, np.float64)))
        alone = all(len(values) == 1 for values in found.values())
        return [
            values[0] if alone else np.array([v.mean() for v in values])
            for values in found.values()
        ]

    def short(self, measures: Sequence[str]) -> tuple[int, int, int]:
        """How many settings have a measure of fewer training seeds than there are.

        Returns:
            Their number, that of all settings that have a value, and the fewest seeds of one.
        """
        labels = dict.fromkeys(name for record in self.records for name in record.labels)
        counts = []
        for _, group in self.groups([name for name in labels if name != "seed"]):
            found = [
                len({r.labels.get("seed") for r in group.records if value_of(r, m) is not None})
                for m in measures
            ]
            if any(found):
                counts.append(min(count for count in found if count))
        seeds = self.seeds
        fewer = [count for count in counts if count < seeds]
        return len(fewer), len(counts), min(fewer, default=seeds)

    @property
    def seeds(self) -> int:
        """How many training seeds there are."""
        return len(self.values("seed"))


def value_of(record: Record, measure: str) -> float | None:
    """A measure of one record, over its episodes; None where it has none."""
    value = None if record.diverged else MEASURES[measure].of(record)
    return None if value is None else float(np.mean(value))


def estimate(value: float, low: float, high: float, digits: int | None = None) -> Estimate:
    """With as many digits as make sense for its size."""
    if digits is None:
        largest = max(abs(x) for x in (value, low, high) if not math.isnan(x))
        digits = 0 if largest >= 1000 else 1 if largest >= 10 else 2 if largest >= 1 else 3
    return Estimate(value, low, high, digits)


def interval(strata: Sequence[Floats], statistic: Statistic) -> tuple[float, float]:
    """The bootstrap interval; NaN, NaN where no stratum has a second value to resample."""
    if all(len(values) == 1 for values in strata):
        return math.nan, math.nan
    return stratified_bootstrap(strata, statistic)


def verdict(found: Estimate) -> str:
    """Whether a difference is clear: "raises", "lowers" or "does not clearly change"."""
    if found.low > 0:
        return "raises"
    return "lowers" if found.high < 0 else "does not clearly change"


def warning(seeds: int) -> str:
    """What to say beside intervals of differences over that many seeds; nothing from 6 seeds on.

    A bootstrap resamples what is there: of values of one sign every mean has that sign. Of n values
    that are as likely positive as negative all agree in 2 of 2ⁿ cases, of 6 in less than 5 %.
    """
    if not 1 < seeds < 6:
        return ""
    return (
        f"With {seeds} training seeds an interval leaves zero out whenever all seeds agree, which "
        f"without any effect they do in 1 of {2 ** (seeds - 1)} settings."
    )


def ranked(values: Iterable[Any]) -> list[Any]:
    """Sorted where they can be, else as they are."""
    found = list(values)
    try:
        return sorted(found)
    except TypeError:
        return found


def _partner_of(record: Record, unrefined: Unrefined) -> Record | None:
    """Of those whose other labels the record has as well the closest, which shares the most."""
    kinds = [names for names in unrefined if record.labels.keys() >= set(names)]
    for names in sorted(kinds, key=len, reverse=True):
        found = unrefined[names].get(tuple(record.labels[name] for name in names))
        if found is not None:
            return found
    return None
