from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from dtag_fast.data import references
from dtag_fast.data.references import ReferenceScores


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Hopper-v5", "hopper"),
        ("hopper-medium-v2", "hopper"),
        ("hopper_medium_expert-v2", "hopper"),
        ("dtag/hopper/medium-v0", "hopper"),
        ("mujoco/halfcheetah/expert-v0", "halfcheetah"),
        ("Walker2d-v5", "walker2d"),
        ("maze2d-umaze-v1", "maze2d-umaze"),
        ("maze2d-large-dense-v1", "maze2d-large-dense"),
        ("PointMaze_UMaze-v3", "pointmaze-umaze"),
        ("PointMaze_MediumDense-v3", "pointmaze-medium-dense"),
        ("D4RL/pointmaze/large-v2", "pointmaze-large"),
        ("D4RL/pointmaze/umaze-dense-v2", "pointmaze-umaze-dense"),
        ("PointMaze_Open_Diverse_G-v3", None),
        ("AntMaze_UMaze-v5", "antmaze"),
        ("antmaze-large-play-v2", "antmaze"),
        ("D4RL/pen/human-v2", "pen"),
        ("MyHopper-v0", None),
        ("arrays", None),
    ],
)
def test_task_name(name: str, task: str | None) -> None:
    assert references.task_name(name) == task


def test_constants_of_the_two_sources() -> None:
    # METHODS: D4RL d4rl/infos.py, d4rl/pointmaze; Minari metadata of D4RL/pointmaze/*-v2.
    hopper = references.d4rl_reference("Hopper-v5")
    assert hopper == ReferenceScores("d4rl", -20.272305, 3234.3)
    assert references.d4rl_reference("maze2d-umaze-v1") == ReferenceScores("d4rl", 23.85, 161.86)
    assert references.minari_reference("PointMaze_UMaze-v3") == ReferenceScores(
        "minari", 13.49, 218.70
    )
    assert references.d4rl_reference("PointMaze_UMaze-v3") is None
    assert references.minari_reference("maze2d-umaze-v1") is None
    assert references.horizon("maze2d-large-v1") == 800
    assert references.horizon("PointMaze_Medium-v3") == 600
    assert references.horizon("unknown") is None


def test_normalized_is_0_at_the_minimum_and_100_at_the_maximum() -> None:
    reference = ReferenceScores("d4rl", -20.0, 180.0)
    np.testing.assert_allclose(reference.normalized([-20, 80, 180, 280]), [0, 50, 100, 150])
    assert reference.normalized(80.0).shape == ()


def test_metadata_scores_equal_to_d4rls_are_labelled_d4rl() -> None:
    found = references.references_for("Hopper-v5", (-20.272305, 3234.3))
    assert [reference.source for reference in found] == ["d4rl"]


def test_other_metadata_scores_stand_beside_d4rls() -> None:
    found = references.references_for("Hopper-v5", (10.0, 4000.0))
    assert found == (
        ReferenceScores("d4rl", -20.272305, 3234.3),
        ReferenceScores("minari", 10.0, 4000.0),
    )


def test_published_constants_stand_in_for_missing_metadata() -> None:
    assert references.references_for("PointMaze_Large-v3") == (
        ReferenceScores("minari", 3.55, 462.26),
    )
    assert references.references_for("arrays") == ()


def test_round_trip() -> None:
    reference = ReferenceScores("minari", 0.5, 1.5)
    assert ReferenceScores.from_dict(reference.to_dict()) == reference


@pytest.mark.parametrize(
    ("source", "minimum", "maximum", "message"),
    [
        ("gym", 0.0, 1.0, "source"),
        ("d4rl", 1.0, 1.0, "minimum < maximum"),
        ("d4rl", math.nan, 1.0, "finite"),
    ],
)
def test_refuses(source: str, minimum: float, maximum: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceScores(source, minimum, maximum)  # type: ignore[arg-type]


def test_needs_numpy_alone() -> None:
    code = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('r', {references.__file__!r}); "
        "module = importlib.util.module_from_spec(spec); sys.modules['r'] = module; "
        "spec.loader.exec_module(module); "
        "bad = {'torch', 'gymnasium', 'minari', 'h5py'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
