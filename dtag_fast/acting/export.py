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

from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.acting.value_predictors import ReturnGrid
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel
from dtag_fast.refinement import reference
from dtag_fast.refinement.export import ExportFormat, quiet, require_onnx, save
from dtag_fast.refinement.options import check_word

if TYPE_CHECKING:
    from dtag_fast.acting.policy import Policy

State = dict[str, Tensor]


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
        if policy.model.config.kind not in ("dt", "reinformer"):
            raise ValueError(
                f"policy: expected a model of kind dt or reinformer to export, got "
                f"{policy.model.config.kind!r}"
            )
        self.num_envs = num_envs
        self.low, self.high = policy.model.action_low, policy.model.action_high
        self.refiner, self.context_action = policy.refiner, policy.context_action
        kind = _Streaming if policy.model.config.attention == "sliding" else _Window
        self.acting = kind(policy.model.eval(), policy.token_predictor, num_envs)
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


class _Window:
    """Full attention: the windows of the last K steps, the current one at their end.

    Padding comes in front and is masked, for either kind of model: as positions enter through the
    timesteps alone, a window is the same wherever its padding is.
    """

    def __init__(self, model: SequenceModel, predictor: TokenPredictor, num_envs: int) -> None:
        if type(predictor) not in (FixedTarget, ReturnHead):
            raise ValueError(
                f"token_predictor: only FixedTarget and ReturnHead can be exported, "
                f"got {type(predictor).__name__}"
            )
        self.model, self.predictor, self.num_envs = model, predictor, num_envs

    def state(self) -> State:
        model, batch, length = self.model, self.num_envs, self.model.config.context_length
        device = model.action_low.device
        return {
            "past_observations": torch.zeros(batch, length, model.observation_dim, device=device),
            "past_actions": torch.zeros(batch, length, model.action_dim, device=device),
            "past_tokens": torch.zeros(batch, length, device=device),
            "steps": torch.zeros(batch, dtype=torch.int64, device=device),
        }

    def act(self, observations: Tensor, rewards: Tensor, state: State) -> tuple[Tensor, State]:
        """The model's actions [B, A], and the state with all of this step but what is executed."""
        model, steps = self.model, state["steps"]
        length = model.config.context_length
        seen = _push(state["past_observations"], observations)
        executed = _push(state["past_actions"], torch.zeros_like(state["past_actions"][:, 0]))
        timesteps = steps.unsqueeze(1) + torch.arange(1 - length, 1, device=steps.device)
        mask = timesteps >= 0

        # As `SequenceModel._embed`, which also looks at the timesteps' values.
        time = model.embed_timestep(timesteps * mask)
        observation = model.embed_observation(model.normalizer(seen)) + time
        action = model.embed_action(model.unit_actions(executed)) + time

        def hidden(tokens: Tensor) -> Tensor:
            """[B, 3, D], of the current step."""
            target = model.embed_return(tokens.unsqueeze(2) / model.config.rtg_scale) + time
            order = (target, observation, action)
            if isinstance(model, Reinformer):
                order = (observation, target, action)
            return model._transform(order, mask)[:, -1]

        if isinstance(self.predictor, FixedTarget):
            following = state["past_tokens"][:, -1] - rewards
            token = torch.where(steps == 0, self.predictor.target_return, following)
        else:
            assert isinstance(model, Reinformer), "check_model has let another model through"
            first = hidden(_push(state["past_tokens"], torch.zeros_like(rewards)))
            token = model.predict_return(first[:, 0]).squeeze(-1) * model.config.rtg_scale
        tokens = _push(state["past_tokens"], token)
        mean = torch.tanh(model.predict_action(hidden(tokens)[:, 1]))
        return model.box_actions(mean), {
            "past_observations": seen,
            "past_actions": executed,
            "past_tokens": tokens,
            "steps": steps + 1,
        }

    def store(self, actions: Tensor, state: State) -> State:
        """The state for the next step, with the actions [B, A] that it will see."""
        past = torch.cat((state["past_actions"][:, :-1], actions.unsqueeze(1)), dim=1)
        return {**state, "past_actions": past}


class _Streaming:
    """Sliding attention: the keys and values that a `StreamingContext` keeps."""

    def __init__(self, model: SequenceModel, predictor: TokenPredictor, num_envs: int) -> None:
        if isinstance(predictor, ReturnGrid):
            raise ValueError(
                "token_predictor: a ReturnGrid cannot be exported, as it keeps what was received"
            )
        self.model, self.predictor, self.num_envs = model, predictor, num_envs

    def state(self) -> State:
        context = StreamingContext(self.model, self.num_envs)
        return {name: torch.zeros_like(each) for name, each in self._save(context).items()}

    def act(self, observations: Tensor, rewards: Tensor, state: State) -> tuple[Tensor, State]:
        context = StreamingContext(self.model, self.num_envs)
        context._now = state["steps"] - 1
        context.token = state["past_token"].clone()
        context.actions = state["past_action"].unsqueeze(1).clone()
        context._tokens = (state["kept_tokens"] - 1).flatten()
        for name, rings in (("kept_keys", context._keys), ("kept_values", context._values)):
            for number in range(len(rings)):
                rings[number] = state[name][:, number].clone().flatten(0, 1)
        context.begin_step(observations)
        actions = self.predictor.choose(self.model, context, rewards)
        return actions, self._save(context)

    def store(self, actions: Tensor, state: State) -> State:
        return {**state, "past_action": actions}

    def _save(self, context: StreamingContext) -> State:
        """The context's state, all zeros for a new one."""
        shape = (self.num_envs, context.slots)
        keys, values = (
            torch.stack([each.view(*shape, -1) for each in rings], dim=1)
            for rings in (context._keys, context._values)
        )
        return {
            "kept_keys": keys,
            "kept_values": values,
            "kept_tokens": context._tokens.view(shape) + 1,
            "past_token": context.token,
            "past_action": context.actions[:, 0],
            "steps": context._now + 1,
        }


def _push(window: Tensor, newest: Tensor) -> Tensor:
    """The window [B, K, ...] moved on by one step."""
    return torch.cat((window[:, 1:], newest.unsqueeze(1)), dim=1)


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
