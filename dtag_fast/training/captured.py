"""An update on a GPU as one CUDA graph: a launch, instead of a hundred that the GPU waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WARM_UP = 3  # updates before the capture, in which libraries make what they need


class CapturedUpdate:
    """An update of a batch that is picked from rows on the GPU.

    Captured at the first call, and again whenever a tensor of the state has been replaced, as
    loading an optimiser's state does. Nothing else may change between calls but numbers.

    Args:
        update: called with an index [batch] on the GPU; what it returns is the call's result. It
            neither reads a number back nor draws one.
        batch: rows of a batch.
        state: all tensors that an update changes, from wherever they are now.
        device: the GPU.
    """

    def __init__(
        self,
        update: Callable[[Tensor], Tensor],
        batch: int,
        state: Callable[[], Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        self._update = update
        self._state = state
        self._device = device
        self._index = torch.zeros(batch, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._addresses: list[int] = []
        self._result: Tensor | None = None

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """One update on the rows [batch]."""
        state = self._state()
        addresses = [tensor.data_ptr() for tensor in state]
        if self._graph is None or addresses != self._addresses:
            self._capture(state)
            self._addresses = addresses
        assert self._graph is not None
        assert self._result is not None
        self._index.copy_(torch.from_numpy(rows).pin_memory(), non_blocking=True)
        self._graph.replay()
        torch.autograd.graph.increment_version(state)  # which a replay does not do
        return self._result.clone()

    def _capture(self, state: Sequence[Tensor]) -> None:
        with torch.cuda.device(self._device), unchanged(state):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._update(self._index)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._result = self._update(self._index)
            self._graph = graph


@contextmanager
def unchanged(state: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards the tensors have the numbers that they had before."""
    kept = [tensor.detach().clone() for tensor in state]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(state, kept, strict=True):
                tensor.copy_(before)


def prepare_adam(optimizer: torch.optim.Adam) -> None:
    """Let a fused Adam on a GPU be captured: its state exists, and its step's number lies there."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
