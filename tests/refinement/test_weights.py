"""Point 12 of the contract: weights that change between calls, and what holds on to them."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Normalizer, Refiner, refine
from dtag_fast.refinement.parity import random_batch, random_critic

How = Callable[[Critic], dict[str, Any]]


def test_changed_weights_are_noticed(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic)
    few: dict[str, Any] = {"steps": 3, "step_size": 0.5}
    refiner = Refiner(critic, **how(critic), **few)

    def check() -> None:
        expected = dtag_fast.reference.refine(critic, observations, actions, **few)
        assert not torch.equal(expected, previous[-1])
        previous.append(expected)
        torch.testing.assert_close(refiner(observations, actions), expected, atol=1e-5, rtol=0)
        result = refine(critic, observations, actions, **how(critic), **few)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    previous = [actions]
    check()
    with torch.no_grad():
        critic.weights[0].mul_(-1.0)
    check()
    critic.load_state_dict(random_critic(7).state_dict())
    check()
    for fused in (False, True):
        optimizer = torch.optim.Adam(critic.parameters(), 0.1, fused=fused)
        critic(observations, actions).sum().backward()
        optimizer.step()
        check()
    with torch.no_grad():
        torch._foreach_lerp_(list(critic.parameters()), list(random_critic(8).parameters()), 0.5)
    check()
    critic.weights[1] = nn.Parameter(random_critic(9).weights[1].detach())
    check()
    critic.normalizer = Normalizer(torch.ones(5), torch.full((5,), 0.5))
    check()
    critic.weights[0].data = critic.weights[0].data * -1.0
    check()
    critic.weights[0].data.mul_(-1.0)
    refiner.refresh()
    check()


def test_packing_does_not_keep_a_critic_alive(how: How) -> None:
    critic = random_critic()
    refine(critic, *random_batch(critic), **how(critic))
    alive = weakref.ref(critic)
    del critic
    gc.collect()
    assert alive() is None


def test_a_refiner_serves_many_threads(how: How) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 64)
    refiner = Refiner(critic, **how(critic), steps=3, step_size=0.5)
    expected = refiner(observations, actions)
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            results[i] = refiner(observations[i::8], actions[i::8])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        torch.testing.assert_close(results[i], expected[i::8], atol=1e-5, rtol=0)
