"""The parts of benchmarks/gpu_check.py that need no GPU."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_latency
from benchmarks.cases import STANDING
from benchmarks.conftest import Table
from benchmarks.gpu_check import Device, Stage
from benchmarks.gpu_latency import Limits

DEVICE = Device(
    name="NVIDIA H200",
    capability="9.0",
    multiprocessors=132,
    memory_gib=139.8,
    driver="570.1",
    cuda="13.0",
    torch="2.11.0",
    triton="3.6.0",
    python="3.12.3",
    system="Linux x86_64",
    commit="0123456789ab",
    date="2026-01-02",
)


def row(backend: str, batch: int, steps: int, p50: float | None, **more: Any) -> dict[str, Any]:
    known = {"case": STANDING.name, "B": batch, "n": steps, "backend": backend}
    timed = {} if p50 is None else {"p50 us": p50}
    return known | {"precision": "fp32"} | timed | more


ROWS = [
    row("reference", 1, 10, None, **{"call us": 4000.0}),
    row("graph", 1, 10, 200.0, **{"x eager": 20.0}),
    row("cuda", 1, 10, 9.0, **{"x eager": 444.4, "floor us": 3.0, "x floor": 3.0, "error": 1e-7}),
    row("cuda", 1, 50, 40.0),
    row("cuda", 256, 10, 25.0),
    row("triton", 256, 10, None, note="triton is not installed"),
    row("cuda", 4096, 10, 50.0, precision="bf16"),
    row("cuda", 1, 10, 7.0, kernel="cluster", **{"x eager": 570.0}),
    row("cuda", 1, 10, 8.0, precision="bf16", **{"x eager": 500.0}),
]


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "sees no CUDA device; this check needs one" in capsys.readouterr().err


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    plain = gpu_check.arguments([])
    assert plain.out == gpu_check.RESULTS
    assert not plain.quick
    assert plain.seconds < 8 * 60
    for wrong in (["--seconds", "0"], ["--seconds", "soon"], ["--fast"]):
        with pytest.raises(SystemExit):
            gpu_check.arguments(wrong)
    assert "--seconds: expected more than 0, got 0" in capsys.readouterr().err


def test_goals_are_held_against_the_rows() -> None:
    found = {goal["goal"]: (goal["reached"], goal["met"]) for goal in gpu_latency.goals(ROWS)}
    assert found["B=1, best backend"] == (9.0, "yes")
    assert found["B=256, best backend"] == (25.0, "no")
    assert found["B=4096, best backend"] == (None, "not measured")
    assert found["B=4096, bf16, best backend"] == (50.0, "yes")
    assert found["B=1, graph"] == (200.0, "yes")
    assert found["B=1, triton"] == (None, "not measured")
    assert found["B=1, best backend over eager autograd"] == (444.4, "yes")
    reached, met = found["B=1, n=50 over n=10"]
    assert reached == pytest.approx(40 / 9)
    assert met == "no"
    assert {goal["met"] for goal in gpu_latency.goals([])} == {"not measured"}


def test_floors() -> None:
    limits = Limits(launch=2e-6, multiply_adds=132e12, multiprocessors=132, copied=5e12)
    work = gpu_latency.walk_work(STANDING)
    # Half of two matrices, for z_2 and six columns; the rest is small beside it.
    assert 2 * 0.5 * 256 * 256 * 7 < work < 2 * 0.5 * 256 * 256 * 7 * 1.3
    assert gpu_latency.floor(STANDING, limits) == pytest.approx(max(2e-6, work / 1e12))
    many = next(t.case for t in gpu_latency.cases() if t.case.batch == 4096)
    assert gpu_latency.floor(many, limits) == pytest.approx(4096 * work / 132e12)


def test_every_goal_has_its_case() -> None:
    timed = {(t.case.name, t.case.batch, t.case.steps, t.precision) for t in gpu_latency.cases()}
    for _, batch, steps, precisions, _, _ in gpu_latency.GOALS:
        assert all((STANDING.name, batch, steps, precision) in timed for precision in precisions)
    assert (STANDING.name, 1, 50, "fp32") in timed
    assert len(gpu_latency.cases(quick=True)) == 1


def test_the_file_and_the_table(tmp_path: Path) -> None:
    stages = [Stage("build", "passed", 30.0), Stage("sanitizer memcheck", "skipped", 0.0, "none")]
    goals = gpu_latency.goals(ROWS)
    times = {"cpu us": 20.0, "gpu us": 100.0, "cpu / gpu": 0.2, "auto": "cpu"}
    crossing = [{"case": STANDING.name, "B": 1} | times]
    path = gpu_check.write(
        tmp_path / "new", DEVICE, stages, None, ROWS, goals, ["a note"], crossing
    )
    assert path.name == "2026-01-02-nvidia-h200-gpu.json"
    document = json.loads(path.read_text())
    assert document["machine"]["name"] == "NVIDIA H200"
    assert document["stages"][1]["detail"] == "none"
    assert document["rows"] == ROWS
    assert document["goals"] == goals
    assert document["crossovers"] == crossing
    (_, line) = Table("crossovers", gpu_latency.CROSSOVER_COLUMNS, crossing).lines()
    assert line.split() == [STANDING.name, "1", "20", "100", "0.20x", "cpu"]
    lines = Table("latency", gpu_latency.COLUMNS, ROWS).lines()
    assert len(lines) == 1 + len(ROWS)
    assert lines[3].split()[:4] == [STANDING.name, "1", "10", "cuda"]
    assert "triton is not installed" in lines[6]
    assert Table("goals", gpu_latency.GOAL_COLUMNS, goals).lines()[1].endswith("yes")


def test_what_fails_the_check() -> None:
    passed, failed = Stage("tests", "passed", 1.0), Stage("tests", "failed", 1.0)
    skipped = Stage("sanitizer memcheck", "skipped", 0.0)
    assert gpu_check.exit_code([passed, skipped], ROWS) == 0
    assert gpu_check.exit_code([passed, failed], ROWS) == 1
    assert gpu_check.exit_code([passed], [*ROWS, row("cuda", 1, 10, None, failed=True)]) == 1


def test_a_stage_keeps_the_end_of_what_it_printed() -> None:
    good = gpu_check.run_stage("good", [sys.executable, "-c", "print('all is well')"], 60.0)
    assert (good.outcome, good.detail) == ("passed", "all is well")
    bad = gpu_check.run_stage("bad", [sys.executable, "-c", "raise SystemExit('broken')"], 60.0)
    assert (bad.outcome, bad.detail) == ("failed", "broken")
    endless = "import time; print('begun', flush=True); time.sleep(60)"
    stopped = gpu_check.run_stage("endless", [sys.executable, "-c", endless], 2.0)
    assert stopped.outcome == "failed"
    assert stopped.detail == "begun\n\nstopped after 2 s"
    assert gpu_check.run_stage("none", ["no-such-program"], 2.0).outcome == "failed"
    places = f"print({str(gpu_check.ROOT / 'tests')!r}, {sys.prefix!r})"
    told = gpu_check.run_stage("places", [sys.executable, "-c", places], 60.0)
    assert told.detail == "./tests python"


def test_a_sanitizer_that_is_missing_or_late_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find", lambda tool: None)
    missing = gpu_check.sanitize("memcheck", 100.0)
    assert (missing.outcome, missing.detail) == ("skipped", "there is no compute-sanitizer here")
    monkeypatch.setattr(gpu_check, "find", lambda tool: sys.executable)
    late = gpu_check.sanitize("memcheck", 1.0)
    assert (late.outcome, late.detail) == ("skipped", "no time was left")


def test_the_tests_for_a_gpu_are_found() -> None:
    assert "tests/refinement/test_cuda_gpu.py" in gpu_check.gpu_tests("refinement")
    assert "tests/refinement/test_properties.py" not in gpu_check.gpu_tests("refinement")
    both = gpu_check.gpu_tests("training", "acting")
    assert both == ["tests/acting/test_captured.py", "tests/training/test_captured.py"]


def test_checks_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, list[str]] = {}
    together = threading.Barrier(5, timeout=60.0)

    def run_stage(name: str, command: list[str], limit: float) -> Stage:
        assert limit == 100.0
        commands[name] = command
        together.wait()
        return Stage(name, "passed", 1.0)

    monkeypatch.setattr(gpu_check, "find", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(gpu_check, "TRAINING_NEEDS", ("torch",))
    monkeypatch.setattr(gpu_check, "run_stage", run_stage)
    stages = gpu_check.run_checks(100.0)
    assert [(stage.name, stage.outcome) for stage in stages] == [
        ("tests", "passed"),
        ("tests of training and acting", "passed"),
        *((f"sanitizer {tool}", "passed") for tool in ("memcheck", "racecheck", "synccheck")),
    ]
    assert "tests/refinement/test_cuda_gpu.py" in commands["tests"]
    assert "tests/training/test_captured.py" in commands["tests of training and acting"]
    assert commands["sanitizer racecheck"][:3] == ["/bin/compute-sanitizer", "--tool", "racecheck"]


def test_tests_are_left_out_where_they_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = gpu_check.run_tests("some", ("training",), ("torch", "no_such_package"), 100.0)
    assert (stage.outcome, stage.detail) == ("skipped", "needs no_such_package")
