"""The training loop that the policy and the critic share.

A learner does the updates; the loop counts them, logs, evaluates, writes checkpoints, resumes.

Resuming is exact: weights, optimiser and every random generator come back as they were, so a run
that was killed and resumed ends with the same bits as one that was not, on the same machine with
the same number of threads.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dtag_fast import __version__, checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.threads import torch_threads
from dtag_fast.training.config import TrainingConfig
from dtag_fast.training.interrupt import Interrupt, TrainingInterrupted
from dtag_fast.training.logs import RunLog
from dtag_fast.training.resume import check_same_run

Evaluate = Callable[[Any, int], Mapping[str, float]]

CONFIG_FILE = "config.json"


class TrainingDiverged(RuntimeError):
    """A loss or a weight became NaN or infinite; the message says at which step."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves."""

    directory: Path
    """The run's folder, for `Policy.load` and `Critic.load`."""
    step: int
    """Gradient updates done in all."""
    model: nn.Module
    """The trained model as of the last step, in evaluation mode."""
    losses: dict[str, float]
    """Means over the last logged interval; empty where this call had nothing left to do."""
    best: dict[str, Any] | None
    """The best evaluation: "step", "score" and what else it gave; None without evaluations."""
    last_evaluation: dict[str, Any] | None
    """The latest evaluation, likewise; None stands for a number that was not finite."""
    seconds: float
    """Wall time of this call."""


class Learner(ABC):
    """A model, its optimisers and its batches; one `update` is one step of the loop."""

    kind: ClassVar[str]
    """Of the checkpoint: "policy" or "critic"."""
    terms: tuple[str, ...]
    """Names of what `update` returns."""
    model: nn.Module
    """What the checkpoint's model file holds."""

    @abstractmethod
    def update(self, step: int) -> Tensor:
        """Update number `step`, counted from 1; the values of `terms`, on the device, detached."""

    @abstractmethod
    def training_tensors(self) -> dict[str, Tensor]:
        """What resuming needs besides the model and torch's global generators."""

    @abstractmethod
    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `training_tensors`."""

    @abstractmethod
    def sampler_state(self) -> dict[str, Any]:
        """State of what draws the batches, JSON values."""

    @abstractmethod
    def load_sampler_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `sampler_state`."""


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
    device = resolve_device(config.device)
    with _torch_settings(config, device):
        learner = build(device)
        return _Run(learner, data, config, directory, device, evaluate).start(resume)


class _Run:
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
        began = time.perf_counter()
        self._open(resume)
        self.learner.model.train()
        with (
            RunLog(
                self.directory, keep_to_step=self.step, tensorboard=self.config.tensorboard
            ) as log,
            Interrupt() as interrupt,
            tqdm(
                total=self.config.steps,
                initial=self.step,
                desc=self.learner.kind,
                unit="step",
                disable=not self.config.progress,
                dynamic_ncols=True,
            ) as bar,
        ):
            if self.step < self.config.steps:
                log.write("start", self.step, {"steps": self.config.steps})
            self._loop(log, interrupt, bar)
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

    def _loop(self, log: RunLog, interrupt: Interrupt, bar: Any) -> None:
        config = self.config
        self.log_time, self.log_step = time.perf_counter(), self.step
        while True:
            # First what is due at this step: a resumed run comes here before its next update.
            finished = self.step >= config.steps
            if self.pending and (finished or self.step % config.log_every == 0):
                self._log_losses(log, bar)
            improved = False
            if self._evaluation_due(finished) and not interrupt.requested:
                improved = self._evaluate(log, interrupt)
            if (
                finished
                or improved
                or interrupt.requested
                or (self.step > 0 and self.step % config.checkpoint_every == 0)
            ):
                self._save(log, improved)
            if finished:
                return
            if interrupt.requested:
                log.write("interrupted", self.step, {})
                raise TrainingInterrupted(self.step, self.directory)
            self.step += 1
            self.pending.append(self.learner.update(self.step))
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
        assert self.evaluate is not None
        self._check_losses(log)
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
        if self.saved_step == self.step > 0:  # resumed here, and only evaluated since
            path = checkpoint.resolve(self.directory)
            checkpoint.write_state(path, self.step, state)
        else:
            path = self._write(log, state)
        if improved:
            checkpoint.point(self.directory, "best", path)
        checkpoint.prune(self.directory, self.config.keep_checkpoints)

    def _write(self, log: RunLog, state: Mapping[str, Any]) -> Path:
        self._check_losses(log)
        model = self.learner.model.state_dict()
        training = self.learner.training_tensors()
        for name, tensor in (model | training).items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                self._diverged(log, self.step, f"{name} is not finite after step {self.step}")
        training["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            training["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        path = checkpoint.save(
            self.directory, step=self.step, model=model, training=training, state=state
        )
        self.saved_step = self.step
        log.write("checkpoint", self.step, {"checkpoint": path.name})
        return path

    def _open(self, resume: bool) -> None:
        """Continue from the last checkpoint, or begin: the folder says which is possible."""
        started = self.directory / CONFIG_FILE
        last = checkpoint.pointed(self.directory, "last")
        if not resume and (last is not None or started.exists()):
            raise ValueError(
                f"directory: {self.directory} already holds a run; resume it (resume=True) or "
                "choose another folder"
            )
        if last is not None:
            self._load(checkpoint.resolve(self.directory))
        elif started.exists():
            check_same_run(checkpoint.read_json(started), self.identity, 0, str(started))
        checkpoint.write_json(started, {**self.identity, "package_version": __version__})

    def _load(self, source: Path) -> None:
        state = checkpoint.read_state(source, kind=self.learner.kind)
        check_same_run(state, self.identity, state["step"], str(source))
        checkpoint.load_into(self.learner.model, checkpoint.load_tensors(source), source)
        tensors = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE)
        try:
            torch.set_rng_state(tensors.pop("generator.cpu"))
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors.pop("generator.cuda"), self.device)
            self.learner.load_training_tensors(tensors)
            self.learner.load_sampler_state(state["sampler"])
        except KeyError as error:
            raise checkpoint.CheckpointError(f"{source}: damaged, {error} is missing") from error
        self.step = self.saved_step = state["step"]
        self.best = state["best"]
        self.last_evaluation = state["last_evaluation"]
        self.losses = state["metrics"]
        if self.best is not None and self.best["step"] == self.step:
            # A kill between the checkpoint and its pointer leaves the pointer behind.
            checkpoint.point(self.directory, "best", source)


def resolve_device(name: str) -> torch.device:
    """The torch device of a config's word; ValueError if it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu or cuda[:n], got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda[:n], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r}, but torch sees {torch.cuda.device_count()} GPUs")
    return device


@contextmanager
def _torch_settings(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Threads and seed for a run; the caller's come back afterwards."""
    with torch_threads(config.threads), torch.random.fork_rng(_cuda_devices(device)):
        torch.manual_seed(config.seed)
        yield


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
