"""How long a policy takes to act in a control loop, and how often it is too late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtag_fast.acting.policy import Policy
from dtag_fast.evaluation.environments import EnvSource, make_env
from dtag_fast.evaluation.vector import describe

if TYPE_CHECKING:
    from rich.table import Table

Microseconds = NDArray[np.float64]
PERCENTILES = (50, 90, 99, 99.9)
BINS_PER_DECADE = 20
SPIN_SECONDS = 500e-6  # before a tick; a sleep may end that much late


@dataclass(frozen=True)
class Latency:
    """What a control loop measured. Times in us, one a step, [N].

    Attributes:
        act: from the call of `Policy.act` to its return: conversions, model and refinement.
        response: from the moment the step was due, which is later than that if waking up was.
        model: the part of `act` spent in context, token predictor and model.
        refinement: the part of `act` spent in refinement; zeros without.
        env: the environment's step, which counts for nothing: a real one takes no time.
        period: of the loop.
        env_name: the environment's id, where it has one.
        episodes: how many began.
    """

    act: Microseconds
    response: Microseconds
    model: Microseconds
    refinement: Microseconds
    env: Microseconds
    period: float
    env_name: str
    episodes: int

    @property
    def missed(self) -> int:
        """Steps whose action came later than a period after the step was due."""
        return int((self.response > self.period).sum())

    def to_dict(self) -> dict[str, Any]:
        """Summaries and all times, in JSON values."""
        times = {
            name: getattr(self, name) for name in ("act", "response", "model", "refinement", "env")
        }
        return {
            "env": self.env_name,
            "hz": 1e6 / self.period,
            "period_us": self.period,
            "steps": len(self.act),
            "episodes": self.episodes,
            "missed": self.missed,
            **{f"{name}_us": _summary(values) for name, values in times.items()},
            "times_us": {name: np.round(values, 2).tolist() for name, values in times.items()},
        }

    def table(self) -> Table:
        """Percentiles of the parts, for a terminal."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("µs")
        rows = {
            "act": self.act,
            "  model": self.model,
            "  refinement": self.refinement,
            "response": self.response,
            "environment": self.env,
        }
        columns = list(_summary(self.act))
        for column in columns:
            table.add_column(column, justify="right")
        for name, values in rows.items():
            summary = _summary(values)
            table.add_row(name, *(f"{summary[column]:.1f}" for column in columns))
        return table

    def histogram(self, width: int = 50) -> list[str]:
        """Lines of text: how many steps responded within each range of times.

        Ranges are of equal ratio; those beyond the period are marked.
        """
        edges = _edges(self.response)
        counts, _ = np.histogram(self.response, edges)
        lines = []
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            bar = "█" * math.ceil(width * count / counts.max())
            late = "  late" if low >= self.period else ""
            lines.append(f"{low:10.1f} – {high:10.1f} µs {count:8d} {bar}{late}".rstrip())
        return lines

    def plot(self, path: Path) -> None:
        """Write the histogram as a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.hist(self.response, bins=_edges(self.response).tolist())
        axes.axvline(self.period, color="tab:red", label=f"deadline, {self.period:g} µs")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="from the moment a step was due to its action, µs",
            ylabel="steps",
            title=f"{self.env_name}: {len(self.act)} steps, {self.missed} missed",
        )
        axes.legend()
        figure.savefig(path, dpi=120)


def measure_latency(
    policy: Policy,
    env: EnvSource,
    hz: float,
    steps: int,
    *,
    warm_up: int = 100,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Latency:
    """Act in one environment at a fixed rate.

    A step is due a period after the one before; or when the environment is ready, where it takes
    longer than what was left of the period. Episodes follow one another.

    Args:
        policy: its episodes under way are lost.
        env: anything `make_env` takes.
        hz: rate of the loop.
        steps: how many to measure.
        warm_up: steps before those, at the same rate.
        seed: of the first episode.
        clock: seconds.
        sleep: waits so many seconds.

    Raises:
        ValueError: numbers out of range; the message names them.
    """
    if not (math.isfinite(hz) and hz > 0):
        raise ValueError(f"hz: expected a positive number, got {hz}")
    for name, value, least in (("steps", steps, 1), ("warm_up", warm_up, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    made = make_env(env)
    period = 1.0 / hz
    rows = np.zeros((warm_up + steps, 5))
    episodes = 0
    try:
        observation: Any = None
        over, reward = True, 0.0
        due = clock()
        for row in rows:
            if over:
                observation, _ = made.reset(seed=seed + episodes)
                policy.reset()
                episodes, reward = episodes + 1, 0.0
                due = max(due, clock())
            _wait(due, clock, sleep)
            begun = clock()
            action = policy.act(observation, reward)
            acted = clock()
            observation, received, terminated, truncated, _ = made.step(action)
            stepped = clock()
            reward, over = float(received), bool(terminated or truncated)
            timing = policy.last_timing
            assert timing is not None
            parts = (1e-3 * timing.model_ms, 1e-3 * timing.refinement_ms)  # seconds
            row[:] = acted - begun, acted - due, *parts, stepped - acted
            due = max(due + period, stepped)
    finally:
        if made is not env:
            made.close()
    act, response, model, refinement, env_step = 1e6 * rows[warm_up:].T
    return Latency(
        act, response, model, refinement, env_step, 1e6 * period, describe(made), episodes
    )


def _wait(until: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    """Sleep most of the time, then look at the clock."""
    remaining = until - clock() - SPIN_SECONDS
    if remaining > 0:
        sleep(remaining)
    while clock() < until:
        pass


def _edges(values: Microseconds) -> Microseconds:
    """Of bins of equal ratio that hold all values."""
    low, high = (math.log10(bound) for bound in (max(values.min(), 1e-3), max(values.max(), 1e-3)))
    first, last = math.floor(low * BINS_PER_DECADE), math.floor(high * BINS_PER_DECADE) + 1
    # Not more lines than a terminal shows.
    stride = math.ceil((last - first) / 30)
    return 10.0 ** (np.arange(first, last + stride, stride) / BINS_PER_DECADE)


def _summary(values: Microseconds) -> dict[str, float]:
    found = {f"p{percent:g}": float(np.percentile(values, percent)) for percent in PERCENTILES}
    return found | {"max": float(values.max())}
