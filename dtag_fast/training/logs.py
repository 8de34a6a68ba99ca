"""Where a training run writes what happens: log.jsonl always, TensorBoard if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

LOG_FILE = "log.jsonl"


class RunLog:
    """Rows of JSON, one a line, flushed as they come.

    Every row has "event" ("train", "evaluation", "checkpoint", "start", "interrupted" or
    "diverged"), "step" and its values.

    Args:
        directory: the run's folder; None writes nothing, in a process that another writes for.
        keep_to_step: rows of later steps, which a killed run left behind its last checkpoint, are
            removed; a new run has none.
        tensorboard: write event files to `directory` / "tensorboard" as well.
    """

    def __init__(self, directory: Path | None, *, keep_to_step: int, tensorboard: bool) -> None:
        self._writer: Any = None
        self._file: Any = None
        if directory is None:
            return
        path = directory / LOG_FILE
        if path.exists():
            _truncate(path, keep_to_step)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "tensorboard=True needs the package tensorboard: "
                    "pip install 'dtag-fast[tensorboard]'"
                ) from error
            self._writer = SummaryWriter(directory / "tensorboard", purge_step=keep_to_step + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """One row; numbers go to TensorBoard as "<event>/<name>"."""
        if self._file is None:
            return
        row = {"event": event, "step": step, **values}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._writer.add_scalar(f"{event}/{key}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_log(directory: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl; a last line cut short by a kill is left out."""
    rows = []
    for line in (Path(directory) / LOG_FILE).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _truncate(path: Path, keep_to_step: int) -> None:
    kept = [row for row in read_log(path.parent) if row["step"] <= keep_to_step]
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(path)
