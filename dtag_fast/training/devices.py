"""Which device a training runs on."""

from __future__ import annotations

import os

import torch


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


def local_device(device: torch.device) -> torch.device:
    """A GPU of this process's own, where several processes are asked for "cuda"."""
    if str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"device: process {local} has no GPU of its own, torch sees {count}")
    return torch.device("cuda", local)
