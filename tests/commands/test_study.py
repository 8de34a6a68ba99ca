"""`dtag study`: the work is tested in tests/studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtag_fast.cli import main
from dtag_fast.studies.rows import ROWS_FILE, read_rows


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
    from dtag_fast.studies.catalog import STUDIES

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
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["study", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob(ROWS_FILE))
