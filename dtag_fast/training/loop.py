"""The training loop that the policy and the critic share.

A learner does the updates; the loop counts them, logs, evaluates, writes checkpoints, resumes.

Resuming is exact: weights, optimiser and every random generator come back as they were, so a run
that was killed and resumed ends with the same bits as one that was not, on the same machine with
the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dtag_fast import __version__, checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.threads import torch_threads
from dtag_fast.training.config import TrainingConfig
from dtag_fast.training.devices import generator_states, local_device, set_generator_states
from dtag_fast.training.devices import resolve_device as resolve_device
from dtag_fast.training.distributed import SEED_STEP, process_group
from dtag_fast.training.interrupt import Interrupt, TrainingInterrupted
from dtag_fast.training.learner import Learner as Learner
from dtag_fast.training.learner import TrainingDiverged as TrainingDiverged
from dtag_fast.training.learner import TrainingResult as TrainingResult
from dtag_fast.training.logs import RunLog
from dtag_fast.training.resume import check_same_run

Evaluate = Callable[[Any, int], Mapping[str, float]]

CONFIG_FILE = "config.json"
GENERATOR = "generator"  # begins the names of generators' states in a checkpoint


def run(
    build: Callable[[torch.device], Learner],
    data: Trajectories,
    config: TrainingConfig,
    directory: str | Path,
    *,
    resume: bool,
    evaluate: Evaluate | None,
) -> TrainingResult:
    """Train until `config.steps`. See `train_policy` for the arguments and errors."""
    directory = Path(directory)
    device = local_device(resolve_device(config.device))
    with torch_settings(config, device), process_group(device) as group:
        if config.batch_size < group.world:
            raise ValueError(
                f"batch_size: expected at least a row for each of {group.world} processes, "
                f"got {config.batch_size}"
            )
        learner = build(device)
        if not group.alone:
            learner.join(group)
            torch.manual_seed(config.seed + SEED_STEP * group.rank)
        return Run(learner, data, config, directory, device, evaluate).start(resume)


class Run:
    """A training from its folder to its result."""

    def __init__(
        self,
        learner: Learner,
        data: Trajectories,
        config: TrainingConfig,
        directory: Path,
        device: torch.device,
        evaluate: Evaluate | None,
    ) -> None:
        self.learner = learner
        self.group = learner.group
        self.config = config
        self.directory = directory
        self.device = device
        self.evaluate = evaluate if config.evaluation_every > 0 else None
        self.step = 0
        self.saved_step = 0
        self.best: dict[str, Any] | None = None
        self.last_evaluation: dict[str, Any] | None = None
        self.losses: dict[str, float] = {}
        self.pending: list[Tensor] = []  # one vector of losses a step, not yet looked at
        self.checked = 0  # how many of them are known to be finite
        self.log_time = time.perf_counter()
        self.log_step = 0
        self.identity = {
            "kind": learner.kind,
            "config": config.to_dict(),
            "device": device.type,
            "observation_dim": data.observation_dim,
            "action_dim": data.action_dim,
            "action_low": list(data.info.action_low),
            "action_high": list(data.info.action_high),
            "dataset": {**data.info.to_dict(), "fingerprint": data.fingerprint()},
        }

    def start(self, resume: bool) -> TrainingResult:
        """Train to the end."""
        # A terminal's Ctrl-C comes twice under torchrun: once from torchrun itself.
        with (
            Interrupt(patience=0.0 if self.group.alone else 5.0) as interrupt,
            closing(self.updates(resume, interrupt)) as updates,
        ):
            terms: list[Tensor] = []
            while True:
                try:
                    updates.send(terms or None)
                except StopIteration as end:
                    result: TrainingResult = end.value
                    return result
                terms = [self.learner.update(self.step + 1)]

    def updates(
        self, resume: bool, interrupt: Interrupt
    ) -> Generator[int, list[Tensor] | None, TrainingResult]:
        """All but the updates, for a caller that does them.

        It yields the number of updates until something is due; the caller does one or more of them,
        up to that many, and sends what each gave.
        """
        began = time.perf_counter()
        self._open(resume)
        self.learner.model.train()
        folder = self.directory if self.group.first else None
        with (
            RunLog(folder, keep_to_step=self.step, tensorboard=self.config.tensorboard) as log,
            tqdm(
                total=self.config.steps,
                initial=self.step,
                desc=self.learner.kind,
                unit="step",
                disable=not self.config.progress or not self.group.first,
                dynamic_ncols=True,
            ) as bar,
        ):
            if self.step < self.config.steps:
                log.write("start", self.step, {"steps": self.config.steps})
            yield from self._loop(log, interrupt, bar)
        self.learner.model.eval()
        return TrainingResult(
            directory=self.directory,
            step=self.step,
            model=self.learner.model,
            losses=self.losses,
            best=self.best,
            last_evaluation=self.last_evaluation,
            seconds=time.perf_counter() - began,
        )

    def _loop(
        self, log: RunLog, interrupt: Interrupt, bar: Any
    ) -> Generator[int, list[Tensor] | None, None]:
        config = self.config
        self.log_time, self.log_step = time.perf_counter(), self.step
        stop = self.group.any(interrupt.requested)
        while True:
            # First what is due at this step: a resumed run comes here before its next update.
            finished = self.step >= config.steps
            if self.pending and (finished or self.step % config.log_every == 0):
                self._log_losses(log, bar)
            improved = False
            if self._evaluation_due(finished) and not stop:
                improved = self._evaluate(log, interrupt)
                stop = self.group.any(interrupt.requested)
            if (
                finished
                or improved
                or stop
                or (self.step > 0 and self.step % config.checkpoint_every == 0)
            ):
                self._save(log, improved)
            if finished:
                return
            if stop:
                log.write("interrupted", self.step, {})
                raise TrainingInterrupted(self.step, self.directory)
            periods = [config.log_every, config.checkpoint_every]
            if self.evaluate is not None:
                periods.append(config.evaluation_every)
            done = yield min(config.steps - self.step, *(n - self.step % n for n in periods))
            for terms in done or ():
                summed, stop = self.group.sum_terms(terms, interrupt.requested)
                self.pending.append(summed)
                self.step += 1
                bar.update(1)

    # --- what is due at a step ---

    def _log_losses(self, log: RunLog, bar: Any) -> None:
        self._check_losses(log)
        means = torch.stack(self.pending).double().mean(dim=0).tolist()
        self.losses = dict(zip(self.learner.terms, means, strict=True))
        now = time.perf_counter()
        rate = (self.step - self.log_step) / max(now - self.log_time, 1e-9)
        log.write("train", self.step, {**self.losses, "steps_per_second": rate})
        bar.set_postfix({name: f"{value:.4g}" for name, value in self.losses.items()})
        self.pending.clear()
        self.checked = 0
        self.log_time, self.log_step = now, self.step

    def _check_losses(self, log: RunLog) -> None:
        """Look at the losses since the last look: one synchronisation for all of them."""
        if self.checked == len(self.pending):
            return
        finite = torch.stack(self.pending[self.checked :]).isfinite().cpu()  # [steps, terms]
        if not bool(finite.all()):
            row, term = (int(i) for i in (~finite).nonzero()[0])
            step = self.step - len(finite) + 1 + row
            name = self.learner.terms[term]
            value = float(self.pending[self.checked + row][term])
            self._diverged(log, step, f"{name} is {value} at step {step}")
        self.checked = len(self.pending)

    def _diverged(self, log: RunLog, step: int, what: str) -> None:
        last = checkpoint.pointed(self.directory, "last")
        good = f"the last checkpoint, {last}, is good" if last else "there is no checkpoint yet"
        log.write("diverged", step, {"what": what})
        raise TrainingDiverged(
            f"{self.directory}: {what}; {good}. Usual causes: a learning rate or reward scale "
            "that is too large."
        )

    def _evaluation_due(self, finished: bool) -> bool:
        if self.evaluate is None or self.step == 0:
            return False
        done = self.last_evaluation is not None and self.last_evaluation["step"] == self.step
        return not done and (finished or self.step % self.config.evaluation_every == 0)

    def _evaluate(self, log: RunLog, interrupt: Interrupt) -> bool:
        """Evaluate; whether this is the best so far. It leaves torch's generators as they were."""
        self._check_losses(log)

        def outcome() -> tuple[bool, dict[str, Any] | None, dict[str, Any] | None]:
            return self._evaluate_here(log, interrupt), self.best, self.last_evaluation

        improved, self.best, self.last_evaluation = self.group.from_first(outcome)
        return improved

    def _evaluate_here(self, log: RunLog, interrupt: Interrupt) -> bool:
        assert self.evaluate is not None
        self.learner.model.eval()
        began = time.perf_counter()
        try:
            with torch.random.fork_rng(_cuda_devices(self.device)), interrupt.at_once():
                metrics: dict[str, Any] = dict(self.evaluate(self.learner.model, self.step))
        except KeyboardInterrupt:  # the evaluation comes again when the run is resumed
            return False
        finally:
            self.learner.model.train()
        if "score" not in metrics:
            raise ValueError(f"evaluate: expected a mapping with 'score', got {sorted(metrics)}")
        numbers = {name: float(value) for name, value in metrics.items()}
        metrics = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        seconds = time.perf_counter() - began
        self.log_time += seconds  # not the updates' time
        log.write("evaluation", self.step, {**metrics, "seconds": seconds})
        self.last_evaluation = {"step": self.step, **metrics}
        score = metrics["score"]
        improved = score is not None and (self.best is None or score > self.best["score"])
        if improved:
            self.best = self.last_evaluation
        return improved

    # --- checkpoints ---

    def _save(self, log: RunLog, improved: bool) -> None:
        state = {
            **self.identity,
            "package_version": __version__,
            "sampler": self.learner.sampler_state(),
            "best": self.best,
            "last_evaluation": self.last_evaluation,
            "metrics": self.losses,
        }
        training = self._training_tensors(log)
        if not self.group.first:
            self.saved_step = self.step
            return
        if self.saved_step == self.step > 0:  # resumed here, and only evaluated since
            path = checkpoint.resolve(self.directory)
            checkpoint.write_state(path, self.step, state)
        else:
            path = self._write(log, training, state)
        if improved:
            checkpoint.point(self.directory, "best", path)
        checkpoint.prune(self.directory, self.config.keep_checkpoints)

    def _training_tensors(self, log: RunLog) -> dict[str, Tensor]:
        """Those of a checkpoint; all processes' generators are in it."""
        self._check_losses(log)
        training = self.learner.training_tensors()
        for name, tensor in (self.learner.model.state_dict() | training).items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                self._diverged(log, self.step, f"{name} is not finite after step {self.step}")
        states = generator_states(self.device)
        own = {f"{GENERATOR}.{name}": state for name, state in states.items()}
        for rank, generators in enumerate(self.group.gather(own)):
            training |= {_of_rank(name, rank): state for name, state in generators.items()}
        return training

    def _write(self, log: RunLog, training: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        model = self.learner.model.state_dict()
        path = checkpoint.save(
            self.directory, step=self.step, model=model, training=training, state=state
        )
        self.saved_step = self.step
        log.write("checkpoint", self.step, {"checkpoint": path.name})
        return path

    def _open(self, resume: bool) -> None:
        """Continue from the last checkpoint, or begin: the folder says which is possible."""
        last = self.group.from_first(lambda: self._look(resume))
        if last is not None:
            self._load(checkpoint.resolve(self.directory))
        self.group.share_state(list(self.learner.model.state_dict().values()))
        self.group.share_state(list(self.learner.training_tensors().values()))

    def _look(self, resume: bool) -> str | None:
        """The last checkpoint's name, if there is one; a folder that is ready for the run."""
        started = self.directory / CONFIG_FILE
        last = checkpoint.pointed(self.directory, "last")
        if not resume and (last is not None or started.exists()):
            raise ValueError(
                f"directory: {self.directory} already holds a run; resume it (resume=True) or "
                "choose another folder"
            )
        if last is None and started.exists():
            check_same_run(checkpoint.read_json(started), self.identity, 0, str(started))
        if last is not None:
            source = checkpoint.resolve(self.directory)
            state = checkpoint.read_state(source, kind=self.learner.kind)
            check_same_run(state, self.identity, state["step"], str(source))
        checkpoint.write_json(started, {**self.identity, "package_version": __version__})
        return last

    def _load(self, source: Path) -> None:
        state = checkpoint.read_state(source, kind=self.learner.kind)
        checkpoint.load_into(self.learner.model, checkpoint.load_tensors(source), source)
        tensors = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE)
        try:
            self._load_generators(tensors, state["step"])
            self.learner.load_training_tensors(tensors)
            self.learner.load_sampler_state(state["sampler"])
        except KeyError as error:
            raise checkpoint.CheckpointError(f"{source}: damaged, {error} is missing") from error
        self.step = self.saved_step = state["step"]
        self.best = state["best"]
        self.last_evaluation = state["last_evaluation"]
        self.losses = state["metrics"]
        if self.group.first and self.best is not None and self.best["step"] == self.step:
            # A kill between the checkpoint and its pointer leaves the pointer behind.
            checkpoint.point(self.directory, "best", source)

    def _load_generators(self, tensors: dict[str, Tensor], step: int) -> None:
        """This process's, or fresh ones where the run had fewer processes; `tensors` loses them."""
        names = {
            kind: _of_rank(f"{GENERATOR}.{kind}", self.group.rank)
            for kind in generator_states(self.device)
        }
        if self.group.first or names["cpu"] in tensors:
            states = {kind: tensors[name] for kind, name in names.items()}
            set_generator_states(states, self.device)
        else:
            torch.manual_seed(self.config.seed + SEED_STEP * self.group.rank + step)
        for name in [name for name in tensors if name.startswith(f"{GENERATOR}.")]:
            del tensors[name]


def _of_rank(name: str, rank: int) -> str:
    """The name in a checkpoint of a process's generator."""
    return name if rank == 0 else f"{name}.{rank}"


@contextmanager
def torch_settings(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Threads and seed for a run; the caller's come back afterwards."""
    with torch_threads(config.threads), torch.random.fork_rng(_cuda_devices(device)):
        torch.manual_seed(config.seed)
        yield


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
