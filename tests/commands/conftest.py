"""A toy dataset, a policy and a critic, made once with the commands themselves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dtag_fast.cli import main

DATASET = "dtag/toy/bandit-v0"
TINY_POLICY = shlex.split(
    "--model.blocks 1 --model.embedding-dim 16 --model.attention-heads 2 "
    "--model.context-length 2 --model.rtg-scale 1 --steps 20 --batch-size 8 --log-every 5 "
    "--checkpoint-every 10 --evaluation-every 10 --evaluation-episodes 3 --warmup-steps 0 "
    "--device cpu --no-progress"
)
TINY_CRITIC = shlex.split("--hidden 16 8 --steps 30 --batch-size 16 --device cpu --no-progress")


@dataclass(frozen=True)
class Workspace:
    """Folders that every test may read and none may write to."""

    datasets: Path
    policy: Path
    critic: Path
    dataset: str = DATASET
    tiny_policy: tuple[str, ...] = tuple(TINY_POLICY)
    tiny_critic: tuple[str, ...] = tuple(TINY_CRITIC)


@pytest.fixture(scope="session")
def made_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("workspace")
    workspace = Workspace(root / "datasets", root / "policy", root / "critic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(workspace.datasets))
        patch.setenv("DTAG_TRACEBACK", "1")
        assert main(["data", "make", "toy", "--steps", "100"]) == 0
        data = ["--data", DATASET]
        assert main(["train", "policy", *data, "--out", str(workspace.policy), *TINY_POLICY]) == 0
        assert main(["train", "critic", *data, "--out", str(workspace.critic), *TINY_CRITIC]) == 0
    return workspace


@pytest.fixture
def workspace(
    made_workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Workspace]:
    """The workspace, its datasets being the local ones; the current folder is the test's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made_workspace.datasets))
    monkeypatch.delenv("DTAG_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    before = _files(made_workspace)
    yield made_workspace
    assert _files(made_workspace) == before


def _files(workspace: Workspace) -> dict[str, float]:
    folders = (workspace.datasets, workspace.policy, workspace.critic)
    found = (Path(base) / name for f in folders for base, _, names in os.walk(f) for name in names)
    return {str(path): path.stat().st_mtime for path in found}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no line of a table is broken."""
    monkeypatch.setenv("COLUMNS", "240")
