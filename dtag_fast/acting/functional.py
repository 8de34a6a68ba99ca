"""Acting as a function: an action and the next state from an observation and the state.

The state is a tensor a name, its first axis that of the environments, and all zeros where an
episode begins: so an environment is reset by zeroing its rows. Nothing waits for numbers, so that a
step can be traced into a graph (`export`) or captured in one (`captured`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dtag_fast.acting.streaming import StreamingContext
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.acting.value_predictors import ReturnGrid
from dtag_fast.models.decision_transformer import Reinformer, SequenceModel

State = dict[str, Tensor]


def functional_step(
    model: SequenceModel, predictor: TokenPredictor, num_envs: int
) -> WindowStep | StreamingStep:
    """The step of the model's kind of attention.

    Raises:
        ValueError: an MLP; a ReturnGrid; with full attention, a token predictor other than
            FixedTarget and ReturnHead.
    """
    if model.config.kind not in ("dt", "reinformer"):
        raise ValueError(
            f"policy: expected a model of kind dt or reinformer to export or capture, got "
            f"{model.config.kind!r}"
        )
    kind = StreamingStep if model.config.attention == "sliding" else WindowStep
    return kind(model, predictor, num_envs)


class WindowStep:
    """Full attention: the windows of the last K steps, the current one at their end.

    Padding comes in front and is masked, for either kind of model: as positions enter through the
    timesteps alone, a window is the same wherever its padding is.
    """

    def __init__(self, model: SequenceModel, predictor: TokenPredictor, num_envs: int) -> None:
        if type(predictor) not in (FixedTarget, ReturnHead):
            raise ValueError(
                f"token_predictor: only FixedTarget and ReturnHead can be exported or captured, "
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


class StreamingStep:
    """Sliding attention: the keys and values that a `StreamingContext` keeps."""

    def __init__(self, model: SequenceModel, predictor: TokenPredictor, num_envs: int) -> None:
        if isinstance(predictor, ReturnGrid):
            raise ValueError(
                "token_predictor: a ReturnGrid cannot be exported or captured, as it keeps what "
                "was received"
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
