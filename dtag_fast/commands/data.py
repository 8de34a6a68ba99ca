"""`dtag data ...`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class List:
    """List the local datasets: those in $MINARI_DATASETS_PATH, else in ~/.minari/datasets."""

    def run(self) -> int:
        """Print a table; 1 if a folder there is broken."""
        from rich.console import Console
        from rich.table import Table

        from dtag_fast.data.catalog import list_datasets
        from dtag_fast.data.storage import datasets_root

        console = Console()
        rows = list_datasets()
        if not rows:
            console.print(f"No datasets in {datasets_root()}. `dtag data make toy` writes one.")
            return 0
        table = Table("id", "environment", "episodes", "steps", "MB")
        for row in rows:
            if row["problem"] is None:
                values = (row["env_id"], row["episodes"], row["steps"], row["megabytes"])
                table.add_row(row["id"], *("-" if v is None else str(v) for v in values))
        console.print(table)
        broken = [row for row in rows if row["problem"] is not None]
        for row in broken:
            console.print(f"broken: {row['id']}: {row['problem']}", style="red", markup=False)
        return 1 if broken else 0


@dataclass(frozen=True)
class Info:
    """Describe a dataset: returns, scores, lengths, ranges, where it comes from."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """Minari id, or the folder of a dataset."""

    download: bool = False
    """Fetch a published dataset that is not there (extra `download`)."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        """Print the description."""
        from rich.console import Console
        from rich.table import Table

        from dtag_fast.data.catalog import describe
        from dtag_fast.data.trajectories import Trajectories

        figures = describe(Trajectories.from_minari(self.id, download=self.download))
        if self.json:
            print(json.dumps(figures, indent=2))
            return
        console = Console()
        general = Table(show_header=False)
        for key in (
            "id",
            "env_id",
            "horizon",
            "episodes",
            "steps",
            "observation_dim",
            "action_dim",
            "terminated_share",
            "fingerprint",
        ):
            general.add_row(key.replace("_", " "), str(figures[key]))
        console.print(general)
        summary = Table("per episode", "mean", "std", "min", "median", "max")
        rows = {"return": figures["returns"], "length": figures["lengths"]}
        for source, scores in figures["scores"].items():
            rows[f"score ({source} references)"] = scores
        for name, row in rows.items():
            summary.add_row(
                name, *(f"{row[k]:.2f}" for k in ("mean", "std", "min", "median", "max"))
            )
        console.print(summary)
        ranges = Table("dimension", "min", "max", "mean", "std")
        for kind in ("observations", "actions"):
            values = figures[kind]
            for i in range(len(values["min"])):
                row = (f"{values[k][i]:.3f}" for k in ("min", "max", "mean", "std"))
                ranges.add_row(f"{kind[:-1]} {i}", *row)
        console.print(ranges)
        console.print("provenance", figures["provenance"])


@dataclass(frozen=True)
class Make:
    """Generate a dataset by program; one that is there with the same settings is kept."""

    name: Annotated[
        Literal["toy", "pointmaze-umaze", "pointmaze-medium", "pointmaze-large"],
        tyro.conf.Positional,
    ]
    """toy: r(a) = 1 - a^2 (arXiv 2510.05285, Fig. 2). The others: a controller in a maze."""

    steps: int | None = None
    """Environment steps; by default 1000, 300 000, 500 000, 1 000 000."""

    seed: int = 0
    """Of everything random."""

    id: str | None = None
    """Minari id; by default dtag/toy/bandit-v0, dtag/pointmaze/umaze-v0, ..."""

    force: bool = False
    """Replace a dataset of that id."""

    def run(self) -> None:
        """Write it and say where it is."""
        from dtag_fast.data.generate import make

        made = make(self.name, steps=self.steps, seed=self.seed, id=self.id, force=self.force)
        print(made.message)


@dataclass(frozen=True, kw_only=True)
class Collect:
    """Train a behaviour policy with PPO and record a dataset of it (extras `collect`, `envs`)."""

    env: str
    """Gymnasium id with vector observations and a bounded box of actions: Hopper-v5."""

    tier: Literal["medium", "medium-replay", "expert"]
    """Sampled actions of a middling checkpoint, the training up to it, or the best checkpoint."""

    steps: int = 200_000
    """Environment steps to record."""

    seed: int = 0
    """Of the training and of the recording."""

    training_steps: int | None = None
    """Of PPO; None is 1.5 M, HalfCheetah 2.3 M, other environments 1 M."""

    id: str | None = None
    """Minari id; by default dtag/hopper/medium-v0 and so on."""

    force: bool = False
    """Replace a dataset of that id."""

    def run(self) -> None:
        """Train, record, say where it is."""
        from dtag_fast.data.collect import collect

        made = collect(
            self.env,
            self.tier,
            steps=self.steps,
            seed=self.seed,
            training_steps=self.training_steps,
            id=self.id,
            force=self.force,
        )
        print(made.message)


@dataclass(frozen=True)
class Mix:
    """Write several datasets of one environment as one, e.g. medium and expert."""

    ids: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ID ID ...")]
    """Minari ids, two at least."""

    id: str
    """Of the new dataset."""

    force: bool = False
    """Replace a dataset of that id."""

    def run(self) -> None:
        """Read, write, say where it is."""
        from dtag_fast.data.mix import mix

        print(mix(self.ids, id=self.id, force=self.force).message)


@dataclass(frozen=True)
class ImportD4rl:
    """Turn a D4RL HDF5 file, e.g. hopper_medium-v2.hdf5, into a local Minari dataset."""

    file: Annotated[Path, tyro.conf.Positional]
    """The file."""

    id: str | None = None
    """Minari id; by default made from the file's name."""

    force: bool = False
    """Replace a dataset of that id."""

    def run(self) -> None:
        """Read, write, say where it is."""
        from dtag_fast.data.d4rl import import_d4rl

        print(import_d4rl(self.file, id=self.id, force=self.force).message)
