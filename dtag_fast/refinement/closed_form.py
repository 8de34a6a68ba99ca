"""A critic's Q and its gradient in torch operations, written out: no autograd.

Of E heads, each an MLP of layers z_l = W_l h_{l-1} + b_l, h_l = f(z_l), the pullback of a vector c
of one number a head is d_L = c W_L, d_{l-1} = (d_l * f'(z_l)) W_l. The observation's part of the
first layer is the same at every candidate and computed once.

The middle rung between `reference.py` and the kernels: `graph` compiles it, `export` exports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtag_fast.models.critic import ACTIVATIONS, LAYER_NORM_EPSILON, Critic
from dtag_fast.models.normalizer import Normalizer

# From c [E, R], one number a head and row, to sum over heads of c * grad_a Q, [R, A].
Pullback = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClosedForm:
    """What operations a `Critic` takes; its weights are arguments. Equal for equal critics.

    Attributes:
        observation_dim: S.
        depth: the number of hidden layers.
        activation: between layers.
        negative_slope: of "leaky_relu".
        layer_norm: whether hidden layers have LayerNorm.
        algorithm: the word for it in `RefineInfo`.
    """

    observation_dim: int
    depth: int
    activation: str
    negative_slope: float
    layer_norm: bool
    algorithm = "dense"

    @classmethod
    def of(cls, critic: nn.Module) -> ClosedForm | None:
        """That of the critic, or None for a module whose operations are not known."""
        if (
            not isinstance(critic, Critic)
            or type(critic).forward is not Critic.forward
            or type(critic.normalizer) is not Normalizer
            or any(weight.dtype != torch.float32 for weight in _weights(critic))
        ):
            return None
        return cls(
            critic.observation_dim,
            len(critic.hidden),
            critic.activation,
            critic.negative_slope,
            critic.layer_norm,
        )

    def weights(self, critic: nn.Module) -> list[Tensor]:
        """Those of a critic of this form: mean and std [S]; weight [E, out, in] and bias [E, out]
        of each layer; then norm_weight and norm_bias [E, out] of each hidden one.
        """
        assert isinstance(critic, Critic)
        return [weight.detach() for weight in _weights(critic)]

    def prepare(self, weights: list[Tensor], observations: Tensor) -> Tensor:
        """The first layer's sum over observations [R, S], [E, R, out]."""
        mean, std, weight, bias = weights[:4]
        x = (observations - mean) / std
        x = x.expand(weight.shape[0], *x.shape)
        observed = weight[:, :, : self.observation_dim]
        return torch.baddbmm(bias.unsqueeze(1), x, observed.transpose(1, 2))

    def value_and_pullback(
        self, weights: list[Tensor], prepared: Tensor, actions: Tensor
    ) -> tuple[Tensor, Pullback]:
        """Q [E, R] of actions [R, A], and its pullback; `prepared` as `prepare` returns it."""
        layers = weights[2 : 4 + 2 * self.depth]
        norms = weights[4 + 2 * self.depth :]
        to_actions = layers[0][:, :, self.observation_dim :]  # [E, out, A]
        x = actions.expand(to_actions.shape[0], *actions.shape)
        z = _add_products(prepared, x, to_actions.transpose(1, 2))
        derivatives: list[Pullback] = []
        for layer in range(self.depth):
            if self.layer_norm:
                z, through_norm = _layer_norm(z, norms[2 * layer], norms[2 * layer + 1])
                derivatives.append(through_norm)
            derivatives.append(_derivative(self.activation, self.negative_slope, z))
            weight, bias = layers[2 * layer + 2 : 2 * layer + 4]
            h = self._activate(z)
            z = _add_products(bias.unsqueeze(1), h, weight.transpose(1, 2))

        def pullback(cotangent: Tensor) -> Tensor:
            backwards = list(derivatives)
            d = cotangent.unsqueeze(2)  # [E, R, 1]
            for layer in range(self.depth, 0, -1):
                # The last layer has one output: a product, not a sum.
                d = (
                    d * layers[2 * layer]
                    if layer == self.depth
                    else _products(d, layers[2 * layer])
                )
                d = backwards.pop()(d)
                if self.layer_norm:
                    d = backwards.pop()(d)
            return _products(d, to_actions).sum(dim=0)

        return z.squeeze(2), pullback

    def _activate(self, z: Tensor) -> Tensor:
        if self.activation == "leaky_relu":
            return F.leaky_relu(z, self.negative_slope)
        return ACTIVATIONS[self.activation](z)


def _products(x: Tensor, matrices: Tensor) -> Tensor:
    """x [E, R, in] times matrices [E, in, out], [E, R, out]."""
    if _is_a_row_on_a_gpu(x):
        return (x.transpose(1, 2) * matrices).sum(dim=1, keepdim=True)
    return torch.bmm(x, matrices)


def _add_products(start: Tensor, x: Tensor, matrices: Tensor) -> Tensor:
    """The same added to start [E, R or 1, out]."""
    if _is_a_row_on_a_gpu(x):
        return start + _products(x, matrices)
    return torch.baddbmm(start, x, matrices)


def _is_a_row_on_a_gpu(x: Tensor) -> bool:
    """Whether the compiler shall make kernels of products and what is around them: a library's take
    no longer to multiply one row than to be started.
    """
    return x.device.type == "cuda" and isinstance(x.shape[1], int) and x.shape[1] == 1


def _weights(critic: Critic) -> list[Tensor]:
    weights = [critic.normalizer.mean, critic.normalizer.std]
    for pair in zip(critic.weights, critic.biases, strict=True):
        weights += pair
    for pair in zip(critic.norm_weights, critic.norm_biases, strict=True):
        weights += pair
    return weights


def _derivative(activation: str, negative_slope: float, z: Tensor) -> Pullback:
    """d -> d * f'(z), where torch's own backward is: in kinks, and what is not finite."""
    match activation:
        case "relu":
            return lambda d: torch.where(z <= 0, 0.0, d)
        case "leaky_relu":
            return lambda d: torch.where(z > 0, d, negative_slope * d)
        case "tanh":
            return lambda d: d * (1 - torch.tanh(z).square())
        case "gelu":
            # Phi(z) + z phi(z), with the normal distribution and its density.
            cdf = 0.5 * (1 + torch.erf(z * 0.5**0.5))
            density = torch.exp(-0.5 * z.square()) * (2 * torch.pi) ** -0.5
            return lambda d: d * (cdf + z * density)
        case "silu":
            gate = torch.sigmoid(z)
            return lambda d: d * (gate * (1 + z * (1 - gate)))
        case "mish":
            t = torch.tanh(F.softplus(z))
            return lambda d: d * (t + z * torch.sigmoid(z) * (1 - t.square()))
        case "elu":
            return lambda d: torch.where(z <= 0, d * torch.exp(z.clamp(max=0)), d)
        case _:
            raise AssertionError(f"no derivative of {activation}")


def _layer_norm(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pullback]:
    """Affine LayerNorm of z [E, R, H] with weight and bias [E, H], and d -> its pullback."""
    variance, mean = torch.var_mean(z, dim=2, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + LAYER_NORM_EPSILON)
    normal = (z - mean) * scale

    def pullback(d: Tensor) -> Tensor:
        d = d * weight.unsqueeze(1)
        along = (d * normal).mean(dim=2, keepdim=True)
        return scale * (d - d.mean(dim=2, keepdim=True) - normal * along)

    return torch.addcmul(bias.unsqueeze(1), normal, weight.unsqueeze(1)), pullback
