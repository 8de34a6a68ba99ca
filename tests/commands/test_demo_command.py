"""`dtag demo`: the work is tested in tests/studies/test_demo.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtag_fast.cli import main


def test_the_folder_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("dtag_fast.studies.demo.run_demo", asked.append)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "elsewhere"]) == 0
    assert asked == [Path("report"), Path("elsewhere")]
