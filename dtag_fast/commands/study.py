"""`dtag study`."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from dtag_fast.studies.declare import Data, Run, Size
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
    """Where training happens: cpu, cuda, or auto: what there is of them on this machine."""

    methods: tuple[str, ...] | None = None
    """Policies, instead of the study's: bc, dt, iql, reinformer; some studies have fewer."""

    critics: tuple[str, ...] | None = None
    """Kinds of critics, where a study compares them: iql, td3-bc, cql, cql-lagrange,
    ensemble."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a declared study: what is missing of its grid, then tables and a report.

    `dtag study list` lists the studies; `all` runs every one, each into its folder of --out. A
    study that was stopped, by whatever, goes on where it was. Datasets that are to be there and are
    not, of any of the studies, are told before the first one starts.
    """

    once: ClassVar[tuple[str, ...]] = ("--data", "--size.methods", "--size.critics")

    name: Annotated[str, tyro.conf.Positional]
    """list, all, or a study's name."""

    budget: Literal["smoke", "small", "paper"] = "small"
    """Seconds, to see that all of it works; minutes to hours; or the papers' scale: days."""

    data: tuple[str, ...] = ()
    """Minari ids to run on, instead of the budget's; all of them after one --data."""

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
    """Processes at most, one thread each; as many as cores unless given, or as GPUs where
    --size.device is cuda: each sees one. Never more than fit into the free memory."""

    size: Changes = field(default_factory=Changes)
    """Changes of the budget's size."""

    def run(self) -> int:
        """Do what is missing; 1 if some of it failed."""
        from rich.console import Console

        from dtag_fast.studies.catalog import STUDIES, study
        from dtag_fast.studies.runner import data_of, require

        console = Console()
        if self.name == "list":
            self._list(console)
            return 0
        chosen = list(STUDIES.values()) if self.name == "all" else [study(self.name)]
        if self.name == "all" and self.data:
            raise ValueError("--data: studies run on data of different kinds; name one study")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address: only with --engine ray")
        # Whatever can be wrong is told before the first one starts, of all of them.
        declared = [(each, *self._declare(each, console)) for each in chosen]
        require({data for *_, runs in declared for run in runs for data in data_of(run)})
        out = self.out or Path("runs") / "studies" / f"{self.name}-{self.budget}"
        trainings = self.trainings or out / "trainings"
        _check_writable("--out", out)
        _check_writable("--trainings", trainings)
        engine = self._engine()
        failed = []
        try:
            for each, size, data, runs in declared:
                folder = out / each.name if self.name == "all" else out
                if not self._run(each, size, data, runs, folder, trainings, engine, console):
                    failed.append(each.name)
        finally:
            engine.close()
        if failed:
            console.print(f"[bold]With failures:[/bold] {', '.join(failed)}", soft_wrap=True)
        return int(bool(failed))

    def _declare(
        self, study: Declared, console: Console
    ) -> tuple[Size, tuple[Data, ...], list[Run]]:
        """The size, the data and the runs of a study, with what the command line changes.

        With `all`, methods and critics go to the studies that have them; the others are named.
        """
        from dtag_fast.studies.declare import Data

        changes = self._changes()
        if self.name == "all":
            has = {
                "methods": study.takes_methods(changes.get("methods", ())),
                "critics": study.critics,
            }
            for name in [name for name in changes if not has.get(name, True)]:
                del changes[name]
                console.print(f"{study.name}: runs without --size.{name}", soft_wrap=True)
        size = replace(study.sizes[self.budget], budget=self.budget, **changes)
        data = tuple(Data(id=id) for id in dict.fromkeys(self.data)) or study.data[self.budget]
        return size, data, study.runs(size, data)

    def _changes(self) -> dict[str, Any]:
        """What is given of the size; the device is part of keys, so that it is one, not "auto"."""
        given = {f.name: getattr(self.size, f.name) for f in fields(self.size)}
        changes = {name: value for name, value in given.items() if value is not None}
        if self.size.device is not None:
            changes["device"] = self._device(self.size.device)
        return changes

    def _device(self, word: str) -> str:
        """The device that a word means."""
        from dtag_fast.training.devices import resolve_device

        if self.engine == "ray" and re.fullmatch(r"cuda(:\d+)?", word):
            return word  # of the cluster's nodes; this machine need not have one
        try:
            return str(resolve_device(word))
        except ValueError as error:
            raise ValueError(f"--size.{error}") from error

    def _engine(self) -> Engine:
        if self.engine == "ray":
            from dtag_fast.studies.engine_ray import RayEngine

            return RayEngine(self.ray_address, self.workers)
        from dtag_fast.studies.engine_local import LocalEngine
        from dtag_fast.training.devices import visible_gpus

        device = self.size.device or "cpu"
        gpus = visible_gpus() if device in ("auto", "cuda") else ()
        workers = self.workers
        if workers is None:
            on_gpu = gpus or device.startswith("cuda")
            workers = max(1, len(gpus)) if on_gpu else len(os.sched_getaffinity(0))
        return LocalEngine(workers, gpus=gpus)

    def _run(
        self,
        study: Declared,
        size: Size,
        data: tuple[Data, ...],
        runs: list[Run],
        out: Path,
        trainings: Path,
        engine: Engine,
        console: Console,
    ) -> bool:
        """One study; whether all of it has a row."""
        from dtag_fast.studies.runner import run_study
        from dtag_fast.studies.study_report import write_study

        console.print(f"[bold]{study.name}[/bold]: {study.title}", soft_wrap=True)

        def say(line: str) -> None:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

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
        words = [self.name, "--budget", self.budget]
        if self.data:
            words += ["--data", *self.data]
        for name, value in self._changes().items():
            said = value if isinstance(value, tuple) else (value,)
            words += [f"--size.{name.replace('_', '-')}", *map(str, said)]
        return shlex.join(words)

    def _list(self, console: Console) -> None:
        from rich import box
        from rich.table import Table

        from dtag_fast.studies.catalog import STUDIES

        table = Table("study", "question", "runs", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, study in STUDIES.items():
            _, _, runs = self._declare(study, console)
            table.add_row(name, study.question, str(len(set(runs))))
        console.print(table)


def _check_writable(argument: str, folder: Path) -> None:
    """Make a folder if need be, and try whether files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ValueError(
            f"{argument}: expected a folder that can be written to, got {folder}: {why}"
        ) from error
