"""CUDA graphs: how to capture one, and a loop of the graph backend that was captured."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dtag_fast.refinement.compiled_loop import Loop
from dtag_fast.refinement.loop import Refined

Outputs = TypeVar("Outputs")


def capture(
    function: Callable[[], Outputs], device: torch.device
) -> tuple[Callable[[], None], Outputs]:
    """A CUDA graph of the function: how to replay it, and where its outputs then lie."""
    with torch.cuda.device(device):
        # Compilers and libraries settle on a stream apart, before anything is captured.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile is theirs.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = function()
    return graph.replay, outputs


class Captured:
    """A loop captured in a CUDA graph, with its inputs and outputs at fixed places.

    Calls from several threads and streams take turns on the device: no one waits here.
    """

    def __init__(self, loop: Loop, weights: list[Tensor]) -> None:
        sizes, device = loop.sizes, loop.device
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=device)
        self._observations = zeros(sizes.rows, sizes.observation_dim)
        self._actions = zeros(sizes.rows, sizes.starts, sizes.action_dim)
        self._loop = loop  # its numbers are read too
        self._weights = weights  # while their memory is held, nothing else comes to lie there
        self._turn = threading.Lock()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._replay, self._refined = capture(
            lambda: loop.of_bucket(weights, self._observations, self._actions), device
        )

    def reads(self, weights: list[Tensor]) -> bool:
        """Whether the graph reads these, where they lie now."""
        if weights is not self._weights:
            if not all(
                mine.data_ptr() == given.data_ptr() and mine.stride() == given.stride()
                for mine, given in zip(self._weights, weights, strict=True)
            ):
                return False
            self._weights = weights  # to know them the next time
        return True

    def __call__(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Refined:
        """Refine at most as many rows as the loop has; `weights` are those it `reads`."""
        return self._run(observations, actions, Refined.clone)

    def actions(self, weights: list[Tensor], observations: Tensor, actions: Tensor) -> Tensor:
        """The refined actions alone."""
        return self._run(observations, actions, lambda refined: refined.actions.clone())

    def _run(
        self, observations: Tensor, actions: Tensor, take: Callable[[Refined], Outputs]
    ) -> Outputs:
        batch = len(actions)
        with self._turn:
            stream = torch.cuda.current_stream(self._loop.device)
            stream.wait_event(self._done)
            self._observations[:batch].copy_(observations)
            self._actions[:batch].copy_(actions)
            self._replay()
            taken = take(self._refined.first(batch))
            self._done.record(stream)
        return taken
