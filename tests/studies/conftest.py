"""Runs on the toy problem that take a second each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Data, Run, Size, options

TOY = Data(id="dtag/study/toy-100-v0", made_by="toy", steps=100)
TINY = Size(seeds=2, episodes=3, policy_steps=8, critic_steps=20, scale="tiny", budget="smoke")


@pytest.fixture
def datasets_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where the session's datasets are."""
    folder = tmp_path_factory.getbasetemp() / "study-datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


def toy_runs(seeds: int = 2, data: Data = TOY) -> list[Run]:
    """Unrefined and refined Decision Transformers."""
    runs = []
    for seed in range(seeds):
        policy = recipes.policy("dt", data, TINY, seed)
        critic = recipes.critic(data, TINY, seed)
        for refinement in (None, recipes.refinement(data)):
            runs.append(
                Run(
                    data=data,
                    policy=policy,
                    critic=critic if refinement else None,
                    refinement=refinement,
                    episodes=TINY.episodes,
                    labels=options(
                        dataset=data.name,
                        method="Decision Transformer",
                        refined=refinement is not None,
                        seed=seed,
                    ),
                )
            )
    return runs
