"""Studies on Ray: a real cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtag_fast.studies import datasets as stored
from dtag_fast.studies import engine_ray
from dtag_fast.studies.declare import Run
from dtag_fast.studies.engine import Job, Outcome
from dtag_fast.studies.engine_ray import RayEngine, pack, unpack
from dtag_fast.studies.rows import ROWS_FILE
from dtag_fast.studies.runner import run_study
from tests.studies.conftest import TOY, toy_runs
from tests.studies.test_runner import SEARCHED, HereEngine, results

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to the end of its processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture(autouse=True)
def own_datasets(datasets_folder: Path) -> None:
    pass


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head that works not, and two nodes of one CPU."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(SEARCHED))
    monkeypatch.chdir(tmp_path)  # Ray's processes import from the folder they start in first of all
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Its 15 leaves workers next to nothing of a core beside other tests.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets' paths have to be short
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nodes"))
    (tmp_path / "nodes").mkdir()
    memory = 80 * 2**20
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": memory,
        "_system_config": soon | {"health_check_failure_threshold": 4},
    }
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=memory)
    found.wait_for_nodes()
    yield found
    found.shutdown()  # type: ignore[no-untyped-call]


LONG: dict[str, Any] = {"steps": 1500, "backend": "torch"}


def slow(runs: list[Run]) -> list[Run]:
    """The same with trainings of seconds: policies, too, as either may be on the lost node."""
    found = []
    for run in runs:
        policy = replace(run.policy, config=replace(run.policy.config, steps=300))
        critic = run.critic and replace(run.critic, config=replace(run.critic.config, **LONG))
        found.append(replace(run, policy=policy, critic=critic))
    return found


def test_a_lost_node_loses_no_row_and_changes_none(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    here, there = tmp_path / "here", tmp_path / "there"
    first, all_ = toy_runs(1), [*toy_runs(1), *slow(toy_runs(2)[2:])]
    run_study(all_, HereEngine(), here, here / "trainings")
    expected = results(here)

    (_, doomed) = cluster.worker_nodes
    engine = RayEngine(cluster.address)
    killed: list[list[str]] = []

    def kill_and_wait() -> list[tuple[Job, Outcome]]:
        if not killed:
            deadline = time.monotonic() + 60
            # Not by Ray's resources: they are taken before a worker is there to lose a job with.
            while len(list((tmp_path / "nodes").glob("dtag-study-*"))) < 2:
                assert time.monotonic() < deadline, "not both nodes are at work"
                time.sleep(0.01)
            killed.append([job.key for job in engine._running.values()])
            cluster.remove_node(doomed, allow_graceful=False)
            while sum(node["Alive"] for node in ray.nodes()) > 2:  # type: ignore[no-untyped-call]
                assert time.monotonic() < deadline, "a node's death is not noticed"
                time.sleep(0.05)
        return RayEngine.wait(engine)

    try:
        assert engine.free == 2
        assert run_study(first, engine, there, there / "trainings").done == 2
        monkeypatch.setattr(engine, "wait", kill_and_wait)
        report = run_study(all_, engine, there, there / "trainings")
        assert engine.free == 1
        # A run that cannot be done is a failure, not a lost job.
        folders = {t.key: there / "trainings" / t.key for t in first[1].trainings}
        job = Job(replace(first[1], probes=("none",)), folders)
        engine.start(job)
        ((ended, outcome),) = engine.wait()
        assert ended is job
        assert (outcome.error, outcome.lost) == ("KeyError: 'none'", False)
    finally:
        engine.close()
    assert [len(running) for running in killed] == [2]  # one on each node
    assert report.failures == {}
    assert (report.done, report.retried) == (2, 1)
    assert results(there) == expected
    assert len((there / ROWS_FILE).read_text().splitlines()) == len(all_) == 4


class FakeRay:
    """Notes with what options tasks are started."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources
        self.started: list[dict[str, Any]] = []

    def init(self, **options: Any) -> None:
        pass

    def remote(self, **options: Any) -> Any:
        return lambda function: FakeTask(self, options)

    def put(self, value: object) -> object:
        return value

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


class FakeTask:
    def __init__(self, ray: FakeRay, given: dict[str, Any]) -> None:
        self.ray, self.given = ray, given

    def options(self, **options: Any) -> FakeTask:
        return FakeTask(self.ray, self.given | options)

    def remote(self, *args: Any) -> object:
        self.ray.started.append(self.given)
        return object()


def test_a_training_on_cuda_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stored.prepare(TOY)
    run = toy_runs(1)[0]
    trainings = [
        replace(run.policy, config=replace(run.policy.config, device=device))
        for device in ("cpu", "cuda", "cuda:0")
    ]
    jobs = [Job(run, {}), *(Job(training, {}) for training in trainings)]
    fake = FakeRay(CPU=4, GPU=1)
    monkeypatch.setattr(engine_ray, "_import_ray", lambda: fake)
    engine = RayEngine()
    for job in jobs:
        engine.start(job)
    expected = [{"max_retries": 0, "num_cpus": 1, "num_gpus": n} for n in (0, 0, 1, 1)]
    assert fake.started == expected
    # Ray would wait for a GPU for ever.
    del fake.resources["GPU"]
    engine.start(jobs[1])
    with pytest.raises(ValueError, match=r"--size\.device: trainings on CUDA need a GPU, the clus"):
        engine.start(jobs[2])
    assert len(fake.started) == 5


def test_files_travel_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "last.json").write_text("{}")
    (folder / ".writing").write_text("half")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").write_text("goes")
    unpack(pack(folder), tmp_path / "b")
    assert pack(tmp_path / "b") == pack(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert sorted(pack(folder)) == ["checkpoints/step-1/model.safetensors", "last.json"]


def test_a_node_may_write_to_its_copy_of_the_data() -> None:
    stored.prepare(TOY)
    data = stored.load(TOY)
    lent = replace(data, rewards=data.rewards.copy())
    lent.rewards.flags.writeable = False
    own = engine_ray._writable(lent)
    assert own.rewards.flags.writeable
    assert own.fingerprint() == data.fingerprint()


def test_without_ray_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ImportError, match=r"--engine ray needs Ray .*pip install 'dtag-fast\[ray\]'"
    ):
        RayEngine()
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        RayEngine(workers=0)
