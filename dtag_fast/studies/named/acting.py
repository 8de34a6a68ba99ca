"""`steps`, `optimizers` and `test-time`: how to climb the critic, and what else could be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Data, Run, Size, Study, options
from dtag_fast.studies.named.common import (
    HOPPERS,
    REFINEMENT_SAID,
    SIZES,
    SIZES_SAID,
    TIMES_SAID,
    run,
)
from dtag_fast.studies.named.equal_time import equal_time
from dtag_fast.studies.show import (
    CurveShow,
    FunctionShow,
    LandscapeShow,
    ScatterShow,
    TableShow,
)

# A label's value, and what it means for refinement.
Setting = tuple[dict[str, Any], dict[str, Any]]

_BOTH = ("dt", "reinformer")
_METHODS = {"smoke": ("reinformer",), "small": _BOTH, "paper": _BOTH}


def _sweep(size: Size, datasets: Sequence[Data], settings: Sequence[Setting]) -> Iterator[Run]:
    """Every policy unrefined, and refined with each setting."""
    for data in datasets:
        for seed in range(size.seeds):
            critic = recipes.critic(data, size, seed)
            for method in recipes.methods(size, *size.pick(**_METHODS)):
                policy = recipes.policy(method, data, size, seed)
                yield run(data, policy, size, method=method)
                for labels, changes in settings:
                    yield run(
                        data,
                        policy,
                        size,
                        method=method,
                        critic=critic,
                        refinement=recipes.refinement(data, **changes),
                        labels=labels,
                    )


def _steps_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    steps = size.pick(smoke=(1, 10), small=(1, 3, 5, 10, 15, 30), paper=(*range(1, 16), 20, 30, 50))
    lengths = size.pick(smoke=(0.03,), small=(0.01, 0.03, 0.1), paper=(0.003, 0.01, 0.03, 0.1))
    multiples = size.pick(smoke=(0.01,), small=(0.003, 0.01, 0.03), paper=(0.003, 0.01, 0.03))
    # The scale of raw gradients is that of the rewards: fewer of them, to see that it matters.
    raw_steps = steps if size.budget == "paper" else (10,)
    settings: list[Setting] = [
        (
            {"gradient": gradient, "eta": eta, "n": n},
            {"gradient": gradient, "step_size": eta, "steps": n},
        )
        for gradient, etas, counts in (("unit", lengths, steps), ("raw", multiples, raw_steps))
        for eta in etas
        for n in counts
    ]
    return _sweep(size, datasets, settings)


def _against_n(
    method: str, said: str, measure: str, *, baseline: bool = False, note: str = ""
) -> CurveShow:
    """A line for each η, of one kind of policy: kinds differ too much to be pooled."""
    label = recipes.METHODS[method].label
    return CurveShow(
        title=f"{label}: {said} against n",
        x="n",
        y=measure,
        lines="eta",
        where=options(method=label, gradient="unit"),
        log=True,
        baseline=baseline,
        note=note,
    )


STEPS = Study(
    name="steps",
    title="How far to climb: n and η",
    question="How do score, gain in Q and distance moved depend on the number of steps and their "
    "length, and where does refinement collapse?",
    source="arXiv 2510.05285, its ablation of n and η",
    data=HOPPERS,
    sizes=SIZES,
    grid=_steps_grid,
    shows=(
        *(_against_n(name, "score", "score", baseline=True) for name in _BOTH),
        ScatterShow(
            title="Change against distance moved",
            x="distance",
            y="difference",
            where=options(refined=True),
            log=True,
            note="Mean L2 distance between the policy's action and the executed one.",
        ),
        *(_against_n(name, "distance moved", "distance") for name in _BOTH),
        *(_against_n(name, "Q gain", "q_gain", note="The critic's own opinion.") for name in _BOTH),
        TableShow(
            title="All settings",
            rows=("dataset", "method", "gradient", "eta", "n"),
            measures=("score", "difference", "distance", "q_gain", "best_step"),
        ),
        LandscapeShow(),
    ),
    choices=f"{REFINEMENT_SAID}\n\nη multiplies a gradient whose scale is that of the critic's "
    "rewards (returns scaled to a range of 1000, as IQL has it), so raw steps are shown besides "
    f"steps of fixed length.\n\n{SIZES_SAID}",
)


def _optimizers_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    etas = size.pick(smoke=(0.03,), small=(0.01, 0.03), paper=(0.003, 0.01, 0.03, 0.1))
    settings: list[Setting] = [
        ({"optimizer": name, "eta": eta}, {"optimizer": name, "step_size": eta, "steps": 10})
        for name in ("sgd", "momentum", "rmsprop", "adam")
        for eta in etas
    ]
    return _sweep(size, datasets, settings)


OPTIMIZERS = Study(
    name="optimizers",
    title="Plain steps, momentum, RMSProp, Adam",
    question="Does an optimizer with a memory climb the critic better than plain steps?",
    source="arXiv 2510.05285, Table 4, which its authors call inconclusive",
    data=HOPPERS,
    sizes=SIZES,
    grid=_optimizers_grid,
    shows=(
        TableShow(
            title="Change by refinement",
            rows=("dataset", "method", "eta"),
            columns="optimizer",
            measures=("difference",),
            where=options(refined=True),
        ),
        TableShow(
            title="All settings",
            rows=("dataset", "method", "optimizer", "eta"),
            measures=("score", "difference", "distance", "q_gain"),
        ),
        ScatterShow(
            title="Change against distance moved",
            x="distance",
            y="difference",
            color="optimizer",
            where=options(refined=True),
            log=True,
            note="At the same η the four move actions by different distances.",
        ),
    ),
    choices="The paper names Adam, RMSProp and momentum and gives no settings. Here: torch's, "
    "momentum 0.9, n = 10, gradients of unit length, so that plain steps of η and the optimizers' "
    f"steps are of one order.\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)

AG, BEST_OF, STARTS = "AG", "best of N", "N starts with AG"
NOISE = 0.1


def _test_time_grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    steps = size.pick(smoke=(10,), small=(1, 3, 10, 30), paper=(1, 3, 10, 30, 100))
    counts = size.pick(smoke=(8,), small=(4, 16, 64, 256), paper=(4, 16, 64, 256, 1024))
    starts = size.pick(smoke=(4,), small=(4, 16), paper=(4, 16, 64))
    for data in datasets:
        for seed in range(size.seeds):
            critic = recipes.critic(data, size, seed)
            policy = recipes.policy("reinformer", data, size, seed)
            yield run(data, policy, size, method="reinformer")
            ways = [
                *((AG, n, 1) for n in steps),
                *((BEST_OF, 0, count) for count in counts),
                *((STARTS, 10, count) for count in starts),
            ]
            for way, n, count in ways:
                yield run(
                    data,
                    policy,
                    size,
                    method="reinformer",
                    critic=critic,
                    refinement=recipes.refinement(data, steps=n),
                    samples=count,
                    noise=NOISE if count > 1 else 0.0,
                    labels={"way": way, "n": n, "N": count},
                )


TEST_TIME = Study(
    name="test-time",
    title="What to do with the time of an action",
    question="With the same time for an action, does climbing the critic beat picking the best of "
    "N samples by it, and does climbing from N starting points beat both?",
    source="best-of-N as in IDQL (arXiv 2304.10573); the comparison is ours",
    data=HOPPERS,
    sizes=SIZES,
    grid=_test_time_grid,
    methods=("reinformer",),
    shows=(
        FunctionShow(title="At equal time", function=equal_time),
        ScatterShow(
            title="Change against the time of refining",
            x="refinement_us",
            y="difference",
            color="way",
            where=options(refined=True),
            log=True,
            note="Time: median of one environment's action on the machine that ran it.",
        ),
        TableShow(
            title="All settings",
            rows=("dataset", "way", "n", "N"),
            measures=("score", "difference", "distance", "refinement_us", "action_us"),
        ),
    ),
    choices="Samples are the Reinformer's action and others around it, with a standard deviation "
    f"of {NOISE} of half the action's box: its own standard deviation, which LAMB hardly trains, "
    "stays near 1 and would sample the whole box. "
    f"{TIMES_SAID}\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)
