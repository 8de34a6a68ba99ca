"""Processes on this machine, each with one thread, no more than fit into its memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from dtag_fast.studies.engine import Job, Outcome, perform

# Of a worker before anything is known of it: Python, torch and a dataset.
WORKER_BYTES = 1_000_000_000
# Left for everything else.
RESERVE_BYTES = 500_000_000


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    gpu: str | None = None
    job: Job | None = None


class LocalEngine:
    """Spawned processes that live as long as the engine; one that dies is replaced.

    Args:
        workers: at most so many; fewer where the free memory does not allow for them. One there is
            always.
        available: how many bytes of memory are free; None where it is not known. By default what
            the system says, and the limit of this process's group if that is lower.
        gpus: as CUDA_VISIBLE_DEVICES names them; each worker sees one, which as few others as can
            be see. Without any named, all see what this process does.
    """

    def __init__(
        self,
        workers: int,
        available: Callable[[], int | None] | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        self._most = workers
        self._available = available or available_bytes
        self._gpus = tuple(gpus)
        self._workers: list[_Worker] = []
        self._peak = WORKER_BYTES
        self._context = multiprocessing.get_context("spawn")

    @property
    def free(self) -> int:
        idle = sum(worker.job is None for worker in self._workers)
        return idle or int(not self._workers or self._room())

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def start(self, job: Job) -> None:
        worker = next((w for w in self._workers if w.job is None), None) or self._spawn()
        worker.job = job
        try:
            worker.connection.send(job)
        except OSError:  # it died while idle
            self._replace(worker).connection.send(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        busy = [worker for worker in self._workers if worker.job is not None]
        ready = set(wait([worker.connection for worker in busy]))
        ended = []
        for worker in busy:
            if worker.connection not in ready:
                continue
            assert worker.job is not None
            job, worker.job = worker.job, None
            try:
                outcome, peak = worker.connection.recv()
                self._peak = max(self._peak, peak)
            except (EOFError, OSError):
                worker.process.join()
                outcome = Outcome(error=_death(worker.process), lost=True)
                self._drop(worker)
            ended.append((job, outcome))
        return ended

    def close(self) -> None:
        for worker in list(self._workers):
            if worker.job is None:
                worker.connection.close()  # it ends by itself
                worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.terminate()
            self._drop(worker)

    def _room(self) -> bool:
        """Whether there is memory for one more worker."""
        if len(self._workers) >= self._most:
            return False
        available = self._available()
        if available is None:
            return True
        promised = sum(self._yet_to_take(worker) for worker in self._workers)
        return available - promised >= self._peak + RESERVE_BYTES

    def _yet_to_take(self, worker: _Worker) -> int:
        """Bytes that a worker is expected to use and does not use yet, so that they seem free."""
        used = None if worker.process.pid is None else resident_bytes(worker.process.pid)
        return 0 if used is None else max(0, self._peak - used)

    def _spawn(self) -> _Worker:
        here, there = self._context.Pipe()
        taken = [worker.gpu for worker in self._workers]
        gpu = min(self._gpus, key=taken.count, default=None)
        process = self._context.Process(target=_work, args=(there, gpu), daemon=True)
        process.start()
        there.close()
        worker = _Worker(process, here, gpu)
        self._workers.append(worker)
        return worker

    def _replace(self, dead: _Worker) -> _Worker:
        job = dead.job
        self._drop(dead)
        worker = self._spawn()
        worker.job = job
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.join()
        worker.process.close()
        self._workers.remove(worker)


def available_bytes() -> int | None:
    """Memory that processes can still take; None where the system does not say."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
        group = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2]
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def resident_bytes(process: int) -> int | None:
    """Memory that a process uses; None where the system does not say, or of one that ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


def _death(process: BaseProcess) -> str:
    code = process.exitcode
    how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
    hint = " (out of memory?)" if code == -9 else ""
    return f"the worker process ended {how}{hint}"


def _work(connection: Connection, gpu: str | None) -> None:
    """The life of a worker: jobs until the connection ends."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything asks CUDA for its devices

    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A driver that was killed may be started again at once; two must not train into one folder.
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcome = Outcome(value=perform(job))
        except KeyboardInterrupt:
            return
        except BaseException as error:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            outcome = Outcome(error=f"{type(error).__name__}: {error}")
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send((outcome, peak))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
