"""Do what a study lacks: trainings, runs once their trainings are there, and a row for each."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dtag_fast import __version__, checkpoint
from dtag_fast.studies import datasets, work
from dtag_fast.studies.declare import Data, Run, Training
from dtag_fast.studies.engine import Engine, Job, Outcome
from dtag_fast.studies.locks import locked
from dtag_fast.studies.rows import ROWS_FILE, RowWriter

ATTEMPTS = 3
TRAININGS_FILE = "trainings.json"
FAILURES_FILE = "failures.json"


@dataclass
class Report:
    """What a call of `run_study` did.

    Attributes:
        rows: of all runs asked for that have one, by key.
        done: how many of them are new.
        failures: what went wrong, by the key of the training or run.
        retried: how many jobs were lost and begun again.
    """

    rows: dict[str, dict[str, Any]]
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    retried: int = 0


def run_study(
    runs: Sequence[Run],
    engine: Engine,
    out: Path,
    trainings: Path,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Train and measure what is not there yet.

    It can be killed at any moment and called again; what is lost is the work of that moment. Runs
    of one key are one, so is a training that several runs need.

    Args:
        runs: what to do.
        engine: where; it stays open.
        out: folder of the rows.
        trainings: folder of the trainings, one for each key. Several studies may share it, one
            after the other.
        say: takes a line for each thing that ended.

    Raises:
        FileNotFoundError: datasets that are not there; the message says how to get each.
        ValueError: rows, or a finished training, of other data under the same name.
        RuntimeError: another process is at work in `out`, or in `trainings` and something is
            missing.
    """
    wanted = {run.key: run for run in reversed(runs)}
    data = {data for run in wanted.values() for data in data_of(run)}
    require(data)
    with RowWriter(out / ROWS_FILE) as rows:
        # Only now that rows can be written: to make a dataset takes a while.
        _make(data)
        missing = [run for run in dict.fromkeys(runs) if run.key not in rows.rows]
        _check_data([run for run in wanted.values() if run.key in rows.rows], rows.rows)
        _write_trainings(out, wanted.values())
        report = Report({})
        if missing:
            with locked(trainings, f"for the study in {out.resolve()}"):
                report = _Driver(engine, trainings, rows, say).run(missing)
        report.rows = {key: rows.rows[key] for key in wanted if key in rows.rows}
    failures = out / FAILURES_FILE
    if report.failures:
        checkpoint.write_json(failures, report.failures)
    else:
        failures.unlink(missing_ok=True)
    return report


def require(wanted: Iterable[Data]) -> None:
    """FileNotFoundError for datasets that are not there and that no study makes, all of them."""
    given = {data.id: data for data in wanted if data.made_by is None}
    lacking = sorted(what for d in given.values() if (what := datasets.prepare(d)) is not None)
    if lacking:
        raise FileNotFoundError("datasets that are not here:\n  " + "\n  ".join(lacking))


def _make(wanted: Iterable[Data]) -> None:
    """Make the datasets that can be made and are not there."""
    for data in {
        replace(data, share=1.0, best_share=1.0) for data in wanted if data.made_by is not None
    }:
        datasets.prepare(data)


def data_of(run: Run) -> set[Data]:
    """The datasets of a run and of its trainings."""
    return {run.data, *(training.data for training in run.trainings)}


def _check_data(runs: Sequence[Run], rows: dict[str, dict[str, Any]]) -> None:
    """Rows that are kept must be of the data that is there now."""
    for run in runs:
        known = rows[run.key]["data"]["fingerprint"]
        found = datasets.fingerprint(run.data)
        if known != found:
            raise ValueError(
                f"data: there are rows of {run.data.id!r} with the fingerprint {known[:16]}, but "
                f"the dataset has {found[:16]} now; choose another folder"
            )


def _check_trained(training: Training, folder: Path) -> None:
    """A finished training that is used must be of the data that is there now."""
    known = work.trained_on(folder)
    if known is None:
        return
    found = datasets.fingerprint(training.data)
    if known != found:
        raise ValueError(
            f"trainings: {folder} was trained on {training.data.name!r} with the fingerprint "
            f"{known[:16]}, but the dataset has {found[:16]} now; choose another folder of "
            "trainings, or delete this training to have it done anew"
        )


def _write_trainings(out: Path, runs: Any) -> None:
    """The settings of every training by its key, for whoever reads the rows."""
    file = out / TRAININGS_FILE
    known = checkpoint.read_json(file) if file.exists() else {}
    found = {t.key: t.content() for run in runs for t in run.trainings}
    if not found.keys() <= known.keys():
        checkpoint.write_json(file, known | found)


class _Driver:
    def __init__(
        self, engine: Engine, trainings: Path, rows: RowWriter, say: Callable[[str], None]
    ) -> None:
        self.engine = engine
        self.trainings = trainings
        self.rows = rows
        self.say = say
        self.report = Report({})
        self.attempts: dict[str, int] = {}
        self.left = 0

    def run(self, runs: Sequence[Run]) -> Report:
        trained: set[str] = set()
        waiting: dict[str, Training] = {}
        for run in runs:
            for training in run.trainings:
                if training.key in trained or training.key in waiting:
                    continue
                if work.is_trained(training, self._folder(training)):
                    _check_trained(training, self._folder(training))
                    trained.add(training.key)
                else:
                    waiting[training.key] = training
        to_train = list(waiting.values())
        to_measure = list(runs)
        self.left = len(to_train) + len(to_measure)
        active = 0
        while True:
            while self.engine.free > 0:
                job = self._next(to_train, to_measure, trained)
                if job is None:
                    break
                self.engine.start(job)
                active += 1
            if active == 0:
                return self.report
            for job, outcome in self.engine.wait():
                active -= 1
                if outcome.lost and self._again(job, outcome):
                    if isinstance(job.work, Training):
                        to_train.insert(0, job.work)
                    else:
                        to_measure.insert(0, job.work)
                    continue
                self._ended(job, outcome)
                if isinstance(job.work, Training) and outcome.error is None:
                    trained.add(job.key)

    def _next(
        self, to_train: list[Training], to_measure: list[Run], trained: set[str]
    ) -> Job | None:
        """A run that can be measured, otherwise the next training."""
        for index, run in enumerate(to_measure):
            needed = {training.key for training in run.trainings}
            if needed <= trained:
                del to_measure[index]
                return Job(run, {t.key: self._folder(t) for t in run.trainings})
            failed = needed & self.report.failures.keys()
            if failed:
                del to_measure[index]
                self._ended(Job(run, {}), Outcome(error=f"the training {min(failed)} failed"))
                return self._next(to_train, to_measure, trained)
        for index, training in enumerate(to_train):
            guide = training.guide
            if guide is None or guide.key in trained:
                del to_train[index]
                both = (training,) if guide is None else (training, guide)
                return Job(training, {t.key: self._folder(t) for t in both})
            if guide.key in self.report.failures:
                del to_train[index]
                self._ended(Job(training, {}), Outcome(error=f"its critic {guide.key} failed"))
                return self._next(to_train, to_measure, trained)
        return None

    def _folder(self, training: Training) -> Path:
        return self.trainings / training.key

    def _again(self, job: Job, outcome: Outcome) -> bool:
        """Whether a lost job gets another attempt."""
        self.attempts[job.key] = self.attempts.get(job.key, 0) + 1
        if self.attempts[job.key] >= ATTEMPTS:
            return False
        self.report.retried += 1
        self.say(f"lost, begun again: {describe(job.work)}: {outcome.error}")
        return True

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self.left -= 1
        if outcome.error is not None:
            self._failed(job, outcome.error)
            return
        if isinstance(job.work, Run):
            assert outcome.value is not None
            wrong = list(_not_finite(outcome.value))
            if wrong:  # JSON has no such numbers, and no table a place for them
                more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
                self._failed(job, f"figures that are not finite: {', '.join(wrong[:5])}{more}")
                return
            self.rows.append(_row(job.work, outcome.value))
            self.report.done += 1
        self.say(f"{self.left} to go; done: {describe(job.work)}")

    def _failed(self, job: Job, error: str) -> None:
        self.report.failures[job.key] = f"{describe(job.work)}: {error}"
        self.say(f"failed: {describe(job.work)}: {error}")


def describe(job: Training | Run) -> str:
    """A training or run for people."""
    if isinstance(job, Training):
        return f"training {job.key} ({job.trainer}, {job.data.name}, seed {job.config.seed})"
    return f"run {job.key} ({', '.join(f'{k} {v}' for k, v in job.labels)})"


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Where in JSON values there are numbers that are not finite, and which."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name} = {value}"
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _not_finite(part, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _not_finite(part, f"{name}[{index}]")


def _row(run: Run, value: dict[str, Any]) -> dict[str, Any]:
    data = datasets.load(run.data)
    return {
        "key": run.key,
        "labels": run.label,
        **value,
        "run": run.content(),
        "data": {
            "name": run.data.name,
            "fingerprint": datasets.fingerprint(run.data),
            "episodes": data.episodes,
            "steps": data.steps,
        },
        "made": {
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "package": __version__,
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }
