"""`dtag demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """From nothing to a scored, refined policy and a report, in minutes on two cores.

    Makes a PointMaze-UMaze dataset, trains a Reinformer and an IQL critic on it, and evaluates
    with and without refinement on the same starts. What is done already is not done again.
    """

    out: Path = Path("report")
    """Folder of the report; the training runs go to its folder `runs`."""

    def run(self) -> None:
        """Do it all and print the table."""
        from dtag_fast.studies.demo import run_demo

        run_demo(self.out)
