"""`dtag study`: the work is tested in tests/studies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console

from dtag_fast.cli import main
from dtag_fast.commands.parse import parse
from dtag_fast.commands.study import Changes, Study
from dtag_fast.studies import engine_local
from dtag_fast.studies.catalog import STUDIES, study
from dtag_fast.studies.declare import Size
from dtag_fast.studies.declare import Study as Declared
from dtag_fast.studies.rows import ROWS_FILE, read_rows
from dtag_fast.training.devices import visible_gpus


@pytest.fixture(autouse=True)
def own_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)


SMALLEST = ["--size.seeds", "1", "--size.policy-steps", "5", "--size.critic-steps", "10"]


def test_a_study_runs_and_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["study", "toy", "--budget", "smoke", "--workers", "1", *SMALLEST]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "4 rows, 4 of them new. Report: runs/studies/toy-smoke/report.html" in out
    rows = read_rows(tmp_path / "runs" / "studies" / "toy-smoke" / ROWS_FILE)
    assert len(rows) == 4
    assert main(command) == 0
    assert "4 rows, 0 of them new" in capsys.readouterr().out


def test_the_list_has_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in STUDIES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "name: expected one of toy"),
        (["all", "--data", "dtag/hopper/medium-v0"], "--data: studies run on data of different"),
        (["toy", "--size.seeds", "0"], "seeds: expected at least 1, got 0"),
        (["toy", "--workers", "0"], "workers: expected at least 1, got 0"),
        (["toy", "--data", "dtag/toy/none-v0"], "dtag/toy/none-v0: dtag data info"),
        (["toy", "--ray-address", "auto"], "--ray-address: only with --engine ray"),
        (["toy", "--size.methods", "dt", "gpt"], "size.methods: expected some of bc, dt"),
        (["toy", "--size.device", "tpu"], "--size.device: expected auto, cpu or cuda[:n], got 'tp"),
        (["toy", "--size.device", "cuda:99"], "--size.device: 'cuda:99', but torch sees"),
        (["toy", "--out", "a-file"], "--out: expected a folder that can be written to, got a-file"),
        (["toy", "--out", "a-file/x"], "got a-file/x: Not a directory"),
        (["toy", "--trainings", "a-file"], "--trainings: expected a folder that can be written to"),
        (["toy", "--trainings", "/proc/x"], "--trainings: expected a folder that can be written"),
        (["stitching", "--size.methods", "dt"], "size.methods: stitching has reinformer, got dt"),
        (["predictors", "--size.methods", "bc"], "size.methods: predictors has dt, reinformer"),
        (["toy", "--size.critics", "cql"], "size.critics: toy does not compare critics, got cql"),
        (["action-dims", "--data", "dtag/a-v0"], "data: action-dims has its own alone, got dtag/a"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("here")
    assert main(["study", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob(ROWS_FILE))
    assert not (tmp_path / "datasets").exists()  # nothing was made in vain


def test_what_all_studies_lack_is_told_before_the_first_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["study", "all", "--budget", "paper"]) == 1
    told = capsys.readouterr()
    assert "dtag/d4rl/hopper-medium-v2: dtag data import-d4rl hopper_medium-v2.hdf5" in told.err
    assert "dtag/d4rl/maze2d-" in told.err  # of another study
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_device_auto_is_one_of_them_in_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: int(there))
        auto, plain = keys(Changes(device="auto")), keys(Changes(device=name))
        assert auto == plain
        assert (plain == keys(Changes())) == (name == "cpu")  # what it is unless given


def test_a_cluster_may_have_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert keys(Changes(device="cuda"), engine="ray") != keys(Changes())
    with pytest.raises(ValueError, match=r"--size\.device: 'cuda', but torch sees 0 GPUs"):
        keys(Changes(device="cuda"))


def keys(size: Changes, engine: Literal["local", "ray"] = "local") -> set[str]:
    """Of the runs of the smallest study."""
    command = Study(name="toy", budget="smoke", size=size, engine=engine)
    _, _, runs = command._declare(study("toy"), Console())
    return {run.key for run in runs}


@pytest.mark.parametrize(
    ("device", "given", "workers", "gpus"),
    [
        ("cuda", None, 2, ("4", "7")),
        ("auto", None, 2, ("4", "7")),
        ("cuda:1", None, 1, ()),  # as named, whatever else there is
        ("cuda", 5, 5, ("4", "7")),
        ("cpu", None, 3, ()),
        (None, None, 3, ()),
    ],
)
def test_on_cuda_there_is_a_worker_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    given: int | None,
    workers: int,
    gpus: tuple[str, ...],
) -> None:
    started = []
    monkeypatch.setattr(engine_local, "LocalEngine", lambda *a, **k: started.append((a, k)))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    Study(name="toy", workers=given, size=Changes(device=device))._engine()
    assert started == [((workers,), {"gpus": gpus})]


def test_gpus_are_named_as_processes_are_told_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, named, expected in (
        (2, None, ("0", "1")),
        (1, "3,-1,4", ("3",)),
        (0, "", ()),
        (0, None, ()),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected


def test_all_gives_each_study_what_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Size] = {}

    def run(command: Study, study: Declared, size: Size, *rest: object) -> bool:
        got[study.name] = size
        return True

    monkeypatch.setattr(Study, "_run", run)
    options = ["--size.methods", "dt", "--size.critics", "cql", "--size.seeds", "2"]
    assert main(["study", "all", "--budget", "smoke", *options]) == 0
    said = capsys.readouterr().out
    assert list(got) == list(STUDIES)
    for name, size in got.items():
        fixed = STUDIES[name].methods == ("reinformer",)
        assert size.seeds == 2
        assert size.methods == (() if fixed else ("dt",))
        assert (f"{name}: runs without --size.methods" in said) == fixed
        assert size.critics == (("cql",) if name == "critics" else ())
        assert (f"{name}: runs without --size.critics" in said) == (name != "critics")


@pytest.mark.parametrize(
    "command",
    [
        Study(name="toy"),
        Study(
            name="gym",
            budget="paper",
            data=("dtag/hopper/medium-v0", "made here/with a space-v0"),
            size=Changes(seeds=2, policy_steps=7, methods=("dt", "bc"), device="cpu"),
        ),
        Study(name="critics", data=("dtag/a-v0",), size=Changes(critics=("cql", "iql"))),
    ],
)
def test_the_words_of_the_report_are_the_command(command: Study) -> None:
    assert parse(Study, "dtag study", shlex.split(command._words())) == command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "dtag/a-v0", "--data", "dtag/b-v0"],
        ["--data=dtag/a-v0", "--data", "dtag/b-v0"],
        ["--size.methods", "dt", "--size.methods", "bc"],
        ["--size.critics", "iql", "--size.critics", "cql"],
    ],
)
def test_nothing_is_lost_of_an_option_given_twice(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["study", "toy", *arguments])
    assert left.value.code == 2
    option = arguments[0].partition("=")[0]
    assert f"{option}: expected once, with all values after it" in capsys.readouterr().err
