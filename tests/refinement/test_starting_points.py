"""Point 11 of the contract: several starting points a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dtag_fast import Critic, refine
from dtag_fast.refinement.options import Select
from dtag_fast.refinement.parity import random_batch, random_critic

NAN = float("nan")
How = Callable[[Critic], dict[str, Any]]


def q_min(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        lowest: Tensor = critic(observations, actions).amin(dim=0)
    return lowest


@pytest.mark.parametrize("select", ["best", "last"])
def test_starting_points_compete(how: How, select: Select) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 6, 4)
    arguments: dict[str, Any] = {
        **how(critic),
        "step_size": 0.5,
        "select": select,
        "return_info": True,
    }
    result, info = refine(critic, observations, actions, **arguments)
    assert result.shape == (6, 3)
    singles = [refine(critic, observations, actions[:, n], **arguments) for n in range(4)]
    q = torch.stack([single_info.q for _, single_info in singles])
    q_initial = torch.stack([single_info.q_initial for _, single_info in singles])
    assert torch.equal(info.start, q.argmax(dim=0))
    torch.testing.assert_close(info.q, q.amax(dim=0))
    torch.testing.assert_close(info.q_initial, q_initial.amax(dim=0))
    for row in range(6):
        torch.testing.assert_close(result[row], singles[int(info.start[row])][0][row])


def test_best_of_n(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 12, 5)
    result = refine(critic, observations, actions, **how(critic), steps=0)
    q = torch.stack([q_min(critic, observations, actions[:, n]) for n in range(5)])
    assert torch.equal(result, actions[torch.arange(12), q.argmax(dim=0)])
    actions[0, 2] = NAN
    result = refine(critic, observations, actions, **how(critic), steps=0)
    assert result.isfinite().all()
