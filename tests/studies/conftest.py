"""Runs on the toy problem that take a second each, and rows that nobody ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.studies import recipes
from dtag_fast.studies.declare import Data, Run, Size, options
from dtag_fast.studies.results import Results

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


# --- rows that are made up, and what is read from them ---

# Score = return here: 0 is 0, and 100 is 100.
REFERENCE = {"source": "d4rl", "minimum": 0.0, "maximum": 100.0}
DATA = [Data(id=f"dtag/toy/{name}-v0") for name in ("a", "b")]


def made_run(data: Data, seed: int, n: int | None, **labels: Any) -> Run:
    refinement = None if n is None else options(steps=n)
    if n is not None:
        labels["n"] = n
    return Run(
        data=data,
        policy=recipes.policy("dt", data, TINY, seed),
        critic=recipes.critic(data, TINY, seed),
        refinement=refinement,
        episodes=4,
        labels=options(dataset=data.name, refined=n is not None, seed=seed, method="DT", **labels),
    )


def made_row(run: Run, returns: list[float], **result: Any) -> dict[str, Any]:
    return {
        "key": run.key,
        "labels": run.label,
        "status": "done",
        "result": {"returns": returns, "references": [REFERENCE], **result},
        "timing": {"model_us": 100.0, "refinement_us": 20.0},
    }


def noisy(center: float, seed: int) -> list[float]:
    return [center + seed + x for x in (-1.0, 0.0, 0.0, 1.0)]


@pytest.fixture
def runs() -> list[Run]:
    return [made_run(data, seed, n) for data in DATA for seed in range(3) for n in (None, 1, 5, 20)]


@pytest.fixture
def rows(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """n adds n on the first dataset and takes it away on the second."""
    found = {}
    for run in runs:
        n = run.label.get("n", 0)
        sign = 1 if run.data == DATA[0] else -1
        extra = {"q_gain": 0.1 * n, "distance": 0.01 * n} if run.refinement is not None else {}
        returns = noisy(50.0 + sign * n, run.label["seed"])
        found[run.key] = made_row(run, returns, **extra)
    return found


@pytest.fixture
def results(runs: list[Run], rows: Mapping[str, Any]) -> Results:
    return Results.of(runs, rows, Path("nowhere"))
