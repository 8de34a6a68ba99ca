"""Decision Transformer and Reinformer against what their papers' code does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dtag_fast.models.config import ModelConfig
from dtag_fast.models.decision_transformer import (
    DecisionTransformer,
    Reinformer,
    build_model,
)
from dtag_fast.models.normalizer import Normalizer

OBSERVATION_DIM, ACTION_DIM = 5, 3
SMALL: dict[str, Any] = {
    "context_length": 4,
    "blocks": 2,
    "embedding_dim": 24,
    "attention_heads": 3,
    "max_timestep": 50,
    "rtg_scale": 10.0,
}
DT = ModelConfig(kind="dt", block_norm="pre", activation="relu", **SMALL)
REINFORMER = ModelConfig(kind="reinformer", **SMALL)
KINDS = pytest.mark.parametrize("config", [DT, REINFORMER], ids=["dt", "reinformer"])


def make_model(config: ModelConfig, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return build_model(config, OBSERVATION_DIM, ACTION_DIM, **arguments).eval()


def make_windows(batch: int = 3, steps: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = torch.randint(0, 40, (batch, 1), generator=generator)
    return {
        "observations": torch.randn(batch, steps, OBSERVATION_DIM, generator=generator),
        "actions": torch.rand(batch, steps, ACTION_DIM, generator=generator) * 2 - 1,
        "returns_to_go": torch.rand(batch, steps, generator=generator) * 30,
        "timesteps": start + torch.arange(steps),
    }


def plain_forward(model: Any, windows: dict[str, Tensor], mask: Tensor) -> list[Tensor]:
    """Hidden states of the three tokens of each step, written out with loops and softmax."""
    config = model.config
    observations = (windows["observations"] - model.normalizer.mean) / model.normalizer.std
    time = model.embed_timestep.weight[windows["timesteps"]]
    tokens = {
        "s": F.linear(observations, model.embed_observation.weight, model.embed_observation.bias),
        "R": F.linear(
            windows["returns_to_go"][..., None] / config.rtg_scale,
            model.embed_return.weight,
            model.embed_return.bias,
        ),
        "a": F.linear(windows["actions"], model.embed_action.weight, model.embed_action.bias),
    }
    order = "Rsa" if config.kind == "dt" else "sRa"
    steps = windows["timesteps"].shape[1]
    rows = [tokens[name][:, t] + time[:, t] for t in range(steps) for name in order]
    x = plain_norm(torch.stack(rows, dim=1), model.embed_norm)
    for block in model.blocks:
        if config.block_norm == "pre":
            x = x + plain_attention(block, plain_norm(x, block.attention_norm), mask)
            x = x + plain_mlp(block, plain_norm(x, block.mlp_norm), F.relu)
        else:
            x = plain_norm(x + plain_attention(block, x, mask), block.attention_norm)
            x = plain_norm(x + plain_mlp(block, x, F.gelu), block.mlp_norm)
    if config.block_norm == "pre":
        x = plain_norm(x, model.final_norm)
    return [x[:, i::3] for i in range(3)]


def plain_norm(x: Tensor, layer: Any) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    normed: Tensor = centered / (variance + 1e-5).sqrt() * layer.weight + layer.bias
    return normed


def plain_mlp(block: Any, x: Tensor, activation: Any) -> Tensor:
    hidden = activation(x @ block.expand.weight.T + block.expand.bias)
    out: Tensor = hidden @ block.contract.weight.T + block.contract.bias
    return out


def plain_attention(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    attention = block.attention
    query, key, value = (
        x @ layer.weight.T + layer.bias
        for layer in (attention.query, attention.key, attention.value)
    )
    size = x.shape[-1] // attention.heads
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(x.shape[1]):
                keys = [j for j in range(i + 1) if mask[b, j // 3] or j == i]
                scores = key[b, keys, part] @ query[b, i, part] / math.sqrt(size)
                out[b, i, part] = scores.softmax(0) @ value[b, keys, part]
    projected: Tensor = out @ attention.projection.weight.T + attention.projection.bias
    return projected


@KINDS
def test_equals_a_plain_implementation(config: ModelConfig) -> None:
    normalizer = Normalizer(torch.arange(5.0), torch.arange(1.0, 6.0))
    model = make_model(config, normalizer=normalizer)
    with torch.no_grad():  # initial biases are zero and LayerNorms one: make them matter
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    windows = make_windows()
    mask = torch.ones(3, 4, dtype=torch.bool)
    if config.kind == "dt":
        mask[0, :2] = False
    with torch.no_grad():
        output = model(**windows, mask=mask)
        hidden = plain_forward(model, windows, mask)
        expected = torch.tanh(hidden[1] @ model.predict_action.weight.T + model.predict_action.bias)
        torch.testing.assert_close(output.actions, expected, rtol=1e-4, atol=1e-5)
        if isinstance(model, Reinformer):
            returns = hidden[0] @ model.predict_return.weight.T + model.predict_return.bias
            torch.testing.assert_close(
                output.returns_to_go, returns[..., 0] * 10.0, rtol=1e-4, atol=1e-4
            )
            assert torch.equal(output.log_std, model.log_std)
        else:
            assert output.returns_to_go is None
            assert output.log_std is None


@KINDS
@pytest.mark.parametrize("field", ["observations", "actions", "returns_to_go", "timesteps"])
def test_a_step_sees_no_later_step(config: ModelConfig, field: str) -> None:
    model = make_model(config)
    windows = make_windows()
    changed = {name: tensor.clone() for name, tensor in windows.items()}
    changed[field][:, 2] += 1
    with torch.no_grad():
        before, after = model(**windows), model(**changed)
    differs = (before.actions != after.actions).any(dim=-1).any(dim=0)
    # an action influences the steps after it; the other fields their own step as well
    expected = [False, False, field != "actions", True]
    assert differs.tolist() == expected


def test_the_predicted_return_does_not_see_the_given_return() -> None:
    model = make_model(REINFORMER)
    windows = make_windows()
    changed = {**windows, "returns_to_go": windows["returns_to_go"].clone()}
    changed["returns_to_go"][:, 2] += 5.0
    with torch.no_grad():
        before, after = model(**windows), model(**changed)
    assert torch.equal(before.returns_to_go[:, :3], after.returns_to_go[:, :3])
    assert not torch.equal(before.returns_to_go[:, 3], after.returns_to_go[:, 3])


@pytest.mark.parametrize(
    ("config", "real"),
    [(DT, slice(2, 4)), (REINFORMER, slice(0, 2))],
    ids=["dt-left", "reinformer-right"],
)
def test_padding_has_no_influence(config: ModelConfig, real: slice) -> None:
    model = make_model(config)
    windows = make_windows()
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, real] = True
    other = {name: tensor.clone() for name, tensor in windows.items()}
    for tensor in other.values():
        tensor[~mask] = 7
    short = {name: tensor[:, real] for name, tensor in windows.items()}
    with torch.no_grad():
        padded, same, alone = model(**windows, mask=mask), model(**other, mask=mask), model(**short)
    assert torch.equal(padded.actions[mask], same.actions[mask])
    torch.testing.assert_close(padded.actions[:, real], alone.actions, rtol=1e-5, atol=1e-6)


@KINDS
def test_fully_padded_rows_are_finite(config: ModelConfig) -> None:
    model = make_model(config).train()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    output = model(**make_windows(), mask=mask)
    assert output.actions.isfinite().all()
    output.actions.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@KINDS
def test_every_parameter_gets_a_gradient(config: ModelConfig) -> None:
    model = make_model(config).train()
    output = model(**make_windows())
    loss = output.actions.square().sum()
    if output.returns_to_go is not None:
        loss = loss + output.returns_to_go.square().sum() + output.log_std.sum()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    zero = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert missing == []
    # softmax does not see a constant added to all scores of a row
    assert [name for name in zero if not name.endswith("key.bias")] == []


@KINDS
def test_actions_lie_in_the_box_and_enter_in_its_units(config: ModelConfig) -> None:
    low, high = np.array([-2.0, 0.0, 1.0]), np.array([2.0, 0.5, 4.0])
    boxed, unit = make_model(config, action_low=low, action_high=high), make_model(config)
    windows = make_windows()
    half, center = torch.tensor((high - low) / 2).float(), torch.tensor((high + low) / 2).float()
    scaled = {**windows, "actions": center + half * windows["actions"]}
    with torch.no_grad():
        expected = center + half * unit(**windows).actions
        torch.testing.assert_close(boxed(**scaled).actions, expected, rtol=1e-5, atol=1e-5)


@KINDS
def test_one_step_and_the_most_steps_work(config: ModelConfig) -> None:
    model = make_model(config)
    for steps in (1, 9):
        assert model(**make_windows(2, steps)).actions.shape == (2, steps, ACTION_DIM)


@KINDS
@pytest.mark.parametrize("bad", [-1, 50])
def test_a_timestep_out_of_range_is_named(config: ModelConfig, bad: int) -> None:
    windows = make_windows()
    windows["timesteps"][1, 1] = bad
    with pytest.raises(ValueError, match=r"timesteps: expected 0 to 49 .*got"):
        make_model(config)(**windows)


@KINDS
def test_dropout_acts_where_the_papers_code_has_it(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, dropout=0.25, blocks=1)
    attention_dropout, shapes = [], []
    attention, dropout = F.scaled_dot_product_attention, F.dropout

    def spy_attention(*tensors: Any, **options: Any) -> Tensor:
        attention_dropout.append(options["dropout_p"])
        return attention(*tensors, **options)

    def spy_dropout(x: Tensor, p: float, training: bool) -> Tensor:
        assert p == (0.25 if training else p)
        shapes.append(tuple(x.shape[1:]) if training else None)
        return dropout(x, p, training)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy_attention)
    monkeypatch.setattr(F, "dropout", spy_dropout)
    model = make_model(config).train()
    model(**make_windows())
    if config.kind == "dt":  # embedding, projection, MLP; the latter of what is read
        assert attention_dropout == [0.25]
        assert shapes == [(12, 24), (4, 24), (4, 24)]
    else:  # attended values, projection, MLP; the last action is seen by nobody
        assert attention_dropout == [0.0]
        assert shapes == [(3, 11, 8), (8, 24), (8, 24)]
    shapes.clear()
    attention_dropout.clear()
    model.eval()(**make_windows())
    assert attention_dropout == [0.0]
    assert set(shapes) == {None}


def test_initial_weights() -> None:
    config = dataclasses.replace(DT, embedding_dim=96)
    blocks = make_model(config).blocks
    weights = torch.cat(
        [
            p.flatten()
            for n, p in blocks.named_parameters()
            if n.endswith("weight") and "norm" not in n
        ]
    )
    assert abs(float(weights.detach().std()) - 0.02) < 0.001
    assert all(not p.any() for n, p in blocks.named_parameters() if n.endswith("bias"))
    model = make_model(dataclasses.replace(REINFORMER, embedding_dim=96))
    bound = 1 / math.sqrt(96)
    largest = float(model.blocks[0].attention.query.weight.detach().abs().max())
    assert 0.95 * bound < largest <= bound
    assert not model.log_std.any()


def test_log_std_is_limited() -> None:
    model = make_model(REINFORMER)
    with torch.no_grad():
        model.log_std.copy_(torch.tensor([-30.0, 0.0, 5.0]))
    assert model(**make_windows()).log_std.tolist() == [-20.0, 0.0, 2.0]


def test_autocast_gives_float32_and_nearly_the_same() -> None:
    model = make_model(REINFORMER)
    with torch.no_grad():
        exact = model(**make_windows())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**make_windows())
    assert output.actions.dtype == output.returns_to_go.dtype == torch.float32
    assert not torch.equal(output.actions, exact.actions)
    torch.testing.assert_close(output.actions, exact.actions, rtol=0.0, atol=0.05)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"config: expected kind='reinformer', .*kind='dt'"):
        Reinformer(DT, 5, 3)
    with pytest.raises(ValueError, match=r"normalizer: expected one of 5 features, got 4"):
        DecisionTransformer(DT, 5, 3, normalizer=Normalizer.identity(4))
    with pytest.raises(ValueError, match=r"action_low: expected a number or a vector of 3"):
        build_model(DT, 5, 3, action_low=[-1.0, -1.0])
    with pytest.raises(ValueError, match=r"action_high: expected finite"):
        build_model(DT, 5, 3, action_high=math.inf)
    with pytest.raises(ValueError, match=r"action_low: expected less than"):
        build_model(DT, 5, 3, action_low=1.0)


# --- sliding attention ---


@KINDS
@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_sliding_attention_looks_back_so_many_steps_a_block(
    config: ModelConfig, context_length: int
) -> None:
    """A prediction depends on its own step and on exactly `history` steps before it."""
    config = dataclasses.replace(config, attention="sliding", context_length=context_length)
    assert config.history == 2 * (context_length - 1)
    model = make_model(config)
    windows = make_windows(1, 9)
    output = model(**windows).actions[0, -1]
    reached = []
    for step in range(9):
        changed = {name: tensor.clone() for name, tensor in windows.items()}
        changed["observations"][0, step] += 1.0
        reached.append(bool((model(**changed).actions[0, -1] != output).any()))
    assert reached == [step >= 8 - config.history for step in range(9)]


@KINDS
def test_sliding_attention_is_full_attention_within_a_window(config: ModelConfig) -> None:
    windows = make_windows(steps=config.context_length)
    full, sliding = (
        make_model(dataclasses.replace(config, attention=each)) for each in ("full", "sliding")
    )
    torch.testing.assert_close(full(**windows).actions, sliding(**windows).actions)


def test_sliding_attention_does_not_see_padding() -> None:
    model = make_model(dataclasses.replace(DT, attention="sliding", context_length=2))
    windows = make_windows(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    output = model(**windows, mask=mask).actions
    alone = {name: tensor[:1, 3:] for name, tensor in windows.items()}
    torch.testing.assert_close(output[:1, 3:], model(**alone).actions, rtol=2e-5, atol=2e-5)


def test_full_attention_has_no_history() -> None:
    assert DT.history == REINFORMER.history == 0
    with pytest.raises(ValueError, match="attention: expected one of full, sliding, got 'local'"):
        dataclasses.replace(DT, attention="local")  # type: ignore[arg-type]


@pytest.mark.parametrize("sliding", [False, True])
@KINDS
def test_hidden_states_that_are_not_read_are_left_out(config: ModelConfig, sliding: bool) -> None:
    steps = 6 if sliding else 4
    config = dataclasses.replace(config, attention="sliding" if sliding else "full")
    model = make_model(config)
    tokens = [torch.randn(3, steps, config.embedding_dim) for _ in range(3)]
    mask = torch.ones(3, steps, dtype=torch.bool)
    mask[0, :2] = False
    for given in (None, mask):
        whole = model._transform(tokens, given)
        assert whole.shape == (3, steps, 3, config.embedding_dim)
        for read in ((0,), (1,), (0, 1), (0, 2)):
            part = model._transform(tokens, given, read=read)
            torch.testing.assert_close(part, whole[:, :, list(read)], rtol=1e-4, atol=1e-5)
