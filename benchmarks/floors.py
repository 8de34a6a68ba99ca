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

from benchmarks import limits
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
        built: the number of a head's first-layer units by which the linear region where a path
            starts differs from one that is known: the one without active units, or the critic's
            home region, in which units have the signs of their biases.
        between: the number of a head's first-layer units that differ in sign from one starting
            point of a row to the next.
    """

    active: tuple[float, ...]
    flips: tuple[float, ...]
    built: float
    between: float

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
        return Activity((1.0,) * len(layers), (0.0,) * len(layers), 0.0, 0.0)
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
    away = (path[0][0] ^ (critic.biases[0] > 0).unsqueeze(1)).sum(dim=2)  # [E, B]
    on = path[0][0].sum(dim=2) if critic.activation == "relu" else torch.tensor(critic.hidden[0])
    built = float(torch.minimum(away, on).double().mean())
    first = path[0][0].reshape(critic.heads, -1, starts, critic.hidden[0])
    between = critic.hidden[0] * _mean(
        first[:, :, i] ^ first[:, :, i - 1] for i in range(1, starts)
    )
    if critic.activation == "leaky_relu":
        active = [1.0 for _ in layers]
    return Activity(tuple(active), tuple(flips), built, between)


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
    """The least that an algorithm does for a batch.

    Attributes:
        multiply_adds: their number.
        bytes: of weights that are read.
        level: the cache they are read from: the smallest that holds those of one candidate.
    """

    multiply_adds: float
    bytes: float
    level: str

    def microseconds(self, rate: float, bandwidth: float) -> float:
        """At so many multiply-adds and bytes a microsecond."""
        return max(self.multiply_adds / rate, self.bytes / bandwidth)


def dense_work(critic: Critic, activity: Activity, shape: Shape) -> Work:
    """Every candidate through all heads, every step back through the lowest one."""
    widths = [critic.action_dim, *critic.hidden]
    active = [1.0, *activity.active]
    forward = active[-1] * widths[-1]
    backward = read_forward = read_back = 0.0
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        size = fan_in * fan_out
        forward += active[i] * size
        backward += active[i] * active[i + 1] * size
        # A row of weights is read whole or not at all, by whichever side has fewer active.
        stored = size * (shape.weight_bytes if i else FLOAT)
        read_forward += stored * active[i] * critic.heads
        read_back += stored * min(active[i], active[i + 1])
    once = critic.heads * critic.observation_dim * critic.hidden[0]
    points, candidates = shape.batch * shape.starts, shape.steps + 1
    return Work(
        multiply_adds=shape.batch * once
        + points * (candidates * critic.heads * forward + shape.steps * backward),
        bytes=once * FLOAT + candidates * read_forward + shape.steps * read_back,
        level=limits.level_of(int(read_forward)),
    )


def walk_work(critic: Critic, activity: Activity, shape: Shape) -> Work:
    """The regions of a row once; then steps that move only the last hidden layer's inputs.

    Of the units below it a walk need not touch those that are far from changing their sign, so
    nothing is counted for them but the corrections of those that do. Where many do in a step, the
    full network is cheaper.
    """
    columns = 1 + (critic.action_dim if shape.steps else 0)  # a map's value and derivatives
    inputs = critic.observation_dim + critic.action_dim
    last, on = critic.hidden[-1], activity.active
    regions: float = critic.hidden[0] * inputs
    read: float = regions * FLOAT
    corrections = between = network = 0.0
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(critic.hidden)):
        rows = on[i] * fan_in if i else activity.built
        regions += rows * fan_out * columns
        read += rows * fan_out * shape.weight_bytes
        corrections += activity.flips[i] * fan_out * columns
        between += (0.0 if i else activity.between) * fan_out * columns
        if i:  # what a change in the layer below adds to this one's inputs
            corrections += activity.flips[i - 1] * rows * fan_out
            between += activity.between * rows * fan_out
        network += on[i] * fan_in * fan_out * (1 + on[i + 1] / critic.heads)
    move = last * critic.action_dim  # also the multiply-adds of a gradient
    start = move + min(between, regions)
    step = move + on[-1] * (last + move / critic.heads) + min(corrections, network)
    steps = shape.starts * shape.steps * step
    return Work(
        multiply_adds=shape.batch * critic.heads * (regions + (shape.starts - 1) * start + steps),
        bytes=critic.heads * read,
        level=limits.level_of(int(critic.heads * read)),
    )
