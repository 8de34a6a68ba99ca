"""Every named study shows what its rows have: made rows here, real ones in `make study-smoke`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtag_fast.studies.catalog import STUDIES
from dtag_fast.studies.declare import BUDGETS, Budget, Data, Run, Size, Study
from dtag_fast.studies.named.equal_time import equal_time
from dtag_fast.studies.named.rules import rules
from dtag_fast.studies.named.spread import spread
from dtag_fast.studies.recipes import CRITICS, METHODS
from dtag_fast.studies.report import Estimate, Plot, Table, Text
from dtag_fast.studies.results import Results
from dtag_fast.studies.show import CurveShow, LandscapeShow

EVERY_STUDY = pytest.mark.parametrize("declared", STUDIES.values(), ids=list(STUDIES))


def made_rows(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Rows of numbers that differ, with all that a run of that kind has."""
    rng = np.random.default_rng(0)
    rows = {}
    for run in runs:
        result: dict[str, Any] = {
            "returns": rng.normal(50, 10, run.episodes).tolist(),
            "references": [{"source": "d4rl", "minimum": 0.0, "maximum": 100.0}],
        }
        names: list[str] = []
        if run.refinement is not None:
            names += ["q_gain", "distance", "best_step"]
        if run.judge is not None:
            names += ["claimed", "confirmed", "confirmed_share", "relative_gain", "moved"]
        if run.probes:
            names += ["critic_bias", "critic_rank"]
        result |= {name: float(rng.uniform(0.1, 1)) for name in names}
        rows[run.key] = {
            "key": run.key,
            "status": "done",
            "result": result,
            "timing": {"model_us": 300.0, "refinement_us": float(rng.uniform(1, 100))},
        }
    return rows


def runs_of(name: str, budget: Budget) -> list[Run]:
    declared = STUDIES[name]
    size = replace(declared.sizes[budget], budget=budget)
    return declared.runs(size, declared.data[budget])


def results_of(declared: Study, budget: Budget) -> Results:
    runs = runs_of(declared.name, budget)
    return Results.of(runs, made_rows(runs), Path("nowhere"))


@EVERY_STUDY
@pytest.mark.parametrize("budget", ["small", "paper"])
def test_every_table_and_plot_of_it_has_something_to_show(declared: Study, budget: Budget) -> None:
    results = results_of(declared, budget)
    titles = [show.title for show in declared.shows]
    assert len(set(titles)) == len(titles)
    for show in declared.shows:
        if isinstance(show, LandscapeShow):
            continue
        items = show.items(results)
        assert items, show.title
        for item in items:
            if isinstance(item, Plot):
                item.figure.canvas.draw()  # a warning, such as of a layout that fails, is an error
            elif isinstance(item, Table):
                assert all(len(set(map(str, row))) > 1 for row in item.rows), show.title


@EVERY_STUDY
def test_every_refined_run_has_its_partner(declared: Study) -> None:
    for record in results_of(declared, "small").records:
        if record.run.refinement is None:
            continue
        assert record.partner is not None
        partner = record.partner.run
        assert partner.policy == record.run.policy
        assert (partner.predictor, partner.predictor_options, partner.checkpoint) == (
            record.run.predictor,
            record.run.predictor_options,
            record.run.checkpoint,
        )


@EVERY_STUDY
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_asked_for_is_had_or_refused(declared: Study, method: str) -> None:
    size = replace(declared.sizes["smoke"], budget="smoke", methods=(method,))
    data = declared.data["smoke"]
    if declared.methods is not None and method not in declared.methods:
        with pytest.raises(ValueError, match=rf"size.methods: {declared.name} has .*got {method}"):
            declared.runs(size, data)
        return
    labels = {run.label["method"] for run in declared.runs(size, data)}
    assert labels == {METHODS[method].label}


@EVERY_STUDY
@pytest.mark.parametrize("critic", CRITICS)
def test_a_critic_that_is_asked_for_is_had_or_refused(declared: Study, critic: str) -> None:
    size = replace(declared.sizes["smoke"], budget="smoke", critics=(critic,))
    if not declared.critics:
        with pytest.raises(ValueError, match=f"size.critics: {declared.name} does not compare"):
            declared.runs(size, declared.data["smoke"])
        return
    runs = declared.runs(size, declared.data["smoke"])
    labels = {run.label["critic"] for run in runs if run.refinement is not None}
    assert labels == {CRITICS[critic].label}


@EVERY_STUDY
def test_what_is_given_twice_counts_once(declared: Study) -> None:
    size = replace(declared.sizes["smoke"], budget="smoke")
    data = declared.data["smoke"]
    methods = declared.methods or ("dt",)
    once = declared.runs(replace(size, methods=methods), data)
    twice = declared.runs(replace(size, methods=methods * 2), (*data, *data))
    assert [run.label for run in twice] == [run.label for run in once]
    assert Size(seeds=1, episodes=1, critics=("cql", "iql", "cql")).critics == ("cql", "iql")


def test_action_dims_has_its_own_data() -> None:
    declared = STUDIES["action-dims"]
    with pytest.raises(ValueError, match="data: action-dims has its own alone, got dtag/a-v0"):
        declared.runs(declared.sizes["smoke"], (Data(id="dtag/a-v0"),))


@EVERY_STUDY
def test_it_says_what_it_asks_and_what_it_chose(declared: Study) -> None:
    assert declared.question.endswith("?")
    assert len(declared.choices) > 100
    for text in (declared.title, declared.question, declared.choices, declared.source):
        assert "  " not in text


def test_no_curve_of_steps_pools_policies() -> None:
    results = results_of(STUDIES["steps"], "small")
    curves = [show for show in STUDIES["steps"].shows if isinstance(show, CurveShow)]
    assert len(curves) == 6
    for show in curves:
        assert len(results.where(dict(show.where)).values("method")) == 1
        assert len(show.items(results)) == 1


def test_a_judge_is_of_another_seed_than_what_it_judges() -> None:
    for record in results_of(STUDIES["selection"], "paper").records:
        if record.run.judge is not None:
            assert record.run.critic is not None
            assert record.run.judge.config.seed >= 1000 > record.run.critic.config.seed


@pytest.mark.parametrize("budget", ["small", "paper"])
def test_diversity_keeps_best_shares_and_random_ones_apart(budget: Budget) -> None:
    shares = {(r.label["chosen"], r.data, r.policy.data) for r in runs_of("diversity", budget)}
    for chosen, data, part in shares:
        other = replace(part, share=1.0) if chosen == "at random" else replace(part, best_share=1.0)
        assert other == data
    found = {(d.share, d.best_share) for _, _, d in shares}
    assert {(0.1, 1.0), (1.0, 0.1), (1.0, 0.5), (1.0, 1.0)} <= found


def test_the_document_lists_every_study_with_its_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (\d+), (\d+), (\d+) \|$", text, re.MULTILINE)
    found = {name: tuple(map(int, counts)) for name, *counts in rows}
    assert found == {
        name: tuple(
            len(set(study.runs(replace(study.sizes[b], budget=b), study.data[b]))) for b in BUDGETS
        )
        for name, study in STUDIES.items()
    }


# --- special tables ---


def test_at_equal_time_the_largest_n_that_fits_is_taken() -> None:
    declared = STUDIES["test-time"]
    size = replace(declared.sizes["small"], budget="small")
    runs = declared.runs(size, declared.data["small"][:1])
    rows = made_rows(runs)
    for run in runs:
        way, n, count = (run.label.get(name, 0) for name in ("way", "n", "N"))
        time = 10.0 * n if way == "AG" else count / 2 if way == "best of N" else 10.0 * n * count
        rows[run.key]["timing"]["refinement_us"] = time
        gain = {"AG": n, "best of N": count / 10}.get(way, 0.0)
        rows[run.key]["result"]["returns"] = [50.0 + gain] * run.episodes
    (table,) = equal_time(Results.of(runs, rows, Path()))
    assert isinstance(table, Table)
    assert table.columns[:4] == ["data", "AG, n", "µs refining", "AG: change"]
    found = {row[1]: row for row in table.rows}
    # 10 µs for N of at most 23, 30 for 69, 100 for 230, 300 for 690.
    assert [found[n][4] for n in (1, 3, 10, 30)] == ["N = 16", "N = 64", "N = 64", "N = 256"]
    change = found[10][5]
    assert isinstance(change, Estimate)
    assert change.value == pytest.approx(6.4)
    assert [found[n][6] for n in (1, 3, 10, 30)] == ["", "", "", ""]
    assert found[30][7] is None


def test_rules_choose_by_what_they_may_know() -> None:
    declared = STUDIES["selection"]
    size = replace(declared.sizes["small"], budget="small", seeds=1)
    runs = declared.runs(size, declared.data["small"][:1])
    rows = made_rows(runs)
    refined = [run for run in runs if run.refinement is not None]
    for i, run in enumerate(refined):
        # The further, the larger the claim, the smaller its confirmed share, and the worse.
        figures = {"claimed": 1.0 + i, "confirmed_share": 1.0 - 0.06 * i}
        figures["confirmed"] = figures["claimed"] * figures["confirmed_share"]
        rows[run.key]["result"] |= figures
        rows[run.key]["result"]["returns"] = [52.0 - i] * run.episodes
    (unrefined,) = (run for run in runs if run.refinement is None)
    rows[unrefined.key]["result"]["returns"] = [50.0] * unrefined.episodes
    table, text = rules(Results.of(runs, rows, Path()))
    assert isinstance(table, Table)
    assert isinstance(text, Text)
    changes = {row[1]: row[2].value for row in table.rows}  # type: ignore[attr-defined]
    assert changes["best in hindsight"] == 2.0
    assert changes["largest claimed gain"] == 2.0 - (len(refined) - 1)
    assert changes["largest confirmed gain, 80% or more confirmed"] == 2.0 - 3
    assert changes["always the default"] == 2.0 - 1
    assert "claimed gain -1.00" in text.text
    assert "confirmed share 1.00" in text.text


def test_a_default_that_is_not_among_the_settings_has_no_row() -> None:
    declared = STUDIES["selection"]
    size = replace(declared.sizes["small"], budget="small", seeds=2)
    runs = declared.runs(size, declared.data["small"][:1])
    left = [r for r in runs if (r.label.get("eta"), r.label.get("n")) != (0.01, 5)]
    assert len(left) == len(runs) - 2
    tables = [rules(Results.of(r, made_rows(r), Path()))[0] for r in (runs, left)]
    with_it, without = ([row[1] for row in t.rows] for t in tables if isinstance(t, Table))
    assert with_it[0] == "always the default"
    assert without == with_it[1:]


def test_not_refining_is_a_choice() -> None:
    declared = STUDIES["selection"]
    size = replace(declared.sizes["small"], budget="small", seeds=1)
    runs = declared.runs(size, declared.data["small"][:1])
    rows = made_rows(runs)
    for run in runs:
        rows[run.key]["result"] |= {"claimed": 1.0, "confirmed": 0.1, "confirmed_share": 0.1}
    table = rules(Results.of(runs, rows, Path()))[0]
    assert isinstance(table, Table)
    found = {row[1]: row for row in table.rows}
    for rule in (
        "largest confirmed gain, 80% or more confirmed",
        "confirmed gain less twice the disagreement",
    ):
        assert found[rule][2].value == 0.0  # type: ignore[attr-defined]
        assert found[rule][3] == "0 of 1"


def spread_runs(seeds: int) -> list[Run]:
    declared = STUDIES["policy-gradient"]
    size = replace(declared.sizes["small"], budget="small", seeds=seeds, methods=("dt", "dt-pg"))
    return declared.runs(size, declared.data["small"][:1])


def spread_rows(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Plain 10, 20, 30 by seed; AG adds 5; PG adds 10 times its weight, spread twice as wide."""
    rows = made_rows(runs)
    for run in runs:
        seed, weight = run.label["seed"], run.label.get("q_weight")
        value = 10.0 * (1 + seed)
        if weight is not None:
            value = 2 * value + 10 * weight
        rows[run.key]["result"]["returns"] = [value + 5 * run.label["refined"]] * run.episodes
    return rows


def test_spread_has_the_mean_the_deviation_and_the_change_of_every_way() -> None:
    runs = spread_runs(3)
    (table,) = spread(Results.of(runs, spread_rows(runs), Path()))
    assert isinstance(table, Table)
    found = {tuple(row[1:4]): row[4:] for row in table.rows}
    name = "Decision Transformer"
    ways = [(name, ""), *((f"{name} + PG", weight) for weight in ("0.05", "0.5", "5"))]
    assert list(found) == [(*way, r) for way in ways for r in ("unrefined", "refined")]

    def figures(method: str, weight: str, refined: str) -> list[Any]:
        cells = found[method, weight, refined]
        return [cell.value if isinstance(cell, Estimate) else cell for cell in cells]

    # Mean, IQM, standard deviation with n - 1, lowest seed, change, diverged.
    assert figures(name, "", "unrefined") == pytest.approx([20, 20, 10, 10, None, "0 of 3"])
    assert figures(name, "", "refined") == pytest.approx([25, 25, 10, 15, 5, "0 of 3"])
    assert figures(f"{name} + PG", "0.5", "unrefined") == pytest.approx(
        [45, 45, 20, 25, 25, "0 of 3"]
    )
    assert figures(f"{name} + PG", "5", "refined") == pytest.approx([95, 95, 20, 75, 75, "0 of 3"])
    change = found[f"{name} + PG", "0.5", "unrefined"][4]
    assert isinstance(change, Estimate)
    assert (change.low, change.high) == (15, 35)  # of seeds, whose changes are 15, 25 and 35


def test_spread_counts_what_diverged_and_keeps_its_row() -> None:
    runs = spread_runs(3)
    rows = spread_rows(runs)

    def lose(weight: float | None, seeds: tuple[int, ...], refined: tuple[bool, ...]) -> None:
        for run in runs:
            label = run.label
            chosen = label["seed"] in seeds and label["refined"] in refined
            if chosen and label.get("q_weight") == weight:
                lost = {"status": "diverged", "result": {"what": "loss is nan"}, "timing": {}}
                rows[run.key] |= lost

    lose(5.0, (0, 1, 2), (False, True))
    lose(0.5, (2,), (False, True))
    lose(None, (1,), (True,))  # a critic that only refines
    table, text = spread(Results.of(runs, rows, Path()))
    assert isinstance(table, Table)
    assert isinstance(text, Text)
    found = {(row[2], row[3]): row[4:] for row in table.rows}
    for refined in ("unrefined", "refined"):
        assert found["5", refined] == [None, None, None, None, None, "3 of 3"]
        assert found["0.5", refined][5] == "1 of 3"
        assert found["0.05", refined][5] == "0 of 3"
    mean, deviation = found["0.5", "unrefined"][0], found["0.5", "unrefined"][2]
    assert isinstance(mean, Estimate)
    assert mean.value == pytest.approx(35)
    assert deviation == pytest.approx(20 / 2**0.5)
    assert (found["", "unrefined"][5], found["", "refined"][5]) == ("0 of 3", "1 of 3")
    assert "9 of 24 runs diverged" in table.caption
    assert table.caption.endswith("Where one seed is left, intervals are over its episodes.")
    said = text.text.split("\n\n")
    assert len(said) == 5  # unrefined and refined, one training
    hopper = "dtag/hopper/medium-replay-v0, Decision Transformer"
    assert f"{hopper} + PG, weight 0.5, training seed 2, diverged: loss is nan" in said
    assert f"{hopper}, training seed 1, diverged: loss is nan" in said


def test_spread_of_one_seed_has_no_deviation() -> None:
    runs = spread_runs(1)
    (table,) = spread(Results.of(runs, spread_rows(runs), Path()))
    assert isinstance(table, Table)
    assert all(row[6] is None for row in table.rows)


def test_pg_and_ag_of_a_seed_use_one_critic() -> None:
    runs = spread_runs(2)
    for run in runs:
        guide = run.policy.guide
        assert (guide is not None) == ("q_weight" in run.label)
        if guide is not None and run.critic is not None:
            assert guide == run.critic
    assert len({run.policy.key for run in runs}) == 2 * (1 + 3)


def test_the_main_tables_are_without_policy_gradients() -> None:
    for name in ("gym", "maze2d"):
        methods = {record.labels["method"] for record in results_of(STUDIES[name], "small").records}
        assert methods == {"BC", "Decision Transformer", "IQL policy", "Reinformer"}
