"""The fast call of the cpu backend: what takes it, that it changes nothing, and what it notices."""

from __future__ import annotations

import copy
import gc
import pickle
import resource
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Normalizer, Refiner
from dtag_fast.refinement import cpu
from dtag_fast.refinement.execution import Algorithm
from dtag_fast.refinement.parity import random_batch, random_critic

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)


@pytest.fixture(params=["exchange", "attributes"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How tensors cross: by DLPack's exchange API, or attribute by attribute as in older torch."""
    use_exchange_api = cpu._load().use_exchange_api
    if use_exchange_api(request.param == "exchange") != (request.param == "exchange"):
        pytest.skip("this torch has no exchange API")
    yield
    use_exchange_api(True)


def ready(critic: Critic, **options: Any) -> Refiner:
    """A Refiner that has been called before."""
    refiner = Refiner(critic, backend="cpu", **options)
    refiner(*random_batch(critic, 1))
    return refiner


def is_fast(refiner: Refiner, observations: Any, actions: Any) -> bool:
    return refiner._fast(observations, actions) is not NotImplemented


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("algorithm", ["auto", "dense"])
def test_it_equals_the_normal_call(kind: str, algorithm: Algorithm) -> None:
    critic = random_critic(normalizer=Normalizer(torch.randn(5), torch.rand(5) + 0.5))
    refiner = ready(critic, step_size=0.4, algorithm=algorithm, bounds=([-1, -0.5, 0], 1.0))
    observations, actions = random_batch(critic, 40, 3)
    for given in (
        (observations[0], actions[0, 0]),
        (observations[:1], actions[:1, 0]),
        (observations[:1], actions[:1]),
        (observations, actions[:, 0].contiguous()),
        (observations, actions),
    ):
        arrays: Any = given if kind == "torch" else tuple(tensor.numpy() for tensor in given)
        before = copy.deepcopy(arrays)
        assert is_fast(refiner, *arrays)
        result, expected = refiner(*arrays), refiner._call(*arrays)
        assert type(result) is type(expected)
        assert result.shape == expected.shape == (*given[0].shape[:-1], 3)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
        result += 1.0
        for array, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, old)


def test_the_result_is_an_ordinary_tensor() -> None:
    critic = random_critic()
    refiner = ready(critic)
    observations, actions = random_batch(critic, 6)
    result = refiner(observations, actions.clone().requires_grad_())
    assert not result.requires_grad
    assert result.is_leaf
    assert result.is_contiguous()
    result.requires_grad_().square().sum().backward()
    assert torch.equal(result.grad, 2 * result)
    with torch.inference_mode():
        assert is_fast(refiner, observations + 0, actions + 0)
        inside = refiner(observations + 0, actions + 0)
        assert inside.is_inference()
    assert torch.equal(inside, result)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(refiner(observations, actions), result)
    finally:
        torch.set_default_dtype(torch.float32)


def test_results_are_freed() -> None:
    critic = Critic(1, 512, hidden=())
    refiner = ready(critic, steps=0)
    observations, actions = random_batch(critic, 2048)  # results of 4 MB
    arrays: tuple[Any, ...]
    for arrays in ((observations, actions), (observations.numpy(), actions.numpy())):
        assert is_fast(refiner, *arrays)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(100):
            refiner(*arrays)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kB


class Tagged(Tensor):
    pass


def out_of_the_ordinary(observations: Tensor, actions: Tensor) -> dict[str, tuple[Any, Any]]:
    bytes_ = np.zeros(actions.numel() * 4 + 1, np.uint8)[1:]
    unaligned = bytes_.view(np.float32).reshape(actions.shape)
    unaligned[:] = actions.numpy()
    return {
        "float64": (observations, actions.double()),
        "half": (observations.half(), actions),
        "order": (observations.T.contiguous().T, actions),
        "expanded": (observations, actions[:1].expand(len(actions), -1)),
        "negated": (observations, torch._neg_view(actions)),
        "conjugate": (observations, torch.complex(actions, -actions).conj().imag),
        "subclass": (observations, actions.as_subclass(Tagged)),
        "parameter": (observations, nn.Parameter(actions)),
        "no rows": (observations[:0], actions[:0]),
        "numpy float64": (observations.numpy().astype(np.float64), actions.numpy()),
        "numpy order": (observations.numpy(), np.asfortranarray(actions.numpy())),
        "numpy bytes": (observations.numpy(), actions.numpy().astype(">f4")),
        "numpy masked": (observations.numpy(), np.ma.array(actions.numpy())),
        "numpy unaligned": (observations.numpy(), unaligned),
    }


@pytest.mark.parametrize("case", out_of_the_ordinary(torch.zeros(2, 2), torch.zeros(2, 2)))
def test_what_is_out_of_the_ordinary_takes_the_normal_way(case: str) -> None:
    critic = random_critic()
    refiner = ready(critic, step_size=0.4)
    observations, actions = out_of_the_ordinary(*random_batch(critic, 7))[case]
    assert not is_fast(refiner, observations, actions)
    result = refiner(observations, actions)
    plain = [
        torch.tensor(np.asarray(array, np.float32))
        if isinstance(array, np.ndarray)
        else array.detach().as_subclass(Tensor).resolve_neg().float()
        for array in (observations, actions)
    ]
    expected = dtag_fast.reference.refine(critic, *plain, step_size=0.4)
    np.testing.assert_allclose(
        np.asarray(result, np.float32), expected.numpy(), atol=1e-3 if case == "half" else 1e-5
    )


def test_errors_are_those_of_the_first_call() -> None:
    critic = random_critic()
    refiner = ready(critic)
    for shapes in (
        ((3, 4), (3, 3)),
        ((3, 5), (3, 2)),
        ((3, 5), (2, 3)),
        ((5,), (1, 3)),
        ((1, 5), (3,)),
        ((1, 3, 5), (1, 3)),
        ((3, 5), (3, 0, 3)),
        ((3, 5), (3, 1, 1, 3)),
        ((), ()),
    ):
        tensors = [torch.zeros(shape) for shape in shapes]
        given: Any
        for given in (tensors, [tensor.numpy() for tensor in tensors]):
            messages = []
            for call in (refiner, Refiner(critic, backend="cpu")):
                with pytest.raises(ValueError, match="expected") as caught:
                    call(*given)
                messages.append(str(caught.value))
            assert messages[0] == messages[1]
    mixed: Any = (torch.zeros(3, 5), np.zeros((3, 3), np.float32))
    with pytest.raises(TypeError, match="both torch tensors or both numpy arrays"):
        refiner(*mixed)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        refiner(torch.zeros(3, 5))  # type: ignore[call-arg]


# Weights


def changes(critic: Critic) -> dict[str, Any]:
    """Ways to change the weights, each a function."""

    def step(**options: Any) -> None:
        optimizer = torch.optim.Adam(critic.parameters(), 0.05, **options)
        critic(*random_batch(critic)).sum().backward()
        optimizer.step()

    def replace() -> None:
        critic.biases[0] = nn.Parameter(critic.biases[0].detach() - 0.1)

    def swap() -> None:
        other = nn.Parameter(critic.weights[0].detach() * 0.9)
        torch.utils.swap_tensors(critic.weights[0], other)  # type: ignore[no-untyped-call]

    def replace_twice() -> None:
        replace()
        replace()

    return {
        "in place": lambda: critic.weights[0].mul_(0.9),
        "step": step,
        "fused step": lambda: step(fused=True),
        "other memory": lambda: setattr(critic.weights[1], "data", critic.weights[1].data * 0.9),
        "another parameter": replace,
        "two others": replace_twice,
        "swapped": swap,
        "another list": lambda: setattr(
            critic, "biases", nn.ParameterList([b.detach() - 0.1 for b in critic.biases])
        ),
        "another normaliser": lambda: setattr(
            critic, "normalizer", Normalizer(torch.ones(5), critic.normalizer.std * 2)
        ),
        "buffer in place": lambda: critic.normalizer.mean.add_(0.5),
        "another buffer": lambda: setattr(critic.normalizer, "std", critic.normalizer.std * 2),
        "loaded": lambda: critic.load_state_dict(random_critic(3).state_dict()),
        "assigned": lambda: critic.load_state_dict(random_critic(4).state_dict(), assign=True),
        "vector": lambda: nn.utils.vector_to_parameters(
            nn.utils.parameters_to_vector(critic.parameters()) * 0.9, critic.parameters()
        ),
    }


@pytest.mark.parametrize("change", changes(random_critic()))
def test_a_change_of_weights_is_noticed(change: str) -> None:
    critic = random_critic(normalizer=Normalizer(torch.zeros(5), torch.ones(5)))
    refiner = ready(critic, step_size=0.4)
    batch = random_batch(critic, 9)
    apply = changes(critic)[change]
    for _ in range(3):
        before = refiner(*batch)
        assert is_fast(refiner, *batch)
        with torch.no_grad() if "step" not in change else torch.enable_grad():
            apply()
        assert not is_fast(refiner, *batch)
        result = refiner(*batch)
        expected = dtag_fast.reference.refine(critic, *batch, step_size=0.4)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
        assert change in ("loaded", "assigned") or not torch.equal(result, before)
        assert is_fast(refiner, *batch)


def test_refresh_reaches_every_refiner_of_the_critic() -> None:
    critic = random_critic()
    batch = random_batch(critic)
    first, second = ready(critic, step_size=0.4), ready(critic, step_size=0.5)
    critic.weights[0].detach().numpy()[:] *= 0.5
    assert is_fast(second, *batch)  # nothing was seen
    first.refresh()
    assert not is_fast(second, *batch)
    expected = dtag_fast.reference.refine(critic, *batch, step_size=0.5)
    torch.testing.assert_close(second(*batch), expected, atol=1e-5, rtol=0)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        critic = random_critic()
    batch = random_batch(critic)
    refiner = ready(critic)
    assert is_fast(refiner, *batch)
    other = nn.Parameter(critic.weights[0].detach().clone() * 0.5)
    critic.weights[0] = other
    assert not is_fast(refiner, *batch)


def test_nothing_is_kept_alive() -> None:
    class Trainer:
        def __init__(self, critic: Critic) -> None:
            self.critic = critic
            self.refiner = ready(critic)
            critic.normalizer.trainer = self  # type: ignore[assignment]

        def hook(self, gradient: Tensor) -> None: ...

    critic = random_critic()
    trainer = Trainer(critic)
    critic.weights[0].register_hook(trainer.hook)
    assert is_fast(trainer.refiner, *random_batch(critic))
    alive = weakref.ref(critic)
    replaced = weakref.ref(critic.biases[0])
    critic.biases[0] = nn.Parameter(critic.biases[0].detach().clone())
    assert replaced() is None
    del critic, trainer
    gc.collect()
    assert alive() is None


def test_a_refiner_can_be_copied_and_pickled() -> None:
    critic = random_critic()
    batch = random_batch(critic)
    refiner = ready(critic, step_size=0.4)
    for other in (copy.copy(refiner), copy.deepcopy(refiner), pickle.loads(pickle.dumps(refiner))):
        assert torch.equal(other(*batch), refiner(*batch))
        assert other.options == refiner.options
    assert copy.copy(refiner).critic is critic
    assert is_fast(refiner, *batch)


# Threads


def test_many_threads_call_while_another_trains() -> None:
    critic = random_critic(hidden=(64, 64))
    batch = random_batch(critic, 8)
    refiner = ready(critic)
    stop = threading.Event()
    errors: list[Exception] = []

    def work() -> None:
        try:
            while not stop.is_set():
                assert refiner(*batch).abs().max() <= 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        critic(*batch).square().mean().backward()
        optimizer.step()
        critic.weights[0] = nn.Parameter(critic.weights[0].detach().clone())
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    expected = dtag_fast.reference.refine(critic, *batch)
    torch.testing.assert_close(refiner(*batch), expected, atol=1e-5, rtol=0)


def test_other_python_threads_run_meanwhile() -> None:
    critic = random_critic(observation_dim=17, action_dim=6, hidden=(256, 256))
    refiner = ready(critic, steps=400, algorithm="dense", threads=1)
    batch = random_batch(critic, 256)
    assert refiner._fast is not None
    worker = threading.Thread(target=refiner, args=batch)
    worker.start()
    time.sleep(0.02)  # would last as long as the refinement, if that kept the interpreter
    assert worker.is_alive()
    worker.join()


def test_the_kernel_alone_can_be_timed() -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 3)
    options = cpu.native_options(Refiner(critic).options, 3)
    addresses = (observations.data_ptr(), actions.data_ptr())
    for algorithm in ("auto", "dense"):
        seconds = cpu._load().time_kernel(
            cpu.pack(critic), options, algorithm, 1, 3, 1, *addresses, 7
        )
        assert len(seconds) == 7
        assert all(0 < each < 1 for each in seconds)
