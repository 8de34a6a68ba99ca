"""What is measured: sampled starting points, judges, probes, datasets and their shares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead
from dtag_fast.acting.value_predictors import ReturnGrid
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner
from dtag_fast.studies import bandits, datasets, judge, recipes, work
from dtag_fast.studies.declare import Data, Run, options, policy_config
from dtag_fast.training.config import CriticConfig, ModelConfig
from tests.studies.conftest import TINY, TOY

BANDIT = Data(id="bandit-3", made_by="bandit", steps=200, action_dim=3)


@pytest.fixture(autouse=True)
def own_datasets(datasets_folder: Path) -> None:
    assert datasets.prepare(TOY) is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings of a Reinformer and critics on the bandit, by their keys."""
    root = tmp_path_factory.mktemp("trainings")
    found = {}
    data = datasets.load(BANDIT)
    for training in (
        recipes.policy("reinformer", BANDIT, TINY, 0),
        recipes.critic(BANDIT, TINY, 0),
        recipes.critic(BANDIT, TINY, 1000),
    ):
        found[training.key] = root / training.key
        work.train(training, data, found)
        assert work.is_trained(training, found[training.key])
    return found


def bandit_run(**changes: object) -> Run:
    base = Run(
        data=BANDIT,
        policy=recipes.policy("reinformer", BANDIT, TINY, 0),
        critic=recipes.critic(BANDIT, TINY, 0),
        refinement=recipes.refinement(BANDIT),
        episodes=4,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


# --- acting ---


def test_a_predictor_is_the_one_that_was_named(folders: dict[str, Path]) -> None:
    data = datasets.load(BANDIT)
    own = work.actor(bandit_run(), data, folders)
    assert own.token_predictor == ReturnHead()
    fixed = bandit_run(predictor="fixed", predictor_options=options(of_best=2.0))
    best = float(data.returns().max())
    assert work.actor(fixed, data, folders).token_predictor == FixedTarget(2.0 * best)
    grid = work.actor(
        bandit_run(predictor="grid", predictor_options=options(of_best=1.0, rule="softmax")),
        data,
        folders,
    ).token_predictor
    assert isinstance(grid, ReturnGrid)
    assert list(grid.targets) == pytest.approx([share * best for share in (0.5, 0.75, 1, 1.5, 2)])
    assert grid.rule == "softmax"


def test_the_policys_own_action_is_among_the_samples() -> None:
    critic = Critic(1, 3, hidden=(16,))
    refiner = work.SampledRefiner(critic, samples=5, noise=0.0, seed=0, steps=0, return_info=True)
    observations, actions = torch.zeros(7, 1), torch.rand(7, 3)
    refined, info = refiner(observations, actions)
    assert torch.equal(refined, actions)
    assert info.distance.tolist() == [0.0] * 7


def test_more_samples_find_a_higher_q() -> None:
    torch.manual_seed(0)
    critic = Critic(1, 3, hidden=(16,))
    observations, actions = torch.zeros(50, 1), torch.rand(50, 3) - 0.5
    values = []
    for samples in (1, 4, 64):
        refiner = work.SampledRefiner(
            critic, samples=samples, noise=0.2, seed=0, steps=0, return_info=True
        )
        refined, info = refiner(observations, actions)
        again, _ = work.SampledRefiner(
            critic, samples=samples, noise=0.2, seed=0, steps=0, return_info=True
        )(observations, actions)
        assert torch.equal(refined, again)
        distance = (refined - actions).norm(dim=-1)
        torch.testing.assert_close(info.distance, distance)
        values.append(float(info.q.mean()))
    assert values[0] < values[1] < values[2]


def test_noise_is_in_units_of_half_the_box() -> None:
    critic = Critic(1, 2, hidden=(16,))
    refiner = work.SampledRefiner(
        critic,
        samples=2000,
        noise=0.1,
        seed=0,
        steps=0,
        bounds=([-1.0, 0.0], [1.0, 10.0]),
        return_info=True,
    )
    seen: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:

        def watch(self: Refiner, observations: torch.Tensor, actions: torch.Tensor) -> None:
            seen.append(actions)
            raise StopIteration

        patch.setattr(Refiner, "__call__", watch)
        with pytest.raises(StopIteration):
            refiner(torch.zeros(1, 1), torch.tensor([[0.0, 5.0]]))
    (points,) = seen
    assert points[0, 0].tolist() == [0.0, 5.0]
    assert points[0, 1:].std(dim=0).tolist() == pytest.approx([0.1, 0.5], rel=0.1)


def test_measure_gives_what_was_asked_for(folders: dict[str, Path]) -> None:
    data = datasets.load(BANDIT)
    plain = work.measure(bandit_run(refinement=None), data, folders)
    assert plain["status"] == "done"
    assert set(plain["result"]) == {"returns", "lengths", "references"}
    judged = bandit_run(judge=recipes.critic(BANDIT, TINY, 1000), probes=("critic-quality",))
    result = work.measure(judged, data, folders)["result"]
    assert {"q_gain", "claimed", "confirmed", "moved", "critic_bias", "critic_rank"} <= set(result)
    sampled = work.measure(bandit_run(samples=4, noise=0.1), data, folders)
    assert sampled["result"]["distance"] > 0
    for row in (plain, sampled):
        assert row["timing"]["model_us"] > 0
    assert plain["timing"]["refinement_us"] == 0
    assert sampled["timing"]["refinement_us"] > 0


def test_the_time_of_an_action_is_of_many_where_episodes_are_short(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = datasets.load(BANDIT), bandit_run()
    policy = work.actor(run, data, folders)
    calls: list[object] = []
    begun: list[int] = []
    act, reset = policy.act, policy.reset

    def watched(observations: Any, rewards: float) -> Any:
        calls.append(observations)
        return act(observations, rewards)

    def counted() -> None:
        begun.append(len(calls))
        reset()

    monkeypatch.setattr(policy, "act", watched)
    monkeypatch.setattr(policy, "reset", counted)
    monkeypatch.setattr(work, "TIMED_SECONDS", 60.0)  # however slow this machine is now
    assert policy.model.config.max_timestep == 8
    work._latency(policy, data)
    assert len(calls) == work.TIMED_CALLS == 100
    assert begun == list(range(0, 100, 8))


# --- judging ---


def test_a_critic_confirms_its_own_gain_whole(folders: dict[str, Path]) -> None:
    data = datasets.load(BANDIT)
    run = bandit_run()
    policy = work.actor(run, data, folders)
    critic = work.load_critic(run.critic, folders)
    assert critic is not None
    assert policy.refiner is not None
    found = judge.confirmed_gain(policy, policy.refiner, critic, critic, data)
    assert found["confirmed_share"] == 1.0
    assert found["claimed"] == found["confirmed"] > 0
    assert 0 < found["moved"] <= 10 * 0.1 * 3**0.5 + 1e-6


def test_an_opposite_critic_confirms_nothing(folders: dict[str, Path]) -> None:
    data = datasets.load(BANDIT)
    policy = work.actor(bandit_run(refinement=None), data, folders)
    up = _linear(1.0)
    down = _linear(-1.0)
    refiner = Refiner(up, steps=3, gradient="unit", step_size=0.1, return_info=True)
    found = judge.confirmed_gain(policy, refiner, up, down, data)
    assert found["confirmed_share"] == pytest.approx(-1.0)


def _linear(slope: float) -> Critic:
    """Q = slope * sum(a), one head."""
    weight = np.array([[0.0, slope, slope, slope]], np.float32)
    return Critic.from_layers([[(weight, np.zeros(1, np.float32))]], action_dim=3)


def test_quality_of_the_perfect_critic_and_of_its_opposite() -> None:
    data = datasets.load(Data(id="bandit-1", made_by="bandit", steps=500, action_dim=1))
    config = CriticConfig(discount=0.9, reward_scaling="none")

    class Known(torch.nn.Module):
        def __init__(self, sign: float, shift: float) -> None:
            super().__init__()
            self.sign, self.shift = sign, shift

        def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return (self.sign * (1 - actions.square().sum(-1)) + self.shift)[None]

    spread = float(data.returns().std())
    right = judge.critic_quality(Known(1.0, 0.0), config, data)  # type: ignore[arg-type]
    assert right["critic_rank"] == pytest.approx(1.0)
    assert right["critic_bias"] == pytest.approx(0.0, abs=1e-5)
    high = judge.critic_quality(Known(1.0, spread), config, data)  # type: ignore[arg-type]
    assert high["critic_bias"] == pytest.approx(1.0, rel=0.05)
    wrong = judge.critic_quality(Known(-1.0, 0.0), config, data)  # type: ignore[arg-type]
    assert wrong["critic_rank"] == pytest.approx(-1.0)


def test_equal_values_share_their_rank() -> None:
    x, y = np.array([10.0, 20.0, 20.0, 35.0]), np.array([-3.0, 7.0, 2.0, 90.0])
    # Ranks 0, 1.5, 1.5, 3 and 0, 2, 1, 3.
    assert judge.spearman(x, y) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert judge.spearman(x, -y) == pytest.approx(-4.5 / (4.5 * 5.0) ** 0.5)
    assert judge.spearman(x, np.zeros(4)) == 0.0


# --- data ---


def test_a_larger_share_contains_every_smaller_one() -> None:
    whole = datasets.load(BANDIT)
    found = [datasets.load(replace(BANDIT, share=s)) for s in (0.01, 0.1, 0.5, 1.0)]
    assert [data.episodes for data in found] == [2, 20, 100, 200]
    actions = [{a.tobytes() for a in data.actions} for data in found]
    assert actions[0] < actions[1] < actions[2] < actions[3]
    assert found[3] is whole
    other = datasets.load(replace(BANDIT, share=0.1, seed=0))
    assert other.fingerprint() == found[1].fingerprint()


def test_the_best_share_is_of_highest_return() -> None:
    whole = datasets.load(BANDIT)
    best = datasets.load(replace(BANDIT, best_share=0.1))
    assert best.episodes == 20
    assert sorted(best.returns()) == sorted(whole.returns())[-20:]
    part = datasets.load(replace(BANDIT, share=0.5))
    both = datasets.load(replace(BANDIT, share=0.5, best_share=0.1))
    assert sorted(both.returns()) == sorted(part.returns())[-10:]


def test_the_bandit_is_the_toy_problem_in_more_dimensions() -> None:
    data = bandits.trajectories("b", 5, 400, 3)
    assert data.actions.shape == (400, 5)
    assert (np.abs(data.actions) >= 0.5).all()
    assert 0.92 < (data.actions > 0).mean() < 0.98
    assert data.info.env_spec is not None
    env = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(data.info.env_spec))
    env.reset(seed=0)
    for action, reward in zip(data.actions[:5], data.rewards[:5], strict=True):
        env.reset()
        _, found, terminated, _, _ = env.step(action)
        assert found == pytest.approx(float(reward), abs=1e-6)
        assert terminated
    env.reset()
    assert env.step(np.zeros(5, np.float32))[1] == 1.0
    with pytest.raises(ValueError, match="action_dim: expected at least 1, got 0"):
        bandits.trajectories("b", 0, 4, 0)


def test_in_one_dimension_it_is_the_toy_problem() -> None:
    from dtag_fast.data.bandit import bandit_episodes

    data = bandits.trajectories("b", 1, 50, 7)
    episodes = bandit_episodes(50, bandits.POSITIVE, 7)
    np.testing.assert_array_equal(
        data.actions, np.concatenate([episode["actions"] for episode in episodes])
    )


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("dtag/hopper/medium-replay-v0", "dtag data collect --env Hopper-v5 --tier medium-replay"),
        (
            "dtag/hopper/medium-expert-v0",
            "dtag data mix dtag/hopper/medium-v0 dtag/hopper/expert-v0 "
            "--id dtag/hopper/medium-expert-v0",
        ),
        ("dtag/d4rl/hopper-medium-v2", "dtag data import-d4rl hopper_medium-v2.hdf5"),
        ("dtag/pointmaze/large-v0", "dtag data make pointmaze-large"),
        ("mujoco/ant/simple-v0", "dtag data info --download ID"),
    ],
)
def test_how_to_get_a_dataset_is_said(id: str, said: str) -> None:
    assert said in datasets.recipe(id)
    assert datasets.prepare(Data(id=id)) == f"{id}: {datasets.recipe(id)}"


def test_recipes_know_the_families() -> None:
    for id, family in {
        "dtag/hopper/medium-replay-v0": "hopper-medium-replay",
        "dtag/d4rl/walker2d-medium-expert-v2": "walker2d-medium-expert",
        "dtag/halfcheetah/expert-v0": "halfcheetah",
        "dtag/pointmaze/umaze-v0": "maze2d-umaze",
        "dtag/d4rl/maze2d-large-v1": "maze2d-large",
    }.items():
        assert recipes.family(Data(id=id)) == family


@pytest.mark.parametrize(
    ("id", "env", "family"),
    [
        ("mine/robot-v0", "Hopper-v5", "hopper"),
        ("mine/robot-medium-v0", "Walker2d-v5", "walker2d-medium"),
        ("mine/run-v0", "PointMaze_Large-v3", "maze2d-large"),
        ("mine/run-v1", "PointMaze_Open_Diverse_GR-v3", "maze2d"),
        ("mine/run-v2", "AntMaze_UMaze-v5", "antmaze"),
        ("mine/run-v3", "MyOwn-v0", "generic"),
        ("mine/run-v4", None, "generic"),
        ("dtag/hopper/copy-v0", "Walker2d-v5", "hopper"),  # an id that says it is believed
        ("mujoco/ant/medium-v0", "Ant-v5", "generic"),
    ],
)
def test_where_the_id_tells_no_family_the_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str, env: str | None, family: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / id / "data"
    folder.mkdir(parents=True)
    spec = {} if env is None else {"env_spec": json.dumps({"id": env})}
    content = {"dataset_id": id, "total_episodes": 1, "data_format": "arrow", **spec}
    (folder / "metadata.json").write_text(json.dumps(content))
    assert recipes.family(Data(id=id)) == family
    # No grid fails for want of settings.
    for name in recipes.METHODS:
        recipes.policy(name, Data(id=id), TINY, 0)
    for name in recipes.CRITICS:
        recipes.critic(Data(id=id), TINY, 0, name)


def test_cql_has_lagrange_where_it_is_asked_for() -> None:
    for data in (BANDIT, Data(id="dtag/d4rl/hopper-medium-v2")):
        plain, other = (recipes.critic(data, TINY, 0, m).config for m in ("cql", "cql-lagrange"))
        assert isinstance(plain, CriticConfig)
        assert not plain.cql.lagrange
        assert other == replace(plain, cql=replace(plain.cql, lagrange=True))
    maze = Data(id="dtag/d4rl/maze2d-large-v1")  # CORL has it there
    one, two = (recipes.critic(maze, TINY, 0, m).key for m in ("cql", "cql-lagrange"))
    assert one == two


def test_settings_of_data_of_no_family() -> None:
    size = replace(TINY, scale="published", policy_steps=None, critic_steps=None)
    ant, maze = Data(id="mujoco/ant/medium-v0"), Data(id="D4RL/antmaze/large-play-v1")
    assert (recipes.family(ant), recipes.family(maze)) == ("generic", "antmaze")
    configs = [policy_config(recipes.policy("dt", data, size, 0)) for data in (ant, maze)]
    assert [config.target_return for config in configs] == [None, None]
    assert [config.model.rtg_scale for config in configs] == [1000.0, 1.0]
    reinformer = policy_config(recipes.policy("reinformer", ant, size, 0))
    assert (reinformer.batch_size, reinformer.model) == (128, ModelConfig())
    for data, expectile, scaling in ((ant, 0.7, "iql-mujoco"), (maze, 0.9, "antmaze")):
        config = recipes.critic(data, size, 0).config
        assert isinstance(config, CriticConfig)
        assert (config.expectile, config.reward_scaling) == (expectile, scaling)
    configs = [policy_config(recipes.policy("iql", data, size, 0)) for data in (ant, maze)]
    assert [config.advantage_weight for config in configs] == [3.0, 10.0]


def test_a_dt_without_a_target_asks_for_the_best_return_in_its_data(tmp_path: Path) -> None:
    training = recipes.policy("dt", BANDIT, TINY, 0, best=True)
    training = replace(training, config=replace(policy_config(training), target_return=None))
    data = datasets.load(BANDIT)
    work.train(training, data, {training.key: tmp_path})
    best = FixedTarget(float(data.returns().max()))
    assert Policy.load(tmp_path).token_predictor == best
    assert Policy.load(tmp_path, "best").token_predictor == best
    work.train(training, data, {training.key: tmp_path})  # goes on where it is, with the same


def test_published_settings_are_the_papers() -> None:
    size = replace(TINY, scale="published", policy_steps=None, critic_steps=None)
    data = Data(id="dtag/d4rl/hopper-medium-v2")
    policy = recipes.policy("reinformer", data, size, 3).config
    assert (policy.steps, policy.batch_size, policy.seed) == (50_000, 256, 3)
    assert recipes.policy("dt", data, size, 0).config.steps == 100_000
    critic = recipes.critic(data, size, 0).config
    assert (critic.steps, critic.batch_size) == (1_000_000, 256)
    assert isinstance(datasets.load(BANDIT), Trajectories)
