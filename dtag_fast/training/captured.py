"""An update on a GPU as one CUDA graph: a launch, instead of hundreds that the GPU waits for.

What is captured is an update as it stands, without a number that is read back: a loss, its
backward pass, the optimisers and what follows slowly. From one replay to the next the numbers that
the graph reads change, and nothing else: which rows or windows, the learning rate, the optimisers'
counts of steps, and where the generator stands that dropout draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.refinement.cuda_graph import capture
from dtag_fast.training.config import CriticConfig, PolicyConfig


def captures(config: PolicyConfig | CriticConfig, device: torch.device) -> bool:
    """Whether these settings have updates captured: on a GPU, unless they ask for other ways."""
    return device.type == "cuda" and config.backend == "auto" and not config.compile


class CapturedUpdate:
    """An update of a batch that is picked on the GPU.

    Captured at the first call, and again whenever an optimiser's state has been replaced, as
    loading it does. Nothing else may change between calls but numbers.

    Args:
        update: called with an index on the GPU, of the given shape; what it returns is the call's
            result. It neither reads a number back nor copies one from the host.
        shape: of the index.
        optimizers: those that an update steps, fused Adams and LAMBs.
        others: all tensors that an update changes besides the optimisers' parameters and state.
        device: the GPU.
    """

    def __init__(
        self,
        update: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        optimizers: Sequence[torch.optim.Optimizer],
        others: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        self._update = update
        self._optimizers = optimizers
        self._others = others
        self._device = device
        self._index = torch.zeros(*shape, dtype=torch.int64, device=device)
        self._replay: Callable[[], None] | None = None
        self._addresses: list[int] = []
        self._result: Tensor | None = None
        for optimizer in optimizers:
            prepare(optimizer)

    def __call__(self, index: NDArray[np.int64]) -> Tensor:
        """One update on what the index picks."""
        state = self._state()
        if self._replay is None or [tensor.data_ptr() for tensor in state] != self._addresses:
            state = self._capture()
        assert self._replay is not None
        assert self._result is not None
        given = torch.from_numpy(index)
        if self._device.type == "cuda":
            given = given.pin_memory()  # a copy that the host need not wait for
        self._index.copy_(given, non_blocking=True)
        self._replay()
        torch.autograd.graph.increment_version(state)  # which a replay does not do
        return self._result.clone()

    def _capture(self) -> list[Tensor]:
        """The graph of what is there now, which is returned."""
        for optimizer in self._optimizers:  # what has been loaded may lack parameters' state
            prepare(optimizer)
        state = self._state()
        with unchanged(state, self._device):
            self._replay, self._result = capture(lambda: self._update(self._index), self._device)
        self._addresses = [tensor.data_ptr() for tensor in state]
        return state

    def _state(self) -> list[Tensor]:
        parameters = [
            (p, optimizer.state[p])
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        trained = [tensor for p, state in parameters for tensor in (p, *state.values())]
        return [*trained, *self._others]


@contextmanager
def unchanged(state: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Afterwards the tensors have the numbers that they had before, and so has the generator.

    So a run that is resumed, and captures anew, goes on as one that was never stopped.
    """
    kept = [tensor.detach().clone() for tensor in state]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(state, kept, strict=True):
                tensor.copy_(before)


def prepare(optimizer: torch.optim.Optimizer) -> None:
    """Let a fused Adam or a LAMB be captured: its state is there, its count of steps on the GPU.

    Otherwise the first step makes it, which would be inside the graph.
    """
    for group in optimizer.param_groups:
        group["capturable"] = True
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
