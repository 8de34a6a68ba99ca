"""The policy: a sequence model, a token predictor and, if wanted, refinement by a critic."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from dtag_fast.acting.context import Context
from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.acting.token_predictors import TokenPredictor, own_predictor
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.refinement import RefineInfo, Refiner

if TYPE_CHECKING:
    from dtag_fast.refinement.export import ExportFormat

Floats = NDArray[np.float32]
ContextAction = Literal["refined", "raw"]


@dataclass(frozen=True)
class ActTiming:
    """Where one call of `Policy.act` spent its time, all environments together."""

    model_ms: float
    """Context, token predictor and model."""
    refinement_ms: float
    """Refinement; 0 without."""


class Policy:
    """Acts in one or many environments and keeps the context of each.

    Args:
        model: a trained sequence model. It is used where it is and put into evaluation mode when
            the policy acts; who trains it on puts it back.
        token_predictor: supplies the return token.
        refiner: improves the model's actions, made with `return_info=True`; None leaves them.
            Easier: `with_refinement`.
        context_action: which action later steps see in the context, the refined one, which was
            executed, or the model's raw one. No difference without a refiner. The paper (arXiv
            2510.05285) does not say; an addition in front of Reinformer's `env.step` stores the
            refined one.
        device: None, or where to move the model first, itself and not a copy.

    Attributes:
        last_info: what refinement did to each row in the last call of `act`; None without.
        last_timing: how long its parts took.

    Example:
        >>> policy = Policy.load("runs/hopper")          # doctest: +SKIP
        >>> policy.reset()                               # doctest: +SKIP
        >>> action = policy.act(observation)             # doctest: +SKIP
    """

    def __init__(
        self,
        model: SequenceModel,
        token_predictor: TokenPredictor,
        *,
        refiner: Refiner | None = None,
        context_action: ContextAction = "refined",
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, SequenceModel):
            raise TypeError(f"model: expected a SequenceModel, got {type(model).__name__}")
        if context_action not in get_args(ContextAction):
            raise ValueError(f"context_action: expected refined or raw, got {context_action!r}")
        if refiner is not None and not refiner.return_info:
            raise ValueError("refiner: expected one made with return_info=True")
        token_predictor.check_model(model)
        if device is not None:
            model.to(device)
        self.model = model
        self.token_predictor = token_predictor
        self.refiner = refiner
        self.context_action: ContextAction = context_action
        self.last_info: RefineInfo | None = None
        self.last_timing: ActTiming | None = None
        self._low, self._high = model.action_low, model.action_high
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        checkpoint: Literal["last", "best"] = "last",
        target_return: float | None = None,
        device: str = "cpu",
    ) -> Policy:
        """The policy of a training run's folder, or of one checkpoint in it.

        Args:
            path: the folder.
            checkpoint: of a run, its last or its best.
            target_return: act with `FixedTarget` of this return. None: Reinformer predicts its
                own; a Decision Transformer takes the target of its training configuration; an MLP
                needs none.
            device: where to act.

        Raises:
            CheckpointError: no readable checkpoint of a policy there.
            ValueError: a Decision Transformer without a target from anywhere.
        """
        from dtag_fast.training.sequence import load_policy_model

        model, state = load_policy_model(Path(path), checkpoint, device)
        predictor = own_predictor(model.config.kind, target_return, state["config"])
        if predictor is None:
            raise ValueError(
                f"target_return: needed, {path} holds a Decision Transformer whose configuration "
                f"sets none"
            )
        return cls(model, predictor)

    def with_refinement(
        self,
        critic: nn.Module,
        *,
        steps: int = 10,
        step_size: float = 0.03,
        context_action: ContextAction = "refined",
        **options: Any,
    ) -> Policy:
        """A policy with the same model and token predictor whose actions climb the critic.

        Args:
            critic: see `dtag_fast.refine`; on the model's device.
            steps: n.
            step_size: eta.
            context_action: see `Policy`.
            options: further keywords of `dtag_fast.refine`. `bounds` is the model's action box
                unless given; what is executed is clamped to that box in any case.

        Returns:
            A new policy, at the beginning of an episode in as many environments as this one.
        """
        for name in ("observation_dim", "action_dim"):
            size = getattr(critic, name, None)
            if isinstance(size, int) and size != getattr(self, name):
                raise ValueError(
                    f"critic: expected {name}={getattr(self, name)}, the policy's, got {size}"
                )
        options.setdefault("bounds", (self._low, self._high))
        refiner = Refiner(critic, steps=steps, step_size=step_size, return_info=True, **options)
        policy = Policy(
            self.model, self.token_predictor, refiner=refiner, context_action=context_action
        )
        policy.reset(self.num_envs)
        return policy

    def without_refinement(self) -> Policy:
        """A policy with the same model and token predictor whose actions are the model's own."""
        policy = Policy(self.model, self.token_predictor)
        policy.reset(self.num_envs)
        return policy

    @property
    def observation_dim(self) -> int:
        """S."""
        return self.model.observation_dim

    @property
    def action_dim(self) -> int:
        """A."""
        return self.model.action_dim

    @property
    def action_low(self) -> Floats:
        """[A], the lower bounds of what `act` returns."""
        return self._low.cpu().numpy()

    @property
    def action_high(self) -> Floats:
        """[A], the upper bounds of what `act` returns."""
        return self._high.cpu().numpy()

    @property
    def num_envs(self) -> int:
        """B, as set by `reset`."""
        return self._context.num_envs

    def export(
        self, path: str | Path, format: ExportFormat = "onnx", num_envs: int | None = None
    ) -> None:
        """Write the policy as one graph: normalisation, model, token prediction and refinement.

        The graph is `action, next_state... = graph(observations, rewards, state...)`: `act` with
        the state made explicit. All of the state is zeros at the beginning of an episode, its first
        axis is that of the environments; an output next_NAME is the input NAME of the next step.
        `rewards` [B] are those received since the step before, for `FixedTarget`; at an episode's
        first step they are ignored. Nothing is checked: an observation that is not finite gives an
        action that is not.

        Args:
            path: of the file, .onnx or .pt2 by custom.
            format: "onnx" (extra `export`), in which inputs and outputs have names; or "torch", for
                `torch.export.load`, in which they come in the order that ONNX has them in.
            num_envs: B, fixed in the graph; that of the policy unless given.

        Raises:
            ValueError: with full attention, a token predictor other than `FixedTarget` and
                `ReturnHead`; a `ReturnGrid`, an MLP; a folder that is not there.
            ImportError: the extra is not installed.
        """
        from dtag_fast.acting.export import export_policy

        export_policy(self, path, format, self.num_envs if num_envs is None else num_envs)

    def describe(self) -> dict[str, Any]:
        """How the policy acts, in JSON values, for logs and reports."""
        predictor = self.token_predictor
        described: dict[str, Any] = {
            "model": self.model.config.kind,
            "token_predictor": type(predictor).__name__,
            "refinement": None,
        }
        # Those of this package are frozen dataclasses; the protocol does not ask for it.
        settings = vars(predictor).items()
        described |= {name: x for name, x in settings if not isinstance(x, nn.Module)}
        if self.refiner is not None:
            described["refinement"] = {
                **dataclasses.asdict(self.refiner.options),
                "backend": self.refiner.backend,
                "context_action": self.context_action,
            }
        return described

    def reset(self, num_envs: int = 1) -> None:
        """Begin an episode in each of `num_envs` environments; whatever was before is forgotten."""
        if not isinstance(num_envs, int) or isinstance(num_envs, bool) or num_envs < 1:
            raise ValueError(f"num_envs: expected an integer of at least 1, got {num_envs!r}")
        self._context = self._new_context(num_envs)
        self.last_info = self.last_timing = None

    def _new_context(self, num_envs: int) -> Context:
        if self.model.config.attention == "sliding":
            return StreamingContext(self.model, num_envs)
        return Context(
            num_envs,
            self.model.config.context_length,
            self.observation_dim,
            self.action_dim,
            self._low.device,
        )

    def reset_rows(self, rows: NDArray[np.bool_] | NDArray[np.integer] | Sequence[int]) -> None:
        """Begin a new episode in some environments and go on in the others.

        Args:
            rows: a mask [B], or the indices of the environments.
        """
        chosen = self._indices(rows)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[chosen] = True
        with torch.inference_mode():
            self._context.reset_rows(mask)

    def keep_rows(self, rows: NDArray[np.bool_] | NDArray[np.integer] | Sequence[int]) -> None:
        """Drop all environments but these, whose episodes go on; B shrinks.

        Args:
            rows: a mask [B], or the indices of the environments, in the order wanted.
        """
        chosen = self._indices(rows)
        if len(chosen) == 0:
            raise ValueError("rows: expected at least one environment to keep")
        with torch.inference_mode():
            self._context = self._context.select(chosen)

    @torch.inference_mode()
    def act(self, observations: ArrayLike, rewards: ArrayLike | None = None) -> Floats:
        """The actions for what is observed now. Each call is one step of every environment.

        Args:
            observations: [B, S] raw, or [S] if there is one environment.
            rewards: [B], or a number for [S]: received since the last call. Needed by
                `FixedTarget` unless all environments are at their first step; whatever stands
                there for an environment at its first step is ignored.

        Returns:
            Actions [B, A] or [A], float32, inside the action box.

        Raises:
            ValueError: shapes that do not fit, observations that are not finite, missing rewards,
                an episode longer than the model has timesteps for.
            RuntimeError: the model's action is not finite.
        """
        values, single = self._check_observations(observations)
        received = self._check_rewards(rewards, single)
        self._check_timesteps()
        if self.model.training:
            self.model.eval()
        device = self._low.device
        watch = _Stopwatch(device)
        context = self._context
        rows = torch.from_numpy(values).to(device)
        context.begin_step(rows)
        raw = self.token_predictor.choose(
            self.model, context, None if received is None else torch.from_numpy(received).to(device)
        )
        watch.split()
        executed = raw
        if self.refiner is not None:
            executed, self.last_info = self.refiner(rows, raw)
        executed = torch.clamp(executed, self._low, self._high)
        watch.split()
        context.write_actions(executed if self.context_action == "refined" else raw)
        actions = executed.cpu().numpy()
        model_ms, refinement_ms = watch.milliseconds()
        self.last_timing = ActTiming(model_ms, refinement_ms if self.refiner else 0.0)
        if not np.isfinite(actions).all():
            row = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise RuntimeError(
                f"the model's action is not finite in environment {row} at timestep "
                f"{context.steps[row]}: {actions[row].tolist()}"
            )
        return cast(Floats, actions[0] if single else actions)

    def _check_observations(self, observations: ArrayLike) -> tuple[Floats, bool]:
        values = np.asarray(observations, dtype=np.float32)
        single = values.ndim == 1
        if single:
            values = values[np.newaxis]
        if values.shape != (self.num_envs, self.observation_dim):
            expected = f"[{self.num_envs}, {self.observation_dim}]"
            if self.num_envs == 1:
                expected = f"[{self.observation_dim}] or {expected}"
            raise ValueError(
                f"observations: expected {expected}, got {list(np.shape(observations))}; "
                f"the number of environments is set by reset(num_envs)"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise ValueError(
                f"observations: not finite in environment {row}: {values[row].tolist()}"
            )
        return np.ascontiguousarray(values), single

    def _check_rewards(self, rewards: ArrayLike | None, single: bool) -> Floats | None:
        """The rewards [B] for a predictor that needs them, else None."""
        if not self.token_predictor.needs_rewards:
            return None
        going_on = self._context.steps >= 0
        if rewards is None:
            if going_on.any():
                raise ValueError(
                    f"rewards: needed by {type(self.token_predictor).__name__} after the first "
                    f"step of an episode: act(observations, rewards received since the last call)"
                )
            return None
        values = np.asarray(rewards, dtype=np.float32)
        if single and values.ndim == 0:
            values = values[np.newaxis]
        if values.shape != (self.num_envs,):
            raise ValueError(f"rewards: expected [{self.num_envs}], got {list(values.shape)}")
        bad = going_on & ~np.isfinite(values)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(f"rewards: not finite in environment {row}: {values[row]}")
        return np.ascontiguousarray(values)

    def _check_timesteps(self) -> None:
        limit = self.model.config.max_timestep
        if int(self._context.steps.max()) + 1 >= limit:
            raise ValueError(
                f"the episode is longer than the {limit} timesteps (max_timestep) that the model "
                f"knows; call reset() or reset_rows() where an episode ends"
            )

    def _indices(
        self, rows: NDArray[np.bool_] | NDArray[np.integer] | Sequence[int]
    ) -> NDArray[np.int64]:
        array = np.asarray(rows)
        if array.size == 0:
            return np.zeros(0, dtype=np.int64)
        if array.dtype == np.bool_ and array.shape == (self.num_envs,):
            return np.flatnonzero(array).astype(np.int64, copy=False)
        if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
            raise ValueError(
                f"rows: expected a mask [{self.num_envs}] or a list of indices, "
                f"got {array.dtype} {list(array.shape)}"
            )
        if array.min() < 0 or array.max() >= self.num_envs:
            raise ValueError(f"rows: expected 0 to {self.num_envs - 1}, got {array.tolist()}")
        return array.astype(np.int64)


class _Stopwatch:
    """Times the parts of a step: the host's clock, or a GPU's events, which need no waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []
        self.split()

    def split(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each two splits; on a GPU to be called after the results were copied back."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return [before.elapsed_time(after) for before, after in pairs]
        return [1000.0 * (after - before) for before, after in pairs]
