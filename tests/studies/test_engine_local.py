"""Processes: no more of them than fit into the memory, each with a GPU of its own.

That they do the work: test_runner.py.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.studies import datasets, engine_local
from dtag_fast.studies.engine import Job
from dtag_fast.studies.engine_local import (
    RESERVE_BYTES,
    WORKER_BYTES,
    LocalEngine,
    available_bytes,
    resident_bytes,
)
from tests.studies.conftest import TOY, toy_runs
from tests.studies.test_runner import SEARCHED


@pytest.fixture(autouse=True)
def own_datasets(datasets_folder: Path) -> None:
    assert datasets.prepare(TOY) is None


def test_no_more_workers_than_fit_into_memory() -> None:
    free = [10**12]
    engine = LocalEngine(3, available=lambda: free[0])
    try:
        run = toy_runs(1)[0]
        job = Job(run, {run.policy.key: Path("nowhere")})
        assert engine.free == 1
        engine.start(job)
        assert engine.free == 1
        free[0] = 10**8
        assert engine.free == 0  # one works, and there is no room for a second
        ((ended, outcome),) = engine.wait()
        assert ended is job
        assert outcome.error is not None
        assert outcome.error.startswith("CheckpointError: nowhere: no such folder")
        assert not outcome.lost
        assert engine.free == 1  # the idle one
    finally:
        engine.close()
    assert engine.processes == []


def test_what_workers_will_still_take_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = WORKER_BYTES + RESERVE_BYTES + WORKER_BYTES // 10
    engine = LocalEngine(3, available=lambda: free)
    try:
        run = toy_runs(1)[0]
        assert engine.free == 1
        engine.start(Job(run, {run.policy.key: Path("nowhere")}))
        # Just born, it has used next to nothing of what it will.
        monkeypatch.setattr(engine_local, "resident_bytes", lambda process: 10**7)
        assert engine.free == 0
        # What it has taken already is no longer part of what is free.
        monkeypatch.setattr(engine_local, "resident_bytes", lambda process: WORKER_BYTES)
        assert engine.free == 1
        monkeypatch.setattr(engine_local, "resident_bytes", lambda process: 2 * WORKER_BYTES)
        assert engine.free == 1
        monkeypatch.setattr(engine_local, "resident_bytes", lambda process: None)
        assert engine.free == 1
    finally:
        engine.close()


def test_what_a_process_uses() -> None:
    found = resident_bytes(os.getpid())
    assert found is None or 10**7 < found < 10**11
    assert resident_bytes(2**30) is None


def test_what_the_system_says_of_its_memory() -> None:
    found = available_bytes()
    assert found is None or found > 10**6


def test_each_worker_sees_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A job that tells what its worker sees: unpickling it there prints it.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(SEARCHED))
    run = toy_runs(1)[0]
    for gpus, expected in ((("3", "5"), ["3", "3", "5"]), ((), ["all"])):
        engine = LocalEngine(3, gpus=gpus)
        try:
            for _ in expected:
                engine.start(Job(run, Telling()))
            ended = 0
            while ended < len(expected):
                ended += len(engine.wait())
        finally:
            engine.close()
        assert sorted(re.findall(r"sees (\w+)", capfd.readouterr().out)) == expected


def _tell() -> dict[str, Path]:
    print("sees", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    return {}


class Telling(dict[str, Path]):
    """Folders of a job, none, that are told where they arrive."""

    def __reduce__(self) -> Any:
        return _tell, ()
