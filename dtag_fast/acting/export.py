"""A policy as one graph without state of its own, for runtimes that know nothing of this package.

    action, state... = graph(observations, rewards, state...)

holds normalisation, model, token prediction and refinement. The state is a tensor per name, its
first axis that of the environments, and all zeros where an episode begins: so an environment is
reset by zeroing its rows. Refinement is the specification (`dtag_fast.refinement.reference`) with
its gradients written out: the graph is what autograd did in one call, n steps one after another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtag_fast.acting.functional import functional_step
from dtag_fast.refinement import reference
from dtag_fast.refinement.export import ExportFormat, quiet, require_onnx, save
from dtag_fast.refinement.options import check_word

if TYPE_CHECKING:
    from dtag_fast.acting.policy import Policy


def export_policy(policy: Policy, path: str | Path, format: ExportFormat, num_envs: int) -> None:
    """See `Policy.export`."""
    check_word("format", format, ExportFormat)
    if not isinstance(num_envs, int) or isinstance(num_envs, bool) or num_envs < 1:
        raise ValueError(f"num_envs: expected an integer of at least 1, got {num_envs!r}")
    require_onnx(format)
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"path: {target.parent} is no folder")
    step = _Step(policy, num_envs)
    outputs = ["action", *(f"next_{name}" for name in step.state)]
    save(_program(step), target, format, ["observations", "rewards", *step.state], outputs)


class _Step(nn.Module):
    """One call of `Policy.act`, with the state as arguments and results.

    Attributes:
        state: the state at the beginning of an episode, by name.
    """

    def __init__(self, policy: Policy, num_envs: int) -> None:
        super().__init__()
        self.num_envs = num_envs
        self.low, self.high = policy.model.action_low, policy.model.action_high
        self.refiner, self.context_action = policy.refiner, policy.context_action
        self.acting = functional_step(policy.model.eval(), policy.token_predictor, num_envs)
        self.state = self.acting.state()

    def examples(self) -> tuple[Tensor, ...]:
        """Arguments, for tracing."""
        device = self.low.device
        dim = self.acting.model.observation_dim
        observations = torch.zeros(self.num_envs, dim, device=device)
        return observations, torch.zeros(self.num_envs, device=device), *self.state.values()

    def forward(self, observations: Tensor, rewards: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.state, state, strict=True))
        raw, named = self.acting.act(observations, rewards, named)
        executed = raw
        if self.refiner is not None:
            executed, _ = reference.run(
                self.refiner.critic, observations, raw.unsqueeze(1), self.refiner.options
            )
        executed = torch.clamp(executed, self.low, self.high)
        kept = executed if self.context_action == "refined" else raw
        named = self.acting.store(kept, named)
        return executed, *(named[name] for name in self.state)


def _program(step: _Step) -> torch.export.ExportedProgram:
    """The step as a graph of ATen's core operators."""
    from torch._decomp import core_aten_decompositions

    examples = step.examples()
    table: Any = core_aten_decompositions()

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = step(*arguments)
        return result

    with torch.no_grad(), quiet():
        # Attention as products and a softmax, which every runtime has.
        with sdpa_kernel(SDPBackend.MATH):
            traced = make_fx(call, decomposition_table=table)(*examples)
        exported = torch.export.export(traced, examples)
        program: torch.export.ExportedProgram = exported.run_decompositions()
        return program
