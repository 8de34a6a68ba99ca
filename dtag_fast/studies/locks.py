"""A folder that one process at a time works in, whoever else is started on it meanwhile."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, by: str) -> Iterator[None]:
    """Hold a folder, which is made if need be, as long as the context lasts.

    The system lets go of it when the process ends, however it ends; the file stays.

    Args:
        folder: to hold.
        by: what holds it, for whoever comes later.

    Raises:
        RuntimeError: another one holds it; the message says which, and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RuntimeError(
                f"trainings: {folder} is held by {holder}; wait until that has ended, or choose "
                "another folder of trainings"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, {by}\n")
        file.flush()
        yield
