"""Acting in one CUDA graph: model, token and refinement between two copies.

A step is `functional_step` with its state at fixed places, captured once for a number of
environments. The host copies observations and rewards in, replays, and copies actions out: no
launch of a kernel of its own, and no waiting in between. Weights written in place are seen; after
they have moved, or been replaced, make a new policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.acting.arguments import Floats
from dtag_fast.acting.context import Context
from dtag_fast.acting.functional import functional_step
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.refinement import RefineInfo, Refiner
from dtag_fast.refinement.backends import BACKENDS
from dtag_fast.refinement.cuda_graph import capture
from dtag_fast.refinement.packing import packed

Outputs = tuple[Tensor, RefineInfo | None]


class CapturedContext(Context):
    """The episodes of B environments, and whole actions in them.

    Args:
        model: in evaluation mode.
        predictor: `FixedTarget` or `ReturnHead`.
        refiner: of any backend; None leaves the model's actions.
        keep_refined: whether later steps see the refined action or the model's own.
        num_envs: B.

    Raises:
        ValueError: another token predictor.
    """

    def __init__(
        self,
        model: SequenceModel,
        predictor: TokenPredictor,
        refiner: Refiner | None,
        keep_refined: bool,
        num_envs: int,
    ) -> None:
        if type(predictor) not in (FixedTarget, ReturnHead):
            raise ValueError(
                f"token_predictor: only FixedTarget and ReturnHead can be captured, "
                f"got {type(predictor).__name__}"
            )
        device = model.action_low.device
        super().__init__(num_envs, 1, model.observation_dim, model.action_dim, device)
        self._model, self._predictor, self._refiner = model, predictor, refiner
        self._keep_refined = keep_refined
        self._acting = functional_step(model, predictor, num_envs)
        self.state = {name: value.clone() for name, value in self._acting.state().items()}
        self._observed = torch.zeros(num_envs, model.observation_dim, device=device)
        self._rewards = torch.zeros(num_envs, device=device)
        self._replay: Callable[[], object] | None = None
        self._outputs: Outputs | None = None

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Begin a new episode in the environments where `rows` [B] is True; others go on."""
        self.steps[rows] = -1
        chosen = torch.from_numpy(np.flatnonzero(rows)).to(self.device)
        for value in self.state.values():
            value.index_fill_(0, chosen, 0)

    def select(self, rows: NDArray[np.int64]) -> CapturedContext:
        """A new context of the environments `rows`, indices in the order wanted.

        It captures a graph of its own.
        """
        other = CapturedContext(
            self._model, self._predictor, self._refiner, self._keep_refined, len(rows)
        )
        other.steps[:] = self.steps[rows]
        chosen = torch.from_numpy(rows).to(self.device)
        for name, value in other.state.items():
            value.copy_(self.state[name][chosen])
        return other

    def act(self, observations: Floats, rewards: Floats | None) -> tuple[Floats, RefineInfo | None]:
        """Actions [B, A] for observations [B, S] and rewards [B], and what refinement says."""
        self._observed.copy_(torch.from_numpy(observations))
        if rewards is not None:
            self._rewards.copy_(torch.from_numpy(rewards))
        if self._replay is None:
            self._capture()
        assert self._replay is not None
        self._replay()
        self.steps += 1
        assert self._outputs is not None
        actions, info = self._outputs
        if info is not None:  # the next replay writes to the same places
            values: dict[str, Any] = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in vars(info).items()
            }
            info = RefineInfo(**values)
        return cast(Floats, actions.to("cpu", copy=True).numpy()), info

    def _capture(self) -> None:
        if self.device.type != "cuda":

            def run() -> None:  # the same, operation by operation
                self._outputs = self._step()

            self._replay = run
            return
        before = {name: value.clone() for name, value in self.state.items()}
        self._replay, self._outputs = capture(self._step, self.device)
        for name, value in before.items():  # capturing has taken steps
            self.state[name].copy_(value)

    def _step(self) -> Outputs:
        model = self._model
        raw, state = self._acting.act(self._observed, self._rewards, dict(self.state))
        executed, info = raw, None
        refiner = self._refiner
        if refiner is not None:
            entry = BACKENDS[refiner.backend]
            critic = refiner.critic
            if entry.packs:
                critic = packed(refiner.backend, critic, refiner.execution.precision).weights
            executed, info = entry.load().run(
                critic,
                self._observed,
                raw.unsqueeze(1).contiguous(),
                refiner.options,
                refiner.execution,
            )
        executed = torch.clamp(executed, model.action_low, model.action_high)
        state = self._acting.store(executed if self._keep_refined else raw, state)
        for name, value in self.state.items():
            value.copy_(state[name])
        return executed, info
