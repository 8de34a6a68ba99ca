"""What is known of a case's contenders before they are timed, and the rows it makes with times."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import limits
from benchmarks.cases import Case
from benchmarks.checks import Checker
from benchmarks.contenders import Contender
from benchmarks.floors import Activity, Work, dense_work, measure_activity, walk_work
from dtag_fast.models.critic import Critic
from dtag_fast.refinement.parity import Parity

Times = Mapping[str, Mapping[str, float]]  # by name: calls and p5, p50, p95 in microseconds

ARITHMETIC = "multiply-adds"


@dataclass(frozen=True)
class Entry:
    """A contender whose parity holds.

    Attributes:
        contender: the contender.
        parity: with the reference.
        activity: of the critic's units on the case's path.
        work: the least that its algorithm does.
        kernel_seconds: of its kernel alone, filled while the case is timed.
    """

    contender: Contender
    parity: Parity
    activity: Activity
    work: Work
    kernel_seconds: list[float] = field(default_factory=list)

    def time_kernel(self) -> None:
        """Add to `kernel_seconds`."""
        assert self.contender.time_kernel is not None
        self.kernel_seconds.extend(self.contender.time_kernel())


def enter(case: Case, critic: Critic, contenders: Sequence[Contender]) -> list[Entry]:
    """Check everyone's parity, and find out what there is to do."""
    checker = Checker(case, critic)
    activities: dict[int, Activity] = {}
    entries = []
    for each in contenders:
        parity = checker.check(each)
        key = id(each.actions)
        if key not in activities:
            activities[key] = measure_activity(
                critic, each.observations, each.actions, case.steps, case.step_size
            )
        work_of = walk_work if each.algorithm == "walk" else dense_work
        work = work_of(critic, activities[key], each.shape(case.steps))
        entries.append(Entry(each, parity, activities[key], work))
    return entries


def calls(entries: Sequence[Entry]) -> dict[str, Callable[[], object]]:
    """What to time in turn: contenders, their kernels alone, and this machine's limits.

    There are no limits where limits.cpp cannot be compiled.
    """
    found: dict[str, Callable[[], object]] = {
        entry.contender.name: entry.contender.call for entry in entries
    }
    for entry in entries:
        if entry.contender.time_kernel is not None:
            found[f"kernel of {entry.contender.name}"] = entry.time_kernel
    if limits.missing_reason() is None:
        found[ARITHMETIC] = limits.multiply_adds
        for level in sorted({entry.work.level for entry in entries}):
            found[level] = functools.partial(limits.read, level)
    return found


def row(case: Case, critic: Critic, entry: Entry, times: Times) -> dict[str, Any]:
    """A contender's row of the table."""
    contender, shape = entry.contender, entry.contender.shape(case.steps)
    own = times[contender.name]
    active = map(operator.mul, entry.activity.active, critic.hidden)
    return {
        "case": case.name,
        "S": critic.observation_dim,
        "A": critic.action_dim,
        "B": shape.batch,
        "N": shape.starts,
        "n": case.steps,
        "eta": case.step_size,
        "hidden": list(critic.hidden),
        "heads": critic.heads,
        "activation": critic.activation,
        "layer_norm": critic.layer_norm,
        "contender": contender.name,
        "algorithm": contender.algorithm,
        "precision": contender.precision,
        "threads": contender.threads,
        **{f"{name} us": own[name] for name in ("p5", "p50", "p95")},
        "calls": own["calls"],
        "us a row": own["p50"] / shape.batch,
        "x reference": times["reference"]["p50"] / own["p50"],
        **_kernel(entry),
        **_floor(entry, times),
        "active": sum(active) / sum(critic.hidden),
        "flips": entry.activity.flips_a_step,
        **_info(contender),
        "error": entry.parity.error,
        "q_loss": entry.parity.q_loss,
    }


def _kernel(entry: Entry) -> dict[str, float]:
    if not entry.kernel_seconds:
        return {}
    return {"kernel us": float(np.median(entry.kernel_seconds)) * 1e6}


def _floor(entry: Entry, times: Times) -> dict[str, Any]:
    if ARITHMETIC not in times:
        return {}
    contender, level = entry.contender, entry.work.level
    # Of all threads, a microsecond.
    rate = contender.threads * limits.multiply_adds() / times[ARITHMETIC]["p50"]
    bandwidth = contender.threads * limits.read(level) / times[level]["p50"]
    floor = entry.work.microseconds(rate, bandwidth)
    return {
        "floor us": floor,
        "x floor": times[contender.name]["p50"] / floor,
        "GFLOP/s": 2e-3 * rate,
        "GB/s": 1e-3 * bandwidth,
        "read from": level,
    }


def _info(contender: Contender) -> dict[str, float]:
    """What the package's own report, means over the rows."""
    if contender.info is None:
        return {}
    return {
        "walk flips": float(contender.info.flips.double().mean()),
        "dense steps": float(contender.info.dense_steps.double().mean()),
    }
