"""Checkpoint files: what is written, and clear errors for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dtag_fast import checkpoint
from dtag_fast.checkpoint import CheckpointError


def write(directory: Path, step: int = 5, kind: str = "critic") -> Path:
    return checkpoint.save(
        directory,
        step=step,
        model={"weight": torch.full((2, 3), float(step)), "view": torch.ones(4, 2).T},
        training={"generator": torch.arange(3, dtype=torch.uint8), "step": torch.tensor(1.5)},
        state={"kind": kind, "config": {"a": 1}},
    )


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path == tmp_path / "checkpoints" / "step-00000005"
    assert sorted(p.name for p in path.iterdir()) == [
        "model.safetensors",
        "state.json",
        "training.safetensors",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "last.json"]
    for source in (path, tmp_path):
        state = checkpoint.read_state(source, kind="critic")
        assert (state["step"], state["format_version"], state["config"]) == (5, 1, {"a": 1})
        tensors = checkpoint.load_tensors(source)
        assert torch.equal(tensors["weight"], torch.full((2, 3), 5.0))
        assert tensors["view"].shape == (2, 4)
        training = checkpoint.load_tensors(source, file=checkpoint.TRAINING_FILE)
        assert training["generator"].dtype == torch.uint8
        assert training["step"].shape == ()


def test_pointers_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        path = write(tmp_path, step)
        if step == 2:
            checkpoint.point(tmp_path, "best", path)
    (tmp_path / "checkpoints" / ".writing-step-00000009-77").mkdir()
    checkpoint.prune(tmp_path, keep=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert checkpoint.resolve(tmp_path).name == "step-00000004"
    assert checkpoint.resolve(tmp_path, "best").name == "step-00000002"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, kind="policy")
    write(tmp_path, kind="critic")
    assert checkpoint.read_state(tmp_path)["kind"] == "critic"


def test_a_failing_write_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.read_state(tmp_path)["step"] == 1
    checkpoint.prune(tmp_path, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        checkpoint.resolve(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no last checkpoint"):
        checkpoint.resolve(tmp_path)
    path = write(tmp_path)
    with pytest.raises(CheckpointError, match=r"no best checkpoint: .*was not evaluated"):
        checkpoint.resolve(tmp_path, "best")
    with pytest.raises(ValueError, match=r"checkpoint: expected 'last' or 'best', got 'newest'"):
        checkpoint.resolve(tmp_path, "newest")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000005.model\.safetensors: missing"):
        checkpoint.load_tensors(tmp_path)
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json: missing, but last\.json points to it"):
        checkpoint.resolve(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_tensors_are_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-8], "empty": b"", "noise": b"\xff" * 64}[damage])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        checkpoint.load_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "dtag', r"state\.json: damaged"),
        ("[]", r"state\.json: damaged, expected a JSON object"),
        ('{"step": 3}', r"state\.json: not a checkpoint of dtag-fast"),
        (
            json.dumps({"format": checkpoint.FORMAT, "format_version": 99}),
            r"state\.json: format version 99, this version of dtag-fast reads 1",
        ),
        (
            json.dumps({"format": checkpoint.FORMAT, "format_version": 1, "kind": "policy"}),
            r"state\.json: expected a critic, it holds a 'policy'",
        ),
    ],
)
def test_damaged_or_foreign_states_are_named(tmp_path: Path, content: str, message: str) -> None:
    (write(tmp_path) / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_state(tmp_path, kind="critic")


@pytest.mark.parametrize("content", ["", "{}", '{"checkpoint": "../../elsewhere"}'])
def test_damaged_pointers_are_named(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    (tmp_path / "last.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"last\.json: "):
        checkpoint.resolve(tmp_path)


def test_tensors_that_do_not_fit_the_model_are_named() -> None:
    module = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"run: tensor weight: expected \[2, 3\], found"):
        checkpoint.load_into(module, {"weight": torch.ones(2), "bias": torch.ones(2)}, "run")
    with pytest.raises(CheckpointError, match=r"tensor bias: expected \[2\], found none"):
        checkpoint.load_into(module, {"weight": torch.ones(2, 3)}, "run")
    tensors = {**module.state_dict(), "scale": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"tensor scale: expected none, found \[1\]"):
        checkpoint.load_into(module, tensors, "run")
