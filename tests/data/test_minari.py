from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete, Space

from dtag_fast.data.minari import _hdf5_episodes, _minari_episodes, from_minari, to_minari
from dtag_fast.data.references import ReferenceScores
from dtag_fast.data.storage import check_id, find_same, write_dataset
from dtag_fast.data.trajectories import Trajectories

Build = Callable[..., Trajectories]
HOPPER = EnvSpec("Hopper-v5", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", max_episode_steps=1000)
VECTOR = Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = Box(-1.0, 1.0, (2,), np.float32)


def stored_episode(
    length: int, observations: Any = None, actions: Any = None, ends: bool = True
) -> dict[str, Any]:
    truncations = np.zeros(length, np.bool_)
    truncations[-1:] = ends
    return {
        "observations": np.zeros((length + 1, 3)) if observations is None else observations,
        "actions": np.zeros((length, 2), np.float32) if actions is None else actions,
        "rewards": np.ones(length),
        "terminations": np.zeros(length, np.bool_),
        "truncations": truncations,
    }


def write(
    episodes: Sequence[dict[str, Any]],
    id: str = "dtag/test-v0",
    *,
    observation_space: Space[Any] = VECTOR,
    action_space: Space[Any] = ACTIONS,
    env_spec: EnvSpec | None = None,
    eval_env_spec: EnvSpec | None = None,
    reference: ReferenceScores | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    return write_dataset(
        id,
        episodes,
        env_spec=env_spec,
        eval_env_spec=eval_env_spec,
        observation_space=observation_space,
        action_space=action_space,
        reference=reference,
        algorithm="test",
        description="test",
        provenance=provenance or {},
    )


def test_round_trip_by_id_and_by_folder(minari_root: Path, build: Build) -> None:
    data = build([4, 1, 6])
    folder = to_minari(data, "dtag/round-trip/test-v3", parameters={"n": 1})
    assert folder == minari_root / "dtag/round-trip/test-v3"
    for source in ("dtag/round-trip/test-v3", folder, folder / "data", str(folder)):
        found = from_minari(source)
        assert found.fingerprint() == data.fingerprint()
        assert found.info.id == "dtag/round-trip/test-v3"
    assert Trajectories.from_minari("dtag/round-trip/test-v3").info.provenance["parameters"] == {
        "n": 1
    }


def test_minari_itself_reads_what_was_written(minari_root: Path, build: Build) -> None:
    import minari

    data = build([4, 6])
    to_minari(data, "dtag/minari/test-v0")
    assert list(minari.list_local_datasets()) == ["dtag/minari/test-v0"]
    episodes = list(minari.load_dataset("dtag/minari/test-v0").iterate_episodes())
    assert [len(episode.rewards) for episode in episodes] == [4, 6]
    np.testing.assert_array_equal(episodes[1].actions, data.episode(1).actions)


def test_reading_hdf5_directly_is_reading_through_minari(minari_root: Path) -> None:
    """Other storage formats take the second way."""
    from minari import MinariDataset

    folder = write(
        [dict_episode(2, [5, 5, 5]), dict_episode(3, [7, 7, 7, 7])], observation_space=DICT
    )
    keys = ["desired_goal", "observation"]
    direct = list(_hdf5_episodes(folder / "data" / "main_data.hdf5", 2, keys))
    through = list(_minari_episodes(MinariDataset(folder / "data"), keys))
    for one, other in zip(direct, through, strict=True):
        for a, b in zip([*one[0], *one[1:]], [*other[0], *other[1:]], strict=True):
            np.testing.assert_array_equal(a, b)


def test_environment_references_and_horizon_come_from_the_metadata(minari_root: Path) -> None:
    write(
        [stored_episode(3)],
        eval_env_spec=HOPPER,
        env_spec=None,
        reference=ReferenceScores("d4rl", -20.272305, 3234.3),
        provenance={"made": "here"},
    )
    info = from_minari("dtag/test-v0").info
    assert info.env_spec is not None
    assert EnvSpec.from_json(info.env_spec).id == info.env_id == "Hopper-v5"
    assert info.horizon == 1000
    assert info.references == (ReferenceScores("d4rl", -20.272305, 3234.3),)
    assert info.provenance["made"] == "here"
    assert info.provenance["algorithm_name"] == "test"


def test_other_scores_stay_apart_from_d4rls(minari_root: Path) -> None:
    write([stored_episode(3)], eval_env_spec=HOPPER, reference=ReferenceScores("minari", 1.0, 9.0))
    sources = [reference.source for reference in from_minari("dtag/test-v0").info.references]
    assert sources == ["d4rl", "minari"]


def test_old_specs_lose_what_gymnasium_1_does_not_know(minari_root: Path) -> None:
    folder = write([stored_episode(3)], eval_env_spec=HOPPER)
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["eval_env_spec"])
    metadata["eval_env_spec"] = json.dumps(
        {"autoreset": False, "apply_api_compatibility": False, **spec}
    )
    path.write_text(json.dumps(metadata))
    env_spec = from_minari("dtag/test-v0").info.env_spec
    assert env_spec is not None
    assert EnvSpec.from_json(env_spec).max_episode_steps == 1000


def dict_episode(length: int, goals: list[float]) -> dict[str, Any]:
    position = np.arange(length + 1.0)[:, None] * np.ones(2)
    goal = np.array(goals)[:, None] * np.ones(2)
    return stored_episode(
        length,
        {"observation": np.tile(position, 2), "achieved_goal": position, "desired_goal": goal},
    )


DICT = Dict(
    observation=Box(-np.inf, np.inf, (4,), np.float64),
    achieved_goal=Box(-np.inf, np.inf, (2,), np.float64),
    desired_goal=Box(-np.inf, np.inf, (2,), np.float64),
)


def test_pointmaze_observations_are_the_4_vector(minari_root: Path) -> None:
    spec = EnvSpec("PointMaze_UMaze-v3", "nowhere:Nothing", max_episode_steps=300)
    folder = write([dict_episode(2, [5, 5, 5])], observation_space=DICT)
    path = folder / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eval_env_spec": spec.to_json()}))
    data = from_minari("dtag/test-v0")
    np.testing.assert_array_equal(data.observations, [[0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(data.next_observations, [[1, 1, 1, 1], [2, 2, 2, 2]])
    assert data.info.references == (ReferenceScores("minari", 13.49, 218.70),)


def test_stale_goals_are_replaced_when_goals_are_asked_for(minari_root: Path) -> None:
    write([dict_episode(2, [5, 5, 5]), dict_episode(3, [5, 7, 7, 7])], observation_space=DICT)
    data = from_minari("dtag/test-v0", observation_keys=["observation", "desired_goal"])
    assert data.observation_dim == 6
    assert data.observations[:, 4].tolist() == [5, 5, 7, 7, 7]
    assert data.info.provenance["stale_goals_replaced"] == 1


def test_dict_observations_need_a_choice(minari_root: Path) -> None:
    write([dict_episode(2, [5, 5, 5])], observation_space=DICT)
    with pytest.raises(ValueError, match=r"observations: they are dicts with .*observation_keys"):
        from_minari("dtag/test-v0")
    with pytest.raises(ValueError, match="observation_keys"):
        from_minari("dtag/test-v0", observation_keys=["goal"])


def test_observation_keys_for_a_vector(minari_root: Path) -> None:
    write([stored_episode(2)])
    with pytest.raises(ValueError, match="observations are no dicts"):
        from_minari("dtag/test-v0", observation_keys=["observation"])


def test_discrete_actions(minari_root: Path) -> None:
    write([stored_episode(2, actions=np.zeros(2, np.int64))], action_space=Discrete(4))
    with pytest.raises(ValueError, match=r"actions: expected a Box with one dimension.*Discrete"):
        from_minari("dtag/test-v0")


def test_unbounded_actions(minari_root: Path) -> None:
    write([stored_episode(2)], action_space=Box(-np.inf, np.inf, (2,), np.float32))
    with pytest.raises(ValueError, match="actions: expected a bounded Box"):
        from_minari("dtag/test-v0")


@pytest.mark.parametrize("space", [Box(0, 255, (8, 8, 3), np.uint8), Discrete(5)], ids=str)
def test_image_and_discrete_observations(minari_root: Path, space: Space[Any]) -> None:
    observations = np.zeros((3, *(space.shape or ())), space.dtype)
    write([stored_episode(2, observations)], observation_space=space)
    with pytest.raises(ValueError, match="observations: expected a Box with one dimension"):
        from_minari("dtag/test-v0")


def test_nan_names_the_episode_and_the_field(minari_root: Path) -> None:
    observations = np.zeros((5, 3))
    observations[2, 1] = np.nan
    write([stored_episode(3), stored_episode(4, observations)])
    with pytest.raises(
        ValueError, match=r"test-v0: episode 1: observations: .* nan at step 2, index 1"
    ):
        from_minari("dtag/test-v0")


@pytest.mark.parametrize(
    ("field", "shape"),
    [("observations", (4, 3)), ("actions", (3, 2)), ("truncations", (3,)), ("rewards", (0,))],
)
def test_wrong_lengths_name_the_episode_and_the_field(
    minari_root: Path, field: str, shape: tuple[int, ...]
) -> None:
    folder = write([stored_episode(3), stored_episode(4)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_1/{field}"]
        file[f"episode_1/{field}"] = np.zeros(shape)
    with pytest.raises(ValueError, match=f"episode 1: {field}: expected"):
        from_minari("dtag/test-v0")


def test_missing_field_names_the_episode(minari_root: Path) -> None:
    folder = write([stored_episode(3), stored_episode(4)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
    with pytest.raises(ValueError, match=r"episode 1: .*actions"):
        from_minari("dtag/test-v0")


def test_an_episode_without_an_end_is_kept_as_truncated_and_told(minari_root: Path) -> None:
    write([stored_episode(3), stored_episode(4, ends=False)])
    with pytest.warns(UserWarning, match="1 of 2 episodes end with neither"):
        data = from_minari("dtag/test-v0")
    assert data.truncations[-1]
    assert data.info.provenance["unfinished_episodes"] == 1


def test_actions_outside_the_box_are_clipped_and_told(minari_root: Path) -> None:
    write([stored_episode(3), stored_episode(4, actions=np.full((4, 2), 1.5, np.float32))])
    with pytest.warns(UserWarning, match=r"4 of 7 steps .*excess 0.5, first in episode 1"):
        from_minari("dtag/test-v0")


def test_a_missing_dataset_names_similar_ones(minari_root: Path, build: Build) -> None:
    to_minari(build([3]), "dtag/hopper/medium-v0")
    with pytest.raises(FileNotFoundError, match=r"similar: dtag/hopper/medium-v0.*download=True"):
        from_minari("dtag/hoper/medium-v0")
    with pytest.raises(FileNotFoundError):
        from_minari(minari_root / "nothing-v0")


def test_broken_folders(minari_root: Path, build: Build) -> None:
    folder = to_minari(build([3]), "dtag/broken/test-v0")
    (folder / "data" / "main_data.hdf5").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"broken Minari dataset: .*main_data.hdf5 is missing"):
        from_minari("dtag/broken/test-v0")
    (folder / "data" / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken Minari dataset: data/metadata.json"):
        from_minari("dtag/broken/test-v0")
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(ValueError, match=r"metadata.json is missing"):
        from_minari("dtag/broken/test-v0")


@pytest.mark.parametrize(
    "id",
    ["", "test", "dtag/test", "d/test-v0", "dtag//test-v0", "../test-v0", "dtag/te st-v0", "/a-v0"],
)
def test_bad_ids_are_refused_before_anything_is_written(
    minari_root: Path, build: Build, id: str
) -> None:
    with pytest.raises(ValueError, match="id: expected"):
        to_minari(build([3]), id)
    assert not minari_root.exists()


@pytest.mark.parametrize("id", ["D4RL/pointmaze/umaze-v2", "mujoco/hopper/medium-v0"])
def test_published_namespaces_are_not_written_to(build: Build, id: str) -> None:
    check_id(id)
    with pytest.raises(ValueError, match="namespace of published datasets"):
        to_minari(build([3]), id)


def test_a_failed_write_leaves_nothing(minari_root: Path) -> None:
    episode = stored_episode(3)
    episode["rewards"] = object()
    with pytest.raises(TypeError):
        write([stored_episode(3), episode])
    assert list(minari_root.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(
    minari_root: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    before = to_minari(build([3]), "dtag/kept/test-v0")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HDF5Storage, "update_episodes", interrupt)
    for id in ("dtag/kept/test-v0", "dtag/new/test-v0"):
        with pytest.raises(KeyboardInterrupt):
            to_minari(build([4, 5]), id)
    assert from_minari(before).lengths().tolist() == [3]
    assert sorted(path.name for path in minari_root.iterdir()) == ["dtag"]
    assert not (minari_root / "dtag" / "new").exists()


def test_replacing_a_dataset(minari_root: Path, build: Build) -> None:
    to_minari(build([3]), "dtag/again/test-v0")
    to_minari(build([4, 5]), "dtag/again/test-v0")
    assert from_minari("dtag/again/test-v0").lengths().tolist() == [4, 5]


def test_find_same(minari_root: Path, build: Build) -> None:
    id = "dtag/same/test-v0"
    assert find_same(id, {"a": 1}, force=False) is None
    folder = to_minari(build([3]), id, parameters={"a": (1, 2)})
    assert find_same(id, {"a": (1, 2)}, force=False) == folder
    assert find_same(id, {"a": 2}, force=True) is None
    with pytest.raises(FileExistsError, match=r"exists with other parameters.*force=True"):
        find_same(id, {"a": 2}, force=False)
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(FileExistsError, match="force=True to replace it"):
        find_same(id, {"a": (1, 2)}, force=False)


def test_data_that_minari_cannot_store(minari_root: Path, build: Build) -> None:
    from dataclasses import replace

    data = build([3, 4])
    following = data.next_observations.copy()
    following[4, 1] += 1
    with pytest.raises(ValueError, match="episode 1: next_observations: step 1 differs"):
        to_minari(replace(data, next_observations=following), "dtag/gap/test-v0")
