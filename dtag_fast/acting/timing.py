"""Where the time of an action goes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ActTiming:
    """Where one call of `Policy.act` spent its time, all environments together."""

    model_ms: float
    """Context, token predictor and model."""
    refinement_ms: float
    """Refinement; 0 without."""


class Stopwatch:
    """Times the parts of a step: the host's clock, or a GPU's events, which need no waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []
        self.split()

    def split(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each two splits; on a GPU to be called after the results were copied back."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return [before.elapsed_time(after) for before, after in pairs]
        return [1000.0 * (after - before) for before, after in pairs]
