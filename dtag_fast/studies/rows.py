"""The rows of a study: a line of JSON for each run, written once and never changed.

One process writes. A line is appended in one call and flushed to the disk before the next run is
handed out; a line that a kill cut short has no end and is taken off before the file is written to
again. So whoever reads, at any time, sees whole rows.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

ROWS_FILE = "rows.jsonl"


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by their keys, in the order written; none where there is no file.

    A last line without an end is left out.

    Raises:
        ValueError: another line that is no row, or two rows of one key; the message has the number.
    """
    if not path.exists():
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            key = row["key"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: expected a row, got {line[:80]!r}") from error
        if key in rows:
            raise ValueError(f"{path}:{number}: a second row of the run {key}")
        rows[key] = row
    return rows


class RowWriter:
    """Appends rows; only one at a time can be open on a file.

    Attributes:
        rows: those that are there, by key.

    Raises:
        RuntimeError: another process writes to the file.
        ValueError: as `read_rows`; and a row whose key is there already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RuntimeError(f"{path}: another process is at work on this study") from error
        try:
            _cut_torn_line(self._file)
            self.rows = read_rows(path)
        except BaseException:
            self._file.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row and wait until the disk has it."""
        key = row["key"]
        if key in self.rows:
            raise ValueError(f"{self._path}: there is a row of the run {key} already")
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[key] = json.loads(line)

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _cut_torn_line(file: BinaryIO) -> None:
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        file.truncate(end)
        os.fsync(file.fileno())
    file.seek(0, os.SEEK_END)
