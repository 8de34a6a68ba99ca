"""A Ray cluster, one that is there or one started here. Needs the extra `ray`.

Nodes need the package and nothing else: no folder that all of them see. A dataset and the
checkpoints that a job needs go to it through Ray's object store, and a training comes back as the
files it wrote. Ray itself retries nothing: what is lost with a worker or a node the runner begins
again, as it does with processes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dtag_fast.data.trajectories import Trajectories
from dtag_fast.studies import datasets, work
from dtag_fast.studies.declare import Data, Run, Training
from dtag_fast.studies.engine import Job, Outcome
from dtag_fast.threads import torch_threads

# Files of a folder by their paths in it.
Packed = dict[str, bytes]


class RayEngine:
    """Jobs as Ray tasks of one CPU each, and of one GPU where they train on CUDA.

    Args:
        address: of a cluster, as `ray.init` takes it; None starts one on this machine.
        workers: at most so many jobs at once; as many as the cluster has CPUs unless given.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster at the address.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers: expected at least 1, got {workers}")
        self._ray = _import_ray()
        self._workers = workers
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address is None:
            options |= {"num_cpus": workers, "include_dashboard": False}
        try:
            self._ray.init(address=address or "local", **options)
        except ConnectionError as error:
            raise ConnectionError(f"--ray-address: no cluster at {address!r}: {error}") from error
        self._remote = self._ray.remote(max_retries=0)(_perform)
        self._running: dict[Any, Job] = {}
        self._data: dict[Data, Any] = {}
        self._packed: dict[str, Any] = {}

    @property
    def free(self) -> int:
        running = len(self._running)
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        return max(min(cpus, self._workers or cpus) - running, int(running == 0))

    def start(self, job: Job) -> None:
        needs = resources(job.work)
        if self._ray.cluster_resources().get("GPU", 0) < needs["num_gpus"]:
            raise ValueError("--size.device: trainings on CUDA need a GPU, the cluster has none")
        needed = [key for key in job.folders if not _trains(job, key)]
        files = [self._files(key, job.folders[key]) for key in needed]
        remote = self._remote.options(**needs)
        task = remote.remote(job.work, self._dataset(job.work.data), needed, *files)
        self._running[task] = job

    def wait(self) -> list[tuple[Job, Outcome]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [self._end(task) for task in ready]

    def close(self) -> None:
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _end(self, task: Any) -> tuple[Job, Outcome]:
        job = self._running.pop(task)
        try:
            value, files = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            return job, Outcome(error=f"{type(cause).__name__}: {cause}")
        except self._ray.exceptions.RayError as error:
            text = str(error).strip().splitlines()
            return job, Outcome(
                error=f"{type(error).__name__}: {text[0] if text else ''}", lost=True
            )
        if files is not None:
            unpack(files, job.folders[job.key])
        return job, Outcome(value)

    def _dataset(self, data: Data) -> Any:
        """In the object store; kept by this process, so that no lost node takes it along."""
        if data not in self._data:
            self._data[data] = self._ray.put(datasets.load(data))
        return self._data[data]

    def _files(self, key: str, folder: Path) -> Any:
        if key not in self._packed:
            self._packed[key] = self._ray.put(pack(folder))
        return self._packed[key]


def resources(work: Training | Run) -> dict[str, int]:
    """What a job needs, as options of a Ray task. Runs act on the CPU wherever training was."""
    on_gpu = isinstance(work, Training) and work.config.device.startswith("cuda")
    return {"num_cpus": 1, "num_gpus": int(on_gpu)}


def _trains(job: Job, key: str) -> bool:
    """Whether a folder of the job is the one to train into."""
    return isinstance(job.work, Training) and key == job.key


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"--engine ray needs Ray ({error}): pip install 'dtag-fast[ray]'"
        ) from error
    return ray


def pack(folder: Path) -> Packed:
    """All files of a training: checkpoints, logs, settings."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def unpack(files: Packed, folder: Path) -> None:
    """Write packed files as a folder; whoever looks sees none of it or all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, content in files.items():
        file = temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _perform(
    job: Training | Run, data: Trajectories, keys: list[str], *files: Packed
) -> tuple[dict[str, Any] | None, Packed | None]:
    """A job on a node: what a run gives, and the files of a training."""
    with tempfile.TemporaryDirectory(prefix="dtag-study-") as root, torch_threads(1):
        folders = {key: Path(root) / key for key in keys}
        for key, packed in zip(keys, files, strict=True):
            unpack(packed, folders[key])
        own = _writable(data)
        if isinstance(job, Run):
            return work.measure(job, own, folders), None
        folders[job.key] = Path(root) / job.key
        work.train(job, own, folders)
        return None, pack(folders[job.key])


def _writable(data: Trajectories) -> Trajectories:
    """A copy of what the object store lends for reading alone."""
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    arrays = {name: v.copy() for name, v in values.items() if isinstance(v, np.ndarray)}
    return replace(data, **arrays)
