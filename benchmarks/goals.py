"""What the cpu backend is meant to reach, beside what the rows of bench_refine.py show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]

COLUMNS = {"goal": "{}", "wanted": "{}", "measured": "{:.2f}", "met": "{}"}


class NoRow(Exception):
    """A row that a goal is about was not measured."""


@dataclass(frozen=True)
class Goal:
    """A number that follows from rows, and the least it should be, or the most."""

    name: str
    number: Callable[[Rows], float]
    least: float | None = None
    most: float | None = None

    def row(self, rows: Rows) -> dict[str, Any]:
        """Of the table of goals.

        Raises:
            NoRow: there is nothing to compute it from.
        """
        measured = self.number(rows)
        met = (self.least is None or measured >= self.least) and (
            self.most is None or measured <= self.most
        )
        wanted = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return {
            "goal": self.name,
            "wanted": wanted,
            "measured": measured,
            "met": "yes" if met else "no",
        }


def reached(rows: Rows) -> list[dict[str, Any]]:
    """The table's rows, of the goals whose rows were measured."""
    found = []
    for goal in GOALS:
        try:
            found.append(goal.row(rows))
        except NoRow:
            continue
    return found


def value(rows: Rows, key: str, contender: str, **wanted: Any) -> float:
    """A column of the row of a contender in the case with these values."""
    wanted = {"case": "standing", "B": 1, "n": 10, "eta": 0.03, "contender": contender, **wanted}
    for row in rows:
        if all(row[name] == each for name, each in wanted.items()) and row.get(key) is not None:
            return float(row[key])
    raise NoRow(wanted)


def ratio(slow: str, fast: str, **wanted: Any) -> Callable[[Rows], float]:
    """How many times as fast one contender is as another, by medians."""

    def number(rows: Rows) -> float:
        slow_us, fast_us = (value(rows, "p50 us", name, **wanted) for name in (slow, fast))
        return slow_us / fast_us

    return number


def overhead(contender: str) -> Callable[[Rows], float]:
    """Microseconds that a call of one row takes beside the kernel."""

    def number(rows: Rows) -> float:
        return value(rows, "p50 us", contender) - value(rows, "kernel us", contender)

    return number


def together(rows: Rows) -> float:
    """Eight starting points of one row against as many rows of their own."""
    case = "starting points"
    apart = value(rows, "p50 us", "auto as rows", case=case, B=8)
    return apart / value(rows, "p50 us", "auto", case=case)


def worst_walk(rows: Rows) -> float:
    """The walk's time relative to the dense algorithm's, where steps of any length hurt it most."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["case"] == "standing" and row["n"] == 10:
            times.setdefault((row["B"], row["eta"]), {})[row["contender"]] = row["p50 us"]
    both = [each for each in times.values() if {"walk", "dense"} <= each.keys()]
    if not both:
        raise NoRow("walk and dense")
    return max(each["walk"] / each["dense"] for each in both)


GOALS = [
    Goal("one row, torch: times as fast as the reference", ratio("reference", "auto"), least=170),
    Goal("one row, torch: us above the kernel", overhead("auto"), most=2),
    Goal(
        "one row, numpy: times as fast as the reference",
        ratio("reference numpy", "auto numpy"),
        least=170,
    ),
    Goal("one row, numpy: us above the kernel", overhead("auto numpy"), most=2),
    Goal("256 rows: times as fast as the reference", ratio("reference", "auto", B=256), least=14),
    Goal(
        "1024 rows: two threads against one", ratio("auto", "auto two threads", B=1024), least=1.8
    ),
    Goal("n = 50: times as fast as the reference", ratio("reference", "auto", n=50), least=450),
    Goal("8 starting points against 8 rows", together, least=1.3),
    Goal("one row: walk against dense", ratio("dense", "walk"), least=4),
    Goal("the walk's worst case: its time by that of dense", worst_walk, most=1.5),
]
