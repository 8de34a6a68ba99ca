"""Critics of several seeds trained at once.

An update of one critic is too small for many cores: its four phases wait for each other. Critics of
different seeds do not, so each goes through a stretch of updates on a core of its own, and only
between stretches do they meet, to log and save. Every seed draws what it would draw alone and ends
with the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.training.config import CriticConfig
from dtag_fast.training.critic import TransitionLearner, learner_class
from dtag_fast.training.devices import (
    generator_states,
    resolve_device,
    set_generator_states,
)
from dtag_fast.training.interrupt import Interrupt
from dtag_fast.training.iql import CriticLearner
from dtag_fast.training.loop import Evaluate, Run, TrainingResult, torch_settings

LONGEST_STRETCH = 50  # updates, after which an interruption is noticed


def train_critics(
    data: Trajectories,
    config: CriticConfig,
    seeds: Sequence[int],
    directory: str | Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> list[TrainingResult]:
    """Train a critic for each seed, in folders `directory`/seed-N.

    The critics are those of `train_critic` with these seeds, one after another. On the CPU, IQL's
    native update trains as many at once as torch has threads, on one thread each; other methods
    and devices take turns.

    Args:
        data, config, resume, evaluate: as in `train_critic`; `config.seed` is not used.
        seeds: different integers of at least 0.
        directory: the folder of the runs' folders.

    Returns:
        The results, in the order of the seeds.

    Raises:
        As `train_critic`; ValueError also for no seeds, or the same one twice. Where one training
        ends with an error, all end; their checkpoints stay, and `resume` goes on with them.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected different integers, at least one, got {list(seeds)}")
    device = resolve_device(config.device)
    with torch_settings(config, device), Interrupt() as interrupt, ExitStack() as stack:
        trainings: list[_Training] = []
        for number, seed in enumerate(seeds):
            # One progress bar: the others are as far.
            own = dataclasses.replace(config, seed=seed, progress=config.progress and number == 0)
            torch.manual_seed(seed)
            learner = learner_class(own)(data, own, device)
            first = trainings[0].learner if trainings else None
            if isinstance(learner, CriticLearner) and isinstance(first, CriticLearner):
                learner.use_rows(first.rows)
            run = Run(learner, data, own, Path(directory) / f"seed-{seed}", device, evaluate)
            updates = stack.enter_context(closing(run.updates(resume, interrupt)))
            trainings.append(_Training(run, learner, updates, generator_states(device)))
        workers = min(torch.get_num_threads(), len(trainings))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        while going := [training for training in trainings if training.step_on()]:
            at_once = [training for training in going if training.one_thread()]
            stretches = [pool.submit(training.update) for training in at_once]
            for training in going:
                if training not in at_once:
                    training.update()
            for stretch in stretches:
                stretch.result()
        return [training.result for training in trainings if training.result is not None]


@dataclass(eq=False)
class _Training:
    """One seed's, and where torch's generators are to stand when it is at work."""

    run: Run
    learner: TransitionLearner
    updates: Generator[int, list[Tensor] | None, TrainingResult]
    generators: dict[str, Tensor]
    due: int = 0  # updates until something is due
    terms: list[Tensor] | None = None
    result: TrainingResult | None = None

    def step_on(self) -> bool:
        """Take note of the last stretch; whether there is another."""
        if self.result is not None:
            return False
        set_generator_states(self.generators, self.run.device)
        try:
            self.due = self.updates.send(self.terms)
        except StopIteration as end:
            self.result = end.value
            return False
        finally:
            self.generators = generator_states(self.run.device)
        return True

    def one_thread(self) -> bool:
        """Whether the updates use one thread and leave torch's generator alone: then they may run
        beside others'."""
        native = self.learner.native if isinstance(self.learner, CriticLearner) else None
        if native is not None:
            native.threads = 1
        return native is not None

    def update(self) -> None:
        """A stretch of updates."""
        beside = self.one_thread()
        if not beside:
            set_generator_states(self.generators, self.run.device)
        count = min(self.due, LONGEST_STRETCH)
        self.terms = [self.learner.update(self.run.step + i + 1) for i in range(count)]
        if not beside:
            self.generators = generator_states(self.run.device)
