"""The loops of bench_act.py: the plain one, and `Policy.act` in each form; their parity and floor.

The plain loop does what the papers' evaluation code does: the history in tensors, of which each
step takes the last K; Reinformer twice through the whole model (Dragon-Zhuang/Reinformer, eval.py),
Decision Transformer once (kzl/decision-transformer, gym/evaluate_episodes.py); then Action Gradient
by autograd, n times, as `dtag_fast.reference` has it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.acting.native import Inference, Precision
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.config import ModelConfig
from dtag_fast.models.critic import Critic
from dtag_fast.models.decision_transformer import TOKENS_PER_STEP, SequenceModel, build_model
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement import reference

Floats = NDArray[np.float32]
STEPS, STEP_SIZE, TARGET = 10, 0.03, 3000.0
FLOAT = 4  # bytes
# Of actions in [-1, 1]: unrefined; refined, where a path may part at a kink of the critic.
TOLERANCE, REFINED_TOLERANCE = 2e-5, 2e-3
BF16_TOLERANCE = 0.1
PLAIN, EXACT = "plain", "plain streaming"


@dataclass(frozen=True)
class Case:
    """What acts.

    Attributes:
        name: to show.
        config: of the model.
        batch: B.
        goals: the least ratio to the plain loop, by contender.
    """

    name: str
    config: ModelConfig
    batch: int = 1
    goals: Mapping[str, float] = field(default_factory=dict)
    observation_dim: int = 17
    action_dim: int = 6

    def __str__(self) -> str:
        return f"{self.name} B{self.batch}"

    def describe(self) -> dict[str, Any]:
        """For a row."""
        config = self.config
        return {
            "case": self.name,
            "B": self.batch,
            "kind": config.kind,
            "attention": config.attention,
            "K": config.context_length,
            "blocks": config.blocks,
            "d": config.embedding_dim,
            "heads": config.attention_heads,
        }

    @property
    def predictor(self) -> TokenPredictor:
        """Of the return token."""
        return ReturnHead() if self.config.kind == "reinformer" else FixedTarget(TARGET)

    @property
    def weight_bytes(self) -> int:
        """Of the blocks, float32."""
        return FLOAT * 12 * self.config.blocks * self.config.embedding_dim**2

    def model(self) -> SequenceModel:
        """With weights at random; the same at every call."""
        torch.manual_seed(0)
        spread = np.linspace(0.5, 2.0, self.observation_dim)
        model = build_model(
            self.config,
            self.observation_dim,
            self.action_dim,
            normalizer=Normalizer(spread, spread),
        )
        with torch.no_grad():  # returns that move the action
            model.embed_return.weight *= 10.0
        return model.eval()

    def critic(self) -> Critic:
        """Twin, 256x256."""
        torch.manual_seed(1)
        return Critic(self.observation_dim, self.action_dim)


SMALL: dict[str, Any] = {"blocks": 3, "embedding_dim": 128, "context_length": 20}
DT: dict[str, Any] = {"kind": "dt", "attention_heads": 1, "block_norm": "pre", "activation": "relu"}
CASES = [
    Case("Reinformer's defaults", ModelConfig(), goals={"act": 12, "act bf16": 18}),
    Case("Reinformer's defaults", ModelConfig(), batch=64, goals={"act": 5}),
    Case("3 blocks, d=128, K=20", ModelConfig(**SMALL), goals={"act": 8}),
    Case(
        "3 blocks, d=128, K=20, streaming",
        ModelConfig(**SMALL, attention="sliding"),
        goals={"act": 40},
    ),
    Case("Decision Transformer's defaults", ModelConfig(**SMALL, **DT)),
]


class Parts(NamedTuple):
    """Seconds of a call of act: two parts by the clock, the whole by clock and processor."""

    forward: float
    refinement: float
    wall: float
    processor: float


class Loop(Protocol):
    """Acts in `batch` environments in lockstep.

    Attributes:
        parts: of each call.
    """

    parts: list[Parts]

    def begin(self) -> None:
        """An episode in each environment."""

    def act(self, observations: Floats, rewards: Floats) -> Floats:
        """Actions [B, A] for [B, S] and [B]."""
        ...


class Plain:
    """The papers' loop.

    Args:
        case: what acts.
        model: its model.
        critic: to refine with; None leaves the actions as they are.
        history: steps that the window has beside K: those that reach further back in a model
            with sliding attention.
    """

    def __init__(
        self, case: Case, model: SequenceModel, critic: Critic | None, history: int = 0
    ) -> None:
        self.case, self.model, self.critic = case, model, critic
        self.length = case.config.context_length + history
        self.parts: list[Parts] = []
        self.begin()

    def begin(self) -> None:
        case, steps = self.case, self.case.config.max_timestep
        self.observations = torch.zeros(case.batch, steps, case.observation_dim)
        self.actions = torch.zeros(case.batch, steps, case.action_dim)
        self.returns = torch.zeros(case.batch, steps)
        self.timesteps = torch.arange(steps).expand(case.batch, steps)
        self.t = 0

    def act(self, observations: Floats, rewards: Floats) -> Floats:
        begun, start, t = time.thread_time(), time.perf_counter(), self.t
        self.t += 1
        rows = torch.from_numpy(observations)
        self.observations[:, t] = rows
        if self.case.config.kind == "reinformer":
            first, first_seconds = self.forward(t)
            assert first.returns_to_go is not None
            self.returns[:, t] = first.returns_to_go[:, self.index(t)]
        else:
            first_seconds = 0.0
            before = self.returns[:, t - 1] - torch.from_numpy(rewards)
            self.returns[:, t] = before if t else TARGET
        output, seconds = self.forward(t)
        actions = output.actions[:, self.index(t)]
        refining = time.perf_counter()
        if self.critic is not None:
            actions = reference.refine(self.critic, rows, actions, steps=STEPS, step_size=STEP_SIZE)
        refined = time.perf_counter()
        actions = actions.clamp(self.model.action_low, self.model.action_high)
        self.actions[:, t] = actions
        result: Floats = actions.numpy()
        wall, processor = time.perf_counter() - start, time.thread_time() - begun
        self.parts.append(Parts(first_seconds + seconds, refined - refining, wall, processor))
        return result

    def index(self, t: int) -> int:
        """Of the current step in its window."""
        return min(t, self.length - 1)

    @torch.no_grad()
    def forward(self, t: int) -> tuple[Any, float]:
        """The model's output for the window, right padded, and the seconds it took."""
        first = max(0, t - self.length + 1)
        window = slice(first, first + self.length)
        arguments: list[Tensor] = [
            self.observations[:, window],
            self.actions[:, window],
            self.returns[:, window],
            self.timesteps[:, window],
        ]
        start = time.perf_counter()
        return self.model(*arguments), time.perf_counter() - start


class Acting:
    """`Policy.act`."""

    def __init__(self, policy: Policy, batch: int) -> None:
        self.policy, self.batch = policy, batch
        self.parts: list[Parts] = []

    def begin(self) -> None:
        self.policy.reset(self.batch)

    def act(self, observations: Floats, rewards: Floats) -> Floats:
        begun, start = time.thread_time(), time.perf_counter()
        actions = self.policy.act(observations, rewards)
        wall, processor = time.perf_counter() - start, time.thread_time() - begun
        timing = self.policy.last_timing
        assert timing is not None
        model, refinement = 1e-3 * timing.model_ms, 1e-3 * timing.refinement_ms
        self.parts.append(Parts(model, refinement, wall, processor))
        return actions


def make_loops(case: Case, refined: bool = True) -> tuple[dict[str, Loop], list[str]]:
    """The contenders by name, the plain loop first; and why any is missing."""
    critic = case.critic() if refined else None
    model = case.model()
    loops: dict[str, Loop] = {}
    if case.config.attention == "sliding":
        # The standard model of the same sizes; the streaming one's own windows are longer.
        full = replace(case, config=replace(case.config, attention="full"))
        loops[PLAIN] = Plain(full, full.model(), critic)
        loops[EXACT] = Plain(case, model, critic, case.config.history)
    else:
        loops[PLAIN] = Plain(case, model, critic)
    missing = []
    contenders: dict[str, tuple[Inference, Precision]] = {
        "act torch": ("torch", "fp32"),
        "act": ("native", "fp32"),
        "act bf16": ("native", "bf16"),
    }
    for name, (inference, precision) in contenders.items():
        try:
            policy = Policy(model, case.predictor, inference=inference, precision=precision)
        except RuntimeError as reason:
            missing.append(f"No {name} in {case}: {reason}")
            continue
        if critic is not None:
            policy = policy.with_refinement(critic, steps=STEPS, step_size=STEP_SIZE)
        loops[name] = Acting(policy, case.batch)
    return loops, missing


def measure_parity(case: Case, refined: Mapping[str, Loop]) -> dict[str, float]:
    """The largest difference of unrefined actions from the plain loop's, by contender.

    Raises:
        AssertionError: it is not rounding.
    """
    unrefined, _ = make_loops(case, refined=False)
    errors = _differences(case, unrefined)
    for name, error in errors.items():
        allowed = BF16_TOLERANCE if "bf16" in name else TOLERANCE
        assert error <= allowed, f"{case}, {name}: unrefined actions differ by {error}"
    for name, error in _differences(case, refined).items():
        allowed = BF16_TOLERANCE if "bf16" in name else REFINED_TOLERANCE
        assert error <= allowed, f"{case}, {name}: refined actions differ by {error}"
    return errors


def _differences(case: Case, loops: Mapping[str, Loop]) -> dict[str, float]:
    """Of each loop's actions from the exact plain one's, through filling and sliding windows."""
    generator = np.random.default_rng(1)
    steps = 2 * case.config.context_length + case.config.history + 3
    shape = (steps, case.batch, case.observation_dim)
    observations = generator.standard_normal(shape).astype(np.float32)
    rewards = generator.uniform(0, 5, (steps, case.batch)).astype(np.float32)
    exact = EXACT if EXACT in loops else PLAIN
    episodes = {}
    for name, loop in loops.items():
        loop.begin()
        episodes[name] = np.stack(
            [loop.act(*each).copy() for each in zip(observations, rewards, strict=True)]
        )
    assert np.ptp(episodes[exact], axis=0).min() > 0.01, "the same action always shows no parity"
    return {
        name: float(np.abs(actions - episodes[exact]).max())
        for name, actions in episodes.items()
        if name != PLAIN
    }


def forward_floor(case: Case, rate: float, bandwidth: float) -> float:
    """Microseconds of the least forward pass at so many multiply-adds and bytes a microsecond.

    Tokens go through the blocks in one group, or Reinformer's in two: all up to the observation,
    whose return the second group, one token, waits for. A group takes as long as its multiply-adds
    or as reading each weight once. In the last block the old tokens have keys and values alone.
    """
    config, square = case.config, case.config.embedding_dim**2
    window = TOKENS_PER_STEP * config.context_length
    groups = [window - 2, 1] if config.kind == "reinformer" else [window - 1]
    if config.attention == "sliding":  # the action before comes with the observation
        groups = [2, 1] if config.kind == "reinformer" else [3]
    total = 0.0
    for number, tokens in enumerate(groups):
        multiply_adds = 12 * square * tokens * (config.blocks - 1) + square * (2 * tokens + 10)
        if number == 0 and config.attention == "full":
            # Of old tokens the first block's query, key and value are known.
            multiply_adds -= 3 * square * (tokens - TOKENS_PER_STEP)
        total += max(case.batch * multiply_adds / rate, case.weight_bytes / bandwidth)
    return total
