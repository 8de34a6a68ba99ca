"""Refinement inside traced programs: torch.compile, torch.export, torch.func, fake tensors."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import dtag_fast
from dtag_fast import Critic, Normalizer, Refiner, refine
from dtag_fast.refinement import cpu, torch_op
from dtag_fast.refinement.parity import random_batch, random_critic

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], backend: Any = "eager", **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def operator_arguments(critic: Critic, rows: int, starts: int) -> tuple[tuple[Any, ...], Any]:
    observations, actions = random_batch(critic, rows, starts)
    weights = [critic.normalizer.mean, critic.normalizer.std]
    for i in range(len(critic.weights)):
        weights += [critic.weights[i].detach(), critic.biases[i].detach()]
        if critic.layer_norm and i < len(critic.hidden):
            weights += [critic.norm_weights[i].detach(), critic.norm_biases[i].detach()]
    options = {
        **{"activation": critic.activation, "negative_slope": 0.1, "layer_norm": critic.layer_norm},
        **{"steps": 3, "step_size": 0.1, "optimizer": "sgd", "low": [-1.0], "high": [1.0]},
        **{"ensemble": "min", "lcb_k": 1.0, "select": "best", "max_distance": None},
        **{"gradient": "raw", "algorithm": "auto", "precision": "fp32", "threads": None},
    }
    return (observations, actions, weights), options


# torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_compiled_refiner_gives_the_same(backend: str, layer_norm: bool) -> None:
    normalizer = Normalizer(torch.randn(5), torch.rand(5) + 0.5)
    critic = random_critic(layer_norm=layer_norm, normalizer=normalizer)
    observations, actions = random_batch(critic, 6, 2)
    refiner = Refiner(critic, step_size=0.4, bounds=([-1, -0.5, 0.0], 1.0), max_distance=1.0)
    call = compiled(lambda s, a: 2 * refiner(s, a), backend)
    for given in (
        (observations, actions[:, 0]),
        (observations, actions),
        (observations[0], actions[0, 0]),
        (observations.double(), actions[:, 0].double()),
    ):
        result = call(*given)
        assert torch.equal(result, 2 * refiner(*given))
        assert result.dtype == given[1].dtype
    arrays = [tensor.numpy() for tensor in random_batch(critic, 6)]
    np.testing.assert_array_equal(compiled(refiner.__call__, backend)(*arrays), refiner(*arrays))


def test_the_function_can_be_compiled_too() -> None:
    critic = random_critic()
    batch = random_batch(critic, 6)
    for options in (
        {},
        {"steps": 3, "optimizer": "adam", "bounds": None, "ensemble": "mean", "threads": 2},
        {"bounds": ([-1.0, -0.5, 0.0], [1.0, 0.5, 0.5]), "algorithm": "dense", "backend": "cpu"},
    ):
        torch._dynamo.reset()
        call = compiled(lambda s, a, options=options: refine(critic, s, a, **options))
        assert torch.equal(call(*batch), refine(critic, *batch, **options))


@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")
def test_other_backends_break_the_graph_and_run() -> None:
    critic = random_critic()
    batch = random_batch(critic, 6)
    expected = dtag_fast.reference.refine(critic, *batch)
    call = torch.compile(lambda s, a: refine(critic, s, a, backend="reference"), backend="eager")
    torch.testing.assert_close(call(*batch), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor() -> None:
    critic = random_critic()
    batch = random_batch(critic, 6)
    refiner = Refiner(critic)
    call = compiled(lambda s, a: refiner(s, a.tanh()) + 1, "inductor")
    torch.testing.assert_close(call(*batch), refiner(batch[0], batch[1].tanh()) + 1)


def test_a_batch_of_another_size_compiles_nothing_anew() -> None:
    critic = random_critic()
    refiner = Refiner(critic)
    for dynamic, compilations in ((None, 2), (True, 1)):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        call = compiled(refiner.__call__, counter, dynamic=dynamic)
        for rows in (4, 5, 6, 17, 100):
            batch = random_batch(critic, rows)
            assert torch.equal(call(*batch), refiner(*batch))
        assert counter.frame_count == compilations


def test_changed_weights_are_seen() -> None:
    critic = random_critic(normalizer=Normalizer(torch.zeros(5), torch.ones(5)))
    batch = random_batch(critic, 6)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call = compiled(lambda s, a: refine(critic, s, a, step_size=0.4), counter)
    previous = call(*batch)

    def check() -> None:
        nonlocal previous
        result = call(*batch)
        assert not torch.equal(result, previous)
        assert torch.equal(result, refine(critic, *batch, step_size=0.4))
        previous = result

    for _ in range(2):
        with torch.no_grad():
            critic.weights[0].mul_(-0.9)
        check()
        critic.weights[1] = nn.Parameter(critic.weights[1].detach() * -0.9)
        check()
        critic.weights[1].data = critic.weights[1].data * -0.9
        check()
        critic.normalizer.mean.add_(1.0)
        check()
        optimizer = torch.optim.Adam(critic.parameters(), 0.1, fused=True)
        critic(*batch).sum().backward()
        optimizer.step()
        check()
    assert counter.frame_count == 1
    assert len(torch_op._packings) <= torch_op._most_packings


def test_a_wrong_argument_is_told_while_compiling() -> None:
    critic = random_critic()
    refiner = Refiner(critic)
    for shapes, message in (
        (((3, 4), (3, 3)), "observations: expected 5 numbers a row, got 4"),
        (((3, 5), (2, 3)), "actions: expected 3 rows"),
        (((5,), (1, 3)), r"observations: expected \[B, S\] or \[S\], got \[5\]"),
    ):
        torch._dynamo.reset()
        with pytest.raises(Exception, match=message):
            compiled(refiner.__call__)(*(torch.zeros(shape) for shape in shapes))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="floating point"):
        compiled(refiner.__call__)(torch.zeros(3, 5), torch.zeros(3, 3, dtype=torch.int64))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="bounds: expected low to be one number or 3"):
        compiled(lambda s, a: refine(critic, s, a, bounds=((0.0, 0.0), 1.0)))(*random_batch(critic))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="steps: expected 0 or more, got -1"):
        compiled(lambda s, a: refine(critic, s, a, steps=-1))(*random_batch(critic))


# The operator


@pytest.mark.parametrize("arguments", [{}, {"layer_norm": True}, {"hidden": ()}])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_it_is_a_proper_operator(arguments: dict[str, Any], requires_grad: bool) -> None:
    given, options = operator_arguments(random_critic(**arguments), 5, 2)
    given[0].requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.dtag_fast.refine.default, given, options)
    assert not torch.ops.dtag_fast.refine(*given, **options).requires_grad


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = operator_arguments(random_critic(), 5, 2)
    with pytest.raises(ValueError, match=r"algorithm: .*its activation is not piecewise linear"):
        torch.ops.dtag_fast.refine(*given, **options | {"activation": "tanh", "algorithm": "walk"})
    monkeypatch.setattr(cpu, "unavailable_reason", lambda: "it was not built")
    with pytest.raises(RuntimeError, match="dtag_fast::refine cannot be used here: it was not"):
        torch.ops.dtag_fast.refine(*given, **options)


# Other tracers and transforms


class Acting(nn.Module):
    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic
        self.refiner = Refiner(critic, step_size=0.4)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        refined: Tensor = self.refiner(observations, actions)
        return refined


# torch 2.11's loader, of the file it has just read.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("strict", [False, True])
def test_it_can_be_exported_with_the_weights(strict: bool) -> None:
    critic = random_critic()
    acting = Acting(critic)
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(
        acting, random_batch(critic, 4), dynamic_shapes=(rows, rows), strict=strict
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert "critic.weights.0" in loaded.state_dict
    batch = random_batch(critic, 9)
    assert torch.equal(loaded.module()(*batch), acting(*batch))


def test_fake_tensors_have_the_results_shape() -> None:
    critic = random_critic()
    refiner = Refiner(critic)
    refiner(*random_batch(critic, 1))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        batch = [mode.from_tensor(tensor) for tensor in random_batch(critic, 4, 2)]
        result = refiner(*batch)
    assert isinstance(result, FakeTensor)
    assert result.shape == (4, 3)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_tracer_of_dispatched_operations_sees_it(mode: Any) -> None:
    critic = random_critic()
    refiner = Refiner(critic)
    refiner(*random_batch(critic, 1))
    call = lambda s, a: refiner(s, a)  # noqa: E731
    trace = make_fx(call, tracing_mode=mode, _allow_non_fake_inputs=True)
    program = trace(*random_batch(critic, 4))
    assert torch.ops.dtag_fast.refine.default in {node.target for node in program.graph.nodes}
    batch = random_batch(critic, 4, seed=5)
    assert torch.equal(program(*batch), refiner(*batch))


def test_vmap_adds_a_batch() -> None:
    critic = random_critic()
    refiner = Refiner(critic, step_size=0.4)
    observations, actions = random_batch(critic, 6 * 4)
    expected = refiner(observations, actions)
    folded = observations.reshape(6, 4, 5), actions.reshape(6, 4, 3)
    assert torch.equal(torch.vmap(refiner)(*folded), expected.reshape(6, 4, 3))
    assert torch.equal(torch.vmap(refiner)(observations, actions), expected)
    transposed = folded[0].transpose(0, 1)
    result = torch.vmap(refiner, in_dims=(1, None))(transposed, folded[1][0])
    assert torch.equal(result[0], expected[:4])
    assert result.shape == (6, 4, 3)


def test_it_is_a_constant_to_transforms() -> None:
    critic = random_critic()
    refiner = Refiner(critic)
    observations, actions = random_batch(critic, 4)
    gradient = torch.func.grad(lambda a: (refiner(observations, a) * a).sum())(actions)
    assert torch.equal(gradient, refiner(observations, actions))
