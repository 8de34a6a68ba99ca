"""How fast a refinement could be: the least work of its algorithm at this machine's limits.

Counted are the multiply-adds that an algorithm can't do without and the bytes of weights that it
has to read, the latter once for a whole batch; the larger of the two times is the floor. Units that
ReLU has switched off cost nothing, as measured on the case's own path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dtag_fast.models.critic import LAYER_NORM_EPSILON, Critic
from dtag_fast.refinement import reference

MEASURED_ROWS = 64
FLOAT = 4  # bytes
PIECEWISE_LINEAR = ("relu", "leaky_relu")


@dataclass(frozen=True)
class Activity:
    """What a batch's path does to the hidden units; means over rows, heads and steps.

    Attributes:
        active: by hidden layer the share of units whose derivative is not 0.
        flips: by hidden layer the number of a head's units that change sign in a step.
        between: the number of a head's first-layer units that differ in sign from one starting
            point of a row to the next.
    """

    active: tuple[float, ...]
    flips: tuple[float, ...]
    between: float = 0.0

    @property
    def flips_a_step(self) -> float:
        """Of a head."""
        return sum(self.flips)


def measure_activity(
    critic: Critic, observations: Tensor, actions: Tensor, steps: int, step_size: float
) -> Activity:
    """Along the reference's path.

    Args:
        critic: any.
        observations: [B, S], of which some rows are looked at.
        actions: [B, A] or [B, N, A].
        steps: n.
        step_size: eta.
    """
    layers = range(len(critic.hidden))
    if critic.activation not in PIECEWISE_LINEAR:
        return Activity((1.0,) * len(layers), (0.0,) * len(layers))
    rows, points = observations[:MEASURED_ROWS], actions[:MEASURED_ROWS]
    starts = points.shape[1] if points.ndim == 3 else 1
    rows, points = rows.repeat_interleave(starts, dim=0), points.reshape(-1, critic.action_dim)
    path = [_signs(critic, rows, points)]
    for _ in range(steps):
        points = reference.refine(critic, rows, points, steps=1, step_size=step_size, select="last")
        path.append(_signs(critic, rows, points))
    active = [_mean(signs[layer] for signs in path) for layer in layers]
    flips = [
        width * _mean(x[layer] ^ y[layer] for x, y in itertools.pairwise(path))
        for layer, width in enumerate(critic.hidden)
    ]
    first = path[0][0].reshape(critic.heads, -1, starts, critic.hidden[0])
    between = critic.hidden[0] * _mean(
        first[:, :, i] ^ first[:, :, i - 1] for i in range(1, starts)
    )
    if critic.activation == "leaky_relu":
        active = [1.0 for _ in layers]
    return Activity(tuple(active), tuple(flips), between)


def _signs(critic: Critic, observations: Tensor, actions: Tensor) -> list[Tensor]:
    """Of every hidden layer [E, B, H]: is the unit's input to its (Leaky)ReLU above 0?"""
    found = []
    slope = critic.negative_slope if critic.activation == "leaky_relu" else 0.0
    x = torch.cat([critic.normalizer(observations), actions], dim=1)
    x = x.expand(critic.heads, *x.shape)
    with torch.no_grad():
        for layer in range(len(critic.hidden)):
            bias, weight = critic.biases[layer].unsqueeze(1), critic.weights[layer]
            z = torch.baddbmm(bias, x, weight.transpose(1, 2))
            if critic.layer_norm:
                z = F.layer_norm(z, z.shape[-1:], eps=LAYER_NORM_EPSILON)
                z = z * critic.norm_weights[layer].unsqueeze(1)
                z = z + critic.norm_biases[layer].unsqueeze(1)
            found.append(z > 0)
            x = F.leaky_relu(z, slope)
    return found


def _mean(signs: Iterable[Tensor]) -> float:
    """The share of what is true; 0 where there is nothing."""
    shares = [float(each.double().mean()) for each in signs]
    return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a refinement, the critic's apart: B, N, n, and the bytes of a weight."""

    batch: int
    starts: int
    steps: int
    weight_bytes: int  # between hidden layers: 4, or 2 of bfloat16


@dataclass(frozen=True)
class Work:
    """The least that an algorithm does for a batch."""

    multiply_adds: float
    bytes: float

    def microseconds(self, rate: float, bandwidth: float) -> float:
        """At so many multiply-adds and bytes a microsecond."""
        return max(self.multiply_adds / rate, self.bytes / bandwidth)


def dense_work(critic: Critic, activity: Activity, shape: Shape) -> Work:
    """Every candidate through all heads, every step back through the lowest one."""
    widths = [critic.action_dim, *critic.hidden]
    active = [1.0, *activity.active]
    forward = backward = read = 0.0
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        size = fan_in * fan_out
        forward += active[i] * size
        backward += active[i] * active[i + 1] * size
        stored = size * (shape.weight_bytes if i else FLOAT)
        # A row of weights is read whole or not at all, by whichever side has fewer active.
        read += stored * critic.heads * (shape.steps + 1) * active[i]
        read += stored * shape.steps * min(active[i], active[i + 1])
    forward += active[-1] * widths[-1]
    once = critic.heads * critic.observation_dim * critic.hidden[0]
    points = shape.batch * shape.starts
    return Work(
        multiply_adds=shape.batch * once
        + points * ((shape.steps + 1) * critic.heads * forward + shape.steps * backward),
        bytes=once * FLOAT + read,
    )


def walk_work(critic: Critic, activity: Activity, shape: Shape) -> Work:
    """The regions of a row once; then steps that move only the last hidden layer's inputs.

    Of the first layer's units a walk need not touch those that are far from changing their sign,
    so nothing is counted for them but the corrections of those that do.
    """
    first, last = critic.hidden[0], critic.hidden[-1]
    columns = 1 + (critic.action_dim if shape.steps else 0)  # the value and its derivatives
    regions: float = first * (critic.observation_dim + critic.action_dim)
    corrections = between = read = 0.0
    if len(critic.hidden) == 2:
        most = activity.active[0] * first * last
        regions += most * columns
        corrections = min(activity.flips[0] * last, most) * columns
        between = min(activity.between * last, most) * columns
        read = critic.heads * most * shape.weight_bytes
    move = last * critic.action_dim  # also the multiply-adds of a gradient
    value = activity.active[-1] * last
    start = critic.heads * (move + between)
    step = critic.heads * (move + value + corrections) + activity.active[-1] * move
    return Work(
        multiply_adds=shape.batch
        * (critic.heads * regions + (shape.starts - 1) * start + shape.starts * shape.steps * step),
        bytes=critic.heads * first * (critic.observation_dim + critic.action_dim) * FLOAT + read,
    )


def weights_bytes(critic: Critic, weight_bytes: int) -> int:
    """Of all heads, each matrix once: what has to fit into a cache."""
    widths = [critic.observation_dim + critic.action_dim, *critic.hidden, 1]
    sizes = [fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths)]
    return critic.heads * (FLOAT * (sizes[0] + sizes[-1]) + weight_bytes * sum(sizes[1:-1]))
