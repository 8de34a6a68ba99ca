"""Action Gradient, the hot operation of the package: `refine` and `Refiner`.

`reference.py` is the specification; each other backend is a file that equals it.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, cast, overload

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import torch_op
from dtag_fast.refinement.backends import (
    BACKENDS,
    EVERY_BATCH,
    BackendName,
    FastBackend,
    FastCall,
    choose_backend,
    reason_against,
)
from dtag_fast.refinement.crossover import rows_for_gpu
from dtag_fast.refinement.execution import Algorithm, Execution, Precision
from dtag_fast.refinement.inputs import Array, check_inputs
from dtag_fast.refinement.options import (
    Bounds,
    Ensemble,
    Gradient,
    Optimizer,
    RefineInfo,
    RefineOptions,
    Select,
)
from dtag_fast.refinement.packing import Packing, forget, known_calls, packed, remember_call

__all__ = ["BACKENDS", "RefineInfo", "RefineOptions", "Refiner", "refine"]


class Refiner:
    """Refinement with one critic and one set of options, to call again and again.

    `Refiner(critic, steps=20)(observations, actions)` is `refine(critic, observations, actions,
    steps=20)`; the arguments are explained there. Options and backend are settled here, once.
    One Refiner may be called from several threads.

    Attributes:
        critic: the critic given.
        options: the checked options.
        execution: algorithm, precision and threads, checked.
        backend: the name of the backend in use; never "auto". Of a critic on the CPU, "auto" takes
            some batches to a GPU all the same: see `backend_for`.
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        steps: int = 10,
        step_size: float = 0.03,
        optimizer: Optimizer = "sgd",
        bounds: Bounds | None = (-1.0, 1.0),
        ensemble: Ensemble = "min",
        lcb_k: float = 1.0,
        select: Select = "best",
        max_distance: float | None = None,
        gradient: Gradient = "raw",
        backend: BackendName = "auto",
        algorithm: Algorithm = "auto",
        precision: Precision = "fp32",
        threads: int | None = None,
        return_info: bool = False,
    ) -> None:
        if not isinstance(critic, nn.Module):
            raise TypeError(f"critic: expected a torch.nn.Module, got {type(critic).__name__}")
        self.critic = critic
        self.options = RefineOptions.check(
            steps=steps,
            step_size=step_size,
            optimizer=optimizer,
            bounds=bounds,
            ensemble=ensemble,
            lcb_k=lcb_k,
            select=select,
            max_distance=max_distance,
            gradient=gradient,
        )
        self.execution = Execution.check(algorithm=algorithm, precision=precision, threads=threads)
        self.return_info = return_info
        self.backend = choose_backend(backend, critic, self.options, self.execution)
        action_dim = getattr(critic, "action_dim", None)
        if isinstance(action_dim, int):
            self.options.check_action_dim(action_dim)
        self._packing: Packing | None = None
        self._fast: FastCall = _not_yet
        self._automatic = backend == "auto"
        self._rows = self._settle_rows()
        self._on_gpu: Refiner | None = None

    def backend_for(self, rows: int) -> str:
        """The backend that takes a batch of so many rows.

        It is `backend`, but for a critic on the CPU with backend="auto", in a process that had used
        a GPU when the Refiner was made: batches that are worth the way there and back
        (docs/gpu.md) are taken by cuda, where it can. It rounds otherwise than cpu; name either to
        have a row's result the same, bit for bit, whatever the batch it is in.
        """
        return self.backend if self._other_for(rows) is None else "cuda"

    def __call__(self, observations: Array, actions: Array) -> Any:
        """The refined actions, [B, A] or [A]; with `return_info` a pair (actions, RefineInfo)."""
        if is_dynamo_compiling() and self._traceable:
            return self._traced(observations, actions)
        refined = self._fast(observations, actions)
        if refined is NotImplemented:
            return self._call(observations, actions)
        return refined

    def _call(self, observations: Array, actions: Array) -> Any:
        """The call whatever the arguments are: checks, conversions and errors."""
        if self._traceable and torch_op.is_traced(observations, actions):
            return self._traced(observations, actions)
        other = self._other_for(len(actions) if getattr(actions, "ndim", 0) > 1 else 1)
        if other is not None:
            return other(observations, actions)
        inputs = check_inputs(self.critic, observations, actions)
        self.options.check_action_dim(inputs.actions.shape[-1])
        critic: Any = self.critic
        if BACKENDS[self.backend].packs:
            packing = packed(self.backend, self.critic, self.execution.precision)
            critic = packing.weights
            if (
                BACKENDS[self.backend].fast
                and packing is not self._packing
                and not self.return_info
            ):
                self._packing = packing
                module = cast(FastBackend, BACKENDS[self.backend].load())
                self._fast = module.fast_call(*packing, self.options, self.execution, self._rows)
        result, info = (
            BACKENDS[self.backend]
            .load()
            .run(critic, inputs.observations, inputs.actions, self.options, self.execution)
        )
        refined = inputs.restore(result)
        return (refined, info) if self.return_info else refined

    @property
    def _traceable(self) -> bool:
        return self.backend == "cpu" and not self.return_info

    def _traced(self, observations: Any, actions: Any) -> Any:
        return torch_op.refine(
            cast(Critic, self.critic), observations, actions, self.options, self.execution
        )

    def refresh(self) -> None:
        """Read the critic's weights again at the next call.

        Needed only after a change that PyTorch does not count: writing through `.data` or through
        a numpy array that shares the memory. Optimiser steps, `load_state_dict`, in-place
        operations and replaced parameters are noticed without it.
        """
        forget(self.critic)

    def __getstate__(self) -> dict[str, Any]:
        """Without what the next call makes again, and what is another process's."""
        return vars(self) | {"_packing": None, "_fast": _not_yet, "_on_gpu": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Whether there is a GPU to go to is this process's."""
        vars(self).update(state)
        self._rows = self._settle_rows()

    def _settle_rows(self) -> range:
        """The batches that are not for another Refiner, of the cuda backend."""
        least = rows_for_gpu(self.critic, self.execution) if self._automatic else None
        return EVERY_BATCH if least is None else range(least)

    def _other_for(self, rows: int) -> Refiner | None:
        """The Refiner that takes a batch of so many rows to a GPU, if that is worth it."""
        if not self._automatic or rows in self._rows:
            return None
        if torch.cuda.is_current_stream_capturing():  # nothing may wait
            return None
        if self._on_gpu is None:
            if reason_against("cuda", self.critic, self.options, self.execution) is not None:
                self._rows, self._packing, self._fast = EVERY_BATCH, None, _not_yet
                return None
            other = copy.copy(self)
            other.backend, other._automatic = "cuda", False
            other._rows = range(self._rows.stop, EVERY_BATCH.stop)
            self._on_gpu = other
        return self._on_gpu

    def _remember_calls(self, words: tuple[Any, ...]) -> None:
        """The fast calls there are, for `refine` with these words to find."""
        for each in (self, self._on_gpu):
            if each is not None and each._fast is not _not_yet:
                remember_call(self.critic, words, each.backend, each._fast)


def _not_yet(observations: object, actions: object) -> Any:
    """The fast call of a Refiner that has none."""
    return NotImplemented


@overload
def refine(
    critic: nn.Module,
    observations: Array,
    actions: Array,
    *,
    steps: int = ...,
    step_size: float = ...,
    optimizer: Optimizer = ...,
    bounds: Bounds | None = ...,
    ensemble: Ensemble = ...,
    lcb_k: float = ...,
    select: Select = ...,
    max_distance: float | None = ...,
    gradient: Gradient = ...,
    backend: BackendName = ...,
    algorithm: Algorithm = ...,
    precision: Precision = ...,
    threads: int | None = ...,
    return_info: Literal[False] = ...,
) -> Array: ...
@overload
def refine(
    critic: nn.Module,
    observations: Array,
    actions: Array,
    *,
    steps: int = ...,
    step_size: float = ...,
    optimizer: Optimizer = ...,
    bounds: Bounds | None = ...,
    ensemble: Ensemble = ...,
    lcb_k: float = ...,
    select: Select = ...,
    max_distance: float | None = ...,
    gradient: Gradient = ...,
    backend: BackendName = ...,
    algorithm: Algorithm = ...,
    precision: Precision = ...,
    threads: int | None = ...,
    return_info: Literal[True],
) -> tuple[Array, RefineInfo]: ...
def refine(critic: nn.Module, observations: Any, actions: Any, **options: Any) -> Any:
    """Improve actions by climbing a critic: a <- a + step_size * grad_a Q(s, a), `steps` times.

    Action Gradient (arXiv 2510.05285). Each row is refined by itself; of its candidates a^0, the
    action given, to a^n, the one with the highest Q is returned. Nothing is modified, and
    arithmetic is float32.

    Args:
        critic: a `dtag_fast.Critic`, or any module that maps (observations [B, S], actions
            [B, A]) to Q [E, B] or [B]. Weights may change between calls (see `Refiner.refresh`).
        observations: [B, S] or [S], raw: the critic does its own normalising. Torch or numpy.
        actions: [B, A] or [A] of the same kind; or [B, N, A], N starting points a row, all of
            whose candidates compete.
        steps: n, 0 or more. 0 returns the projected action; with [B, N, A] it is best-of-N.
        step_size: eta, in action units per unit of gradient. A gradient scales with the critic's
            rewards, so does the eta that suits it.
        optimizer: "sgd", "momentum" (0.9), "rmsprop" or "adam", with torch.optim's formulas and
            a state for each row.
        bounds: (low, high), each a number or [A]: every candidate is clamped to this box, a^0
            included. None for no box.
        ensemble: how the heads make one Q: "min", "mean", or "lcb", mean - lcb_k * std.
        lcb_k: of "lcb", 0 or more.
        select: "best", the candidate with the highest Q, the earliest on a tie; or "last".
        max_distance: if given, candidates stay within this L2 distance of a^0.
        gradient: "raw", or "unit" to divide each row's gradient by its length; step_size is then
            the length of a plain step, whatever the scale of the rewards.
        backend: "auto", or a name in `dtag_fast.refinement.BACKENDS`. "auto" may take a large batch
            of a critic on the CPU to a GPU and back: see `Refiner.backend_for`. Of the three words
            that follow, the cpu backend takes all and triton the first two.
        algorithm: "walk", from linear region to linear region of the critic: for relu and
            leaky_relu with one to three hidden layers; "dense", the full network at every
            candidate; or "auto", the quicker one.
        precision: "fp32", or "bf16": the weights between hidden layers rounded to bfloat16, in
            arithmetic of float32 on the cpu and cuda; on triton what they are multiplied with is
            rounded too, and on cuda with algorithm="dense" on compute capability 9.0, which takes
            large batches by tensor cores (docs/gpu.md). "tf32" rounds both to ten bits of mantissa,
            for tensor cores, on triton. On cuda "tf32x3" takes tensor cores for three products in
            place of one, at float32's accuracy.
        threads: the most to use. None: torch.get_num_threads(). A small batch takes one.
        return_info: also return a `RefineInfo`.

    Returns:
        The refined actions, [B, A] or [A], of the kind, dtype and device of `actions`. A row
        whose gradient stops being finite stops there; a row that has no finite Q keeps a^0.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what came
            and what was expected. So does a walk of a critic whose weights are not all finite.
        RuntimeError: the named backend cannot run here, or none can; and why.
    """
    if is_dynamo_compiling():
        if not torch_op.takes(critic, options):
            return Refiner(critic, **options)(observations, actions)
        traced = cast(Critic, critic)
        settled = torch_op.settle(traced.action_dim, tuple(options.items()))
        return torch_op.refine(traced, observations, actions, *settled)
    words = _words(options)
    for known in known_calls(critic, words):
        refined = known(observations, actions)
        if refined is not NotImplemented:
            return refined
    refiner = Refiner(critic, **options)
    refined = refiner(observations, actions)
    if words is not None:
        refiner._remember_calls(words)
    return refined


_PLAIN = frozenset({int, float, str, bool, type(None)})


def _words(options: dict[str, Any]) -> tuple[Any, ...] | None:
    """What the choices of a call with these keywords depend on, beside the critic; None if that may
    change under one's hands, like an array. 1, 1.0 and True are equal, and not the same word.
    """
    kinds = tuple(map(type, options.values()))
    if not _PLAIN.issuperset(kinds):
        for kind, value in zip(kinds, options.values(), strict=True):
            if kind not in _PLAIN and not (
                kind is tuple and all(type(number) in (int, float) for number in value)
            ):
                return None
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return (in_use, *options.items(), *kinds)
