"""What an engine is: where the jobs of a study run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dtag_fast.studies.declare import Run, Training


@dataclass(frozen=True)
class Job:
    """A training, or the measuring of a run, with the folders of its trainings by their keys.

    A training's own folder, to train into, is under its own key, and its guide's is there, too.
    """

    work: Training | Run
    folders: Mapping[str, Path]

    @property
    def key(self) -> str:
        return self.work.key


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        value: of a run what `work.measure` returns; None of a training and of a failure.
        error: None, or what went wrong.
        lost: whether it was not the work that failed but what did it: a killed process, a lost
            node. Such a job is worth another attempt.
    """

    value: dict[str, Any] | None = None
    error: str | None = None
    lost: bool = False


class Engine(Protocol):
    """Runs jobs beside each other. Jobs may run in any order and place; results do not differ."""

    @property
    def free(self) -> int:
        """How many more jobs to start now; at least 1 if none is running."""
        ...

    def start(self, job: Job) -> None:
        """Begin a job; returns at once."""
        ...

    def wait(self) -> list[tuple[Job, Outcome]]:
        """Wait until something ended; jobs that were started and have ended since."""
        ...

    def close(self) -> None:
        """End what is still running."""
        ...


def perform(job: Job) -> dict[str, Any] | None:
    """Do a job here, with the files of this machine."""
    from dtag_fast.studies import datasets, work

    data = datasets.load(job.work.data)
    if isinstance(job.work, Training):
        work.train(job.work, data, job.folders)
        return None
    return work.measure(job.work, data, job.folders)
