"""Parity of the contenders: no time is taken of one that does something else."""

from __future__ import annotations

import copy

import torch

from benchmarks.cases import Case
from benchmarks.contenders import Contender
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner
from dtag_fast.refinement.parity import Parity, Standard

CHECKED_ROWS = 64
LARGEST_Q_LOSS = 0.02  # of bfloat16, relative to the largest abs(Q)


class Checker:
    """Holds the contenders of a case against the reference."""

    def __init__(self, case: Case, critic: Critic) -> None:
        self.options = Refiner(critic, steps=case.steps, step_size=case.step_size).options
        self.critic = critic
        self._standards: dict[tuple[int, str], Standard] = {}

    def check(self, contender: Contender) -> Parity:
        """The contender's parity, which holds.

        With bfloat16 it is that with the refinement of a critic whose weights are rounded; beside
        that, what it chooses must be worth nearly as much as the reference's choice by the critic
        that was given.
        """
        result = torch.as_tensor(contender.call())[:CHECKED_ROWS]
        parity = self._standard(contender, contender.precision).measure(result)
        assert parity.holds, f"{contender.name} is not the reference's equal: {parity}"
        if contender.precision == "bf16":
            q_loss = self._standard(contender, "fp32").measure(result).q_loss
            assert q_loss <= LARGEST_Q_LOSS, f"{contender.name} loses {q_loss:.2g} of Q"
        return parity

    def _standard(self, contender: Contender, precision: str) -> Standard:
        key = id(contender.actions), precision
        if key not in self._standards:
            critic = rounded(self.critic) if precision == "bf16" else self.critic
            rows, points = contender.observations[:CHECKED_ROWS], contender.actions[:CHECKED_ROWS]
            self._standards[key] = Standard(critic, rows, points, self.options)
        return self._standards[key]


def rounded(critic: Critic) -> Critic:
    """A copy whose weights between hidden layers are rounded to bfloat16."""
    critic = copy.deepcopy(critic)
    with torch.no_grad():
        for weight in critic.weights[1:-1]:
            weight.copy_(weight.bfloat16())
    return critic
