from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dtag_fast.data.minari import to_minari
from dtag_fast.data.mix import mix
from dtag_fast.data.trajectories import Trajectories

Build = Callable[..., Trajectories]
PARTS = ("dtag/part/one-v0", "dtag/part/two-v0")


@pytest.fixture
def parts(minari_root: Path, build: Build) -> tuple[Trajectories, Trajectories]:
    built = build([3, 4]), build([5])
    for id, part in zip(PARTS, built, strict=True):
        to_minari(part, id)
    return built


def test_writes_the_episodes_of_all(parts: tuple[Trajectories, Trajectories]) -> None:
    made = mix(PARTS, id="dtag/part/both-v0")
    assert not made.reused
    whole = Trajectories.from_minari("dtag/part/both-v0")
    expected = Trajectories.concatenate(parts, id="dtag/part/both-v0")
    assert whole.fingerprint() == expected.fingerprint()
    assert whole.lengths().tolist() == [3, 4, 5]


def test_what_is_there_is_kept_unless_its_parts_differ(
    parts: tuple[Trajectories, Trajectories], build: Build
) -> None:
    mix(PARTS, id="dtag/part/both-v0")
    assert mix(PARTS, id="dtag/part/both-v0").reused
    with pytest.raises(FileExistsError, match="exists with other parameters"):
        mix(PARTS[::-1], id="dtag/part/both-v0")
    to_minari(build([6]), PARTS[1])  # the same id, other data
    with pytest.raises(FileExistsError, match="exists with other parameters"):
        mix(PARTS, id="dtag/part/both-v0")
    assert not mix(PARTS, id="dtag/part/both-v0", force=True).reused


def test_a_missing_part_is_named(parts: tuple[Trajectories, Trajectories]) -> None:
    with pytest.raises(FileNotFoundError, match="dtag/part/three-v0"):
        mix([*PARTS, "dtag/part/three-v0"], id="dtag/part/all-v0")
