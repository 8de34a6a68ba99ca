"""`dtag latency`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dtag_fast.acting.refinement_options import RefinementOptions
from dtag_fast.commands.evaluate import Evaluate

TIMES_FILE = "latency.json"
PLOT_FILE = "latency.png"


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Act in a control loop: how long an action takes, and how many come too late.

    The environment's own time does not count. A step is due a period after the one before, and its
    deadline is missed if the action comes more than a period after that.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a policy's run, or one checkpoint."""

    hz: float = 1000.0
    """Rate of the loop; the deadline is its period."""

    seconds: float = 10.0
    """Length of the measurement, in steps of the loop: seconds * hz."""

    steps: int | None = None
    """Number of steps to measure, in place of --seconds."""

    warm_up: int = 100
    """Steps before those, which are not counted."""

    critic: Path | None = None
    """Folder of a critic's run, or one checkpoint: refine with it."""

    env: str | None = None
    """Gymnasium id; by default the one that the policy's dataset names."""

    which: Literal["last", "best"] = "last"
    """Checkpoint of a run."""

    seed: int = 0
    """Of the first episode."""

    target_return: float | None = None
    """Return to ask for (Decision Transformer); by default that of its training."""

    threads: int = 1
    """CPU threads torch may use."""

    out: Path | None = None
    """Folder for latency.json, with every time, and latency.png, the histogram."""

    device: str = "cpu"
    """Where the model and the critic run."""

    inference: Literal["auto", "native", "torch", "graph"] = "auto"
    """What computes an action: compiled code (CPU), torch, a captured graph (CUDA); auto: the first
    where it can be had, else torch."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's weights; bf16 with compiled code only."""

    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    """Refinement."""

    def run(self) -> None:
        """Measure, print, write what --out asks for."""
        steps = round(self.seconds * self.hz) if self.steps is None else self.steps
        if self.steps is None and steps < 1:
            raise ValueError(f"--seconds: expected at least one step of {self.hz:g} a second")
        if self.out is not None and (self.out / TIMES_FILE).exists():
            raise ValueError(
                f"--out: {self.out} already holds a measurement; choose another folder"
            )
        from rich.console import Console

        from dtag_fast.evaluation.latency import measure_latency
        from dtag_fast.threads import torch_threads

        loading = Evaluate(
            policy=self.checkpoint,
            critic=self.critic,
            env=self.env,
            target_return=self.target_return,
            device=self.device,
            inference=self.inference,
            precision=self.precision,
            refinement=self.refinement,
        )
        policy, env, _ = loading.load(self.which, self.critic is not None)
        with torch_threads(self.threads):
            latency = measure_latency(
                policy, env, self.hz, steps, warm_up=self.warm_up, seed=self.seed
            )
        console = Console()
        for line in latency.histogram():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(latency.table())
        console.print(
            f"{latency.env_name}, {self.hz:g} Hz: {latency.missed} of {steps} deadlines of "
            f"{latency.period:g} µs missed",
            soft_wrap=True,
        )
        if self.out is not None:
            from dtag_fast.checkpoint import write_json

            self.out.mkdir(parents=True, exist_ok=True)
            settings = {
                key: str(value) if isinstance(value, Path) else value
                for key, value in asdict(self).items()
            }
            write_json(self.out / TIMES_FILE, {"settings": settings, **latency.to_dict()})
            latency.plot(self.out / PLOT_FILE)
            console.print(f"Times and histogram in {self.out}", markup=False, soft_wrap=True)
