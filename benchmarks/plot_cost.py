"""The cost of refining one row against the number of steps, drawn from recorded rows.

pytest benchmarks/bench_refine.py -k "standing and B1" --record
python -m benchmarks.plot_cost benchmarks/results/ROWS.json --figure docs/walk-cost.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dtag_fast.studies.style import DPI, FAINT, REFINED, UNREFINED, WIDTH, styled

HEIGHT = 3.4  # inches
MOST_STEPS = 100
SAME = {"case": "standing", "B": 1, "eta": 0.03}  # what the rows have in common
LINES = {
    "reference": ("reference (autograd)", FAINT),
    "dense": ("dense: the network at every candidate", UNREFINED),
    "walk": ("walk: its linear regions", REFINED),
}


@styled
def cost_figure(document: Mapping[str, Any]) -> Figure:
    """Medians with p5 to p95 of each algorithm, and its floor where it was measured.

    Args:
        document: what `pytest benchmarks/bench_refine.py --record` writes.

    Raises:
        ValueError: there are no rows to draw a line from.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    for contender, (label, colour) in LINES.items():
        rows = steps_of(document["rows"], contender)
        if len(rows) < 2:
            raise ValueError(f"rows: expected {contender} at several numbers of steps, with {SAME}")
        n = [row["n"] for row in rows]
        axes.fill_between(
            n,
            [r["p5 us"] for r in rows],
            [r["p95 us"] for r in rows],
            color=colour,
            alpha=0.2,
            lw=0,
        )
        axes.plot(n, [row["p50 us"] for row in rows], color=colour, marker="o", ms=3, label=label)
        if contender != "reference" and all("floor us" in row for row in rows):
            axes.plot(n, [row["floor us"] for row in rows], color=colour, ls=":", lw=1)
    axes.plot([], [], color=FAINT, ls=":", lw=1, label="the algorithm's floor on this machine")
    first = steps_of(document["rows"], "walk")[0]
    axes.set(
        title="Cost of refining one action",
        xlabel=f"steps n  (S={first['S']}, A={first['A']}, {first['heads']} heads of "
        f"{'×'.join(map(str, first['hidden']))})",
        ylabel="µs a call",
        yscale="log",
        xlim=(0, MOST_STEPS),
    )
    figure.legend(loc="outside lower left")
    return figure


def steps_of(rows: Sequence[Mapping[str, Any]], contender: str) -> list[Mapping[str, Any]]:
    """The contender's rows by the number of steps."""
    wanted = {**SAME, "contender": contender}
    found = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    return sorted((r for r in found if r["n"] <= MOST_STEPS), key=lambda r: int(r["n"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="a file that bench_refine.py --record wrote")
    parser.add_argument("--figure", type=Path, required=True, help="the PNG file to write")
    arguments = parser.parse_args()
    document = json.loads(arguments.rows.read_text(encoding="utf-8"))
    cost_figure(document).savefig(arguments.figure, dpi=DPI)


if __name__ == "__main__":
    main()
