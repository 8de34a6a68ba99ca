"""Ctrl-C during training: finish the step, save, stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped with Ctrl-C (SIGINT) after its checkpoint was written."""

    def __init__(self, step: int, directory: Path) -> None:
        super().__init__(
            f"stopped at step {step}; the checkpoint is in {directory}; resume=True goes on there"
        )
        self.step = step
        self.directory = directory


class Interrupt:
    """While entered, a first SIGINT sets `requested`; a second one stops the program at once.

    Outside the main thread, where Python handles no signals, it does nothing.

    Args:
        patience: seconds after the first signal for which another is taken for the same.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.requested = False
        self._patience = patience
        self._first = 0.0
        self._raise = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this, a first SIGINT raises KeyboardInterrupt besides setting `requested`."""
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        second, self.requested = self.requested, True
        if second and time.monotonic() - self._first < self._patience:
            return
        self._first = time.monotonic()
        if second or self._raise:
            raise KeyboardInterrupt
        print(
            "\nstopping after this step; Ctrl-C again stops at once, without a checkpoint",
            file=sys.stderr,
        )
