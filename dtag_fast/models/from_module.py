"""Another library's critic as a `Critic`.

The module is copied, the copy's layers are found by watching one forward pass (`traced_layers`),
and the critic made of them is compared with the copy on numbers it was not read with. The module
itself is not touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dtag_fast.models.critic import LAYER_NORM_EPSILON, Critic
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.models.traced_layers import (
    TracedLayer,
    call,
    common_activation,
    is_linear,
    leaves,
    trace_heads,
)

PROBES = 96
PROBE_SCALES = (0.1, 1.0, 10.0)  # of observations: small, usual and saturating pre-activations
ACTION_DIM_ATTRIBUTES = ("action_dim", "action_size", "_action_size", "act_dim")

Parts = list[tuple[str, nn.Module]]  # (label, module) of everything that is called


def critic_from_module(
    module: nn.Module | Sequence[nn.Module],
    action_dim: int | None = None,
    normalizer: Normalizer | None = None,
) -> Critic:
    """A `Critic` with a copy of the weights of `module`, on its device, equal to it in value.

    Heads are Linear layers, or ensemble layers of weight [E, in, out] or [E, out, in], with one
    and the same activation of `ACTIVATIONS` between them, with or without LayerNorm before it.

    Args:
        module: a critic of one or several heads whose forward takes observations [B, S] and
            actions [B, A], or one input [B, S + A] that is the observation followed by the action;
            or a list, tuple or ModuleList of such modules of one head each. Its forward may give
            [B], [B, 1], [E, B], [B, E], [E, B, 1], a tuple of such, or the minimum of the heads.
            So Stable-Baselines3's `model.critic`, d3rlpy's `algo.impl.q_function`, CORL's critics,
            CleanRL's `[qf1, qf2]`.
        action_dim: A. Needed where there is no normalizer and the module does not keep it (as
            action_space, action_dim or action_size, in itself or a layer).
        normalizer: what observations went through outside of the module (CORL's normalised data,
            d3rlpy's observation scalers); the critic applies it itself. Actions stay as the module
            takes them: Stable-Baselines3 and d3rlpy's action scalers have them in [-1, 1].

    Raises:
        TypeError: not a module or a sequence of modules.
        ValueError: something a `Critic` cannot express; the message names the layer. Convolutions,
            batch norm, spectral or weight norm, other activations or several, LayerNorm elsewhere,
            skip connections, more than one output, dropout with p > 0 (set p = 0 if the values of
            evaluation mode are wanted).
    """
    parts = _parts(module)
    for label, part in parts:
        _check_leaves(label, part)
    width = _input_width(parts)
    action_dim = _action_dim(parts, width, action_dim, normalizer)
    device = next(parts[0][1].parameters()).device
    copies = [(label, _copy(part)) for label, part in parts]

    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        probes = _probes(width - action_dim, action_dim, device, seed=0)
        heads = [_one_head_each(label, part, probes, len(parts)) for label, part in copies]
        flat = [head for found in heads for head in found]
        activation, negative_slope = common_activation(flat)
        critic = Critic.from_layers(
            [_weights(head, action_dim) for head in flat],
            activation,
            copy.deepcopy(normalizer),
            action_dim=action_dim,
            negative_slope=negative_slope,
        ).to(device)
        _verify(critic, [part for _, part in copies], device)
    return critic


def _parts(module: nn.Module | Sequence[nn.Module]) -> Parts:
    if isinstance(module, nn.ModuleList | list | tuple):
        parts = [(f"[{index}]", part) for index, part in enumerate(module)]
    else:
        parts = [("", module)]
    if not parts:
        raise ValueError("module: expected at least one head, got none")
    for label, part in parts:
        if not isinstance(part, nn.Module):
            raise TypeError(
                f"module{label}: expected an nn.Module or a list of them, got "
                f"{type(part).__name__} (pass Stable-Baselines3's model.critic, d3rlpy's "
                f"algo.impl.q_function)"
            )
    # torch.compile's wrapper hides the layers from hooks.
    return [(label, getattr(part, "_orig_mod", part)) for label, part in parts]


def _check_leaves(label: str, module: nn.Module) -> None:
    """Refuse what is known by its type, before anything is called."""
    for name, leaf in leaves(label, module):
        if parametrize.is_parametrized(leaf) or hasattr(leaf, "weight_orig"):
            raise ValueError(
                f"module: {name} is reparametrised (spectral or weight norm): remove the "
                f"parametrisation first, so that its weight is a plain one"
            )
        drop = getattr(leaf, "p", 0.0)
        if "Dropout" in type(leaf).__name__ and drop > 0:
            raise ValueError(
                f"module: {name} drops with p={drop}, and a Critic has no dropout: set p to 0 if "
                f"the values of evaluation mode are wanted"
            )
        if isinstance(leaf, nn.LayerNorm):
            if leaf.eps != LAYER_NORM_EPSILON:
                raise ValueError(
                    f"module: {name} has eps={leaf.eps}, a Critic's is {LAYER_NORM_EPSILON}"
                )
        elif not is_linear(leaf) and (
            next(leaf.parameters(), None) is not None or next(leaf.buffers(), None) is not None
        ):
            raise ValueError(
                f"module: cannot read {name}: a Critic has Linear and LayerNorm layers only"
            )


def _input_width(parts: Parts) -> int:
    """S + A, from the first Linear of each part."""
    widths = []
    for label, part in parts:
        first = next(((name, leaf) for name, leaf in leaves(label, part) if is_linear(leaf)), None)
        if first is None:
            raise ValueError(f"module{label}: {type(part).__name__} has no Linear layer")
        width = getattr(first[1], "in_features", None)
        if not isinstance(width, int):
            raise ValueError(f"module: {first[0]} does not keep its input width as in_features")
        widths.append(width)
    if len(set(widths)) > 1:
        raise ValueError(f"module: expected heads of one input width, got {widths}")
    return widths[0]


def _action_dim(parts: Parts, width: int, given: int | None, normalizer: Normalizer | None) -> int:
    """A, from what was given and what the module keeps, which must not contradict each other."""
    found: dict[str, int] = {} if given is None else {"action_dim": given}
    if normalizer is not None:
        features = normalizer.mean.shape[0]
        found[f"the first layer's {width} inputs less the normalizer's {features}"] = (
            width - features
        )
    for label, part in parts:
        for name, inner in part.named_modules():
            where = ".".join(piece for piece in (f"module{label}", name) if piece)
            shape = getattr(getattr(inner, "action_space", None), "shape", None)
            if shape:
                found[f"{where}.action_space"] = math.prod(shape)
            for attribute in ACTION_DIM_ATTRIBUTES:
                value = getattr(inner, attribute, None)
                if isinstance(value, int) and not isinstance(value, bool):
                    found[f"{where}.{attribute}"] = value
    if not found:
        raise ValueError(
            f"action_dim: needed, because the module does not keep it: its first layer takes "
            f"{width} numbers, and nothing says how many of them are the action"
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{value} by {name}" for name, value in found.items())
        raise ValueError(f"action_dim: contradictory: {told}")
    action_dim = next(iter(found.values()))
    if not 0 < action_dim < width:
        raise ValueError(
            f"action_dim: expected between 1 and {width - 1} with a first layer of {width} "
            f"inputs, got {action_dim}"
        )
    return action_dim


def _copy(module: nn.Module) -> nn.Module:
    """What is called in the module's place: float32, in evaluation mode."""
    try:
        return copy.deepcopy(module).float().eval()
    except Exception as error:
        raise ValueError(
            f"module: {type(module).__name__} could not be copied for reading: {error}"
        ) from error


def _probes(
    observation_dim: int, action_dim: int, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """Random observations [PROBES, S] and actions [PROBES, A]."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(PROBE_SCALES).repeat(PROBES // len(PROBE_SCALES)).unsqueeze(1)
    observations = scale * torch.randn(PROBES, observation_dim, generator=generator)
    actions = torch.rand(PROBES, action_dim, generator=generator) * 2 - 1
    return observations.to(device), actions.to(device)


def _one_head_each(
    label: str, module: nn.Module, probes: tuple[Tensor, Tensor], parts: int
) -> list[list[TracedLayer]]:
    """The heads of one part: any number where it is the only one."""
    heads = trace_heads(label, module, *probes)
    if parts > 1 and len(heads) > 1:
        raise ValueError(
            f"module{label}: expected one head in each of several modules, got {len(heads)}"
        )
    return heads


def _weights(head: list[TracedLayer], action_dim: int) -> list[tuple[Tensor, ...]]:
    """A head as `Critic.from_layers` takes it."""
    layers: list[tuple[Tensor, ...]] = []
    for layer in head:
        weight, bias = layer.weight.cpu(), layer.bias.cpu()
        if layer.is_norm:
            layers[-1] = (*layers[-1], weight, bias)
        else:
            # To the critic's order of inputs: the observation first.
            layers.append((weight.roll(-action_dim, 1) if layer.action_first else weight, bias))
    return layers


def _verify(critic: Critic, modules: list[nn.Module], device: torch.device) -> None:
    """Raise unless the critic and the modules agree on numbers they were not read with."""
    observations, actions = _probes(critic.observation_dim, critic.action_dim, device, seed=1)
    normalized = critic.normalizer(observations)
    expected = torch.stack(
        [q for module in modules for q in _values(call(module, normalized, actions))]
    )
    got = critic(observations, actions)
    exact = copy.deepcopy(critic).double()(observations.double(), actions.double())
    rounding = float((got - exact).abs().max())
    tolerance = 1e-5 * float(exact.abs().max()) + 8 * rounding
    if any(
        candidate.shape == expected.shape
        and bool(((candidate - expected).abs() <= tolerance).all())
        for candidate in (got, got.amin(dim=0, keepdim=True))
    ):
        return
    raise ValueError(
        f"module: its values are neither those of the {critic.heads} heads read from it nor their "
        f"minimum: for one input it gives {_listed(expected)}, the heads {_listed(got)}; its "
        f"forward does something else besides"
    )


def _listed(q: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in q[:, 0].tolist())


def _values(output: Any) -> list[Tensor]:
    """The Q-values, each [B], in whatever a forward returned."""
    if isinstance(output, tuple | list):
        return [q for part in output if part is not None for q in _values(part)]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"module: expected its forward to give a tensor or a tuple of tensors, "
            f"got {type(output).__name__}"
        )
    q = output.squeeze(-1) if output.ndim > 1 and output.shape[-1] == 1 else output
    if q.shape == (PROBES,):
        return [q]
    if q.ndim == 2 and PROBES in q.shape:
        return list(q if q.shape[1] == PROBES else q.T)
    raise ValueError(
        f"module: expected Q of shape [B], [B, 1], [E, B], [B, E] or [E, B, 1] for B={PROBES} "
        f"rows, got {list(output.shape)}"
    )
