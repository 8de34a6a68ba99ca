"""A sequence model's predictions for the current step, without computing any others.

Equal to `SequenceModel.forward` but for rounding, and cheaper by what acting does not need:

- Tokens after the one that is read. Causality keeps them from having any influence.
- In the last block everything but keys and values, except for the token that is read.
- Reinformer's second pass. Its tokens of a step are (s, R, a): the pass that predicts R and the
  one that predicts a differ in the token R alone, which nothing before it sees. So the keys and
  values of the first pass are kept, and the second one is a single token.

The windows are right padded (see `Context`), so causality hides padding too, and no mask is needed
for the tokens before the one that is read.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dtag_fast.acting.context import Context, PredictingContext
from dtag_fast.models.decision_transformer import (
    TOKENS_PER_STEP,
    Attention,
    Block,
    Reinformer,
    SequenceModel,
)
from dtag_fast.models.mlp import MlpModel

# Keys and values of each block, [B, heads, T, D / heads].
Cache = list[tuple[Tensor, Tensor]]


def predict_returns(model: Reinformer, context: Context) -> Tensor:
    """The returns-to-go [B], raw, that the model predicts for the current step."""
    if isinstance(context, PredictingContext):
        return context.predict_returns()
    _check_attention(model)
    hidden = _reinformer_prefix(model, context)
    returns: Tensor = model.predict_return(hidden).squeeze(-1)
    return returns * model.config.rtg_scale


def predict_actions(model: SequenceModel, context: Context) -> Tensor:
    """The mean actions [B, A] for the current step, given the return token in the context.

    May be called again for another token; with Reinformer that costs one token of computation.
    """
    if isinstance(context, PredictingContext):
        return context.predict_actions()
    if isinstance(model, MlpModel):
        return model.act(context.current(context.observations))
    _check_attention(model)
    if isinstance(model, Reinformer):
        hidden = _reinformer_action(model, context)
    else:
        hidden = _decision_transformer_action(model, context)
    return model.box_actions(torch.tanh(model.predict_action(hidden)))


def _check_attention(model: SequenceModel) -> None:
    if model.config.attention == "sliding":
        raise TypeError(
            "context: expected a StreamingContext or a NativeContext, as the model's attention is "
            "sliding, got a Context"
        )


def _reinformer_prefix(model: Reinformer, context: Context) -> Tensor:
    """Hidden state [B, D] of the current step's s; leaves all that precedes R_t in the context."""
    if context.prefix is None:
        observation, action, target = _embed(model, context)
        # s_0 R_0 a_0 ... s_{K-1}
        tokens = _interleave(observation, target, action)[:, : 1 - TOKENS_PER_STEP]
        context.prefix = _run(model, tokens, TOKENS_PER_STEP * context.position)
    return context.prefix[0]


def _reinformer_action(model: Reinformer, context: Context) -> Tensor:
    """Hidden state [B, D] of the current step's R: one more token after the prefix."""
    _reinformer_prefix(model, context)
    assert context.prefix is not None
    cache = context.prefix[1]
    token = model.embed_return(context.token.unsqueeze(-1) / model.config.rtg_scale)
    token = token + model.embed_timestep(context.current(context.timesteps))
    x = model.embed_norm(token).unsqueeze(1)  # [B, 1, D]
    length = cache[0][0].shape[2]
    seen = _up_to(TOKENS_PER_STEP * context.position, length)
    seen = F.pad(seen, (0, 1), value=True)  # and itself
    for block, (keys, values) in zip(_blocks(model), cache, strict=True):
        normed = block.attention_norm(x) if block.pre_norm else x
        own_key, own_value = _keys_and_values(block.attention, normed)
        x = _block_tail(
            block,
            x,
            _attend(
                block.attention,
                normed,
                torch.cat((keys, own_key), dim=2),
                torch.cat((values, own_value), dim=2),
                seen,
            ),
        )
    hidden: Tensor = model.final_norm(x).squeeze(1)
    return hidden


def _decision_transformer_action(model: SequenceModel, context: Context) -> Tensor:
    """Hidden state [B, D] of the current step's s."""
    observation, action, target = _embed(model, context)
    # R_0 s_0 a_0 ... R_{K-1} s_{K-1}
    tokens = _interleave(target, observation, action)[:, :-1]
    return _run(model, tokens, TOKENS_PER_STEP * context.position + 1)[0]


def _run(model: SequenceModel, tokens: Tensor, last: Tensor) -> tuple[Tensor, Cache]:
    """Embedded tokens [B, T, D] to the hidden state [B, D] of token `last` [B], with the cache."""
    x = model.embed_norm(tokens)
    batch, length, _ = x.shape
    rows = torch.arange(batch, device=x.device)
    seen = _up_to(last, length)
    cache: Cache = []
    blocks = _blocks(model)
    for index, block in enumerate(blocks):
        normed = block.attention_norm(x) if block.pre_norm else x
        keys, values = _keys_and_values(block.attention, normed)
        cache.append((keys, values))
        if index < len(blocks) - 1:
            x = _block_tail(block, x, _attend(block.attention, normed, keys, values, None))
            continue
        x, normed = x[rows, last].unsqueeze(1), normed[rows, last].unsqueeze(1)
        x = _block_tail(block, x, _attend(block.attention, normed, keys, values, seen))
    hidden: Tensor = model.final_norm(x).squeeze(1)
    return hidden, cache


def _embed(model: SequenceModel, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Observation, action and return tokens of the windows, each [B, K, D]."""
    time = model.embed_timestep(context.timesteps)
    return (
        model.embed_observation(model.normalizer(context.observations)) + time,
        model.embed_action(model.unit_actions(context.actions)) + time,
        model.embed_return(context.tokens.unsqueeze(-1) / model.config.rtg_scale) + time,
    )


def _interleave(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Three [B, K, D] to [B, 3K, D], step by step."""
    return torch.stack((first, second, third), dim=2).flatten(1, 2)


def _up_to(last: Tensor, length: int) -> Tensor:
    """[B, 1, 1, length], True at the tokens 0 ... last of each row."""
    return (torch.arange(length, device=last.device) <= last.unsqueeze(1))[:, None, None]


def _blocks(model: SequenceModel) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _split(x: Tensor, attention: Attention) -> Tensor:
    """[B, T, D] to [B, heads, T, D / heads]."""
    batch, length, width = x.shape
    return x.view(batch, length, attention.heads, width // attention.heads).transpose(1, 2)


def _keys_and_values(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    return _split(attention.key(x), attention), _split(attention.value(x), attention)


def _attend(
    attention: Attention, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None
) -> Tensor:
    """What tokens x [B, T', D] make of the keys and values they see; causal if `seen` is None."""
    attended = F.scaled_dot_product_attention(
        _split(attention.query(x), attention),
        keys,
        values,
        attn_mask=seen,
        is_causal=seen is None,
    )
    out: Tensor = attention.projection(attended.transpose(1, 2).flatten(2))
    return out


def _block_tail(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """The residual, the MLP and the norms of a block after its attention."""
    x = x + attended
    if not block.pre_norm:
        x = block.attention_norm(x)
    hidden = block.expand(block.mlp_norm(x) if block.pre_norm else x)
    x = x + block.contract(F.relu(hidden) if block.relu else F.gelu(hidden))
    return x if block.pre_norm else block.mlp_norm(x)
