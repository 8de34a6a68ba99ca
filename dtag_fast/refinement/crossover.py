"""From how many rows on a batch on the CPU is better taken to a GPU and back."""

from __future__ import annotations

import torch
from torch import nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement.execution import DEFAULT, Execution
from dtag_fast.refinement.inputs import device_of

# Multiply-adds of a batch's first maps. The way there and back costs some 0.16 milliseconds for any
# critic, which is what so many take on a CPU: of seven sizes of batch and three critics, with an
# H200 beside 16 cores, it tells the quicker way of every one (docs/gpu.md, A batch on the CPU).
WORTH_THE_WAY = 5_000_000


def rows_for_gpu(critic: nn.Module, execution: Execution) -> int | None:
    """Rows [B] from which "auto" takes cuda for a critic on the CPU, 1 or more; None for never.

    Never where the process has not used a GPU by now: what acts on the CPU shall not claim one, nor
    fail in a forked process, which cannot. Nor with words of execution, of which nothing was
    measured. Whether the cuda backend can take the critic is not looked at.
    """
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not used or execution != DEFAULT or not isinstance(critic, Critic):
        return None
    device = device_of(critic)
    if device is None or device.type != "cpu":
        return None
    return max(1, -(-WORTH_THE_WAY // multiply_adds(critic)))


def multiply_adds(critic: Critic) -> int:
    """Of the first map of a row: the observation's share of z_1, and half of the second layer's
    weights, those of the units that pass, for z_2 and each dimension of the action.
    """
    first, second = (*critic.hidden, 0)[:2]
    columns = 1 + critic.action_dim
    return critic.heads * (first * critic.observation_dim + first * second * columns // 2)
