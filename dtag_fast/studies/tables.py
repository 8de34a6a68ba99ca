"""Tables of a study: made from its rows, and written as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dtag_fast.studies.report import Estimate, Table
from dtag_fast.studies.results import MEASURES, Results, warning
from dtag_fast.studies.show import NAMES, TableShow

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "η": r"$\eta$",
    "µ": r"$\mu$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "−": "$-$",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "×": r"$\times$",
    "²": "$^2$",
}

# Beside numbers of several seeds.
LAST_SEED = "Where one seed is left, intervals are over its episodes."


def table(show: TableShow, results: Results) -> Table | None:
    """The table of a declaration; None if no record has what it shows."""
    if not results.records:
        return None
    if show.columns is None:
        heads = [_head(measure, results) for measure in show.measures]
    else:
        heads = [word(show.columns, value) for value in results.values(show.columns)]
    rows: list[list[object]] = [
        [
            *_words(show.rows, values),
            *(part.estimate(measure) for part, measure in _cells(show, group, results)),
        ]
        for values, group in results.groups(show.rows)
    ]
    # A row or a column without anything is left out.
    count = len(show.rows)
    rows = [row for row in rows if any(cell is not None for cell in row[count:])]
    kept = [i for i in range(len(heads)) if any(row[count + i] is not None for row in rows)]
    if not kept:
        return None
    if show.total:
        rows += _totals(show, results)
    names = [NAMES.get(name, name) for name in show.rows]
    return Table(
        [*names, *(heads[i] for i in kept)],
        [[*row[:count], *(row[count + i] for i in kept)] for row in rows],
        caption=f"{caption(show.measures, results)} {show.note}".strip(),
    )


def _cells(show: TableShow, group: Results, results: Results) -> list[tuple[Results, str]]:
    """The records and the measure of each cell of a row; columns are those of all results."""
    if show.columns is None:
        return [(group, measure) for measure in show.measures]
    return [
        (group.where({show.columns: value}), show.measures[0])
        for value in results.values(show.columns)
    ]


def _totals(show: TableShow, results: Results) -> Iterator[list[object]]:
    """Over datasets, once for each combination of the other labels of a row.

    Two checkpoints of one training are not two trainings, and are never pooled.
    """
    others = [name for name in show.rows if name != "dataset"]
    for values, group in results.groups(others):
        if len(group.values("dataset")) < 2:
            continue
        cells = _cells(show, group, results)
        said = dict(zip(others, _words(others, values), strict=True))
        for name, totals in (
            ("sum of means", [part.total(measure) for part, measure in cells]),
            ("all, IQM", [part.estimate(measure) for part, measure in cells]),
        ):
            yield [*({**said, "dataset": name}[label] for label in show.rows), *totals]


def _words(names: Sequence[str], values: Sequence[Any]) -> list[str]:
    return [word(name, value) for name, value in zip(names, values, strict=True)]


def caption(measures: Sequence[str], results: Results) -> str:
    """What the numbers are, and how many stand on fewer training seeds than the others."""
    seeds = results.seeds
    over = f"{seeds} training seeds" if seeds > 1 else "the episodes of one training seed"
    text = f"Interquartile means with 95 % bootstrap intervals over {over}."
    if {"score", "difference"} & set(measures):
        text += f" Score: {results.scale()}."
    if "difference" in measures:
        text += f" Changes are paired by environment seed. {warning(seeds)}".rstrip()
    if seeds == 1 and not all(MEASURES[measure].episodic for measure in measures):
        text += " What a run has one value of stands without an interval."
    fewer, settings, fewest = results.short(measures)
    if fewer:
        text += f" Over fewer seeds: {fewer} of {settings} settings, down to {fewest}."
        text += f" {LAST_SEED}" if fewest == 1 else ""
    diverged = sum(record.diverged for record in results.records)
    if diverged:
        text += (
            f" {diverged} of {len(results.records)} runs diverged in training, and are left out."
        )
    return text


def word(label: str, value: Any) -> str:
    """A label's value for people."""
    if label == "refined":
        return "refined" if value else "unrefined"
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _head(measure: str, results: Results) -> str:
    if measure == "score":
        return results.scale()
    return MEASURES[measure].label


# --- files ----------------------------------------------------------------------------------------


def markdown(found: Table) -> str:
    """A table of GitHub's Markdown, its caption below."""
    lines = [_markdown_row(found.columns), "|" + "|".join("---" for _ in found.columns) + "|"]
    lines += [_markdown_row([_text(cell) for cell in row]) for row in found.rows]
    return "\n".join(lines) + "\n" + (f"\n{found.caption}\n" if found.caption else "")


def latex(found: Table) -> str:
    """A tabular with booktabs' rules, its caption in a comment."""
    lines = [f"% {_one_line(found.caption)}"] if found.caption else []
    lines.append(rf"\begin{{tabular}}{{{'l' * len(found.columns)}}}")
    lines += [r"\toprule", " & ".join(map(_latex_text, found.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in found.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def csv_text(found: Table) -> str:
    """Numbers in full; an estimate takes three columns: the value, low and high."""
    wide = [
        any(isinstance(row[i], Estimate) for row in found.rows) for i in range(len(found.columns))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            name
            for column, is_wide in zip(found.columns, wide, strict=True)
            for name in ([column, f"{column} low", f"{column} high"] if is_wide else [column])
        ]
    )
    for row in found.rows:
        cells: list[object] = []
        for cell, is_wide in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                ends = (cell.low, cell.high) if cell.has_interval else (None, None)
                cells += [cell.value, *ends]
            else:
                cells += [cell, None, None] if is_wide else [cell]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def file_name(title: str) -> str:
    """A section's title as the name of a file."""
    plain = title.lower().replace("η", "eta")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _text(cell: object) -> str:
    if isinstance(cell, Estimate):
        value, low, high = (f"{x:.{cell.digits}f}" for x in (cell.value, cell.low, cell.high))
        return f"{value} [{low}, {high}]" if cell.has_interval else value
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return "" if cell is None else str(cell)


def _markdown_row(cells: Any) -> str:
    return "| " + " | ".join(_one_line(str(cell)).replace("|", "\\|") for cell in cells) + " |"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _latex_cell(cell: object) -> str:
    if isinstance(cell, Estimate):
        value, low, high = (f"{x:.{cell.digits}f}" for x in (cell.value, cell.low, cell.high))
        interval = rf" {{\scriptsize $[{low}, {high}]$}}" if cell.has_interval else ""
        return f"${value}${interval}"
    return _latex_text(_text(cell))


def _one_line(text: str) -> str:
    return " ".join(text.split())
