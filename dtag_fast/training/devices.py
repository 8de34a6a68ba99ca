"""Which device a training runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor


def resolve_device(name: str) -> torch.device:
    """The torch device of a config's word; ValueError if it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu or cuda[:n], got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda[:n], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r}, but torch sees {torch.cuda.device_count()} GPUs")
    return device


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch sees, each as CUDA_VISIBLE_DEVICES names it for a process of its own."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if named is None else named.split(",")
    return tuple(name.strip() for name in names[:count])


def local_device(device: torch.device) -> torch.device:
    """A GPU of this process's own, where several processes are asked for "cuda"."""
    if str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"device: process {local} has no GPU of its own, torch sees {count}")
    return torch.device("cuda", local)


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where torch's generators stand: the CPU's ("cpu") and, on a GPU, its own ("cuda")."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put them back to where `generator_states` found them."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
