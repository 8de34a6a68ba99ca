from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dtag_fast.data.catalog import describe, list_datasets
from dtag_fast.data.generate import make
from dtag_fast.data.minari import to_minari
from dtag_fast.data.trajectories import Trajectories

Build = Callable[..., Trajectories]


def test_no_folder_no_datasets(minari_root: Path) -> None:
    assert list_datasets() == []


def test_lists_whole_and_broken_datasets(minari_root: Path, build: Build) -> None:
    make("toy", steps=20, progress=False)
    to_minari(build([300, 400]), "dtag/whole-v0")
    to_minari(build([3]), "dtag/moved-v0").rename(minari_root / "dtag" / "elsewhere-v0")
    (minari_root / "dtag" / "empty-v0").mkdir()
    (minari_root / "dtag" / "half-v0" / "data").mkdir(parents=True)
    (minari_root / "dtag" / "noversion" / "data").mkdir(parents=True)
    (minari_root / ".dtag-writing-x").mkdir()
    rows = {row["id"]: row for row in list_datasets()}
    assert list(rows) == sorted(rows)
    assert rows["dtag/whole-v0"]["problem"] is None
    assert (rows["dtag/whole-v0"]["episodes"], rows["dtag/whole-v0"]["steps"]) == (2, 700)
    assert rows["dtag/whole-v0"]["megabytes"] > 0
    assert rows["dtag/toy/bandit-v0"]["env_id"] == "QuadraticBandit-v0"
    problems = {id: row["problem"] for id, row in rows.items() if row["problem"]}
    assert "its metadata call it 'dtag/moved-v0'" in problems["dtag/elsewhere-v0"]
    assert "metadata.json is missing" in problems["dtag/empty-v0"]
    assert "metadata.json is missing" in problems["dtag/half-v0"]
    assert "id: expected" in problems["dtag/noversion"]
    assert "left behind" in problems[".dtag-writing-x"]
    assert len(problems) == 5


def test_describe(minari_root: Path) -> None:
    data = Trajectories.from_minari(make("toy", steps=50, progress=False).id)
    figures = json.loads(json.dumps(describe(data)))
    assert (figures["episodes"], figures["steps"], figures["horizon"]) == (50, 50, None)
    assert figures["terminated_share"] == 1.0
    assert figures["lengths"]["max"] == 1
    returns = data.returns()
    assert figures["returns"]["mean"] == pytest.approx(returns.mean())
    score = figures["scores"]["minari"]
    assert score["mean"] == pytest.approx(100 * (returns.mean() - 2 / 3) / (1 / 3))
    assert (score["reference_minimum"], score["reference_maximum"]) == (2 / 3, 1.0)
    assert figures["actions"]["box_low"] == [-1.0]
    np.testing.assert_allclose(figures["actions"]["min"], data.actions.min(axis=0))
    assert figures["fingerprint"] == data.fingerprint()
    assert figures["provenance"]["parameters"]["task"] == "toy"


def test_terminated_share(build: Build) -> None:
    assert describe(build([3, 4, 5, 6, 7]))["terminated_share"] == pytest.approx(0.4)
