"""Declarations: keys that say what determines a result, and grids without two of a kind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dtag_fast.studies.catalog import STUDIES, study
from dtag_fast.studies.declare import BUDGETS, Data, Run, Study, options
from dtag_fast.training.config import PolicyConfig
from tests.studies.conftest import TINY, TOY, toy_runs

EVERY_STUDY = pytest.mark.parametrize("declared", STUDIES.values(), ids=list(STUDIES))


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from tests.studies.conftest import toy_runs; print([r.key for r in toy_runs()])"
    found = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=True, timeout=120
    )
    assert found.stdout.strip() == str([run.key for run in toy_runs()])


def test_a_key_says_all_that_determines_the_result() -> None:
    _, run = toy_runs(1)
    assert run.critic is not None
    longer = replace(run.critic, config=replace(run.critic.config, steps=21))
    others = [
        replace(run, episodes=4),
        replace(run, env_seed=1),
        replace(run, refinement=options(steps=11)),
        replace(run, critic=longer),
        replace(run, judge=longer),
        replace(run, data=replace(TOY, share=0.5)),
        replace(run, data=replace(TOY, best_share=0.5)),
        replace(run, checkpoint="best"),
        replace(run, samples=2, noise=0.1),
        replace(run, probes=("critic-quality",)),
        replace(run, predictor="fixed", predictor_options=options(target_return=0.5)),
    ]
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)


def test_a_key_says_nothing_else() -> None:
    run = toy_runs(1)[0]
    assert replace(run, labels=options(other="label")).key == run.key
    assert replace(run, labels=options(other="label")) == run
    shown = replace(run.policy, config=replace(run.policy.config, progress=True))
    assert shown.key == run.policy.key


def test_a_best_share_is_part_of_the_key_where_it_is_not_all() -> None:
    # As in rows that are older than it.
    assert set(TOY.content()) == {"id", "made_by", "steps", "seed", "share", "action_dim"}
    assert [run.key for run in toy_runs(1)] == ["cab7839a83ba34ba", "5f407aaef35242c5"]
    best = replace(TOY, best_share=0.1)
    assert best.content() == {**TOY.content(), "best_share": 0.1}
    assert best.name == f"{TOY.id}, best 10 %"
    assert replace(best, share=0.3).name == f"{TOY.id}, 30 %, best 10 %"


def test_a_policys_backend_is_part_of_its_key_where_it_is_named() -> None:
    policy = toy_runs(1)[0].policy
    assert "backend" not in policy.content()["config"]  # as in rows that are older than it
    assert isinstance(policy.config, PolicyConfig)
    named = replace(policy, config=replace(policy.config, backend="torch"))
    assert named.content()["config"]["backend"] == "torch"
    assert named.key != policy.key


def test_the_trainings_of_a_run_are_those_it_names() -> None:
    unrefined, refined = toy_runs(1)
    assert unrefined.trainings == (refined.policy,)
    assert {training.kind for training in refined.trainings} == {"policy", "critic"}


def test_what_cannot_be_is_refused() -> None:
    unrefined, refined = toy_runs(1)
    with pytest.raises(ValueError, match="critic: needed by a run with refinement"):
        replace(refined, critic=None)
    with pytest.raises(ValueError, match="critic: needed by a run with probes"):
        replace(unrefined, probes=("critic-quality",))
    with pytest.raises(ValueError, match="samples: expected 1, or more with refinement"):
        replace(unrefined, samples=3)
    with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\], got 1.5"):
        Data(id="x", share=1.5)
    with pytest.raises(ValueError, match=r"best_share: expected a number in \(0, 1\], got 0"):
        Data(id="x", best_share=0)
    with pytest.raises(ValueError, match="steps: expected at least 1 for data made by 'toy'"):
        Data(id="x", made_by="toy")
    with pytest.raises(ValueError, match="episodes: expected at least 1, got 0"):
        replace(TINY, episodes=0)


def test_two_runs_of_one_label_are_an_error() -> None:
    run = toy_runs(1)[0]
    declared = replace(study("toy"), grid=lambda size, data: iter([run, replace(run, episodes=9)]))
    with pytest.raises(ValueError, match="two different runs are labelled"):
        declared.runs(TINY, [TOY])
    with pytest.raises(ValueError, match="toy: no runs"):
        replace(declared, grid=lambda size, data: iter([])).runs(TINY, [TOY])


def test_an_unknown_study_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected one of toy.*got 'nothing'"):
        study("nothing")


@EVERY_STUDY
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_study_declares_a_grid_for_every_budget(declared: Study, budget: str) -> None:
    size = replace(declared.sizes[budget], budget=budget)  # type: ignore[index,arg-type]
    data = declared.data[budget]  # type: ignore[index]
    runs = declared.runs(size, data)
    assert len({run.key for run in runs}) == len(set(runs))
    assert {run.label["seed"] for run in runs} == set(range(size.seeds))
    assert {run.data.id for run in runs} == {d.id for d in data}
    seeds = {training.config.seed for run in runs for training in run.trainings}
    assert set(range(size.seeds)) <= seeds


@EVERY_STUDY
def test_refined_and_unrefined_meet_the_same_starts(declared: Study) -> None:
    size = replace(declared.sizes["small"], budget="small")
    runs = declared.runs(size, declared.data["small"])
    starts: dict[Data, set[tuple[int, int]]] = {}
    for run in runs:
        starts.setdefault(run.data, set()).add((run.env_seed, run.episodes))
    assert all(len(found) == 1 for found in starts.values())
    assert {isinstance(run, Run) and run.refinement is None for run in runs} == {True, False}


@EVERY_STUDY
def test_smoke_data_is_made_here(declared: Study) -> None:
    assert all(data.made_by is not None for data in declared.data["smoke"])
