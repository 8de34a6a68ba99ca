"""Checkpoints: safetensors for arrays, JSON for the rest; written so that a kill leaves no ruin.

A run's folder:

    config.json                     the settings the run was started with
    log.jsonl                       one row per logged interval, evaluation and checkpoint
    last.json, best.json            {"checkpoint": "step-00005000"}
    checkpoints/step-00005000/
        model.safetensors           the model's weights and buffers
        training.safetensors        what resuming needs: optimiser, target networks, generators
        state.json                  everything else, see `save`

A checkpoint is written under another name, flushed to disk and renamed; the pointer files are
replaced only afterwards. So a folder named step-... is complete, unless something else damaged it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = "dtag-fast checkpoint"
FORMAT_VERSION = 1

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
STATE_FILE = "state.json"
CHECKPOINTS = "checkpoints"

Which = Literal["last", "best"]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another kind; the message names the file."""


def save(
    directory: str | Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step` into a run's folder and point "last" at it.

    Args:
        directory: the run's folder.
        step: gradient updates done.
        model: the model's `state_dict`.
        training: further tensors, which resuming needs.
        state: JSON values. Training writes kind ("policy" or "critic"), package_version, config,
            observation_dim, action_dim, action_low, action_high, dataset, sampler, best, metrics.
            The format's name and version and the step are added here.

    Returns:
        The checkpoint's folder. One of the same step that was there is replaced.
    """
    parent = Path(directory) / CHECKPOINTS
    parent.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}"
    temporary = parent / f".writing-{name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for file, tensors in ((MODEL_FILE, model), (TRAINING_FILE, training)):
        safetensors.torch.save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            temporary / file,
        )
        _flush(temporary / file)
    write_state(temporary, step, state)
    target = parent / name
    if target.exists():  # left by a run that was killed before it moved the pointer
        shutil.rmtree(target)
    temporary.rename(target)
    _flush(parent)
    point(directory, "last", target)
    return target


def write_state(path: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the JSON state of a checkpoint's folder, in place of one that is there."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "step": step}
    write_json(path / STATE_FILE, {**header, **state})


def point(directory: str | Path, which: Which, checkpoint: Path) -> None:
    """Let "last" or "best" of a run's folder mean this checkpoint."""
    write_json(Path(directory) / f"{which}.json", {"checkpoint": checkpoint.name})


def prune(directory: str | Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that a pointer names.

    Remains of writes that a kill cut short go too.
    """
    parent = Path(directory) / CHECKPOINTS
    if not parent.is_dir():
        return
    named = {pointed(directory, which) for which in ("last", "best")}
    for path in sorted(parent.glob("step-*"))[:-keep]:
        if path.name not in named:
            shutil.rmtree(path)
    for path in parent.glob(".writing-*"):
        shutil.rmtree(path)


def pointed(directory: str | Path, which: str) -> str | None:
    """The name of the checkpoint that "last" or "best" means; None where there is none."""
    path = Path(directory) / f"{which}.json"
    if not path.is_file():
        return None
    document = read_json(path)
    name = document.get("checkpoint")
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f'{path}: expected {{"checkpoint": "step-..."}}, got {document}')
    return name


def resolve(path: str | Path, which: str = "last") -> Path:
    """The checkpoint folder that a path means.

    Args:
        path: a run's folder, or a checkpoint's, which is returned as it is.
        which: of a run, its "last" or "best" checkpoint.

    Raises:
        CheckpointError: nothing there; the message says what was looked for.
    """
    path = Path(path)
    if which not in ("last", "best"):
        raise ValueError(f"checkpoint: expected 'last' or 'best', got {which!r}")
    if (path / STATE_FILE).is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a run or a checkpoint")
    name = pointed(path, which)
    if name is None:
        hint = ""
        if which == "best" and pointed(path, "last") is not None:
            hint = " (the run was not evaluated; it has a last checkpoint)"
        raise CheckpointError(
            f"{path}: holds no {which} checkpoint: neither {which}.json nor {STATE_FILE}{hint}"
        )
    checkpoint = path / CHECKPOINTS / name
    if not (checkpoint / STATE_FILE).is_file():
        raise CheckpointError(f"{checkpoint / STATE_FILE}: missing, but {which}.json points to it")
    return checkpoint


def read_state(path: str | Path, which: str = "last", *, kind: str | None = None) -> dict[str, Any]:
    """The JSON state of a checkpoint (see `save`), of a run's or a checkpoint's folder.

    Raises:
        CheckpointError: missing or damaged, another format version, or not of the `kind` asked for.
    """
    file = resolve(path, which) / STATE_FILE
    state = read_json(file)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a checkpoint of dtag-fast")
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format version {state.get('format_version')!r}, "
            f"this version of dtag-fast reads {FORMAT_VERSION}"
        )
    if kind is not None and state.get("kind") != kind:
        raise CheckpointError(f"{file}: expected a {kind}, it holds a {state.get('kind')!r}")
    return state


def load_tensors(
    path: str | Path, which: str = "last", *, file: str = MODEL_FILE, device: str = "cpu"
) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint; with `file=TRAINING_FILE`, those of training."""
    source = resolve(path, which) / file
    if not source.is_file():
        raise CheckpointError(f"{source}: missing")
    try:
        return safetensors.torch.load_file(source, device=device)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{source}: damaged, {error}") from error


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a checkpoint's tensors into a module whose names and shapes they must match."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: tensor {name}: expected {_shape(expected.get(name))}, "
                f"found {_shape(found.get(name))}"
            )
    module.load_state_dict(dict(tensors))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_text(_dump(value), encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged, {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: damaged, expected a JSON object")
    return document


def _flush(path: Path) -> None:
    """Ask the system to put a file's, or a folder's, content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
