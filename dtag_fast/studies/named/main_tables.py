"""`gym`, `maze2d`, `stitching` and `predictors`: policies with and without refinement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Budget, Data, Options, Run, Size, Study, Training, options
from dtag_fast.studies.named.common import (
    CHEETAH_MEDIUM,
    CHEETAH_REPLAY,
    D4RL_GYM,
    D4RL_MAZES,
    HOPPER_MEDIUM,
    HOPPER_MIXED,
    HOPPER_REPLAY,
    HOPPERS,
    MEDIUM_MAZE,
    REFINEMENT_SAID,
    SIZES,
    SIZES_SAID,
    SMOKE_MAZE,
    UMAZE,
    run,
)
from dtag_fast.studies.show import LandscapeShow, PairShow, TableShow

CHECKPOINTS: tuple[Literal["last", "best"], ...] = ("last", "best")


def _tables_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    tabled = [name for name, method in recipes.METHODS.items() if method.tabled]
    for data in datasets:
        for seed in range(size.seeds):
            critic = recipes.critic(data, size, seed)
            refined = recipes.refinement(data)
            for method in recipes.methods(size, *tabled):
                policy = recipes.policy(method, data, size, seed, best=True)
                ways = [None] if recipes.METHODS[method].baseline else [None, refined]
                for checkpoint in CHECKPOINTS:
                    for refinement in ways:
                        yield run(
                            data,
                            policy,
                            size,
                            method=method,
                            critic=critic if refinement else None,
                            refinement=refinement,
                            checkpoint=checkpoint,
                            labels={"checkpoint": checkpoint},
                        )


_TABLES_SHOWS = (
    TableShow(
        title="Last checkpoint",
        rows=("method", "refined", "dataset"),
        measures=("score", "difference", "distance", "q_gain"),
        where=options(checkpoint="last"),
    ),
    TableShow(
        title="Policies and data",
        rows=("dataset", "method", "checkpoint"),
        columns="refined",
        measures=("score",),
    ),
    TableShow(
        title="Change by refinement",
        rows=("dataset", "checkpoint"),
        columns="method",
        measures=("difference",),
        where=options(refined=True),
        total=True,
    ),
    PairShow(title="Every seed, last checkpoint", where=options(checkpoint="last")),
    LandscapeShow(),
)
_BEST_SAID = (
    "Papers report the last or the best checkpoint, mostly without saying which. Both are here, "
    "apart; the best one is chosen on starts of its own, seeds 10 000 and on."
)

GYM = Study(
    name="gym",
    title="Locomotion: policies with and without Action Gradient",
    question="What does refinement add to each kind of policy on locomotion data?",
    source="arXiv 2510.05285, the main table",
    data={
        "smoke": (SMOKE_MAZE,),
        "small": (
            HOPPER_MEDIUM,
            HOPPER_REPLAY,
            HOPPER_MIXED,
            CHEETAH_MEDIUM,
            CHEETAH_REPLAY,
        ),
        "paper": D4RL_GYM,
    },
    sizes=SIZES,
    grid=_tables_grid,
    shows=_TABLES_SHOWS,
    choices=f"{REFINEMENT_SAID}\n\n{_BEST_SAID}\n\n{SIZES_SAID}",
    published=("gym",),
)

_MAZE_SIZES: dict[Budget, Size] = {
    **SIZES,
    "small": replace(SIZES["small"], episodes=30),
    "paper": replace(SIZES["paper"], episodes=100),
}
MAZE2D = Study(
    name="maze2d",
    title="Mazes: policies with and without Action Gradient",
    question="What does refinement add in mazes, where the data was never going to one goal?",
    source="arXiv 2510.05285, the main table",
    data={"smoke": (SMOKE_MAZE,), "small": (UMAZE, MEDIUM_MAZE), "paper": D4RL_MAZES},
    sizes=_MAZE_SIZES,
    grid=_tables_grid,
    shows=_TABLES_SHOWS,
    choices=f"{REFINEMENT_SAID} In mazes the critic's expectile is 0.9, as IQL has it for AntMaze."
    f"\n\n{_BEST_SAID}\n\n{SIZES_SAID}",
    published=("maze2d",),
)


# --- token prediction -----------------------------------------------------------------------------

# label: (name in acting/predictor_options.py, its options, kinds of model or None for all). Another
# predictor is another entry.
PREDICTORS: dict[str, tuple[str, Options, tuple[str, ...] | None]] = {
    "published target": ("own", (), ("dt",)),
    "half of the best return": ("fixed", options(of_best=0.5), None),
    "best return": ("fixed", options(of_best=1.0), None),
    "twice the best return": ("fixed", options(of_best=2.0), None),
    "discounted countdown": ("discounted", options(of_best=1.0), None),
    "V of the critic": ("value", (), None),
    "grid, highest Q": ("grid", options(of_best=1.0), None),
    "grid, softmax of Q": ("grid", options(of_best=1.0, rule="softmax"), None),
    "return head": ("return-head", (), ("reinformer",)),
    "search over histories": ("history-search", (), ("reinformer",)),
}
# What the paper calls without and with TP.
_STITCHING = {"−TP, target: best return": "best return", "+TP, return head": "return head"}


def _stitching_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    for data in datasets:
        for seed in range(size.seeds):
            policy = recipes.policy("reinformer", data, size, seed)
            critic = recipes.critic(data, size, seed)
            for label, name in _STITCHING.items():
                yield from _predicted(data, policy, critic, size, "reinformer", label, name)


def _predictors_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    for data in datasets:
        for seed in range(size.seeds):
            critic = recipes.critic(data, size, seed)
            for method in recipes.methods(size, "dt", "reinformer"):
                policy = recipes.policy(method, data, size, seed)
                for name, (_, _, kinds) in PREDICTORS.items():
                    if kinds is None or method in kinds:
                        yield from _predicted(data, policy, critic, size, method, name, name)


def _predicted(
    data: Data,
    policy: Training,
    critic: Training,
    size: Size,
    method: str,
    label: str,
    name: str,
) -> Iterator[Run]:
    """A policy with one token predictor, unrefined and refined."""
    predictor, predictor_options, _ = PREDICTORS[name]
    for refinement in (None, recipes.refinement(data)):
        yield run(
            data,
            policy,
            size,
            method=method,
            critic=critic,  # a predictor may need it, too
            refinement=refinement,
            predictor=predictor,
            predictor_options=predictor_options,
            labels={"predictor": label},
        )


STITCHING = Study(
    name="stitching",
    title="Token prediction and Action Gradient, apart and together",
    question="Does refinement help without token prediction, and are both needed for the best "
    "result?",
    source="arXiv 2510.05285, §4.4",
    data=HOPPERS,
    sizes=SIZES,
    grid=_stitching_grid,
    methods=("reinformer",),
    shows=(
        TableShow(
            title="Scores", rows=("dataset", "predictor"), columns="refined", measures=("score",)
        ),
        TableShow(
            title="Change by refinement",
            rows=("dataset", "predictor"),
            measures=("difference", "distance", "q_gain"),
            where=options(refined=True),
        ),
        PairShow(title="Every seed", rows=("dataset", "predictor")),
        LandscapeShow(),
    ),
    choices="The same Reinformer acts both ways: with its own return head, or with a fixed target, "
    "the best return in the data, less the rewards received. The paper does not say what it "
    f"replaces token prediction by.\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)

PREDICTORS_STUDY = Study(
    name="predictors",
    title="Action Gradient after each token predictor",
    question="Does what refinement adds depend on where the return token comes from?",
    source="arXiv 2510.05285, an open question",
    data=HOPPERS,
    sizes=SIZES,
    grid=_predictors_grid,
    methods=("dt", "reinformer"),
    shows=(
        TableShow(
            title="Scores",
            rows=("dataset", "method", "predictor"),
            columns="refined",
            measures=("score",),
        ),
        TableShow(
            title="Change by refinement",
            rows=("dataset", "method", "predictor"),
            measures=("difference", "distance", "q_gain", "action_us"),
            where=options(refined=True),
        ),
        PairShow(title="Every seed", rows=("dataset", "method", "predictor")),
    ),
    choices="Targets are multiples of the best return in the data: once for the discounted "
    "countdown (VDT, γ = 0.99), half to twice for the grid (DTR's, with the rewards' countdown). V "
    "and Q are of the critic that refines; V is discounted and stands for a return as it is, while "
    f"the models were trained on undiscounted ones.\n\n{REFINEMENT_SAID}"
    f"\n\n{SIZES_SAID}",
)
