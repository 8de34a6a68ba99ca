"""The Q-heads in a module, found by watching one forward pass on random numbers.

Every Linear and LayerNorm reports its input and output. What fed a layer, and through which
activation, follows from the numbers, whether the activation is a module or a function called in
`forward`; so nothing depends on how attributes are named or in which order layers are defined.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dtag_fast.models.critic import ACTIVATIONS, DEFAULT_NEGATIVE_SLOPE

ACTION_ARGUMENTS = ("a", "u", "act", "acts")  # and whatever has "action" in it
NOTHING = ("nothing", DEFAULT_NEGATIVE_SLOPE)  # the identity, among the activations

# How far the same operation written in another way may be off: elementwise for an activation,
# relative to the largest number for the sums of a Linear.
RTOL, ATOL = 1e-5, 1e-5

Activations = frozenset[tuple[str, float]]  # (name, negative slope) of each that fits


@dataclass(eq=False)
class TracedLayer:
    """One call of a Linear or LayerNorm, in one head.

    Attributes:
        name: dotted, with the type, for messages.
        weight: [out, in], or [out] of a LayerNorm.
        bias: [out], zeros where the layer has none.
        input: [B, in].
        output: [B, out].
        source: the layer that fed it; None for the first one.
        activations: that may stand between source and this layer.
        action_first: of a first layer: the action comes before the observation.
        fed: the output goes on to another layer.
    """

    name: str
    weight: Tensor
    bias: Tensor
    input: Tensor
    output: Tensor
    source: TracedLayer | None = None
    activations: Activations = frozenset({NOTHING})
    action_first: bool = False
    fed: bool = False

    @property
    def is_norm(self) -> bool:
        return self.weight.ndim == 1


def leaves(label: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(dotted name and type, layer) of every layer that has no layers in it."""
    for name, leaf in module.named_modules():
        if parametrize.is_parametrized(leaf) or next(leaf.children(), None) is None:
            if ".parametrizations." in f".{name}.":
                continue
            dotted = ".".join(part for part in (label, name) if part) or "module"
            yield f"{dotted!r} ({type(leaf).__name__})", leaf


def is_linear(leaf: nn.Module) -> bool:
    """Whether it is a Linear, or another library's ensemble of them with weight [E, ., .]."""
    weight = getattr(leaf, "weight", None)
    foreign = type(leaf).__module__.partition(".")[0] != "torch"
    return isinstance(leaf, nn.Linear) or (
        foreign and isinstance(weight, Tensor) and weight.ndim == 3
    )


def call(module: nn.Module, observations: Tensor, actions: Tensor) -> Any:
    """The module's own forward of observations [B, S] and actions [B, A], in its argument order.

    A forward of one argument is given the observation followed by the action.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    written = f"{type(module).__name__}.forward({', '.join(names)})"
    is_action = [name.lower() in ACTION_ARGUMENTS or "action" in name.lower() for name in names]
    arguments: tuple[Tensor, ...]
    if len(names) == 1:
        arguments = (torch.cat([observations, actions], dim=-1),)
    elif len(names) != 2:
        raise ValueError(f"module: expected a forward of one or two arguments, got {written}")
    elif sum(is_action) != 1:
        raise ValueError(
            f"module: cannot tell which argument of {written} is the action: "
            f"expected exactly one of the two to have 'action' in its name"
        )
    else:
        arguments = (actions, observations) if is_action[0] else (observations, actions)
    try:
        return module(*arguments)
    except Exception as error:
        shapes = " and ".join(str(list(argument.shape)) for argument in arguments)
        raise ValueError(f"module: {written} failed on inputs {shapes}: {error}") from error


def trace_heads(
    label: str, module: nn.Module, observations: Tensor, actions: Tensor
) -> list[list[TracedLayer]]:
    """The heads of a module, each as its layers from first to last.

    Leaves its hooks on the module: pass a copy. `label` goes before the names in messages.
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    passed: dict[int, list[str]] = {}  # by index in calls: layers without weights before it
    for name, leaf in leaves(label, module):
        leaf.register_forward_hook(_recorder(name, calls, passed))
    call(module, observations, actions)

    layers: list[TracedLayer] = []
    for index, (name, leaf, given, output) in enumerate(calls):
        for layer in _split(name, leaf, given, output):
            if not _is_first(layer, observations, actions):
                _find_source(layer, layers, passed.get(index, []))
            layers.append(layer)
    if not layers:
        raise ValueError(
            f"module: the forward of {type(module).__name__} calls none of its Linear layers"
        )
    return [_head(layer) for layer in layers if not layer.fed]


def _recorder(
    name: str,
    calls: list[tuple[str, nn.Module, Tensor, Tensor]],
    passed: dict[int, list[str]],
) -> Any:
    def record(leaf: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if is_linear(leaf) or isinstance(leaf, nn.LayerNorm):
            # Clones, because an inplace activation would overwrite them.
            calls.append((name, leaf, inputs[0].clone(), output.clone()))
        else:
            written = f"{name[: name.rindex(' (')]} ({leaf!r})"
            passed.setdefault(len(calls), []).append(written)

    return record


def _split(name: str, leaf: nn.Module, given: Tensor, output: Tensor) -> list[TracedLayer]:
    """A layer's call as one `TracedLayer`, an ensemble layer's as one for each head."""
    weight, bias = getattr(leaf, "weight", None), getattr(leaf, "bias", None)
    if any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in (weight, bias)):
        raise ValueError(f"module: {name} has weights that are not finite")
    if isinstance(leaf, nn.LayerNorm):
        if len(leaf.normalized_shape) != 1:
            raise ValueError(f"module: {name} normalises over more than the features")
        width = given.shape[-1]
        weight = given.new_ones(width) if weight is None else weight
        bias = given.new_zeros(width) if bias is None else bias
        return [TracedLayer(name, weight, bias, given, output)]

    assert isinstance(weight, Tensor)
    if weight.ndim == 2:
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        if not _same_sums(F.linear(given, weight, bias), output):
            raise ValueError(f"module: {name} gives something else than weight @ input + bias")
        return [TracedLayer(name, weight, bias, given, output)]

    batch, ensemble = given.shape[-2], len(weight)
    for matrices in (weight.transpose(1, 2), weight):  # as [E, out, in]
        out_features, in_features = matrices.shape[1:]
        fits = given.shape[-1] == in_features and output.shape == (ensemble, batch, out_features)
        if not fits or given.shape[:-2] not in ((), (1,), (ensemble,)):
            continue
        inputs = given.expand(ensemble, batch, in_features)
        biases = weight.new_zeros(ensemble, out_features)
        if isinstance(bias, Tensor) and bias.numel() == biases.numel():
            biases = bias.reshape(ensemble, out_features)
        if _same_sums(inputs @ matrices.transpose(1, 2) + biases.unsqueeze(1), output):
            return [
                TracedLayer(f"{name}[{e}]", matrices[e], biases[e], inputs[e], output[e])
                for e in range(ensemble)
            ]
    raise ValueError(
        f"module: {name} gives something else than E times weight @ input + bias, with weight "
        f"{list(weight.shape)} and input {list(given.shape)}"
    )


def _is_first(layer: TracedLayer, observations: Tensor, actions: Tensor) -> bool:
    """Whether the layer is given the observation and the action side by side; notes the order."""
    if layer.is_norm:
        return False
    if torch.equal(layer.input, torch.cat([observations, actions], dim=-1)):
        return True
    layer.action_first = torch.equal(layer.input, torch.cat([actions, observations], dim=-1))
    return layer.action_first


def _find_source(layer: TracedLayer, earlier: list[TracedLayer], passed: list[str]) -> None:
    """Note which earlier layer feeds `layer`, and through what."""
    through = f"; between them: {', '.join(passed)}" if passed else ""
    if not earlier:
        raise ValueError(
            f"module: the first layer {layer.name} is not given observation and action side by "
            f"side, the module changes them before{through}"
        )
    latest_first = earlier[::-1]
    # A layer that has fed another already only where none else fits: a trunk that heads share.
    for source in [s for s in latest_first if not s.fed] + [s for s in latest_first if s.fed]:
        fitting = _fitting_activations(source.output, layer.input)
        if layer.is_norm:
            fitting = frozenset() if source.is_norm else fitting & {NOTHING}
        if fitting:
            layer.source, layer.activations, source.fed = source, fitting, True
            break
    else:
        expected = f"one of the activations {', '.join(ACTIVATIONS)}"
        if layer.is_norm:
            expected = "nothing (LayerNorm stands between a Linear and its activation)"
        raise ValueError(
            f"module: cannot read what stands between {earlier[-1].name} and {layer.name}: "
            f"expected {expected}{through}"
        )
    if not layer.is_norm and layer.activations == {NOTHING}:
        raise ValueError(
            f"module: no activation between {source.name} and {layer.name}: expected one of "
            f"{', '.join(ACTIVATIONS)}{through}"
        )


def _fitting_activations(before: Tensor, after: Tensor) -> Activations:
    """Every activation that takes one tensor to the other."""
    if before.shape != after.shape:
        return frozenset()
    candidates = {
        (name, DEFAULT_NEGATIVE_SLOPE): function(before)
        for name, function in ACTIVATIONS.items()
        if name != "leaky_relu"
    }
    candidates[NOTHING] = before
    lowest = int(before.argmin())
    if before.flatten()[lowest] < 0:
        slope = float(f"{float(after.flatten()[lowest] / before.flatten()[lowest]):.6g}")
        if slope not in (0.0, 1.0):  # which are relu and nothing
            candidates["leaky_relu", slope] = F.leaky_relu(before, slope)
    return frozenset(
        key for key, value in candidates.items() if torch.allclose(after, value, RTOL, ATOL)
    )


def _same_sums(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max()) if a.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=ATOL * scale)


def _head(last: TracedLayer) -> list[TracedLayer]:
    """The layers that lead to `last`, the first one first."""
    if last.is_norm or last.output.shape[-1] != 1:
        raise ValueError(
            f"module: expected a head to end in a Linear of one output, got {last.name} "
            f"of {last.output.shape[-1]}"
        )
    layers: list[TracedLayer] = []
    layer: TracedLayer | None = last
    while layer is not None:
        layers.insert(0, layer)
        layer = layer.source
    return layers


def common_activation(heads: list[list[TracedLayer]]) -> tuple[str, float]:
    """The one activation of all heads, and its negative slope where it is leaky_relu."""
    common: Activations | None = None
    for layer in (layer for head in heads for layer in head):
        if layer.is_norm or layer.source is None:
            continue
        narrowed = layer.activations if common is None else common & layer.activations
        if common is not None and not narrowed:
            raise ValueError(
                f"module: different activations: {_written(layer.activations)} between "
                f"{layer.source.name} and {layer.name}, {_written(common)} before"
            )
        common = narrowed
    if common is None:  # heads of one layer, which use none
        return "relu", DEFAULT_NEGATIVE_SLOPE
    if len(common) > 1:
        raise ValueError(
            f"module: cannot tell the activation: on random inputs {_written(common)} give the "
            f"same (are all weights zero?)"
        )
    return next(iter(common))


def _written(activations: Activations) -> str:
    return " and ".join(
        f"leaky_relu of slope {slope}" if name == "leaky_relu" else name
        for name, slope in sorted(activations)
    )
