"""`policy-gradient`: the critic in a policy's loss, or while acting, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import (
    Budget,
    Data,
    Run,
    Size,
    Study,
    Training,
    options,
    policy_config,
)
from dtag_fast.studies.named.common import HOPPERS, REFINEMENT_SAID, SIZES, SIZES_SAID, run
from dtag_fast.studies.named.spread import spread
from dtag_fast.studies.named.toy import TOY
from dtag_fast.studies.show import CurveShow, FunctionShow, LandscapeShow, PairShow, TableShow

# Decades, up to the largest that QT has for any dataset.
WEIGHTS = (0.05, 0.5, 5.0)


def _grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    weights = size.pick(smoke=WEIGHTS[-1:], small=WEIGHTS, paper=WEIGHTS)
    methods = recipes.methods(size, "dt", "dt-pg", "reinformer", "reinformer-pg")
    for data in datasets:
        for seed in range(size.seeds):
            # The one that guides the policies of this seed, too.
            critic = recipes.critic(data, size, seed)
            for method in methods:
                policy = recipes.policy(method, data, size, seed)
                varied: list[tuple[dict[str, Any], Training]] = [({}, policy)]
                if policy_config(policy).q_weight > 0:
                    varied = [
                        (
                            {"q_weight": weight},
                            recipes.policy(method, data, size, seed, q_weight=weight),
                        )
                        for weight in weights
                    ]
                for labels, trained in varied:
                    for refinement in (None, recipes.refinement(data)):
                        yield run(
                            data,
                            trained,
                            size,
                            method=method,
                            critic=critic if refinement else None,
                            refinement=refinement,
                            labels=labels,
                        )


def _against_weight(label: str) -> CurveShow:
    return CurveShow(
        title=f"{label}: score against the weight",
        x="q_weight",
        y="score",
        lines="refined",
        where=options(method=label),
        log=True,
        baseline=False,
    )


# Spread needs more seeds than a mean does.
_SIZES: dict[Budget, Size] = {
    "smoke": Size(seeds=2, episodes=4, policy_steps=50, critic_steps=300, scale="tiny"),
    "small": replace(SIZES["small"], seeds=5),
    "paper": replace(SIZES["paper"], seeds=10),
}
POLICY_GRADIENT = Study(
    name="policy-gradient",
    title="The critic in the loss, or while acting",
    question="Does a policy gradient in the loss (PG) reach what refinement while acting (AG) "
    "does, how much do training seeds differ, and how many trainings diverge?",
    source="arXiv 2510.05285, which holds that PG on top of token prediction is unstable",
    data={**HOPPERS, "smoke": (TOY,)},
    sizes=_SIZES,
    grid=_grid,
    shows=(
        FunctionShow(title="Mean, spread over seeds, divergence", function=spread),
        _against_weight("Decision Transformer + PG"),
        _against_weight("Reinformer + PG"),
        TableShow(
            title="Change by refinement",
            rows=("dataset", "method", "q_weight"),
            measures=("difference", "distance", "q_gain"),
            where=options(refined=True),
        ),
        PairShow(title="Every seed", rows=("dataset", "method", "q_weight")),
        LandscapeShow(),
    ),
    choices="PG is −Q of the model's own actions in the loss, divided by Q's mean size as in QT "
    "(Hu et al. 2024), whose weights lie between 0.001 and 5 by dataset. QT trains its critic "
    "meanwhile; here the critic is trained before and stays as it was, and the same one serves PG "
    "and AG of a training seed. So they differ by where the gradient is taken, and what a policy "
    "and a critic trained together do to each other is not part of it. A training has diverged "
    "when a loss or a weight is no longer finite; a policy that went astray with finite weights "
    "has a score, and shows in the mean and the spread."
    f"\n\n{REFINEMENT_SAID}\n\n{SIZES_SAID}",
)
