"""`toy`: the paper's one-dimensional problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Data, Run, Size, Study, options
from dtag_fast.studies.show import LandscapeShow, PairShow, TableShow

TOY = Data(id="dtag/toy/bandit-v0", made_by="toy", steps=1_000)


def _grid(size: Size, datasets: Sequence[Data]) -> Iterator[Run]:
    for data in datasets:
        for seed in range(size.seeds):
            critic = recipes.critic(data, size, seed)
            for method in recipes.methods(size, "dt", "reinformer"):
                policy = recipes.policy(method, data, size, seed)
                for refinement in (None, recipes.refinement(data)):
                    yield Run(
                        data=data,
                        policy=policy,
                        critic=critic if refinement else None,
                        refinement=refinement,
                        episodes=size.episodes,
                        labels=options(
                            dataset=data.name,
                            method=recipes.METHODS[method].label,
                            refined=refinement is not None,
                            seed=seed,
                        ),
                    )


TOY_STUDY = Study(
    name="toy",
    title="One step, r(a) = 1 − a², no data near the optimum",
    question="A Decision Transformer answers with what the data did. Does the critic's gradient "
    "lead on to the optimum at 0, where there is no data?",
    source="arXiv 2510.05285, Fig. 2",
    data={"smoke": (TOY,), "small": (TOY,), "paper": (TOY,)},
    sizes={
        "smoke": Size(seeds=2, episodes=4, policy_steps=150, critic_steps=500, scale="tiny"),
        "small": Size(seeds=5, episodes=10, policy_steps=200, critic_steps=1_000),
        "paper": Size(
            seeds=10, episodes=10, policy_steps=1_000, critic_steps=5_000, scale="published"
        ),
    },
    grid=_grid,
    shows=(
        TableShow(
            title="Scores",
            rows=("method", "refined"),
            measures=("return", "score", "difference", "distance", "q_gain"),
            note="Score 0: uniform random actions; 100: the optimum.",
        ),
        PairShow(title="Every seed", rows=("method",)),
        LandscapeShow(),
    ),
    choices="The paper gives the reward and that no action of the data is nearer to 0 than 0.5. "
    "Here actions are uniform on 0.5 < |a| ≤ 1 and positive in 95 % of the cases: a model that "
    "answers with the mean is at the edge of the data then; with equal sides it would be at the "
    "optimum by accident. η is a length, "
    "0.1, and n = 10.",
)
