"""What `dtag_fast.refine` remembers from call to call, and what it must not."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast import Critic, Refiner, refine
from dtag_fast.refinement import cpu, packing
from dtag_fast.refinement.parity import random_batch, random_critic

pytestmark = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=str(cpu.unavailable_reason())
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Refiner]:
    """The Refiners that were made."""
    found: list[Refiner] = []
    make = Refiner.__init__

    def counted(self: Refiner, *arguments: Any, **words: Any) -> None:
        make(self, *arguments, **words)
        found.append(self)

    monkeypatch.setattr(Refiner, "__init__", counted)
    return found


def remembered(critic: Critic) -> int:
    return len(packing._calls.get(critic, {}))


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"steps": 3, "step_size": 0.5, "optimizer": "adam", "max_distance": 0.2},
        {"bounds": (-1, 0.5), "backend": "cpu", "algorithm": "dense", "threads": 1},
        {"bounds": None, "return_info": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_the_same_words_are_checked_once(
    made: list[Refiner], words: dict[str, Any], kind: str
) -> None:
    critic = random_critic()
    refiner = Refiner(critic, **words)
    for rows in (1, 7, 1, 3):
        batch: Any = random_batch(critic, rows)
        if kind == "numpy":
            batch = tuple(array.numpy() for array in batch)
        result = refine(critic, *batch, **words)
        assert type(result) is type(batch[1])
        np.testing.assert_array_equal(result, refiner(*batch))
    assert len(made) == 2


def test_other_words_and_other_critics_are_others(made: list[Refiner]) -> None:
    one, other = random_critic(1), random_critic(2)
    batch = random_batch(one, 4)
    for _ in range(2):
        results = [
            refine(critic, *batch, step_size=step_size)
            for critic in (one, other)
            for step_size in (0.3, 0.6)
        ]
        for i, result in enumerate(results):
            assert all(not torch.equal(result, another) for another in results[:i])
    assert len(made) == 4


def test_what_is_equal_and_not_the_same_is_refused_as_ever() -> None:
    critic = random_critic()
    batch = random_batch(critic, 2)
    refine(critic, *batch, steps=1, step_size=1.0, threads=1)
    with pytest.raises(TypeError, match="steps: expected an integer"):
        refine(critic, *batch, steps=1.0, step_size=1.0, threads=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="step_size: expected a number, got True"):
        refine(critic, *batch, steps=1, step_size=True, threads=1)
    with pytest.raises(TypeError, match=r"critic: expected a torch\.nn\.Module, got list"):
        refine([], *batch, steps=1, step_size=1.0, threads=1)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="actions: expected 3 numbers a row, got 2"):
        refine(critic, batch[0], batch[1][:, :2], steps=1, step_size=1.0, threads=1)


@pytest.mark.parametrize("make", [np.array, list, torch.tensor])
def test_words_that_may_change_under_ones_hands_are_read_anew(make: Any) -> None:
    critic = random_critic()
    observations, _ = random_batch(critic, 2)
    high = make([1.0, 1.0, 1.0])
    for limit in (1.0, 0.25, 0.5):
        high[0] = limit
        actions = torch.ones(2, 3)
        result = refine(critic, observations, actions, steps=0, bounds=(-1.0, high))
        assert result[0].tolist() == [limit, 1.0, 1.0]
    assert remembered(critic) == 0


def test_so_many_are_kept_and_none_of_weights_before(made: list[Refiner]) -> None:
    critic = random_critic()
    batch = random_batch(critic, 2)
    for i in range(40):
        refine(critic, *batch, step_size=0.01 * i)
    assert remembered(critic) == 16
    assert len(made) == 40
    refine(critic, *batch, step_size=0.01 * 39)
    assert len(made) == 40
    with torch.no_grad():
        critic.weights[0].mul_(-1.0)
    changed = refine(critic, *batch, step_size=0.01)
    assert remembered(critic) == 1
    torch.testing.assert_close(
        changed, refine(critic, *batch, step_size=0.01, backend="reference"), atol=1e-5, rtol=0
    )
    critic.weights[0].data.mul_(-1.0)
    Refiner(critic).refresh()
    assert remembered(critic) == 0
    assert not torch.equal(refine(critic, *batch, step_size=0.01), changed)


def test_a_critic_is_not_kept_alive() -> None:
    critic = random_critic()
    refine(critic, *random_batch(critic, 2))
    assert remembered(critic) == 1
    gone, kept = weakref.ref(critic), len(packing._calls)
    del critic
    gc.collect()
    assert gone() is None
    assert len(packing._calls) < kept


def test_a_gpu_that_comes_into_use_is_noticed(
    made: list[Refiner], monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = random_critic()
    batch = random_batch(critic, 2)
    for used in (False, False, True, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda used=used: used)
        refine(critic, *batch)
    assert len(made) == 2
