"""Refinement in closed form as an ONNX model: the loop unrolled, the gradient written out.

The few messages of the format that it takes are written here by hand (field numbers are those of
onnx.proto3), because exporters need the package onnx; running the model needs onnxruntime alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dtag_fast.models.critic import Critic

IR_VERSION, OPSET = 8, 17
FLOAT, INT64 = 1, 7  # TensorProto.DataType
ATTRIBUTE_INT = 2  # AttributeProto.AttributeType


def closed_form(critic: Critic, batch: int, steps: int, step_size: float) -> bytes:
    """A model from (observations [B, S], actions [B, A]) to refined actions [B, A].

    The same as `contenders.hand_vjp`: plain steps inside [-1, 1], the gradient of the lowest head,
    the candidate of the highest Q. The critic has ReLU hidden layers.
    """
    graph = Graph()
    observations = graph.input("observations", (batch, critic.observation_dim))
    actions = graph.input("actions", (batch, critic.action_dim))
    heads = range(critic.heads)
    low, high = graph.constant(-1.0), graph.constant(1.0)
    zero, eta = graph.constant(0.0), graph.constant(step_size)

    split = critic.observation_dim
    mean, std = critic.normalizer.mean, critic.normalizer.std
    standardised = graph.op(
        "Div", graph.op("Sub", observations, graph.constant(mean)), graph.constant(std)
    )
    weights = [[w[e] for w in critic.weights] for e in heads]
    biases = [[graph.constant(b[e]) for b in critic.biases] for e in heads]
    to_actions = [graph.constant(weights[e][0][:, split:]) for e in heads]  # [H, A]
    from_actions = [graph.constant(weights[e][0][:, split:].T) for e in heads]
    back = [[graph.constant(w) for w in weights[e][1:]] for e in heads]  # [out, in]
    forth = [[graph.constant(w.T) for w in weights[e][1:]] for e in heads]
    observed = [
        graph.op("Gemm", standardised, graph.constant(weights[e][0][:, :split].T), biases[e][0])
        for e in heads
    ]
    index = [graph.constant(np.array([e])) for e in heads]

    def values(action: str) -> tuple[list[list[str]], str, str]:
        """Of every head and layer z > 0 [B, H]; the lowest Q [B, 1] and its head [B, 1]."""
        signs, q = [], []
        for e in heads:
            z = [graph.op("Gemm", action, from_actions[e], observed[e])]
            for weight, bias in zip(forth[e], biases[e][1:], strict=True):
                z.append(graph.op("Gemm", graph.op("Relu", z[-1]), weight, bias))
            signs.append([graph.op("Greater", each, zero) for each in z[:-1]])
            q.append(z[-1])
        lowest = graph.op("ArgMin", graph.op("Concat", *q, axis=1), axis=1, keepdims=1)
        return signs, graph.op("Min", *q), lowest

    action = best = graph.op("Clip", actions, low, high)
    signs, best_q, lowest = values(action)
    for _ in range(steps):
        gradient: list[str] = []
        for e in heads:
            chosen = graph.op("And", signs[e][-1], graph.op("Equal", lowest, index[e]))
            d = graph.op("Where", chosen, back[e][-1], zero)
            for sign, weight in zip(signs[e][-2::-1], back[e][-2::-1], strict=True):
                d = graph.op("Where", sign, graph.op("Gemm", d, weight), zero)
            gradient = [graph.op("Gemm", d, to_actions[e], *gradient)]
        moved = graph.op("Add", action, graph.op("Mul", gradient[0], eta))
        action = graph.op("Clip", moved, low, high)
        signs, q, lowest = values(action)
        better = graph.op("Greater", q, best_q)
        best = graph.op("Where", better, action, best)
        best_q = graph.op("Where", better, q, best_q)
    return graph.model(best, (batch, critic.action_dim))


class Graph:
    """An ONNX graph in the making; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []
        self.inputs: list[bytes] = []

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        """A float32 input."""
        self.inputs.append(_value(name, shape))
        return name

    def constant(self, value: float | Tensor | NDArray[np.int64]) -> str:
        """A float32 number, tensor or array of int64."""
        if isinstance(value, Tensor):
            array: NDArray[np.generic] = value.detach().numpy().astype("<f4")
        else:
            array = np.asarray(value, "<i8" if isinstance(value, np.ndarray) else "<f4")
        name = f"constant{len(self.constants)}"
        self.constants.append(
            b"".join(_number(1, size) for size in array.shape)
            + _number(2, INT64 if array.dtype.kind == "i" else FLOAT)
            + _bytes(8, name.encode())
            + _bytes(9, np.ascontiguousarray(array).tobytes())
        )
        return name

    def op(self, kind: str, *inputs: str, **attributes: int) -> str:
        """A node's one output."""
        name = f"value{len(self.nodes)}"
        node = b"".join(_bytes(1, each.encode()) for each in inputs) + _bytes(2, name.encode())
        node += _bytes(4, kind.encode())
        for attribute, value in attributes.items():
            node += _bytes(
                5, _bytes(1, attribute.encode()) + _number(3, value) + _number(20, ATTRIBUTE_INT)
            )
        self.nodes.append(node)
        return name

    def model(self, output: str, shape: tuple[int, ...]) -> bytes:
        """The whole model, serialised, with this output."""
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _bytes(2, b"refine")
        graph += b"".join(_bytes(5, constant) for constant in self.constants)
        graph += b"".join(_bytes(11, value) for value in self.inputs)
        graph += _bytes(12, _value(output, shape))
        return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, OPSET))


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dimensions = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor = _number(1, FLOAT) + _bytes(2, dimensions)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Not negative; seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
