"""Who takes part in the benchmarks of refinement: the package's backends and what else there is.

The others are the loop in closed form, its gradient written out by hand: in torch operations, the
same compiled by torch.compile, and as a model for ONNX Runtime. They take ReLU critics.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.floors import Shape
from benchmarks.onnx_model import closed_form
from dtag_fast.models.critic import Critic
from dtag_fast.refinement import RefineInfo, Refiner, cpu, refine
from dtag_fast.refinement.execution import Algorithm, Precision

Call = Callable[[], Any]

KERNEL_CALLS = 20


class Missing(Exception):
    """A contender cannot take part on this machine; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way to do a case's refinement.

    Attributes:
        name: in tables.
        observations: [B, S].
        actions: [B, A] or [B, N, A].
        call: refines them, to [B, A].
        algorithm: "walk", "dense" or "autograd".
        precision: "fp32" or "bf16".
        threads: the most it may use.
        info: what the package's backends report.
        time_kernel: seconds of a few calls of the native kernel alone, where a call is so short
            that what is around it matters.
    """

    name: str
    observations: Tensor
    actions: Tensor
    call: Call
    algorithm: str
    precision: Precision = "fp32"
    threads: int = 1
    info: RefineInfo | None = None
    time_kernel: Callable[[], list[float]] | None = None

    def shape(self, steps: int) -> Shape:
        """The sizes that its work depends on."""
        return Shape(
            batch=len(self.actions),
            starts=self.actions.shape[1] if self.actions.ndim == 3 else 1,
            steps=steps,
            weight_bytes=2 if self.precision == "bf16" else 4,
        )


def make(name: str, case: Case, critic: Critic, observations: Tensor, actions: Tensor) -> Contender:
    """The contender of that name.

    Args:
        name: of `COMPETITORS`, or an algorithm of the package, "reference" or "auto" followed by
            words of its own: "bf16", "numpy" (arrays in and out), "two threads", "by
            refine" (all in one call; the others make a Refiner before).
        case: says how many steps and how long.
        critic: the case's.
        observations: [B, S].
        actions: [B, A], or of the package's own [B, N, A].

    Raises:
        Missing: it needs something that is not here.
    """
    if name in COMPETITORS:
        call = COMPETITORS[name](case, critic, observations, actions)
        return Contender(name, observations, actions, call, "dense")
    word, _, rest = name.partition(" ")
    execution: dict[str, Any] = {"backend": "reference"}
    if word != "reference":
        execution = {
            "backend": "cpu",
            "algorithm": cast(Algorithm, word),
            "precision": "bf16" if rest == "bf16" else "fp32",
            "threads": 2 if rest == "two threads" else 1,
        }
    options: dict[str, Any] = {"steps": case.steps, "step_size": case.step_size}
    try:
        refiner = Refiner(critic, **options, **execution)
    except RuntimeError as reason:
        raise Missing(str(reason)) from reason
    inputs: tuple[Any, Any] = (observations, actions)
    _, info = Refiner(critic, **options, **execution, return_info=True)(*inputs)
    timer = None
    if refiner.backend == "cpu" and len(actions) == 1:
        timer = kernel_timer(refiner, observations, actions)
    if rest == "numpy":
        inputs = observations.numpy(), actions.numpy()
    to_refine: Call = functools.partial(refiner, *inputs)
    if rest == "by refine":
        to_refine = functools.partial(refine, critic, *inputs, **options, **execution)
    return Contender(
        name,
        observations,
        actions,
        to_refine,
        info.algorithm,
        execution.get("precision", "fp32"),
        execution.get("threads", 1),
        info,
        None if timer is None else functools.partial(timer, KERNEL_CALLS),
    )


def kernel_timer(
    refiner: Refiner, observations: Tensor, actions: Tensor
) -> Callable[[int], list[float]]:
    """A function that times so many calls of the native kernel alone, in seconds.

    Args:
        refiner: of the backend "cpu", with a number of threads.
        observations: [B, S].
        actions: [B, A] or [B, N, A].
    """
    execution = refiner.execution
    packed = cpu.pack(refiner.critic, execution.precision)
    options = cpu.native_options(refiner.options, actions.shape[-1])
    native = importlib.import_module("dtag_fast._native")

    def timed(calls: int) -> list[float]:
        seconds: list[float] = native.time_kernel(
            packed,
            options,
            execution.algorithm,
            execution.threads,
            len(actions),
            actions.shape[1] if actions.ndim == 3 else 1,
            observations.data_ptr(),
            actions.data_ptr(),
            calls,
        )
        return seconds

    return timed


def hand_vjp(critic: Critic, steps: int, step_size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Plain steps inside [-1, 1], the lowest head's gradient, the best candidate; no autograd."""
    weights = [weight.detach() for weight in critic.weights]  # [E, out, in]
    biases = [bias.detach().unsqueeze(1) for bias in critic.biases]  # [E, 1, out]
    mean, std = critic.normalizer.mean, critic.normalizer.std
    heads = torch.arange(critic.heads).unsqueeze(1)
    split = critic.observation_dim
    from_observations = weights[0][:, :, :split].transpose(1, 2).contiguous()
    to_actions = weights[0][:, :, split:].contiguous()
    forth = [to_actions, *weights[1:]]
    forth = [weight.transpose(1, 2).contiguous() for weight in forth]

    def refine(observations: Tensor, actions: Tensor) -> Tensor:
        standardised = ((observations - mean) / std).expand(critic.heads, -1, -1)
        observed = torch.baddbmm(biases[0], standardised, from_observations)
        action = best = actions.clamp(-1.0, 1.0)
        best_q = torch.empty(0)
        for step in range(steps + 1):
            z = [torch.baddbmm(observed, action.expand(critic.heads, -1, -1), forth[0])]
            for bias, weight in zip(biases[1:], forth[1:], strict=True):
                z.append(torch.baddbmm(bias, z[-1].relu(), weight))
            q, lowest = z.pop().squeeze(-1).min(dim=0)  # [B]
            if step == 0:
                best_q = q
            else:
                better = q > best_q
                best_q = torch.where(better, q, best_q)
                best = torch.where(better.unsqueeze(1), action, best)
            if step == steps:
                break
            chosen = (heads == lowest).unsqueeze(2)  # [E, B, 1]
            d = torch.where((z.pop() > 0) & chosen, weights[-1], 0.0)
            for weight in weights[-2:0:-1]:
                d = torch.bmm(d, weight) * (z.pop() > 0)
            gradient = torch.bmm(d, to_actions).sum(dim=0)
            action = (action + step_size * gradient).clamp(-1.0, 1.0)
        return best

    return refine


def _hand_vjp(case: Case, critic: Critic, observations: Tensor, actions: Tensor) -> Call:
    refine = hand_vjp(critic, case.steps, case.step_size)
    return functools.partial(refine, observations, actions)


def _compiled(case: Case, critic: Critic, observations: Tensor, actions: Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config

        config.compile_threads = 1  # in this process: no workers to wait for
        torch._dynamo.reset()
        refine = torch.compile(hand_vjp(critic, case.steps, case.step_size), dynamic=False)
        try:
            refine(observations, actions)
        except Exception as error:  # no compiler, among other things
            raise Missing(f"torch.compile: {str(error).splitlines()[0]}") from error
    return functools.partial(refine, observations, actions)


def _onnx(case: Case, critic: Critic, observations: Tensor, actions: Tensor) -> Call:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise Missing("onnxruntime is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = closed_form(critic, len(observations), case.steps, case.step_size)
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    inputs = {"observations": observations.numpy(), "actions": actions.numpy()}
    return lambda: session.run(None, inputs)[0]


COMPETITORS: dict[str, Callable[[Case, Critic, Tensor, Tensor], Call]] = {
    "hand VJP": _hand_vjp,
    "compiled VJP": _compiled,
    "ONNX Runtime": _onnx,
}
