"""What several studies share: datasets, sizes, and how runs are labelled."""

from __future__ import annotations

from typing import Any

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Budget, Data, Options, Run, Size, Training, options

HOPPER_MEDIUM = Data(id="dtag/hopper/medium-v0")
HOPPER_MIXED = Data(id="dtag/hopper/medium-expert-v0")
HOPPER_REPLAY = Data(id="dtag/hopper/medium-replay-v0")
CHEETAH_MEDIUM = Data(id="dtag/halfcheetah/medium-v0")
CHEETAH_REPLAY = Data(id="dtag/halfcheetah/medium-replay-v0")
UMAZE = Data(id="dtag/pointmaze/umaze-v0", made_by="pointmaze-umaze", steps=300_000)
MEDIUM_MAZE = Data(id="dtag/pointmaze/medium-v0", made_by="pointmaze-medium", steps=500_000)
SMOKE_MAZE = Data(id="dtag/study/pointmaze-umaze-20000-v0", made_by="pointmaze-umaze", steps=20_000)
D4RL_GYM = tuple(
    Data(id=f"dtag/d4rl/{env}-{tier}-v2")
    for env in ("halfcheetah", "hopper", "walker2d")
    for tier in ("medium", "medium-replay", "medium-expert")
)
D4RL_MAZES = tuple(Data(id=f"dtag/d4rl/maze2d-{maze}-v1") for maze in ("umaze", "medium", "large"))

# A diverse dataset, on which refinement has room, and a narrow one, on which it has none.
HOPPERS: dict[Budget, tuple[Data, ...]] = {
    "smoke": (SMOKE_MAZE,),
    "small": (HOPPER_REPLAY, HOPPER_MEDIUM),
    "paper": D4RL_GYM,
}
SIZES: dict[Budget, Size] = {
    "smoke": Size(seeds=1, episodes=2, policy_steps=30, critic_steps=150, scale="tiny"),
    "small": Size(seeds=3, episodes=10, policy_steps=2_000, critic_steps=20_000, scale="small"),
    "paper": Size(seeds=5, episodes=10, scale="published"),
}

SIZES_SAID = (
    "At the small budget models are small, too: 3 blocks of width 128, 2000 updates at a learning "
    "rate of 10⁻³; critics are as published, with observations normalised, after 20 000 updates, "
    "where nothing else was asked for. What was is below, under Size."
)
REFINEMENT_SAID = (
    "The paper gives neither n nor η, nor says which Q is climbed, whether actions are clipped or "
    "whether the policy's own action takes part. Unless varied: n = 5 steps of fixed length "
    "0.01 (unit gradients), the lowest of two heads, every candidate inside the box, the best "
    "of all candidates with the policy's own, the refined action in the context."
)

TIMES_SAID = (
    "Times are measured in one environment, in the process of the run, while other runs may be at "
    "work beside it and slow it: with `--workers 1` none is, and times compare best."
)


def run(
    data: Data,
    policy: Training,
    size: Size,
    *,
    method: str,
    critic: Training | None = None,
    refinement: Options | None = None,
    labels: dict[str, Any] | None = None,
    **fields: Any,
) -> Run:
    """A run with the labels that all have: dataset, method, refined, seed.

    Args:
        data: names the environment.
        policy: its training.
        size: of the work.
        method: an entry of `recipes.METHODS`.
        critic: needed with refinement; left out without, unless a judge or a predictor needs it.
        refinement: of `Policy.with_refinement`; None for none.
        labels: further ones.
        fields: further fields of `Run`.
    """
    return Run(
        data=data,
        policy=policy,
        critic=critic,
        refinement=refinement,
        episodes=size.episodes,
        labels=options(
            dataset=data.name,
            method=recipes.METHODS[method].label,
            refined=refinement is not None,
            seed=policy.config.seed,
            **(labels or {}),
        ),
        **fields,
    )
