"""The policy: a sequence model, a token predictor and, if wanted, refinement by a critic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from dtag_fast.acting.arguments import (
    Floats,
    Rows,
    check_observations,
    check_rewards,
    check_timesteps,
    row_indices,
)
from dtag_fast.acting.captured import CapturedContext
from dtag_fast.acting.context import Context
from dtag_fast.acting.native import (
    Inference,
    NativeContext,
    Precision,
    acts_whole,
    choose_inference,
    refine_info,
    whole_action,
)
from dtag_fast.acting.refinement_options import RefinementOptions
from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.acting.timing import ActTiming, Stopwatch
from dtag_fast.acting.token_predictors import TokenPredictor, own_predictor
from dtag_fast.models.decision_transformer import SequenceModel
from dtag_fast.refinement import RefineInfo, Refiner
from dtag_fast.refinement.options import Gradient

if TYPE_CHECKING:
    from dtag_fast import _native
    from dtag_fast.refinement.export import ExportFormat

ContextAction = Literal["refined", "raw"]


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
        inference: what computes the model's predictions: "native", compiled code of one thread,
            for a model of this package in float32 on the CPU (`dtag_fast.acting.native`); "torch";
            "graph", a whole action captured in a CUDA graph, for `FixedTarget` and `ReturnHead`
            (`dtag_fast.acting.captured`); or "auto", native where it can be had, else torch. Equal
            but for rounding.
        precision: "fp32", or "bf16" for native code with weights rounded to bfloat16: about twice
            as fast, and actions that differ in the third digit.

    Attributes:
        inference: the one in use; never "auto".

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
        inference: Inference = "auto",
        precision: Precision = "fp32",
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
        self.inference = choose_inference(inference, model, precision)
        self.precision: Precision = precision
        self._low, self._high = model.action_low, model.action_high
        self.reset()

    @classmethod
    def load(
        cls,
        path: str | Path,
        checkpoint: Literal["last", "best"] = "last",
        target_return: float | None = None,
        device: str = "cpu",
        inference: Inference = "auto",
        precision: Precision = "fp32",
    ) -> Policy:
        """The policy of a training run's folder, or of one checkpoint in it.

        Args:
            path: the folder.
            checkpoint: of a run, its last or its best.
            target_return: act with `FixedTarget` of this return. None: Reinformer predicts its
                own; a Decision Transformer takes the target of its training configuration; an MLP
                needs none.
            device: where to act.
            inference: see `Policy`.
            precision: see `Policy`.

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
        return cls(model, predictor, inference=inference, precision=precision)

    def with_refinement(
        self,
        critic: nn.Module,
        *,
        steps: int = RefinementOptions.steps,
        step_size: float = RefinementOptions.step_size,
        gradient: Gradient = RefinementOptions.gradient,
        context_action: ContextAction = "refined",
        **options: Any,
    ) -> Policy:
        """A policy with the same model and token predictor whose actions climb the critic.

        Args:
            critic: see `dtag_fast.refine`; on the model's device.
            steps: n.
            step_size: eta, by default 0.01: a length, as long as gradients are of unit length.
            gradient: "unit" unless given, which needs no knowledge of the critic's rewards;
                `dtag_fast.refine` itself takes "raw" gradients unless told otherwise.
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
        refiner = Refiner(
            critic,
            steps=steps,
            step_size=step_size,
            gradient=gradient,
            return_info=True,
            **options,
        )
        policy = Policy(
            self.model,
            self.token_predictor,
            refiner=refiner,
            context_action=context_action,
            inference=self.inference,
            precision=self.precision,
        )
        policy.reset(self.num_envs)
        return policy

    def without_refinement(self) -> Policy:
        """A policy with the same model and token predictor whose actions are the model's own."""
        policy = Policy(
            self.model,
            self.token_predictor,
            inference=self.inference,
            precision=self.precision,
        )
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

    def __repr__(self) -> str:
        """What it is made of and what computes it."""
        refiner = self.refiner
        refined = "" if refiner is None else f", refined by {refiner.backend}"
        return (
            f"Policy({self.model.config.kind}, {self.token_predictor}, "
            f"inference={self.inference!r}, precision={self.precision!r}, "
            f"num_envs={self.num_envs}{refined})"
        )

    def describe(self) -> dict[str, Any]:
        """How the policy acts, in JSON values, for logs and reports."""
        predictor = self.token_predictor
        described: dict[str, Any] = {
            "model": self.model.config.kind,
            "token_predictor": type(predictor).__name__,
            "inference": self.inference,
            "precision": self.precision,
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
        self._use(self._new_context(num_envs))
        self._last_info: RefineInfo | None = None
        self._last_timing: ActTiming | None = None

    def _new_context(self, num_envs: int) -> Context:
        if self.inference == "native":
            windows = not acts_whole(self.token_predictor, self.refiner)
            return NativeContext(self.model, num_envs, self.precision, windows)
        if self.inference == "graph":
            keep_refined = self.context_action == "refined"
            return CapturedContext(
                self.model.eval(), self.token_predictor, self.refiner, keep_refined, num_envs
            )
        if self.model.config.attention == "sliding":
            return StreamingContext(self.model, num_envs)
        return Context(
            num_envs,
            self.model.config.context_length,
            self.observation_dim,
            self.action_dim,
            self._low.device,
        )

    def _use(self, context: Context) -> None:
        self._context = context
        self._whole: _native.ActCall | None = None
        # Whether the last action was a whole one; what is known of it is asked for when wanted.
        self._was_whole = False

    @property
    def last_info(self) -> RefineInfo | None:
        """What refinement did to each row in the last call of `act`; None without."""
        if self._was_whole and self._last_info is None and self.refiner is not None:
            self._last_info = refine_info(self._native.acting)
        return self._last_info

    @property
    def last_timing(self) -> ActTiming | None:
        """How long the parts of the last call of `act` took; None before the first."""
        if self._was_whole and self._last_timing is None:
            self._last_timing = ActTiming(*(1e3 * each for each in self._native.acting.seconds()))
        return self._last_timing

    @property
    def _native(self) -> NativeContext:
        assert isinstance(self._context, NativeContext)
        return self._context

    def reset_rows(self, rows: Rows) -> None:
        """Begin a new episode in some environments and go on in the others.

        Args:
            rows: a mask [B], or the indices of the environments.
        """
        chosen = row_indices(rows, self.num_envs)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[chosen] = True
        with torch.inference_mode():
            self._context.reset_rows(mask)

    def keep_rows(self, rows: Rows) -> None:
        """Drop all environments but these, whose episodes go on; B shrinks.

        Args:
            rows: a mask [B], or the indices of the environments, in the order wanted.
        """
        chosen = row_indices(rows, self.num_envs)
        if len(chosen) == 0:
            raise ValueError("rows: expected at least one environment to keep")
        with torch.inference_mode():
            self._use(self._context.select(chosen))

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
        if self.model.training:
            self.model.eval()
        if self._whole is not None:
            actions = self._whole(observations, rewards)
            if actions is not NotImplemented:
                self._was_whole, self._last_info, self._last_timing = True, None, None
                return cast(Floats, actions)
        return self._act(observations, rewards)

    @torch.inference_mode()
    def _act(self, observations: ArrayLike, rewards: ArrayLike | None) -> Floats:
        """`act` whatever the arguments are: checks, conversions and errors."""
        if isinstance(self._context, NativeContext):
            self._context.sync()
        steps = self._context.steps
        values, single = check_observations(observations, self.num_envs, self.observation_dim)
        received = check_rewards(rewards, self.token_predictor, steps, single)
        check_timesteps(steps, self.model.config.max_timestep)
        device = self._low.device
        watch = Stopwatch(device)
        context = self._context
        if isinstance(context, CapturedContext):
            actions, self._last_info = context.act(values, received)
            watch.split()
            self._last_timing = ActTiming(watch.milliseconds()[0], 0.0)
            return self._finite(actions, single)
        rows = torch.from_numpy(values).to(device)
        context.begin_step(rows)
        raw = self.token_predictor.choose(
            self.model, context, None if received is None else torch.from_numpy(received).to(device)
        )
        watch.split()
        executed = raw
        if self.refiner is not None:
            executed, self._last_info = self.refiner(rows, raw)
        executed = torch.clamp(executed, self._low, self._high)
        watch.split()
        context.write_actions(executed if self.context_action == "refined" else raw)
        actions = executed.cpu().numpy()
        model_ms, refinement_ms = watch.milliseconds()
        self._was_whole = False
        self._last_timing = ActTiming(model_ms, refinement_ms if self.refiner else 0.0)
        if self.inference == "native" and acts_whole(self.token_predictor, self.refiner):
            keep_refined = self.context_action == "refined"
            self._whole = whole_action(
                self._native, self.token_predictor, self.refiner, keep_refined
            )
        return self._finite(actions, single)

    def _finite(self, actions: Floats, single: bool) -> Floats:
        """The actions [B, A], or [A], if they are all finite."""
        if not np.isfinite(actions).all():
            row = int(np.flatnonzero(~np.isfinite(actions).all(axis=1))[0])
            raise RuntimeError(
                f"the model's action is not finite in environment {row} at timestep "
                f"{self._context.steps[row]}: {actions[row].tolist()}"
            )
        return cast(Floats, actions[0] if single else actions)
