"""What a study leaves besides its rows: tables as Markdown, LaTeX and CSV, and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtag_fast.studies import datasets, tables
from dtag_fast.studies.declare import Data, Run, Size, Study
from dtag_fast.studies.published import published
from dtag_fast.studies.report import (
    Facts,
    Item,
    Links,
    Section,
    Table,
    Text,
    write_report,
)
from dtag_fast.studies.results import Results, verdict, warning
from dtag_fast.studies.rows import ROWS_FILE
from dtag_fast.studies.runner import TRAININGS_FILE

TABLES = "tables"
_WRITERS = {"md": tables.markdown, "tex": tables.latex, "csv": tables.csv_text}


def write_study(
    study: Study,
    size: Size,
    data: Sequence[Data],
    runs: Sequence[Run],
    rows: Mapping[str, Mapping[str, Any]],
    out: Path,
    trainings: Path,
    commands: Sequence[str] = (),
) -> Path:
    """Tables and the report of the rows that are there.

    Args:
        study, size, data, runs: what was declared.
        rows: by key; runs without one are counted and said to be missing.
        out: folder of the study.
        trainings: folder of its trainings, for the landscape.
        commands: how it was run.

    Returns:
        The path of the page.
    """
    results = Results.of(runs, rows, trainings)
    sections = []
    links = {"rows, one a run": ROWS_FILE, "settings of the trainings": TRAININGS_FILE}
    for show in study.shows:
        items: list[Item] = list(show.items(results))
        found = [item for item in items if isinstance(item, Table)]
        for index, table in enumerate(found, 1):
            name = tables.file_name(show.title) + (f"-{index}" if len(found) > 1 else "")
            written = _write_table(out, name, table)
            items.append(Links(written))
        if items:
            sections.append(Section(show.title, items))
    for name in study.published:
        sections.append(Section("Published numbers", published(name)))
    sections.append(Section("What is open, and what was chosen", [Text(study.choices)]))
    sections.append(Section("Size", [Facts(_size(size, runs, results))]))
    sections.append(Section("Data", [_data(data)]))
    sections.append(Section("Files", [Links(links)]))
    return write_report(
        out,
        study.title,
        sections,
        summary=f"{study.question} ({study.source}) {finding(results)}",
        commands=commands,
    )


def finding(results: Results) -> str:
    """In one or two sentences, what refinement does to the score."""
    counts: dict[str, int] = {}
    refined = results.where({"refined": True})
    names = sorted({name for r in refined.records for name in r.labels} - {"seed", "refined"})
    for _, group in refined.groups(names):
        found = group.estimate("difference")
        if found is not None:
            word = verdict(found)
            counts[word] = counts.get(word, 0) + 1
    missing = f" {results.missing} runs are missing." if results.missing else ""
    if not counts:
        return missing.strip()
    total = sum(counts.values())
    said = [
        f"{verb} the score in {counts[word]}"
        for word, verb in (
            ("raises", "raises"),
            ("lowers", "lowers"),
            ("does not clearly change", "does not clearly change"),
        )
        if word in counts
    ]
    seeds = results.seeds
    agreed = f" {warning(seeds)}".rstrip()
    over = f"{seeds} training seeds" if seeds > 1 else "episodes, with one training seed"
    return (
        f"Of {total} settings with refinement it {', '.join(said)} "
        f"(95 % intervals over {over}, paired by environment seed).{agreed}{missing}"
    )


def _write_table(out: Path, name: str, table: Table) -> dict[str, str]:
    """The files of a table, by what they are."""
    folder = out / TABLES
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for suffix, writer in _WRITERS.items():
        file = folder / f"{name}.{suffix}"
        temporary = file.with_name(f".{file.name}")
        temporary.write_text(writer(table), encoding="utf-8")
        temporary.replace(file)
        label = {"md": "Markdown", "tex": "LaTeX", "csv": "CSV"}[suffix]
        written[label] = f"{TABLES}/{file.name}"
    return written


def _size(size: Size, runs: Sequence[Run], results: Results) -> dict[str, object]:
    trainings = {t.key for run in runs for t in run.trainings}
    facts: dict[str, object] = {
        "runs": f"{len(set(runs)) - results.missing} of {len(set(runs))}",
        "trainings": len(trainings),
    }
    for field in dataclasses.fields(size):
        value = getattr(size, field.name)
        if isinstance(value, tuple):
            value = ", ".join(value) or "the study's"
        facts[field.name.replace("_", " ")] = "as published" if value is None else value
    return facts


def _data(data: Sequence[Data]) -> Table:
    rows: list[list[object]] = []
    for each in data:
        found = datasets.load(each)
        returns = found.returns()
        rows.append(
            [
                each.name,
                found.episodes,
                found.steps,
                f"{returns.mean():.4g} ± {returns.std():.3g}",
                f"{returns.max():.4g}",
                datasets.fingerprint(each)[:16],
            ]
        )
    return Table(["data", "trajectories", "steps", "return", "best", "fingerprint"], rows)
