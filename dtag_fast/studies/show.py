"""How the rows of a study are shown: declarations of tables and plots, and nothing of matplotlib.

Each has a title and gives the items of a report's section. A new kind is a class with `items`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dtag_fast.studies.declare import Options

if TYPE_CHECKING:
    from dtag_fast.studies.report import Item
    from dtag_fast.studies.results import Results

# How labels are called in tables and plots.
NAMES = {
    "dataset": "data",
    "method": "policy",
    "n": "n",
    "eta": "η",
    "seed": "training seed",
    "refined": "refined",
    "predictor": "token predictor",
    "expectile": "expectile τ",
    "dims": "action dimensions",
    "share": "share of the data",
    "chosen": "chosen",
    "way": "at acting time",
    "limit": "max_distance",
    "q_weight": "weight of −Q",
}


class Show(Protocol):
    """A section of the report."""

    @property
    def title(self) -> str:
        """Of the section; the file's name is made from it."""
        ...

    def items(self, results: Results) -> Sequence[Item]:
        """What is in it; nothing if the rows have nothing to show."""
        ...


@dataclass(frozen=True, kw_only=True)
class TableShow:
    """A table.

    Attributes:
        title: of the section.
        rows: labels, one row for each combination that occurs.
        columns: None for a column for each measure; or a label, whose values are the columns, with
            the first measure in the cells.
        measures: names in `results.MEASURES`.
        where: labels that records must have.
        total: add the sum over datasets and the interquartile mean over all of them, for each
            combination of the other labels in `rows`, of which "dataset" has to be one.
        note: what to say below it, besides what is always said.
    """

    title: str
    rows: tuple[str, ...]
    measures: tuple[str, ...]
    columns: str | None = None
    where: Options = ()
    total: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.total and "dataset" not in self.rows:
            raise ValueError(f"rows: expected 'dataset' among them for a total, got {self.rows}")

    def items(self, results: Results) -> Sequence[Item]:
        from dtag_fast.studies.tables import table

        found = table(self, results.where(dict(self.where)))
        return [] if found is None else [found]


@dataclass(frozen=True, kw_only=True)
class CurveShow:
    """A measure against a label that is a number: a panel for each value of a label.

    Attributes:
        x: the label on the axis; `log` for a logarithmic axis.
        y: the measure.
        lines: the label that tells lines apart; None for one.
        panel: the label that tells panels apart; None for one panel.
        baseline: show what the unrefined policies reach as a dashed line.
    """

    title: str
    x: str
    y: str
    lines: str | None = None
    panel: str | None = "dataset"
    where: Options = ()
    log: bool = False
    baseline: bool = True
    note: str = ""

    def items(self, results: Results) -> Sequence[Item]:
        from dtag_fast.studies.figures import curves

        return curves(self, results)


@dataclass(frozen=True, kw_only=True)
class ScatterShow:
    """One measure against another, a point for each run, by dataset, coloured by a label."""

    title: str
    x: str
    y: str
    color: str = "dataset"
    where: Options = ()
    log: bool = False
    note: str = ""

    def items(self, results: Results) -> Sequence[Item]:
        from dtag_fast.studies.figures import scatter

        return scatter(self, results.where(dict(self.where)))


@dataclass(frozen=True, kw_only=True)
class PairShow:
    """Unrefined and refined below each other, a line for each training seed."""

    title: str
    rows: tuple[str, ...] = ("dataset", "method")
    where: Options = ()
    note: str = ""

    def items(self, results: Results) -> Sequence[Item]:
        from dtag_fast.studies.figures import pairs

        return pairs(self, results.where(dict(self.where)))


@dataclass(frozen=True, kw_only=True)
class LandscapeShow:
    """The critic of the first refined record over the action, with refinement paths."""

    title: str = "The critic's landscape"
    where: Options = ()

    def items(self, results: Results) -> Sequence[Item]:
        from dtag_fast.studies.study_landscape import landscape

        return landscape(results.where(dict(self.where)))


@dataclass(frozen=True, kw_only=True)
class FunctionShow:
    """What a function makes of the rows, for what no other kind can say."""

    title: str
    function: Callable[[Any], Sequence[Any]]

    def items(self, results: Results) -> Sequence[Item]:
        return self.function(results)
