from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from dtag_fast.data.d4rl import from_d4rl, import_d4rl
from dtag_fast.data.minari import from_minari
from dtag_fast.data.references import ReferenceScores

# Two episodes of 4 and 3 steps (timeout, terminal) and 2 steps of a third.
STEPS = 9


def fields(**changes: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    observations = np.arange(STEPS, dtype=np.float32)[:, None] * np.ones(11, np.float32)
    found: dict[str, NDArray[Any] | None] = {
        "observations": observations,
        "actions": np.full((STEPS, 3), 0.5, np.float32),
        "rewards": np.arange(STEPS, dtype=np.float32),
        "terminals": np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], np.bool_),
        "timeouts": np.array([0, 0, 0, 1, 0, 0, 0, 0, 0], np.bool_),
        "next_observations": observations + 1,
        **changes,
    }
    return {name: array for name, array in found.items() if array is not None}


def write(path: Path, contents: dict[str, NDArray[Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in contents.items():
            file[name] = array
        file["infos/action_log_probs"] = np.zeros(STEPS)
        file["metadata/algorithm"] = b"SAC"
    return path


def test_layout_of_hopper_medium_v2(tmp_path: Path) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", fields())
    with pytest.warns(UserWarning, match="unfinished: 2 steps kept as a truncated"):
        data = from_d4rl(path)
    assert data.lengths().tolist() == [4, 3, 2]
    assert np.flatnonzero(data.terminations).tolist() == [6]
    assert np.flatnonzero(data.truncations).tolist() == [3, 8]
    np.testing.assert_array_equal(data.next_observations, data.observations + 1)
    info = data.info
    assert (info.id, info.env_id, info.horizon) == ("hopper-medium-v2", "Hopper-v5", 1000)
    assert info.references == (ReferenceScores("d4rl", -20.272305, 3234.3),)
    assert "Hopper-v5" in info.provenance["evaluation_env"]


def test_unfinished_episode_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", fields())
    with pytest.warns(UserWarning, match="2 steps dropped"):
        data = from_d4rl(path, unfinished="drop")
    assert data.lengths().tolist() == [4, 3]


def test_missing_timeouts_need_a_horizon(tmp_path: Path) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", fields(timeouts=None))
    with pytest.raises(ValueError, match=r"hopper_medium-v2.hdf5: timeouts: missing.*horizon="):
        from_d4rl(path)
    with pytest.warns(UserWarning, match="unfinished"):
        data = from_d4rl(path, horizon=5)
    # The counter starts again at the terminal.
    assert data.lengths().tolist() == [5, 2, 2]
    with pytest.raises(ValueError, match="horizon: expected a positive"):
        from_d4rl(path, horizon=0)


def test_a_horizon_beside_timeouts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", fields())
    with pytest.raises(ValueError, match=r"horizon: .* has its own timeouts"):
        from_d4rl(path, horizon=1000)


def test_without_next_observations_timeouts_lose_their_last_step(tmp_path: Path) -> None:
    path = write(tmp_path / "halfcheetah.hdf5", fields(next_observations=None))
    with (
        pytest.warns(UserWarning, match="unfinished"),
        pytest.warns(UserWarning, match="last step off 2 truncated episodes"),
    ):
        data = from_d4rl(path)
    assert data.lengths().tolist() == [3, 3, 1]
    inside = ~data.terminations
    np.testing.assert_array_equal(data.next_observations[inside], data.observations[inside] + 1)


def test_maze2d_goes_on_after_a_timeout(tmp_path: Path) -> None:
    timeouts = np.array([0, 0, 0, 1, 0, 0, 1, 0, 0], np.bool_)
    path = write(
        tmp_path / "maze2d-umaze-sparse-v1.hdf5",
        fields(next_observations=None, terminals=np.zeros(STEPS, np.bool_), timeouts=timeouts),
    )
    with pytest.warns(UserWarning, match="unfinished: 1 steps"):
        data = from_d4rl(path)
    assert data.lengths().tolist() == [4, 3, 1]
    np.testing.assert_array_equal(data.next_observations, data.observations + 1)
    assert data.info.provenance["steps_without_successor"] == {"dropped": 1, "of": 9}
    assert data.info.references == (ReferenceScores("d4rl", 23.85, 161.86),)
    assert (data.info.env_id, data.info.horizon) == (None, 300)


def test_column_vectors_are_accepted(tmp_path: Path) -> None:
    column = fields()["rewards"][:, None]
    path = write(tmp_path / "x.hdf5", fields(rewards=column))
    with pytest.warns(UserWarning, match="unfinished"):
        assert from_d4rl(path).rewards.shape == (STEPS,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None, "terminals": None}, "x.hdf5: actions, terminals: missing; not a D4RL"),
        ({"rewards": np.zeros(5)}, "x.hdf5: rewards: expected 9 rows"),
        ({"actions": np.zeros((5, 3))}, "x.hdf5: actions: expected 9 rows"),
        ({"observations": np.zeros((STEPS, 3, 8, 8))}, "observations: .*image"),
    ],
)
def test_wrong_fields_are_named(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_d4rl(write(tmp_path / "x.hdf5", fields(**changes)))


def test_empty_file(tmp_path: Path) -> None:
    empty = {name: array[:0] for name, array in fields().items()}
    with pytest.raises(ValueError, match="empty set"):
        from_d4rl(write(tmp_path / "x.hdf5", empty))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        from_d4rl(tmp_path / "nothing.hdf5")
    with pytest.raises(FileNotFoundError, match="no file"):
        import_d4rl(tmp_path / "nothing.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(OSError, match="signature"):
        from_d4rl(tmp_path / "text.hdf5")


def test_import_writes_a_minari_dataset_once(tmp_path: Path, minari_root: Path) -> None:
    path = write(tmp_path / "hopper_medium-v2.hdf5", fields())
    with pytest.warns(UserWarning, match="unfinished"):
        made = import_d4rl(path)
    assert (made.id, made.reused) == ("dtag/d4rl/hopper-medium-v2", False)
    with pytest.warns(UserWarning, match="unfinished"):
        original = from_d4rl(path)
    data = from_minari(made.id)
    assert data.fingerprint() == original.fingerprint()
    assert data.info.references == original.info.references
    assert (data.info.env_id, data.info.horizon) == ("Hopper-v5", 1000)
    assert data.info.provenance["unfinished_last_episode"]["steps"] == 2
    again = import_d4rl(path)
    assert again.reused
    assert "reused" in again.message
    with pytest.raises(FileExistsError, match="force=True"):
        import_d4rl(path, unfinished="drop")
    with pytest.warns(UserWarning, match="dropped"):
        assert not import_d4rl(path, unfinished="drop", force=True).reused
    assert from_minari(made.id).episodes == 2


def test_import_without_a_known_environment(tmp_path: Path, minari_root: Path) -> None:
    contents = fields(terminals=np.eye(1, STEPS, STEPS - 1, dtype=np.bool_)[0])
    made = import_d4rl(write(tmp_path / "own data.hdf5", contents), id="lab/own-v1")
    info = from_minari(made.id).info
    assert (info.env_spec, info.references, info.horizon) == (None, (), None)
