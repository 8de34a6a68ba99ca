"""A critic's weights in the layouts of the kernels, and what these are compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement.execution import Precision
from dtag_fast.refinement.options import RefineOptions
from dtag_fast.refinement.triton_kernels.launch import compiler_options, interpreted

MOST_IN_REGISTERS = 32768  # numbers of the walk's maps, of all heads, each with 1 + A columns
LARGEST = 1e36  # product of weights of all layers; the largest float32 is 3.4e38
WEIGHT_TILE = 4096  # numbers of a weight matrix that a program loads at a time
WARP = 32  # threads
MOST_WARPS = 16


@dataclass(frozen=True)
class Packed:
    """A critic's weights as the kernels take them, and what they are compiled for.

    Attributes:
        observation_dim, action_dim, heads, layers: S, A, E and L; a linear critic has one hidden
            layer of one unit, the identity.
        activation, negative_slope: between layers.
        precision: of the matrices between hidden layers and of the products with them.
        width: H, that of the widest hidden layer, padded.
        actions: A', the padded A.
        why_no_walk: the reason, or None where the critic can be walked.
        weights: in the order of the dense kernel's arguments.
    """

    observation_dim: int
    action_dim: int
    heads: int
    layers: int
    activation: str
    negative_slope: float
    precision: Precision
    width: int
    actions: int
    why_no_walk: str | None
    weights: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.weights[0].device


def pack(critic: nn.Module, precision: Precision = "fp32") -> Packed:
    """A copy of the weights in the kernels' layouts; it does not keep the critic alive.

    With "bf16" the weights between hidden layers are rounded to bfloat16.
    """
    assert isinstance(critic, Critic)
    with torch.inference_mode(False), torch.no_grad():
        weights = [weight.detach() for weight in critic.weights]
        biases = [bias.detach() for bias in critic.biases]
        activation = critic.activation
        if not critic.hidden:
            activation = "identity"
            weights.append(torch.ones_like(weights[0][:, :, :1]))
            biases.append(torch.zeros_like(biases[0]))
        layers = len(weights) - 1
        heads, observation_dim = critic.heads, critic.observation_dim
        width = _padded(max(weight.shape[1] for weight in weights[:-1]))
        actions = _padded(critic.action_dim)
        first = weights[0]
        to_action = first.new_zeros(heads, actions, width)
        to_action[:, : critic.action_dim, : first.shape[1]] = first[:, :, observation_dim:].mT
        observed = first.new_zeros(heads, observation_dim, width)
        observed[:, :, : first.shape[1]] = first[:, :, :observation_dim].mT
        inner = first.new_zeros(max(layers - 1, 1), heads, width, width)
        bias = first.new_zeros(layers, heads, width)
        for layer in range(layers):
            out, inputs = weights[layer].shape[1:]
            bias[layer, :, :out] = biases[layer]
            if layer > 0:
                inner[layer - 1, :, :out, :inputs] = weights[layer]
        output = first.new_zeros(heads, width)
        output[:, : weights[-1].shape[2]] = weights[-1][:, 0]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        mean, std = critic.normalizer.mean, critic.normalizer.std
        widths = [weight.shape[1] for weight in weights[:-1]]
        return Packed(
            observation_dim=observation_dim,
            action_dim=critic.action_dim,
            heads=heads,
            layers=layers,
            activation=activation,
            negative_slope=critic.negative_slope if activation == "leaky_relu" else 0.0,
            precision=precision,
            width=width,
            actions=actions,
            why_no_walk=why_no_walk(critic) or _why_not_finite(weights, observation_dim),
            weights=(
                torch.stack([mean, std]),
                observed,
                to_action,
                to_action.mT.contiguous(),
                bias,
                inner.mT.to(dtype).contiguous(),
                inner.to(dtype),
                output,
                biases[-1][:, 0].clone(),
                torch.tensor(widths, dtype=torch.int32, device=first.device),
            ),
        )


def _why_not_finite(weights: list[Tensor], observation_dim: int) -> str | None:
    """Why products of weights, which the walk takes and the full network does not, may overflow."""
    largest = weights[0][:, :, observation_dim:].abs().amax()
    for weight in weights[1:]:
        largest = largest * weight.abs().sum(dim=2).amax()
    if largest.isfinite() and largest < LARGEST and all(w.isfinite().all() for w in weights):
        return None
    return "its weights are not all finite, or so large that their products may not be"


def _padded(size: int) -> int:
    """A power of two that a product's side may have."""
    return max(16, power_of_two(size))


def power_of_two(size: int) -> int:
    """The least that is not less."""
    return 1 << (size - 1).bit_length()


def why_no_walk(critic: Critic) -> str | None:
    """Why the walk cannot take the critic, or None."""
    if critic.activation not in ("relu", "leaky_relu"):
        return "its activation is not piecewise linear"
    if len(critic.hidden) not in (1, 2):
        return f"it walks with one or two hidden layers, got {len(critic.hidden)}"
    size = power_of_two(critic.heads) * columns(critic.action_dim)
    size *= _padded(max(critic.hidden))
    if size > MOST_IN_REGISTERS:
        return f"its maps are {size} numbers a row, and {MOST_IN_REGISTERS} fit into registers"
    return None


def columns(action_dim: int) -> int:
    """Those of the walk's maps: 1 + A, padded."""
    return power_of_two(1 + action_dim)


def walk_constants(critic: Packed, options: RefineOptions) -> dict[str, Any]:
    """What the walk is compiled for."""
    return {
        "LAYERS": critic.layers,
        **_option_constants(critic, options),
        "A": columns(critic.action_dim),
        "STRIDE": critic.actions,
        "H": critic.width,
        "HEADS": power_of_two(critic.heads),
        "TILE": _walk_tile(critic),
        # As many as one load brings, but for columns that would take too many registers.
        "EACH": 4 if columns(critic.action_dim) <= 8 else 2,
    }


def dense_constants(critic: Packed, options: RefineOptions) -> dict[str, Any]:
    """What the dense kernel is compiled for."""
    return {
        **_option_constants(critic, options),
        "R": tile_rows(critic.precision),
        "A": critic.actions,
        "H": critic.width,
        "HEADS": power_of_two(critic.heads),
        "TILE": _tile(critic),
    }


def walk_options(constants: dict[str, Any]) -> dict[str, Any]:
    """How the walk is compiled.

    With so many warps a thread holds all columns of its units, and sums over columns by itself;
    with more, warps would share the columns. What is loaded ahead the kernel says itself.
    """
    warps = constants["HEADS"] * constants["H"] // (WARP * constants["EACH"])
    return compiler_options(warps=max(1, min(MOST_WARPS, warps)), stages=1)


def dense_options(constants: dict[str, Any]) -> dict[str, Any]:
    """How the dense kernel is compiled: as much is loaded ahead as registers allow, which
    `python -m benchmarks.triton_resources` shows.
    """
    del constants
    return compiler_options(warps=8, stages=2)


def _option_constants(critic: Packed, options: RefineOptions) -> dict[str, Any]:
    return {
        "ACTIVATION": critic.activation,
        "OPTIMIZER": options.optimizer,
        "ENSEMBLE": options.ensemble,
        "UNIT": options.gradient == "unit",
        "BOUNDED": bool(options.low),
        "TETHERED": options.max_distance is not None,
        "BEST": options.select == "best",
        "PRECISION": critic.precision,
    }


def _tile(critic: Packed) -> int:
    """The rows of a weight matrix that a program loads at a time."""
    return max(16, min(32, critic.width, WEIGHT_TILE // critic.width))


def _walk_tile(critic: Packed) -> int:
    """The units of each head that the walk builds its maps of at a time."""
    return max(1, min(8, WEIGHT_TILE // (power_of_two(critic.heads) * critic.width)))


def tile_rows(precision: Precision) -> int:
    """R: the same for every batch, lest a row should round by the batch it comes in.

    Tensor cores take 16 rows at least; float32 does without them, and there padding costs.
    """
    if interpreted():
        return 64  # an operation of the interpreter costs the same for any of these
    return 4 if precision == "fp32" else 16
