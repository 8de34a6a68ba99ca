"""`critics`, `selection`, `action-dims` and `diversity`: when to trust the critic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Budget, Data, Run, Size, Study, Training, options
from dtag_fast.studies.named.common import (
    D4RL_GYM,
    HOPPER_REPLAY,
    HOPPERS,
    REFINEMENT_SAID,
    SIZES,
    SIZES_SAID,
    SMOKE_MAZE,
    TIMES_SAID,
    run,
)
from dtag_fast.studies.named.rules import rules
from dtag_fast.studies.show import (
    CurveShow,
    FunctionShow,
    LandscapeShow,
    PairShow,
    ScatterShow,
    TableShow,
)

# The seeds of critics that judge; no critic that refines has one of these.
JUDGES = 1_000


def _critics_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    expectiles = size.pick(
        smoke=(0.5, 0.9), small=(0.5, 0.7, 0.9), paper=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    )
    for data in datasets:
        for seed in range(size.seeds):
            policy = recipes.policy("reinformer", data, size, seed)
            yield run(data, policy, size, method="reinformer")
            critics: list[tuple[dict[str, Any], Training]] = []
            for tau in expectiles if "iql" in recipes.critics(size) else ():
                trained = recipes.critic(data, size, seed, expectile=tau)
                critics.append(({"critic": "IQL", "expectile": tau}, trained))
            critics += [
                ({"critic": recipes.CRITICS[name].label}, recipes.critic(data, size, seed, name))
                for name in recipes.critics(size)
                if name != "iql"
            ]
            for labels, critic in critics:
                yield run(
                    data,
                    policy,
                    size,
                    method="reinformer",
                    critic=critic,
                    refinement=recipes.refinement(data, **_ways(labels)),
                    probes=("critic-quality",),
                    labels=labels,
                )


def _ways(labels: dict[str, Any]) -> dict[str, Any]:
    """An ensemble is climbed by its lower confidence bound, which is what it is for."""
    return {"ensemble": "lcb"} if labels["critic"].startswith("ensemble") else {}


CRITICS = Study(
    name="critics",
    title="Which critic to climb",
    question="How does what refinement adds depend on the critic, its quality and its "
    "overestimation?",
    source="arXiv 2510.05285, open questions on the critic",
    data=HOPPERS,
    sizes=SIZES,
    grid=_critics_grid,
    methods=("reinformer",),
    critics=True,
    shows=(
        CurveShow(
            title="IQL: change against the expectile",
            x="expectile",
            y="difference",
            where=options(critic="IQL"),
            baseline=False,
        ),
        TableShow(
            title="Critics",
            rows=("dataset", "critic", "expectile"),
            measures=("difference", "distance", "q_gain", "critic_bias", "critic_rank"),
            where=options(refined=True),
            note="Bias: mean of Q less the discounted return that followed, at the data's actions, "
            "in standard deviations of that return. Rank correlation: of the two.",
        ),
        ScatterShow(
            title="Change against the critic's bias",
            x="critic_bias",
            y="difference",
            where=options(refined=True),
        ),
        PairShow(title="Every seed", rows=("dataset", "critic", "expectile")),
        LandscapeShow(),
    ),
    choices=f"{REFINEMENT_SAID}\n\nA critic's quality is judged on the data it was trained on: "
    "against the discounted return of the episode from there on, in the critic's own rewards. An "
    "expectile above 0.5 aims above what the data did, so some bias is wanted. The ensemble is "
    "climbed by its lower confidence bound, mean less one standard deviation; the others by their "
    "minimum. CQL is as CORL sets it, whose settings for mazes have the Lagrange multiplier "
    "already: there the two CQLs are the same runs."
    f"\n\n{SIZES_SAID}",
)


def _selection_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    settings = size.pick(
        smoke=((0.03, 10, None), (0.1, 10, 0.2)),
        small=(
            *((0.01, n, None) for n in (3, 5, 10)),
            *((0.03, n, None) for n in (3, 10, 30)),
            *((0.1, 10, limit) for limit in (0.1, 0.3, None)),
        ),
        paper=tuple(
            (eta, n, limit)
            for eta in (0.01, 0.03, 0.1)
            for n in (1, 3, 5, 10, 30)
            for limit in (0.1, 0.3, None)
        ),
    )
    for data in datasets:
        for seed in range(size.seeds):
            policy = recipes.policy("reinformer", data, size, seed)
            critic = recipes.critic(data, size, seed)
            judge = recipes.critic(data, size, JUDGES + seed)
            yield run(data, policy, size, method="reinformer")
            for eta, n, limit in settings:
                yield run(
                    data,
                    policy,
                    size,
                    method="reinformer",
                    critic=critic,
                    judge=judge,
                    refinement=recipes.refinement(data, step_size=eta, steps=n, max_distance=limit),
                    labels={"eta": eta, "n": n, "limit": limit},
                )


SELECTION = Study(
    name="selection",
    title="Choosing η, n and max_distance without the environment",
    question="A second critic of another seed says how much of the first one's gain it confirms. "
    "Does that predict the true return, and does choosing by it keep refinement from hurting?",
    source="ours",
    data=HOPPERS,
    sizes=SIZES,
    grid=_selection_grid,
    methods=("reinformer",),
    shows=(
        FunctionShow(title="What each rule would have chosen", function=rules),
        ScatterShow(
            title="Change against the confirmed share",
            x="confirmed_share",
            y="difference",
            where=options(refined=True),
        ),
        ScatterShow(
            title="Change against the confirmed gain",
            x="confirmed",
            y="difference",
            where=options(refined=True),
        ),
        TableShow(
            title="All settings",
            rows=("dataset", "eta", "n", "limit"),
            measures=(
                "difference",
                "moved",
                "claimed",
                "confirmed",
                "confirmed_share",
                "relative_gain",
            ),
            where=options(refined=True),
        ),
    ),
    choices="The judge is trained like the first critic, on the same data with another seed. Both "
    "judge the change on recorded observations, along which the policy acts; the environment is "
    f"used for the true change alone.\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)


def _bandit(dims: int) -> Data:
    return Data(id=f"bandit with {dims} dimensions", made_by="bandit", steps=2_000, action_dim=dims)


def _dims_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    for data in datasets:
        for seed in range(size.seeds):
            policy = recipes.policy("dt", data, size, seed)
            critic = recipes.critic(data, size, seed)
            for refinement in (None, recipes.refinement(data)):
                yield run(
                    data,
                    policy,
                    size,
                    method="dt",
                    critic=critic if refinement else None,
                    refinement=refinement,
                    labels={"dims": data.action_dim},
                )


_DIMS_SIZES: dict[Budget, Size] = {
    "smoke": replace(SIZES["smoke"], episodes=4),
    "small": Size(seeds=5, episodes=10, policy_steps=400, critic_steps=3_000),
    "paper": Size(seeds=10, episodes=10, policy_steps=2_000, critic_steps=20_000),
}
ACTION_DIMS = Study(
    name="action-dims",
    title="Time and gain against the number of action dimensions",
    question="How does the time of refinement grow with the number of action dimensions, and does "
    "it still help?",
    source="arXiv 2510.05285, a check that it leaves to others",
    data={
        "smoke": tuple(_bandit(dims) for dims in (1, 4)),
        "small": tuple(_bandit(dims) for dims in (1, 2, 4, 8, 16, 32)),
        "paper": tuple(_bandit(dims) for dims in (1, 2, 4, 8, 16, 32, 64)),
    },
    sizes=_DIMS_SIZES,
    grid=_dims_grid,
    methods=("dt",),
    data_fixed=True,
    shows=(
        CurveShow(
            title="Score",
            x="dims",
            y="score",
            lines="refined",
            panel=None,
            log=True,
            baseline=False,
            note="Score 0: uniform random actions; 100: the optimum.",
        ),
        CurveShow(
            title="Time of refining",
            x="dims",
            y="refinement_us",
            where=options(refined=True),
            panel=None,
            log=True,
            baseline=False,
            note="One environment, on the machine that ran it.",
        ),
        TableShow(
            title="All sizes",
            rows=("dims", "refined"),
            measures=("score", "difference", "distance", "refinement_us", "action_us"),
        ),
    ),
    choices="Environments of different action dimension differ in everything else too. Here the "
    "toy problem is posed in A dimensions, r(a) = 1 − |a|² / A with every dimension as in `toy`; "
    f"η = 0.1 √A, as distances grow by √A; critics are twin 64×64. {TIMES_SAID}",
)


AT_RANDOM, BY_RETURN = "at random", "by return"


def _diversity_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    shares = size.pick(
        smoke=(0.3, 1.0), small=(0.01, 0.03, 0.1, 0.3, 1.0), paper=(0.01, 0.03, 0.1, 0.3, 1.0)
    )
    # All of the data is the end of both lines, and the same runs.
    best = size.pick(smoke=(), small=(0.1, 0.5, 1.0), paper=(0.1, 0.5, 1.0))
    ways = [*((AT_RANDOM, share) for share in shares), *((BY_RETURN, share) for share in best)]
    for data in datasets:
        for chosen, share in ways:
            changes = {"share": share} if chosen == AT_RANDOM else {"best_share": share}
            part = replace(data, **changes)
            for seed in range(size.seeds):
                policy = recipes.policy("reinformer", part, size, seed)
                critic = recipes.critic(part, size, seed)
                for refinement in (None, recipes.refinement(data)):
                    yield run(
                        data,
                        policy,
                        size,
                        method="reinformer",
                        critic=critic if refinement else None,
                        refinement=refinement,
                        labels={"chosen": chosen, "share": share},
                    )


DIVERSITY = Study(
    name="diversity",
    title="How much data refinement needs",
    question="With fewer trajectories of diverse data, drawn at random or the best ones alone, "
    "what remains of the gain?",
    source="arXiv 2510.05285, a check that it leaves to others",
    data={
        "smoke": (SMOKE_MAZE,),
        "small": (HOPPER_REPLAY,),
        "paper": tuple(data for data in D4RL_GYM if "replay" in data.id),
    },
    sizes=SIZES,
    grid=_diversity_grid,
    methods=("reinformer",),
    shows=(
        *(
            CurveShow(
                title=title,
                x="share",
                y="score",
                lines="refined",
                where=options(chosen=chosen),
                log=True,
                baseline=False,
            )
            for title, chosen in (
                ("Score with trajectories drawn at random", AT_RANDOM),
                ("Score with those of highest return", BY_RETURN),
            )
        ),
        CurveShow(
            title="Change against the share",
            x="share",
            y="difference",
            lines="chosen",
            where=options(refined=True),
            log=True,
            baseline=False,
        ),
        TableShow(
            title="Change by refinement",
            rows=("dataset", "chosen", "share"),
            measures=("difference", "distance", "q_gain"),
            where=options(refined=True),
        ),
        TableShow(
            title="Scores",
            rows=("dataset", "chosen", "share"),
            columns="refined",
            measures=("score",),
        ),
        PairShow(title="Every seed", rows=("dataset", "chosen", "share")),
    ),
    choices="Whole trajectories are drawn at random, a larger share with all of a smaller one; or "
    "those of highest return are taken that together hold at most this share of the steps, as %BC "
    "does. Share 1 is all of the data, however chosen: the same runs. "
    f"Policy and critic see the same share.\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)
