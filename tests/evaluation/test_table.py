"""Evaluations as a table on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dtag_fast.data.references import ReferenceScores
from dtag_fast.evaluation.result import EpisodeResult, Evaluation
from dtag_fast.evaluation.table import evaluation_table, with_interval

D4RL = ReferenceScores("d4rl", 0.0, 200.0)
MINARI = ReferenceScores("minari", 100.0, 200.0)


def evaluation_of(
    returns: list[float], *references: ReferenceScores, refinement_ms: float = 0.0
) -> Evaluation:
    episodes = tuple(
        EpisodeResult(i, 0, i, total, 10, True, False, 1.25, refinement_ms, 0.1)
        for i, total in enumerate(returns)
    )
    return Evaluation(episodes, 0, 1, tuple(references), 1.0)


def printed(evaluations: dict[str, Evaluation], width: int = 200) -> list[list[str]]:
    """The table's lines, each as its cells."""
    console = Console(file=io.StringIO(), width=width)
    console.print(evaluation_table(evaluations))
    output: Any = console.file
    lines = [line.strip() for line in output.getvalue().splitlines()]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines if line]


def test_a_row_says_what_the_evaluation_found() -> None:
    evaluation = evaluation_of([100.0, 120.0, 140.0, 160.0], D4RL, MINARI, refinement_ms=0.5)
    lines = printed({"last, refined": evaluation})
    row = next(line for line in lines if line[0] == "last, refined")
    scores = evaluation.labelled_scores()
    low, high = evaluation.interval()
    assert row[1] == f"130.0 [{low:.1f}, {high:.1f}]"
    assert row[2] == "130.0"  # of the middle half, 120 and 140
    d4rl, minari = (scores[label] for label in ("D4RL", "Minari"))
    assert row[3].startswith(f"{d4rl.mean():.1f} [")
    assert row[4].startswith(f"{minari.mean():.1f} [")
    assert (d4rl.mean(), minari.mean()) == (65.0, 30.0)
    assert row[5:] == ["1.750", "0.500"]


def test_the_head_names_every_scale() -> None:
    lines = printed({"a": evaluation_of([1.0, 2.0], D4RL, MINARI)})
    head = " ".join(cell for line in lines[:2] for cell in line)
    for name in ("policy", "return", "IQM", "D4RL score", "Minari score", "ms"):
        assert name in head


def test_a_scale_that_a_row_lacks_is_a_dash() -> None:
    lines = printed({"a": evaluation_of([150.0, 150.0], MINARI), "b": evaluation_of([3.0, 3.0])})
    row = {line[0]: line for line in lines}
    assert row["a"][3] == "50.0 [50.0, 50.0]"
    assert row["b"][3] == "-"


def test_without_references_there_are_no_scores() -> None:
    text = str(printed({"a": evaluation_of([1.0, 2.0])}))
    assert "score" not in text


@pytest.mark.parametrize(("counts", "said"), [((2, 2), "2 episodes"), ((3, 2), "2 or 3 episodes")])
def test_the_caption_counts_the_episodes(counts: tuple[int, int], said: str) -> None:
    evaluations = {str(i): evaluation_of([1.0] * n) for i, n in enumerate(counts)}
    assert said in str(printed(evaluations))


def test_a_narrow_terminal_breaks_lines_but_no_numbers() -> None:
    evaluation = evaluation_of([1000.0, 3000.0], D4RL, MINARI, refinement_ms=0.25)
    text = " ".join(cell for line in printed({"best": evaluation}, width=70) for cell in line)
    for number in ("2000.0", "[1000.0,", "3000.0]", "[500.0,", "1500.0]", "1.500", "0.250"):
        assert number in text
    assert "…" not in text


def test_a_value_with_its_interval() -> None:
    assert with_interval(12.34, (10.06, 14.2)) == "12.3 [10.1, 14.2]"
    assert with_interval(-0.5, (-1.0, 0.0)) == "-0.50 [-1.00, 0.00]"
    assert with_interval(0.05, (0.0, 0.125)) == "0.050 [0.000, 0.125]"
    assert with_interval(0.0, (0.0, 0.0)) == "0.0 [0.0, 0.0]"
