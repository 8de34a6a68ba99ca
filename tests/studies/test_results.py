"""From rows to tables: partners, estimates, and the files a study leaves."""

from __future__ import annotations

import csv
import html
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.studies import tables
from dtag_fast.studies.catalog import study
from dtag_fast.studies.declare import Run, options
from dtag_fast.studies.published import published
from dtag_fast.studies.report import Estimate, Plot, Table
from dtag_fast.studies.results import Results, estimate, value_of
from dtag_fast.studies.show import CurveShow, PairShow, TableShow
from dtag_fast.studies.study_report import finding
from dtag_fast.studies.tables import csv_text, file_name, latex, markdown
from tests.studies.conftest import DATA, TINY, made_row, made_run, noisy


def test_a_partner_is_the_same_policy_without_refinement(results: Results) -> None:
    for record in results.records:
        if record.run.refinement is None:
            assert record.partner is None
        else:
            assert record.partner is not None
            assert record.partner.run.policy == record.run.policy
            assert record.partner.run.refinement is None
            n = record.labels["n"]
            expected = n if record.labels["dataset"] == DATA[0].name else -n
            assert value_of(record, "difference") == pytest.approx(expected)


def test_of_several_partners_the_closest_is_taken() -> None:
    unrefined = [made_run(DATA[0], 0, None), made_run(DATA[0], 0, None, checkpoint="best")]
    unrefined[1] = replace(unrefined[1], checkpoint="best")
    refined = replace(made_run(DATA[0], 0, 3, checkpoint="best"), checkpoint="best")
    all_runs = [*unrefined, refined]
    found = Results.of(all_runs, {r.key: made_row(r, [1.0]) for r in all_runs}, Path())
    assert found.records[2].partner is found.records[1]


def test_an_estimate_is_over_seeds_within_datasets(results: Results) -> None:
    first = results.where({"dataset": DATA[0].name, "n": 5})
    assert [list(values) for values in first.strata("score")] == [[55.0, 56.0, 57.0]]
    found = first.estimate("score")
    assert found is not None
    assert (found.value, found.digits) == (56.0, 1)
    assert 55.0 <= found.low < 56.0 < found.high <= 57.0
    both = results.where({"n": 5}).estimate("difference")
    assert both is not None
    assert (both.value, both.low, both.high) == (0.0, 0.0, 0.0)  # +5 and -5, the same for all seeds
    assert results.where({"n": 7}).estimate("score") is None
    assert results.where({"refined": False}).estimate("q_gain") is None


def test_one_seed_has_its_episodes_resampled(results: Results) -> None:
    alone = results.where({"dataset": DATA[0].name, "n": 5, "seed": 1})
    assert [list(values) for values in alone.strata("score")] == [[55.0, 56.0, 56.0, 57.0]]
    assert "the episodes of one training seed" in tables.caption(("score",), alone)


def test_a_total_is_the_sum_of_means(results: Results) -> None:
    found = results.where({"n": 5}).total("score")
    assert found is not None
    assert found.value == pytest.approx((55 + 1) + (45 + 1))
    assert results.where({"dataset": DATA[0].name}).total("score") is None


def test_what_diverged_is_counted_and_left_out(
    runs: list[Run], rows: dict[str, dict[str, Any]]
) -> None:
    lost = next(run for run in runs if run.label.get("n") == 5)
    rows[lost.key] = {"key": lost.key, "status": "diverged", "result": {"what": "x"}, "timing": {}}
    found = Results.of(runs, rows, Path())
    chosen = found.where({"dataset": DATA[0].name, "n": 5})
    assert [list(values) for values in chosen.strata("score")] == [[56.0, 57.0]]
    assert "1 of 24 runs diverged" in tables.caption(("score",), found)


def test_missing_rows_are_counted(runs: list[Run], rows: dict[str, dict[str, Any]]) -> None:
    del rows[runs[0].key]
    found = Results.of(runs, rows, Path())
    assert found.missing == 1
    assert "1 runs are missing" in finding(found)


def test_the_finding_counts_settings_by_what_refinement_does(results: Results) -> None:
    text = finding(results)
    assert "Of 6 settings with refinement it raises the score in 3, lowers the score in 3" in text
    assert "3 training seeds" in text
    assert "leaves zero out whenever all seeds agree" in text
    assert "they do in 1 of 4 settings" in text


@pytest.mark.parametrize("seeds", [1, 2, 5, 6])
def test_few_seeds_that_agree_are_said_to_be_no_more_than_that(seeds: int) -> None:
    runs = [made_run(DATA[0], seed, n) for seed in range(seeds) for n in (None, 1)]
    rows = {run.key: made_row(run, noisy(50.0, run.label["seed"])) for run in runs}
    for run in runs:  # barely, but all of them
        if run.refinement is not None:
            rows[run.key]["result"]["returns"][0] += 0.001
    found = Results.of(runs, rows, Path())
    few = 1 < seeds < 6
    assert "raises the score in 1 " in finding(found) or seeds == 1
    assert ("all seeds agree" in finding(found)) == few
    assert ("all seeds agree" in tables.caption(("difference",), found)) == few
    assert "all seeds agree" not in tables.caption(("score",), found)


@pytest.mark.parametrize(
    ("value", "digits"), [(1234.5, 0), (123.4, 1), (12.0, 1), (1.2, 2), (0.1, 3), (0.0, 3)]
)
def test_digits_fit_the_size(value: float, digits: int) -> None:
    assert estimate(value, value, value).digits == digits


def test_one_value_has_no_interval(results: Results) -> None:
    alone = results.where({"seed": 1, "n": 5})
    for chosen in (alone, alone.where({"dataset": DATA[0].name})):
        found = chosen.estimate("distance")
        assert found is not None
        assert found.value == pytest.approx(0.05)
        assert not found.has_interval
        scored = chosen.estimate("score")
        assert scored is not None
        assert scored.has_interval  # of episodes
    total = alone.total("distance")
    assert total is not None
    assert not total.has_interval
    several = results.where({"n": 5}).estimate("distance")
    assert several is not None
    assert several.has_interval


def test_a_number_without_an_interval_is_written_alone(results: Results) -> None:
    found = table(results.where({"seed": 1, "n": 5}), measures=("distance", "difference"))
    assert "What a run has one value of stands without an interval." in found.caption
    first = DATA[0].name
    assert f"| {first} | 5 | 0.050 | 5.00 [5.00, 5.00] |" in markdown(found)
    assert rf"{first} & 5 & $0.050$ & $5.00$ {{\scriptsize" in latex(found)
    rows = list(csv.reader(io.StringIO(csv_text(found))))
    assert rows[0][2:5] == ["moved", "moved low", "moved high"]
    assert rows[1][2:5] == ["0.05", "", ""]
    assert "without an interval" not in table(results.where({"n": 5})).caption
    (curve,) = CurveShow(title="x", x="n", y="distance").items(results.where({"seed": 1}))
    assert isinstance(curve, Plot)
    curve.figure.canvas.draw()
    assert not any(axes.collections for axes in curve.figure.axes)


def test_a_caption_says_how_many_settings_have_fewer_seeds(
    runs: list[Run], rows: dict[str, dict[str, Any]]
) -> None:
    assert "fewer seeds" not in tables.caption(("score",), Results.of(runs, rows, Path()))
    lost = {"status": "diverged", "result": {"what": "x"}, "timing": {}}
    first, second = ([r for r in runs if r.label.get("n") == 5 and r.data == d] for d in DATA)
    rows[first[0].key] |= lost
    del rows[second[0].key]
    text = tables.caption(("score",), Results.of(runs, rows, Path()))
    assert "Over fewer seeds: 2 of 8 settings, down to 2." in text
    assert tables.LAST_SEED not in text
    rows[first[1].key] |= lost
    text = tables.caption(("score",), Results.of(runs, rows, Path()))
    assert f"Over fewer seeds: 2 of 8 settings, down to 1. {tables.LAST_SEED}" in text
    # A change has the seeds of both.
    unrefined = next(r for r in runs if r.data == DATA[0] and r.refinement is None)
    rows[unrefined.key] |= lost
    refined = Results.of(runs, rows, Path()).where({"refined": True})
    assert "2 of 6 settings" in tables.caption(("score",), refined)
    assert "4 of 6 settings" in tables.caption(("difference",), refined)


# --- tables ---


def table(results: Results, **declared: Any) -> Table:
    show = TableShow(
        **{"title": "Scores", "rows": ("dataset", "n"), "measures": ("score",)} | declared
    )
    (found,) = show.items(results)
    assert isinstance(found, Table)
    return found


def test_a_table_has_a_row_for_each_combination(results: Results) -> None:
    found = table(results, measures=("score", "difference", "q_gain", "refinement_us"))
    assert found.columns == [
        "data", "n", "D4RL score", "change by refinement", "Q gain", "µs refining"
    ]  # fmt: skip
    assert [row[:2] for row in found.rows] == [
        [data.name, n] for data in DATA for n in ("", "1", "5", "20")
    ]
    assert found.rows[0][3] is None
    assert found.rows[1][2] == results.where({"dataset": DATA[0].name, "n": 1}).estimate("score")
    assert "Score: D4RL score." in found.caption
    assert "paired by environment seed" in found.caption


def test_a_label_may_be_the_columns(results: Results) -> None:
    found = table(results, rows=("dataset",), columns="n", measures=("difference",), total=True)
    assert found.columns == ["data", "1", "5", "20"]
    assert [row[0] for row in found.rows] == [*(d.name for d in DATA), "sum of means", "all, IQM"]
    assert [cell.value for cell in found.rows[0][1:]] == [1.0, 5.0, 20.0]  # type: ignore[attr-defined]
    assert [cell.value for cell in found.rows[2][1:]] == [0.0, 0.0, 0.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [None, "n"])
def test_totals_keep_checkpoints_apart(columns: str | None) -> None:
    runs = [
        replace(made_run(data, seed, n, checkpoint=checkpoint), checkpoint=checkpoint)
        for data in DATA
        for seed in range(3)
        for checkpoint in ("last", "best")
        for n in (None, 1)
    ]
    rows = {}
    for run in runs:
        gain = (10.0 if run.checkpoint == "best" else 2.0) * run.label.get("n", 0)
        rows[run.key] = made_row(run, noisy(50.0 + gain, run.label["seed"]))
    found = table(
        Results.of(runs, rows, Path()).where({"refined": True}),
        rows=("checkpoint", "dataset"),
        columns=columns,
        measures=("difference",),
        total=True,
    )
    assert [(*row[:2], row[2].value) for row in found.rows[4:]] == [  # type: ignore[attr-defined]
        ("last", "sum of means", 4.0),
        ("last", "all, IQM", 2.0),
        ("best", "sum of means", 20.0),
        ("best", "all, IQM", 10.0),
    ]


def test_a_total_is_over_datasets() -> None:
    with pytest.raises(ValueError, match="rows: expected 'dataset' among them"):
        TableShow(title="x", rows=("n",), measures=("score",), total=True)


def test_what_has_nothing_to_show_shows_nothing(results: Results) -> None:
    show = TableShow(title="x", rows=("dataset",), measures=("critic_bias",))
    assert list(show.items(results)) == []
    assert list(replace(show, where=options(dataset="none")).items(results)) == []


def test_the_same_numbers_in_every_format(results: Results) -> None:
    found = table(results, rows=("dataset", "n"), measures=("score",), note="A & b_c, 50 %.")
    rows = list(csv.reader(io.StringIO(csv_text(found))))
    assert rows[0] == ["data", "n", "D4RL score", "D4RL score low", "D4RL score high"]
    text, tex = markdown(found), latex(found)
    lines = text.splitlines()
    assert lines[0] == "| data | n | D4RL score |"
    assert text.count("\n| ") == len(found.rows)
    for row, cells in zip(found.rows, rows[1:], strict=True):
        cell = row[2]
        assert isinstance(cell, Estimate)
        assert [float(c) for c in cells[2:]] == [cell.value, cell.low, cell.high]
        assert f"| {cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}] |" in text
        assert rf"${cell.value:.1f}$ {{\scriptsize $[{cell.low:.1f}, {cell.high:.1f}]$}} \\" in tex
    assert "A & b_c, 50 %." in text
    assert tex.count(r"\\") == len(found.rows) + 1
    assert tex.startswith("% Interquartile means")


def test_latex_and_markdown_escape() -> None:
    found = Table(["a_b & η", "c|d"], [["50 %", "x|y\nz"], [None, 0.5]])
    assert r"a\_b \& $\eta$ & c|d \\" in latex(found)
    assert r"50 \% & x|y z \\" in latex(found)
    assert r"| 50 % | x\|y z |" in markdown(found)
    assert "|  | 0.5 |" in markdown(found)


def test_a_title_makes_a_file_name() -> None:
    assert file_name("Score against η (n = 10)") == "score-against-eta-n-10"


# --- what is written ---


@pytest.mark.parametrize("name", ["gym", "maze2d"])
def test_published_sums_are_those_of_their_rows(name: str) -> None:
    caveat, found = published(name)
    assert "D4RL" in str(caveat)
    assert isinstance(found, Table)
    whole = [row for row in found.rows if None not in row]
    assert len(whole) >= 4
    for row in whole:
        numbers = [float(cell) for cell in row[1:]]  # type: ignore[arg-type]
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.25), row[0]
    with pytest.raises(ValueError, match="name: expected one of gym, maze2d"):
        published("atari")


def test_the_report_of_a_study(
    tmp_path: Path, datasets_folder: Path, runs: list[Run], rows: dict[str, dict[str, Any]]
) -> None:
    from dtag_fast.data.generate import make
    from dtag_fast.studies.study_report import write_study

    for data in DATA:
        make("toy", steps=30, id=data.id, progress=False)
    shows = (
        TableShow(title="Scores", rows=("dataset", "n"), measures=("score", "difference")),
        CurveShow(title="Score against n", x="n", y="score"),
        PairShow(title="Seeds", rows=("dataset",)),
    )
    declared = replace(study("toy"), shows=shows, published=("gym",))
    page = write_study(
        declared, TINY, DATA, runs, rows, tmp_path, tmp_path / "trainings", ["dtag study x"]
    )
    text = page.read_text()
    for said in (declared.choices, "Score against n", "Published numbers", "dtag study x"):
        assert said in html.unescape(text)
    assert "24 of 24" in text
    for file in ("scores.md", "scores.tex", "scores.csv"):
        assert (tmp_path / "tables" / file).is_file()
        assert f'href="tables/{file}"' in text
    assert 'href="rows.jsonl"' in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"score-against-n.png", "seeds.png"}
    json.dumps(rows)  # as they were
