"""The native layers against torch's, on every instruction set this machine runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dtag_fast import checkpoint
from dtag_fast.data.trajectories import Trajectories
from dtag_fast.models.config import ModelConfig
from dtag_fast.training import lamb, native_layers
from dtag_fast.training.config import PolicyConfig
from dtag_fast.training.lamb import Lamb
from dtag_fast.training.native_layers import multiply
from dtag_fast.training.sequence import PolicyLearner, train_policy
from tests.training.test_native_iql import isas

pytestmark = pytest.mark.skipif(
    not native_layers.available(), reason="the native module is not built"
)

CPU = torch.device("cpu")


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the instruction sets, in use while the test runs."""
    from dtag_fast import _native

    before = _native.isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def assert_no_worse(ours: Tensor, torchs: Tensor, exact: Tensor, share: float = 1e-6) -> None:
    """Against float64: at most twice torch's error, and a share of the largest value."""
    error, allowed = ((x.double() - exact).abs().max() for x in (ours, torchs))
    assert float(error) <= 2 * float(allowed) + share * float(exact.abs().max())


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (7, 3, 5), (130, 300, 70), (97, 513, 33), (8, 32, 32)]
)
def test_products_of_any_strides(isa: str, sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(n, generator=generator)
    for transposed_a in (False, True):
        for transposed_b in (False, True):
            a = torch.randn(*((k, m) if transposed_a else (m, k)), generator=generator)
            b = torch.randn(*((n, k) if transposed_b else (k, n)), generator=generator)
            a, b = a.t() if transposed_a else a, b.t() if transposed_b else b
            exact = a.double() @ b.double()
            assert_no_worse(multiply(a, b), a @ b, exact)
            assert_no_worse(multiply(a, b, bias), a @ b + bias, exact + bias)
    wide = torch.randn(m, 2 * k, generator=generator)
    b = torch.randn(k, n, generator=generator)
    every_other = wide[:, ::2]
    exact = every_other.double() @ b.double()
    assert_no_worse(multiply(every_other, b), every_other @ b, exact)


def value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], native: bool
) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with native_layers.native_layers(native):
        out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = [x.view(*x.shape[:2], 2, -1).transpose(1, 2) for x in (query, key, value)]
    attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    return attended.transpose(1, 2).flatten(2)


def heads(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As a critic computes its layers."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def heads_of_one_input(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As its first layer."""
    return heads(bias, x.expand(len(bias), *x.shape), weight)


LAYERS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(3, 5, 20), (7, 20), (7,)]),
    "linear without bias": (F.linear, [(11, 20), (7, 20)]),
    "linear of heads": (heads, [(3, 7), (3, 11, 20), (3, 7, 20)]),
    "linear of heads of one input": (heads_of_one_input, [(2, 7), (11, 20), (2, 7, 20)]),
    "gelu": (F.gelu, [(3, 5, 41)]),
    "attention": (attention, [(3, 15, 64)] * 3),
    "attention of one token": (attention, [(2, 1, 32)] * 3),
    "attention of many tokens": (attention, [(1, 100, 32)] * 3),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_and_their_gradients(isa: str, any_size: None, name: str) -> None:
    function, shapes = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    inputs = [2 * torch.randn(*shape, generator=generator) for shape in shapes]
    ours = value_and_gradients(function, inputs, native=True)
    torchs = value_and_gradients(function, inputs, native=False)
    exact = value_and_gradients(function, [x.double() for x in inputs], native=True)
    assert all(x.dtype == torch.float64 for x in exact)  # which no kernel takes
    assert any(not torch.equal(x, y) for x, y in zip(ours, torchs, strict=True)), "torch's own ran"
    for x, y, z in zip(ours, torchs, exact, strict=True):
        assert_no_worse(x, y, z)


@pytest.mark.parametrize("name", list(LAYERS))
def test_second_derivatives_are_refused(any_size: None, name: str) -> None:
    """Which would be wrong without a word: the kernels' derivatives are not differentiable."""
    function, shapes = LAYERS[name]
    inputs = [torch.ones(*shape, requires_grad=True) for shape in shapes]
    with native_layers.native_layers(True):
        out = function(*inputs)
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward([x.sum() for x in first])


def masked(visible: Tensor, p: float = 0.0) -> Callable[..., Tensor]:
    """Attention with this mask, of inputs [B, H, T, D]."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=p)

    return attend


def masks(batch: int, length: int) -> dict[str, Tensor]:
    """Masks [B or 1, 1 or H, T, T] of the kinds that models have, and of others."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    real = torch.ones(batch, length, dtype=torch.bool)
    left, right = real.clone(), real.clone()
    for b in range(1, batch):
        left[b, : min(5 * b, length - 1)] = right[b, max(length - 5 * b, 1) :] = False
    left[-1] = False
    itself = torch.eye(length, dtype=torch.bool)
    generator = torch.Generator().manual_seed(5)
    any_of_all = torch.rand(batch, 2, length, length, generator=generator) < 0.5
    any_of_all[0, 1, length // 2] = False
    return {
        "left": ((causal & left.unsqueeze(1)) | itself).unsqueeze(1),
        "right": ((causal & right.unsqueeze(1)) | itself).unsqueeze(1),
        "rows without keys": (causal & left.unsqueeze(1)).unsqueeze(1),
        "only keys": left[1:2, None, None, :],
        "sliding": (causal & ~causal.tril(-3))[None, None],
        "a slice": torch.ones(batch, 1, length + 1, length + 1, dtype=torch.bool).tril()[
            ..., :length, :length
        ],
        "transposed": any_of_all.transpose(2, 3),
        "any": any_of_all,
    }


@pytest.mark.parametrize(("length", "width"), [(15, 16), (59, 32), (17, 64), (32, 48), (1, 16)])
def test_attention_with_masks(isa: str, length: int, width: int) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = (3, length, 2, width)
    inputs = [torch.randn(*shape, generator=generator).transpose(1, 2) for _ in range(3)]
    for name, visible in masks(3, length).items():
        ours = value_and_gradients(masked(visible), inputs, native=True)
        torchs = value_and_gradients(masked(visible), inputs, native=False)
        exact = value_and_gradients(masked(visible), [x.double() for x in inputs], native=False)
        assert length == 1 or any(
            not torch.equal(x, y) for x, y in zip(ours, torchs, strict=True)
        ), f"{name}: torch's own ran"
        for x, y, z in zip(ours, torchs, exact, strict=True):
            assert bool(x.isfinite().all()), name
            assert_no_worse(x, y, z)


def test_other_masks_are_torchs() -> None:
    x = torch.randn(2, 2, 15, 16, requires_grad=True)
    bias = torch.randn(15, 15)
    with native_layers.native_layers(True):
        ours = F.scaled_dot_product_attention(x, x, x, attn_mask=bias)
        shorter = F.scaled_dot_product_attention(x[:, :, -1:], x, x)
    assert torch.equal(ours, F.scaled_dot_product_attention(x, x, x, attn_mask=bias))
    assert torch.equal(shorter, F.scaled_dot_product_attention(x[:, :, -1:], x, x))


def dropped_attention(
    inputs: list[Tensor], visible: Tensor, p: float, threads: int = 1
) -> list[Tensor]:
    """The result and the gradients, always with the same numbers drawn."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(11)
        return value_and_gradients(masked(visible, p), inputs, native=True)
    finally:
        torch.set_num_threads(before)


def test_dropout_of_attention(isa: str) -> None:
    """Values that are unit vectors give the probabilities that are left."""
    batch, heads, length, p = 40, 4, 32, 0.3
    visible = masks(batch, length)["left"]
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(batch, heads, length, 32, generator=generator) for _ in range(2))
    value = torch.eye(32).expand(batch, heads, 32, 32)
    whole = dropped_attention([query, key, value], visible, 0.0)[0]
    ours = dropped_attention([query, key, value], visible, p)
    seen = visible.expand_as(whole)
    kept = ours[0] != 0
    assert not bool(kept[~seen].any())
    torch.testing.assert_close(ours[0][kept], whole[kept] / (1 - p))
    count = int(seen.sum())
    off = 5 * (p * (1 - p) / count) ** 0.5
    assert float((~kept)[seen].double().mean()) == pytest.approx(p, abs=off)
    assert 0.65 < float(kept[0, 0][seen[0, 0]].double().mean()) < 0.75

    # The same function by torch, with these factors
    def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.transpose(2, 3) / 32**0.5).masked_fill(~visible, -torch.inf)
        out: Tensor = (scores.softmax(dim=-1) * (kept / (1 - p)).to(scores.dtype)) @ value
        return out

    exact, torchs = (
        value_and_gradients(by_hand, [x.to(dtype) for x in (query, key, value)], native=False)
        for dtype in (torch.float64, torch.float32)
    )
    for x, y, z in zip(ours, torchs, exact, strict=True):
        assert_no_worse(x, y, z)
    for x, y in zip(
        ours, dropped_attention([query, key, value], visible, p, threads=2), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("swapped", [False, True])
def test_dropout(isa: str, any_size: None, swapped: bool) -> None:
    p, x = 0.3, torch.rand(10, 20, 30, 41) + 1
    x = (x.transpose(1, 2) if swapped else x).detach().requires_grad_()
    torch.manual_seed(7)
    with native_layers.native_layers(True):
        first, second = F.dropout(x, p), F.dropout(x, p)
        kept = first != 0
        torch.testing.assert_close(first[kept], x[kept] / (1 - p))
        # a binomial's share of 246 000, within five standard deviations
        assert float((~kept).double().mean()) == pytest.approx(
            p, abs=5 * (p * (1 - p) / 246e3) ** 0.5
        )
        for dim in range(4):  # no index is favoured
            others = [d for d in range(4) if d != dim]
            by_index = (~kept).double().mean(dim=others)
            deviation = (p * (1 - p) / (246e3 / len(by_index))) ** 0.5
            assert float((by_index - p).abs().max()) < 5 * deviation
        both = float(((first == 0) & (second == 0)).double().mean())
        assert both == pytest.approx(p * p, abs=0.005)
        (gradient,) = torch.autograd.grad(first.sum(), x)
        torch.testing.assert_close(gradient, kept / (1 - p))
        torch.manual_seed(7)
        assert torch.equal(F.dropout(x, p), first)
        assert torch.equal(F.dropout(x, p, training=False), x)
        wide = F.dropout(x.bfloat16(), p)
        assert wide.dtype == torch.bfloat16
        assert 0.25 < float((wide == 0).double().mean()) < 0.35


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_lamb_is_as_in_torch(
    isa: str, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(native: bool, dtype: torch.dtype) -> list[Tensor]:
        monkeypatch.setattr(lamb, "available", lambda: native)
        generator = torch.Generator().manual_seed(2)
        sizes = [(3,), (40_001,), (16, 16), (1,)]
        params = [torch.randn(*size, generator=generator).to(dtype) for size in sizes]
        params[3].zero_()  # of norm 0: an unscaled step
        optimizer = Lamb(params, lr=1e-2, weight_decay=weight_decay)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(*p.shape, generator=generator).to(dtype)
            versions = [p._version for p in params]
            optimizer.step()
            assert all(p._version > v for p, v in zip(params, versions, strict=True))
        states = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
        return [torch.cat([x.flatten() for x in each]) for each in (params, states)]

    ours, torchs = run(True, torch.float32), run(False, torch.float32)
    for x, y, z in zip(ours, torchs, run(False, torch.float64), strict=True):
        assert_no_worse(x, y, z)


def policy_config(kind: Any, dropout: float, **changes: Any) -> PolicyConfig:
    model = ModelConfig(
        kind=kind, context_length=4, blocks=2, embedding_dim=64, attention_heads=2, dropout=dropout,
        block_norm="pre" if kind == "dt" else "post", activation="gelu",
    )  # fmt: skip
    settings: dict[str, Any] = {
        "batch_size": 16,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "steps": 30,
        "device": "cpu",
        "progress": False,
        "optimizer": "adamw" if kind == "dt" else "lamb",
        "padding": "left" if kind == "dt" else "right",
    }
    return PolicyConfig(model=model, **{**settings, **changes})


@pytest.mark.parametrize("kind", ["reinformer", "dt"])
def test_the_curve_of_the_loss_is_torchs(any_size: None, toy_data: Trajectories, kind: str) -> None:
    curves = []
    for native in (True, False):
        torch.manual_seed(0)
        config = policy_config(kind, 0.0, learning_rate=3e-4)
        learner = PolicyLearner(toy_data, config, CPU)
        assert learner.native
        learner.native = native
        learner.model.train()
        curves.append(torch.stack([learner.update(step)[0] for step in range(1, 61)]))
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-3, atol=1e-4)
    assert curves[1][-5:].mean() < 0.9 * curves[1][0]


@pytest.mark.parametrize("kind", ["reinformer", "dt"])
def test_resuming_is_exact(
    any_size: None, toy_data: Trajectories, tmp_path: Path, kind: str
) -> None:
    config = policy_config(kind, 0.2, threads=1)
    train_policy(toy_data, config, tmp_path / "whole")
    train_policy(toy_data, dataclasses.replace(config, steps=13), tmp_path / "parts")
    train_policy(toy_data, config, tmp_path / "parts", resume=True)
    whole, parts = (checkpoint.load_tensors(tmp_path / name) for name in ("whole", "parts"))
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_calls_of_other_kinds_are_torchs(any_size: None) -> None:
    """Options that no kernel has, tensors that torch would refuse, and changes in place."""
    x, w, bias = torch.randn(3, 8, 16), torch.randn(5, 16), torch.randn(10)[::2]
    query = torch.randn(2, 2, 6, 16)
    heads, weights = torch.randn(3, 1, 5), torch.randn(3, 16, 5)
    calls: list[Callable[[], Tensor]] = [
        lambda: F.linear(input=x, weight=w, bias=bias),
        lambda: torch.baddbmm(heads, x, weights, beta=0.5),
        lambda: F.scaled_dot_product_attention(query, query, query, is_causal=True, scale=0.1),
        lambda: F.linear(x, w.requires_grad_()).relu_(),
        lambda: torch.baddbmm(heads, x, weights.requires_grad_()).relu_(),
    ]
    for call in calls:
        expected = call()
        with native_layers.native_layers(True):
            torch.testing.assert_close(call(), expected)
    refused: list[Callable[[], Tensor]] = [
        lambda: F.linear(x, w.double()),
        lambda: F.linear(x, w[:, :7]),
        lambda: torch.baddbmm(heads, x, weights[:2]),
        lambda: torch.baddbmm(heads, x, weights[:, :7]),
    ]
    for call in refused:
        with pytest.raises(RuntimeError), native_layers.native_layers(True):
            call()


def test_products_without_gradients_are_native_too(isa: str) -> None:
    x, w = torch.randn(64, 300), torch.randn(256, 300)
    with torch.no_grad(), native_layers.native_layers(True):
        ours = F.linear(x, w)
    assert not ours.requires_grad
    assert torch.equal(ours, multiply(x, w.t()))
