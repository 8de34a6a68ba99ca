"""Whether a run may be resumed with given settings and data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What may differ without changing a single weight; `backend` does by rounding, and in what dropout
# drops.
FREE_FIELDS = frozenset(
    {
        "steps",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "evaluation_every",
        "evaluation_episodes",
        "evaluation_envs",
        "evaluation_seed",
        "tensorboard",
        "progress",
        "backend",
    }
)


def check_same_run(
    stored: Mapping[str, Any], current: Mapping[str, Any], step: int, source: str
) -> None:
    """Compare what identifies a run.

    Args:
        stored: "kind", "config", "device", "dataset", ... of the run, from its checkpoint.
        current: the same of this call.
        step: updates the run has done.
        source: where `stored` is from, for the message.

    Raises:
        ValueError: naming the field that differs, with both values.
    """
    old_config, new_config = _flat(stored["config"]), _flat(current["config"])
    for name in sorted(old_config.keys() | new_config.keys()):
        old, new = old_config.get(name), new_config.get(name)
        if name not in FREE_FIELDS and old != new:
            raise ValueError(f"{name}: {source} has {old!r}, to resume it cannot become {new!r}")
    if new_config["steps"] < step:
        raise ValueError(
            f"steps: {source} has done {step}, expected at least that, got {new_config['steps']}"
        )
    for name in ("kind", "device", "observation_dim", "action_dim", "action_low", "action_high"):
        if stored[name] != current[name]:
            raise ValueError(
                f"{name}: {source} has {stored[name]!r}, to resume it cannot become "
                f"{current[name]!r}"
            )
    old_data, new_data = stored["dataset"], current["dataset"]
    if old_data["fingerprint"] != new_data["fingerprint"]:
        raise ValueError(
            f"data: {source} was trained on other data ({old_data['id']}, fingerprint "
            f"{old_data['fingerprint'][:12]}) than this ({new_data['id']}, "
            f"{new_data['fingerprint'][:12]})"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, "model.blocks"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
