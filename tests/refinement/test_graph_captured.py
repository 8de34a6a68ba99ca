"""The graph backend's CUDA graphs: what is around them, with a stand-in for capturing; then the
real ones, on a GPU.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dtag_fast import Refiner, refine
from dtag_fast.refinement import cuda_graph, graph
from dtag_fast.refinement.loop import Refined
from dtag_fast.refinement.parity import measure_parity, random_batch, random_critic
from tests.refinement.comparison import assert_equals_reference, attention, needs_compiler

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own


class Stream:
    def wait_event(self, event: object) -> None: ...


class Event:
    def record(self, stream: object) -> None: ...


@pytest.fixture
def captures(record: list[int], monkeypatch: pytest.MonkeyPatch) -> list[Refined]:
    """Graphs are captured on the CPU: what they do is done again, into the same places."""
    found: list[Refined] = []

    def capture(
        function: Callable[[], Refined], device: torch.device
    ) -> tuple[Callable[[], None], Refined]:
        places = function()
        found.append(places)

        def replay() -> None:
            for place, value in zip(places, function(), strict=True):
                place.copy_(value)

        return replay, places

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(graph, "_captures", lambda device: True)
    return found


def test_calls_share_a_captured_graph(captures: list[Refined]) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 8)
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    whole = refiner(observations, actions)
    assert torch.equal(refiner(observations[:5], actions[:5]), whole[:5])
    later = refiner(-observations, actions)
    assert not torch.equal(later, whole)
    assert torch.equal(refiner(observations, actions), whole)  # results are not overwritten
    assert_equals_reference(critic, (observations, actions), step_size=0.5)
    assert len(captures) == 1
    refine(critic, observations, actions, backend="graph", step_size=0.25)
    assert len(captures) == 2
    refine(random_critic(), observations, actions, backend="graph", step_size=0.5)
    assert len(captures) == 3


def test_a_graph_reads_weights_where_they_lie(captures: list[Refined]) -> None:
    critic = random_critic()
    batch = random_batch(critic, 8)
    for change, count in (
        (lambda: None, 1),
        (lambda: critic.weights[0].mul_(-1), 1),
        (lambda: critic.load_state_dict(random_critic(3).state_dict()), 1),
        (lambda: critic.weights[0].data.mul_(0.5), 1),
        (lambda: setattr(critic.weights[0], "data", critic.weights[0].data * 2), 2),
        (lambda: setattr(critic.normalizer, "std", critic.normalizer.std * 2), 3),
    ):
        with torch.no_grad():
            change()
        assert_equals_reference(critic, batch, step_size=0.5)
        assert len(captures) == count


@pytest.mark.parametrize("make", [random_critic, attention])
def test_a_fast_call_replays_what_there_is(
    captures: list[Refined], make: Callable[[], nn.Module]
) -> None:
    critic = make()
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    observations, actions = random_batch(random_critic(), 8)
    several = torch.stack([actions, -actions], dim=1)
    sizes = [(observations, actions), (observations, several), (observations[0], actions[0])]
    for given in sizes:
        expected = refiner(*given)
        assert torch.equal(refiner._fast(*given), expected)
        kept = refiner._fast(*given)
        refiner._fast(-given[0], given[1])
        assert torch.equal(kept, expected)  # results are not overwritten
        if given[0].ndim == 2:
            assert torch.equal(refiner._fast(given[0][:5], given[1][:5]), expected[:5])
        if given[1].ndim < 3:
            assert not refiner._fast(given[0], given[1].clone().requires_grad_()).requires_grad
        with torch.inference_mode():
            assert not refiner._fast(*given).is_inference()
    assert len(captures) == len(sizes)
    # What has no graph yet, and what would not be what the graph does.
    assert refiner._fast(observations[:1].repeat(9, 1), actions[:1].repeat(9, 1)) is NotImplemented
    expected = refiner(observations, actions)
    for _ in range(2):
        critic.train(not critic.training)  # with dropout, that of `attention`
        if make is attention:
            assert refiner._fast(observations, actions) is NotImplemented
        refiner(observations, actions)
        assert refiner._fast(observations, actions) is not NotImplemented
    assert torch.equal(refiner._fast(observations, actions), expected)


def test_a_fast_call_sees_new_weights(captures: list[Refined]) -> None:
    critic = random_critic()
    batch = random_batch(critic, 8)
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    before = refiner(*batch)
    critic.weights[0].data.mul_(-1)  # not noticed, but read where they lie
    changed = refiner._fast(*batch)
    assert not torch.equal(changed, before)
    with torch.no_grad():
        critic.weights[0].mul_(-1)
    assert refiner._fast(*batch) is NotImplemented
    assert torch.equal(refiner(*batch), before)
    assert torch.equal(refiner._fast(*batch), before)
    assert len(captures) == 1
    critic.weights[0] = nn.Parameter(critic.weights[0].detach() * -1)
    assert torch.equal(refiner(*batch), changed)
    assert torch.equal(refiner._fast(*batch), changed)
    assert len(captures) == 2


def test_graphs_are_bounded_and_die_with_their_critic(
    captures: list[Refined], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "MOST_LOOPS", 2)
    critic = random_critic()
    for batch in (1, 2, 4, 1, 1):
        assert_equals_reference(critic, random_batch(critic, batch))
        assert len(graph._loops[critic]) <= 2
    assert len(captures) == 4
    (first, *_) = graph._loops[critic].values()
    held, alive = weakref.ref(first), weakref.ref(critic)
    del critic, first
    gc.collect()
    assert alive() is None
    assert held() is None


def test_inside_a_callers_capture_the_loop_is_part_of_it(
    captures: list[Refined], monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = random_critic()
    batch = random_batch(critic, 3)
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    expected = refiner(*batch)
    assert torch.equal(refiner._fast(*batch), expected)
    before = len(captures)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        patch.setattr(cuda_graph.Captured, "_run", lambda *_: pytest.fail("a replay in a capture"))
        assert refiner._fast(*batch) is NotImplemented
        assert torch.equal(refiner(*batch), expected)
        assert_equals_reference(critic, batch)
    assert len(captures) == before


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@needs_compiler
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_on_a_gpu(batch: int) -> None:
    for critic in (random_critic().cuda(), attention().cuda()):
        observations, actions = (t.cuda() for t in random_batch(random_critic(), batch))
        parity = measure_parity(critic, observations, actions, backend="graph", step_size=0.1)
        assert parity.holds, parity
        assert Refiner(critic).backend in ("cuda", "triton", "graph")
        assert_equals_reference(critic, (observations, actions))
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.mul_(1.1)
        graphs = len(graph._loops[critic])
        assert_equals_reference(critic, (observations, actions))
        assert len(graph._loops[critic]) == graphs


@pytest.mark.gpu
@needs_gpu
@needs_compiler
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # torch's own
def test_on_a_gpu_nothing_waits_for_it() -> None:
    critic = random_critic().cuda()
    batch = tuple(t.cuda() for t in random_batch(critic.cpu(), 4))
    critic.cuda()
    refiner = Refiner(critic, backend="graph")
    expected = refiner(*batch)
    try:
        torch.cuda.set_sync_debug_mode("error")
        result = refiner(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result, expected)


@pytest.mark.gpu
@needs_gpu
@needs_compiler
def test_on_a_gpu_streams_take_turns_and_callers_capture() -> None:
    critic = random_critic(hidden=(64, 64)).cuda()
    observations, actions = (t.cuda() for t in random_batch(random_critic(), 64))
    refiner = Refiner(critic, backend="graph", step_size=0.5)
    expected = refiner(observations, actions)
    results: dict[int, Tensor] = {}

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(20):
                results[i] = refiner(observations.roll(i, 0), actions.roll(i, 0)).roll(-i, 0)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    for result in results.values():
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)

    outer = torch.cuda.CUDAGraph()
    with torch.cuda.graph(outer):
        inside = refiner(observations, actions * 0.5)
    outer.replay()
    torch.testing.assert_close(inside, refiner(observations, actions * 0.5), atol=1e-5, rtol=0)
