"""The critic: an ensemble of E Q-heads, each an MLP [S + A] -> hidden... -> 1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.models.normalizer import Normalizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = Tensor | NDArray[Any]

LAYER_NORM_EPSILON = 1e-5
DEFAULT_NEGATIVE_SLOPE = 0.01

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # its slope is the critic's `negative_slope`
    "tanh": torch.tanh,
    "gelu": F.gelu,  # the exact, erf form
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,  # alpha = 1
}


class Critic(nn.Module):
    """E heads evaluated together: every layer holds the weights of all heads, [E, out, in].

    A hidden layer is Linear -> (LayerNorm ->) activation, the last layer a Linear to one value.
    The observation comes in raw; `normalizer` standardises it, the action is used as it is.

    Args:
        observation_dim: S.
        action_dim: A.
        hidden: widths of the hidden layers; () is a linear critic.
        heads: E; 2 is the usual twin critic.
        activation: one of `ACTIVATIONS`.
        layer_norm: put an affine LayerNorm (epsilon 1e-5) before each activation.
        normalizer: of the observations; None leaves them raw.
        negative_slope: of "leaky_relu", ignored otherwise.

    Weights start as `nn.Linear`'s do: uniform in +-1/sqrt(fan_in).
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        heads: int = 2,
        activation: str = "relu",
        layer_norm: bool = False,
        normalizer: Normalizer | None = None,
        *,
        negative_slope: float = DEFAULT_NEGATIVE_SLOPE,
    ) -> None:
        super().__init__()
        sizes = {"observation_dim": observation_dim, "action_dim": action_dim, "heads": heads}
        sizes |= {f"hidden[{i}]": width for i, width in enumerate(hidden)}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        if not math.isfinite(negative_slope):
            raise ValueError(f"negative_slope: expected a finite number, got {negative_slope}")
        if normalizer is None:
            normalizer = Normalizer.identity(observation_dim)
        if normalizer.mean.shape != (observation_dim,):
            raise ValueError(
                f"normalizer: expected one of {observation_dim} features, "
                f"got {normalizer.mean.shape[0]}"
            )
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.hidden = tuple(hidden)
        self.heads = heads
        self.activation = activation
        self.layer_norm = layer_norm
        self.negative_slope = float(negative_slope)
        self.normalizer = normalizer

        widths = [observation_dim + action_dim, *hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            bound = 1.0 / math.sqrt(fan_in)
            self.weights.append(torch.empty(heads, fan_out, fan_in).uniform_(-bound, bound))
            self.biases.append(torch.empty(heads, fan_out).uniform_(-bound, bound))
        self.norm_weights = nn.ParameterList()
        self.norm_biases = nn.ParameterList()
        if layer_norm:
            for width in hidden:
                self.norm_weights.append(torch.ones(heads, width))
                self.norm_biases.append(torch.zeros(heads, width))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q [E, B] of observations [B, S], raw, and actions [B, A]; or of own ones for each head,
        [E, B, S] and [E, B, A].
        """
        x = torch.cat([self.normalizer(observations), actions], dim=-1)
        hidden = x.expand(self.heads, *x.shape[-2:])  # [E, B, S + A]
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))  # [E, B, out]
            if layer == last:
                break
            if self.layer_norm:
                hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=LAYER_NORM_EPSILON)
                hidden = torch.addcmul(
                    self.norm_biases[layer].unsqueeze(1),
                    hidden,
                    self.norm_weights[layer].unsqueeze(1),
                )
            if self.activation == "leaky_relu":
                hidden = F.leaky_relu(hidden, self.negative_slope)
            else:
                hidden = ACTIVATIONS[self.activation](hidden)
        return hidden.squeeze(-1)

    def extra_repr(self) -> str:
        return (
            f"observation_dim={self.observation_dim}, action_dim={self.action_dim}, "
            f"hidden={self.hidden}, heads={self.heads}, activation={self.activation!r}, "
            f"layer_norm={self.layer_norm}"
        )

    @classmethod
    def from_layers(
        cls,
        heads: Sequence[Sequence[Sequence[Array]]],
        activation: str = "relu",
        normalizer: Normalizer | None = None,
        *,
        action_dim: int | None = None,
        negative_slope: float = DEFAULT_NEGATIVE_SLOPE,
    ) -> Critic:
        """A critic with a copy of the given weights.

        Args:
            heads: E lists of layers; a layer is (weight [out, in], bias [out]), or with LayerNorm
                (weight, bias, norm_weight [out], norm_bias [out]) in every hidden layer. The first
                layer takes the observation followed by the action; the last one has out = 1.
            activation: between the layers.
            normalizer: of the observations; its size tells how the first layer's input divides.
            action_dim: A, needed where `normalizer` is None.
            negative_slope: of "leaky_relu".

        Raises:
            ValueError: shapes that do not fit together; the message names head and layer.
        """
        tensors = [
            [[torch.as_tensor(t, dtype=torch.float32).detach() for t in layer] for layer in head]
            for head in heads
        ]
        hidden, layer_norm, inputs = _check_layers(tensors)
        if normalizer is not None:
            implied = inputs - normalizer.mean.shape[0]
            if action_dim is not None and action_dim != implied:
                raise ValueError(
                    f"action_dim: got {action_dim}, but a first layer of {inputs} inputs and a "
                    f"normalizer of {normalizer.mean.shape[0]} features leave {implied}"
                )
            action_dim = implied
        if action_dim is None:
            raise ValueError(
                f"action_dim: needed where normalizer is None, to divide the first layer's "
                f"{inputs} inputs into observation and action"
            )
        if not 0 < action_dim < inputs:
            raise ValueError(
                f"action_dim: expected between 1 and {inputs - 1} with a first layer of {inputs} "
                f"inputs, got {action_dim}"
            )
        critic = cls(
            inputs - action_dim,
            action_dim,
            hidden,
            len(tensors),
            activation,
            layer_norm,
            normalizer,
            negative_slope=negative_slope,
        )
        with torch.no_grad():
            for index in range(len(hidden) + 1):
                layer = [head[index] for head in tensors]
                critic.weights[index].copy_(torch.stack([parts[0] for parts in layer]))
                critic.biases[index].copy_(torch.stack([parts[1] for parts in layer]))
                if layer_norm and index < len(hidden):
                    critic.norm_weights[index].copy_(torch.stack([parts[2] for parts in layer]))
                    critic.norm_biases[index].copy_(torch.stack([parts[3] for parts in layer]))
        return critic

    @classmethod
    def from_module(
        cls,
        module: nn.Module | Sequence[nn.Module],
        action_dim: int | None = None,
        normalizer: Normalizer | None = None,
    ) -> Critic:
        """A critic with a copy of the weights of another library's critic.

        Reads the layouts of CORL, d3rlpy, Stable-Baselines3 and CleanRL; see
        `dtag_fast.models.from_module` for what is read and what is refused.
        """
        from dtag_fast.models.from_module import critic_from_module

        return critic_from_module(module, action_dim, normalizer)

    @classmethod
    def load(cls, path: str | Path, checkpoint: str = "last", device: str = "cpu") -> Critic:
        """The critic of a training run's folder, or of one checkpoint in it."""
        from dtag_fast.training.critic import load_critic

        return load_critic(Path(path), checkpoint, device)[0]


def _check_layers(heads: Sequence[Sequence[Sequence[Tensor]]]) -> tuple[tuple[int, ...], bool, int]:
    """The hidden widths, whether there is LayerNorm, and the input width of E equal heads."""
    if not heads or not heads[0]:
        raise ValueError("heads: expected at least one head of at least one layer")
    shapes: list[list[tuple[int, ...]]] = []
    for h, head in enumerate(heads):
        shapes.append([])
        width = None
        for i, layer in enumerate(head):
            where = f"heads[{h}][{i}]"
            is_last = i == len(head) - 1
            if len(layer) not in ((2,) if is_last else (2, 4)):
                expected = "(weight, bias)"
                if not is_last:
                    expected += " or (weight, bias, norm_weight, norm_bias)"
                raise ValueError(f"{where}: expected {expected}, got {len(layer)} arrays")
            weight, *vectors = layer
            if weight.ndim != 2 or (width is not None and weight.shape[1] != width):
                expected = f"[out, {'in' if width is None else width}]"
                raise ValueError(f"{where}: expected a weight {expected}, got {list(weight.shape)}")
            width = weight.shape[0]
            for vector in vectors:
                if vector.shape != (width,):
                    raise ValueError(
                        f"{where}: expected vectors of {width}, got {list(vector.shape)}"
                    )
            if is_last and width != 1:
                raise ValueError(f"{where}: expected a last layer with one output, got {width}")
            shapes[-1].append((*weight.shape, len(layer)))
        if shapes[-1] != shapes[0]:
            raise ValueError(
                f"heads[{h}]: expected the layers of heads[0], {shapes[0]}, got {shapes[-1]}"
            )
    norms = {parts for _, _, parts in shapes[0][:-1]}
    if len(norms) > 1:
        raise ValueError("heads: expected LayerNorm in every hidden layer or in none")
    hidden = tuple(shape[0] for shape in shapes[0][:-1])
    return hidden, norms == {4}, shapes[0][0][1]
