"""`dtag study`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from dtag_fast.studies.declare import Data, Size
    from dtag_fast.studies.declare import Study as Declared
    from dtag_fast.studies.engine import Engine


@dataclass(frozen=True)
class Changes:
    """Of the budget's size; what is not given stays."""

    seeds: int | None = None
    """Training seeds, from 0."""

    episodes: int | None = None
    """Of each run."""

    policy_steps: int | None = None
    """Gradient updates of a policy."""

    critic_steps: int | None = None
    """Gradient updates of a critic."""

    scale: Literal["tiny", "small", "published"] | None = None
    """Of the sequence model."""

    device: str | None = None
    """Where training happens: cpu, cuda, ..."""

    methods: tuple[str, ...] | None = None
    """Policies, instead of the study's: bc, dt, iql, reinformer."""

    critics: tuple[str, ...] | None = None
    """Kinds of critics, where a study compares them: iql, td3-bc, cql, ensemble."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a declared study: what is missing of its grid, then tables and a report.

    `dtag study list` lists the studies; `all` runs every one, each into its folder of --out. A
    study that was stopped, by whatever, goes on where it was.
    """

    name: Annotated[str, tyro.conf.Positional]
    """list, all, or a study's name."""

    budget: Literal["smoke", "small", "paper"] = "small"
    """Seconds, to see that all of it works; minutes to hours; or the papers' scale: days."""

    data: tuple[str, ...] = ()
    """Minari ids to run on, instead of the budget's."""

    out: Path | None = None
    """Folder of rows, tables and report; runs/studies/NAME-BUDGET unless given."""

    trainings: Path | None = None
    """Folder of trained policies and critics, which studies may share; OUT/trainings unless given,
    and one for all with `all`."""

    engine: Literal["local", "ray"] = "local"
    """Processes on this machine, or a Ray cluster (extra `ray`). Rows do not differ."""

    ray_address: str | None = None
    """Of a cluster that is there, as ray.init takes it; otherwise one is started here."""

    workers: int | None = None
    """Processes at most, one thread each; as many as cores unless given. Never more than fit into
    the free memory."""

    size: Changes = field(default_factory=Changes)
    """Changes of the budget's size."""

    def run(self) -> int:
        """Do what is missing; 1 if some of it failed."""
        from rich.console import Console

        from dtag_fast.studies.catalog import STUDIES, study

        console = Console()
        if self.name == "list":
            self._list(console)
            return 0
        chosen = list(STUDIES.values()) if self.name == "all" else [study(self.name)]
        if self.name == "all" and self.data:
            raise ValueError("--data: studies run on data of different kinds; name one study")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address: only with --engine ray")
        # All are declared before the first one starts: a wrong dataset is told at once.
        declared = [(each, *self._declare(each)) for each in chosen]
        out = self.out or Path("runs") / "studies" / f"{self.name}-{self.budget}"
        engine = self._engine()
        failed = []
        try:
            for each, size, data in declared:
                folder = out / each.name if self.name == "all" else out
                if not self._run(each, size, data, folder, engine, console):
                    failed.append(each.name)
        finally:
            engine.close()
        if failed:
            console.print(f"[bold]With failures:[/bold] {', '.join(failed)}", soft_wrap=True)
        return int(bool(failed))

    def _declare(self, study: Declared) -> tuple[Size, tuple[Data, ...]]:
        """The size and the data of a study, with what the command line changes."""
        from dtag_fast.studies.declare import Data

        given = {f.name: getattr(self.size, f.name) for f in fields(self.size)}
        changes = {name: value for name, value in given.items() if value is not None}
        size = replace(study.sizes[self.budget], budget=self.budget, **changes)
        data = tuple(Data(id=id) for id in self.data) or study.data[self.budget]
        study.runs(size, data)
        return size, data

    def _engine(self) -> Engine:
        if self.engine == "ray":
            from dtag_fast.studies.engine_ray import RayEngine

            return RayEngine(self.ray_address, self.workers)
        from dtag_fast.studies.engine_local import LocalEngine

        workers = len(os.sched_getaffinity(0)) if self.workers is None else self.workers
        return LocalEngine(workers)

    def _run(
        self,
        study: Declared,
        size: Size,
        data: tuple[Data, ...],
        out: Path,
        engine: Engine,
        console: Console,
    ) -> bool:
        """One study; whether all of it has a row."""
        from dtag_fast.studies.runner import run_study
        from dtag_fast.studies.study_report import write_study

        console.print(f"[bold]{study.name}[/bold]: {study.title}", soft_wrap=True)
        trainings = self.trainings or (out.parent if self.name == "all" else out) / "trainings"

        def say(line: str) -> None:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

        runs = study.runs(size, data)
        report = run_study(runs, engine, out, trainings, say)
        page = write_study(
            study, size, data, runs, report.rows, out, trainings, [f"dtag study {self._words()}"]
        )
        console.print(
            f"{len(report.rows)} rows, {report.done} of them new. Report: {page}", soft_wrap=True
        )
        for what in report.failures.values():
            console.print(f"[bold]failed:[/bold] {what}", soft_wrap=True)
        return not report.failures

    def _words(self) -> str:
        """What to type to do the same again, but for where it goes."""
        words = [self.name, f"--budget {self.budget}", *(f"--data {id}" for id in self.data)]
        for each in fields(self.size):
            value = getattr(self.size, each.name)
            if value is not None:
                said = " ".join(value) if isinstance(value, tuple) else value
                words.append(f"--size.{each.name.replace('_', '-')} {said}")
        return " ".join(words)

    def _list(self, console: Console) -> None:
        from rich import box
        from rich.table import Table

        from dtag_fast.studies.catalog import STUDIES

        table = Table("study", "question", "runs", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, study in STUDIES.items():
            size, data = self._declare(study)
            table.add_row(name, study.question, str(len(set(study.runs(size, data)))))
        console.print(table)
