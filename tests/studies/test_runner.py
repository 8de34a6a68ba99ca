"""A study is done once, whatever is killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dtag_fast
from dtag_fast import checkpoint
from dtag_fast.data.generate import make
from dtag_fast.studies import datasets as stored
from dtag_fast.studies import recipes
from dtag_fast.studies.catalog import STUDIES
from dtag_fast.studies.declare import Data, Run, Training, options
from dtag_fast.studies.engine import Job, Outcome, perform
from dtag_fast.studies.engine_local import LocalEngine
from dtag_fast.studies.locks import locked
from dtag_fast.studies.rows import ROWS_FILE, RowWriter, read_rows
from dtag_fast.studies.runner import FAILURES_FILE, Report, run_study
from dtag_fast.studies.work import DIVERGED_FILE
from tests.studies.conftest import TINY, TOY, toy_runs

# Where this dtag_fast is, and after it where these tests are.
SEARCHED = [str(Path(dtag_fast.__file__).parents[1]), str(Path(__file__).parents[2])]


class HereEngine:
    """Does each job at once, in this process, or fails as told."""

    def __init__(self, outcomes: dict[str, list[Outcome]] | None = None) -> None:
        self.outcomes = outcomes or {}
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []

    @property
    def free(self) -> int:
        return 3 - len(self.waiting)

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        self.waiting.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        job = self.waiting.pop(0)
        planned = self.outcomes.get(job.key)
        if planned:
            return [(job, planned.pop(0))]
        try:
            return [(job, Outcome(perform(job)))]
        except ValueError as error:
            return [(job, Outcome(error=str(error)))]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def datasets(datasets_folder: Path) -> None:
    pass


@pytest.fixture
def local() -> Iterator[LocalEngine]:
    engine = LocalEngine(2)
    yield engine
    engine.close()


def do(runs: list[Run], engine: Any, folder: Path, **options: Any) -> Report:
    return run_study(runs, engine, folder, folder / "trainings", **options)


def results(folder: Path) -> dict[str, Any]:
    """What does not depend on where and when it was measured."""
    rows = read_rows(folder / ROWS_FILE)
    return {key: (row["status"], row["result"], row["data"]) for key, row in rows.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("expected")
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp() / "study-datasets"
        patch.setenv("MINARI_DATASETS_PATH", str(base))
        do(toy_runs(), HereEngine(), folder)
    return results(folder)


def test_every_run_has_a_row_with_what_it_found(expected: dict[str, Any]) -> None:
    runs = toy_runs()
    assert set(expected) == {run.key for run in runs}
    for run in runs:
        status, result, data = expected[run.key]
        assert status == "done"
        assert len(result["returns"]) == run.episodes
        assert data["steps"] == 100
        assert ("q_gain" in result) == (run.refinement is not None)


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    runs = toy_runs(1)
    first = HereEngine()
    lines: list[str] = []
    report = do(runs, first, tmp_path, say=lines.append)
    assert report.done == 2
    assert [line.partition(" ")[0] for line in lines] == ["3", "2", "1", "0"]
    content = (tmp_path / ROWS_FILE).read_bytes()
    second = HereEngine()
    report = do(runs, second, tmp_path)
    assert (report.done, set(report.rows)) == (0, {run.key for run in runs})
    assert second.jobs == []
    assert (tmp_path / ROWS_FILE).read_bytes() == content


def test_trainings_are_shared_and_done_once(tmp_path: Path) -> None:
    runs = toy_runs(1)
    more = [replace(runs[1], refinement=options(steps=n), labels=options(n=n)) for n in (1, 2)]
    engine = HereEngine()
    do(runs, engine, tmp_path)
    again = HereEngine()
    do([*runs, *more, more[0]], again, tmp_path)
    assert sum(isinstance(job.work, Training) for job in engine.jobs) == 2
    assert [job.work for job in again.jobs] == more
    named = checkpoint.read_json(tmp_path / "trainings.json")
    assert named.keys() == {t.key for run in runs for t in run.trainings}


def test_processes_give_what_one_process_gives(
    tmp_path: Path, local: LocalEngine, expected: dict[str, Any]
) -> None:
    do(toy_runs(), local, tmp_path)
    assert results(tmp_path) == expected
    assert 1 <= len(local.processes) <= 2


def test_a_killed_worker_costs_its_job_another_attempt(
    tmp_path: Path, local: LocalEngine, expected: dict[str, Any]
) -> None:
    killed: list[int] = []

    def kill(line: str) -> None:
        if not killed:
            killed.extend(local.processes)
            for process in killed:
                os.kill(process, signal.SIGKILL)

    report = do(toy_runs(), local, tmp_path, say=kill)
    assert killed
    assert report.failures == {}
    assert not set(killed) & set(local.processes)
    assert results(tmp_path) == expected


def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path, expected: dict[str, Any]) -> None:
    code = """
import sys
from pathlib import Path
from dtag_fast.studies.engine_local import LocalEngine
from dtag_fast.studies.runner import run_study
from tests.studies.conftest import toy_runs
if __name__ == "__main__":
    engine = LocalEngine(1)
    out = Path(sys.argv[1])
    run_study(toy_runs(), engine, out, out / "trainings", lambda line: print(line, flush=True))
"""
    script = tmp_path / "driver.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(SEARCHED)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "done: run" in line:
            break
    children = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    there = results(tmp_path)
    assert there
    assert len(there) < len(expected)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives its driver"
        time.sleep(0.05)
    content = (tmp_path / ROWS_FILE).read_bytes()
    do(toy_runs(), HereEngine(), tmp_path)
    assert (tmp_path / ROWS_FILE).read_bytes().startswith(content)
    assert results(tmp_path) == expected


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def test_what_is_lost_again_and_again_is_a_failure(tmp_path: Path) -> None:
    unrefined, refined = toy_runs(1)
    lost = [Outcome(error="out of memory", lost=True) for _ in range(3)]
    engine = HereEngine({refined.key: lost})
    report = do([unrefined, refined], engine, tmp_path)
    assert set(report.rows) == {unrefined.key}
    assert report.retried == 2
    assert list(report.failures) == [refined.key]
    assert "out of memory" in report.failures[refined.key]
    assert checkpoint.read_json(tmp_path / FAILURES_FILE) == report.failures
    assert do([unrefined, refined], HereEngine(), tmp_path).failures == {}
    assert not (tmp_path / FAILURES_FILE).exists()


def test_a_failed_training_fails_its_runs_and_no_others(tmp_path: Path) -> None:
    runs = toy_runs(2)
    assert runs[1].critic is not None
    engine = HereEngine({runs[1].critic.key: [Outcome(error="broken")]})
    report = do(runs, engine, tmp_path)
    assert set(report.failures) == {runs[1].critic.key, runs[1].key}
    assert set(report.rows) == {run.key for run in runs} - {runs[1].key}


def guided_run() -> Run:
    """The IQL policy, whose training needs the critic's."""
    run = toy_runs(1)[0]
    return replace(run, policy=recipes.policy("iql", TOY, TINY, 0), labels=options(seed=0))


def test_a_guide_is_trained_before_what_it_guides(tmp_path: Path) -> None:
    run = guided_run()
    engine = HereEngine()
    report = do([run, *toy_runs(1)], engine, tmp_path)
    assert report.failures == {}
    assert report.rows[run.key]["status"] == "done"
    guide = run.policy.guide
    assert guide is not None
    order = [job.key for job in engine.jobs]
    assert order.index(guide.key) < order.index(run.policy.key) < order.index(run.key)
    assert guide in toy_runs(1)[1].trainings  # so it was trained once for both
    assert len(set(order)) == len(order)


@pytest.mark.parametrize("how", ["failed", "diverged"])
def test_a_guide_without_an_end_ends_what_it_guides(tmp_path: Path, how: str) -> None:
    run = guided_run()
    guide = run.policy.guide
    assert guide is not None
    if how == "failed":
        report = do([run], HereEngine({guide.key: [Outcome(error="broken")]}), tmp_path)
        assert set(report.failures) == {guide.key, run.policy.key, run.key}
    else:
        folder = tmp_path / "trainings" / guide.key
        checkpoint.write_json(folder / DIVERGED_FILE, {"what": "Q is nan"})
        report = do([run], HereEngine(), tmp_path)
        assert report.rows[run.key]["result"] == {"what": "Q is nan"}
        assert (tmp_path / "trainings" / run.policy.key / DIVERGED_FILE).exists()


def test_a_diverged_training_is_a_result(tmp_path: Path) -> None:
    runs = toy_runs(1)
    wild = replace(runs[1].critic.config, learning_rate=1e30)  # type: ignore[union-attr]
    run = replace(runs[1], critic=replace(runs[1].critic, config=wild))  # type: ignore[type-var]
    report = do([run], HereEngine(), tmp_path)
    assert report.failures == {}
    assert report.rows[run.key]["status"] == "diverged"
    assert (tmp_path / "trainings" / run.trainings[1].key / DIVERGED_FILE).exists()


def test_a_policy_that_diverges_by_its_critic_has_rows_that_say_so(tmp_path: Path) -> None:
    declared = STUDIES["policy-gradient"]
    runs = declared.runs(replace(TINY, seeds=1, methods=("dt", "dt-pg")), [TOY])
    wild = recipes.policy("dt-pg", TOY, TINY, 0, q_weight=1e39)  # infinite in float32
    runs = [replace(run, policy=wild) if run.label.get("q_weight") == 5.0 else run for run in runs]
    report = do(runs, HereEngine(), tmp_path)
    assert report.failures == {}
    status = {
        (run.label.get("q_weight"), run.label["refined"]): report.rows[run.key]["status"]
        for run in runs
    }
    assert status == {
        (weight, refined): "diverged" if weight == 5.0 else "done"
        for weight in (None, 5.0)
        for refined in (False, True)
    }
    again = HereEngine()
    do(runs, again, tmp_path)
    assert again.jobs == []  # what diverged is not tried again


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    data = Data(id="dtag/toy/changing-v0")
    make("toy", steps=50, id=data.id)
    do(toy_runs(1, data), HereEngine(), tmp_path)
    make_anew(data, 60)
    with pytest.raises(ValueError, match="rows of 'dtag/toy/changing-v0' with the finger"):
        do(toy_runs(1, data), HereEngine(), tmp_path)


def test_studies_that_share_trainings_work_one_after_the_other(tmp_path: Path) -> None:
    runs, shared = toy_runs(1), tmp_path / "trainings"
    refused: list[str] = []

    class Watched(HereEngine):
        """Has another study started in the middle of this one."""

        def wait(self) -> list[tuple[Job, Outcome]]:
            if not refused:
                with pytest.raises(RuntimeError, match="wait until that has ended") as error:
                    run_study(toy_runs(2)[2:], HereEngine(), tmp_path / "second", shared)
                refused.append(str(error.value))
            return super().wait()

    assert run_study(runs, Watched(), tmp_path / "first", shared).done == 2
    assert f"{shared} is held by process {os.getpid()} on " in refused[0]
    assert f"for the study in {tmp_path / 'first'}" in refused[0]
    assert run_study(toy_runs(2)[2:], HereEngine(), tmp_path / "second", shared).done == 2


def test_a_study_that_lacks_nothing_needs_no_trainings(tmp_path: Path) -> None:
    runs, shared = toy_runs(1), tmp_path / "trainings"
    run_study(runs, HereEngine(), tmp_path / "first", shared)
    with locked(shared, "a test"):
        assert len(run_study(runs, HereEngine(), tmp_path / "first", shared).rows) == 2


def make_anew(data: Data, steps: int) -> None:
    make("toy", steps=steps, id=data.id, force=True)
    stored.load.cache_clear()  # as in a new process
    stored.fingerprint.cache_clear()


def test_a_finished_training_on_other_data_is_not_reused(tmp_path: Path) -> None:
    data = Data(id="dtag/toy/remade-v0")
    make_anew(data, 50)
    runs, shared = toy_runs(1, data), tmp_path / "trainings"
    run_study(runs, HereEngine(), tmp_path / "first", shared)
    engine = HereEngine()
    run_study(runs, engine, tmp_path / "second", shared)
    assert [job.work for job in engine.jobs] == runs  # on the same data nothing is trained again
    make_anew(data, 60)
    engine = HereEngine()
    said = (
        f"{runs[0].policy.key} was trained on 'dtag/toy/remade-v0' with the fingerprint .* delete"
    )
    with pytest.raises(ValueError, match=said):
        run_study(runs, engine, tmp_path / "third", shared)
    assert engine.jobs == []


def test_what_diverged_on_other_data_is_not_reused(tmp_path: Path) -> None:
    data = Data(id="dtag/toy/remade-v1")
    make_anew(data, 50)
    runs, shared = toy_runs(1, data), tmp_path / "trainings"
    wild = replace(runs[1].critic.config, learning_rate=1e30)  # type: ignore[union-attr]
    critic = replace(runs[1].critic, config=wild)  # type: ignore[type-var]
    run = replace(runs[1], critic=critic)
    run_study([run], HereEngine(), tmp_path / "first", shared)
    file = shared / run.trainings[1].key / DIVERGED_FILE
    found = checkpoint.read_json(file)
    assert found["fingerprint"] == stored.fingerprint(data)
    shutil.rmtree(shared / run.policy.key)
    make_anew(data, 60)
    with pytest.raises(ValueError, match=f"{run.trainings[1].key} was trained on"):
        run_study([run], HereEngine(), tmp_path / "second", shared)
    # One from before fingerprints were kept stays what it was.
    checkpoint.write_json(file, {"what": found["what"]})
    report = run_study([run], HereEngine(), tmp_path / "second", shared)
    assert report.rows[run.key]["status"] == "diverged"


def test_missing_data_is_told_before_anything_is_done(tmp_path: Path) -> None:
    data = replace(TOY, id="dtag/hopper/medium-v0", made_by=None, steps=None)
    runs = [
        replace(run, data=data, policy=replace(run.policy, data=data), critic=None, refinement=None)
        for run in toy_runs(1)[:1]
    ]
    engine = HereEngine()
    with pytest.raises(FileNotFoundError, match="dtag data collect --env Hopper-v5 --tier medium"):
        do(runs, engine, tmp_path)
    assert engine.jobs == []
    assert not (tmp_path / ROWS_FILE).exists()


def test_a_busy_folder_is_noticed_before_data_is_made(tmp_path: Path) -> None:
    data = Data(id="dtag/study/toy-never-v0", made_by="toy", steps=70)
    with (
        RowWriter(tmp_path / ROWS_FILE),
        pytest.raises(RuntimeError, match="another process is at work on this study"),
    ):
        do(toy_runs(1, data), HereEngine(), tmp_path)
    assert stored.prepare(replace(data, made_by=None, steps=None)) is not None


def test_a_figure_that_is_not_finite_is_a_failure_of_its_run(tmp_path: Path) -> None:
    runs = toy_runs(1)
    nan, inf = float("nan"), float("inf")
    figures = {"returns": [0.5, nan, 1.0], "q_gain": inf, "distance": 0.1, "more": 5 * [-inf]}
    value = {"status": "done", "result": figures, "timing": {}}
    report = do(runs, HereEngine({runs[1].key: [Outcome(value)]}), tmp_path)
    assert set(report.rows) == {runs[0].key}
    assert list(report.failures) == [runs[1].key]
    said = report.failures[runs[1].key]
    assert "not finite: result.returns[1] = nan, result.q_gain = inf, result.more[0] = " in said
    assert said.endswith("result.more[2] = -inf and 2 more")
    assert do(runs, HereEngine(), tmp_path).done == 1
