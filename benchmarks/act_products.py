"""The products of an action by torch and by oneDNN, beside the whole action in native code.

    python -m benchmarks.act_products

Reinformer's defaults, one environment, the window full: the linear layers of the exact algorithm
alone, without what lies between them. oneDNN's are torch's, with weights packed for the number of
rows. One thread, microseconds of processor time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.acting_loops import CASES
from dtag_fast.acting.policy import Policy
from dtag_fast.models.config import ModelConfig

CALLS = 1000


def shapes(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, inputs, outputs) of the layers: the window's old tokens, then the return's."""
    width, old = config.embedding_dim, 3 * config.context_length - 2
    found = []
    for block in range(config.blocks):
        last = block == config.blocks - 1
        new = 2 if block == 0 else old  # rows of which query, key and value are not known yet
        found += [(new, width, (2 if last else 3) * width), (1, width, 3 * width)]
        for rows in (1 if last else old, 1):
            found += [(rows, width, width), (rows, width, 4 * width), (rows, 4 * width, width)]
    return found


def torch_linear(rows: int, inputs: int, outputs: int) -> Callable[[], Tensor]:
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    return lambda: F.linear(x, weight, bias)


def onednn_linear(rows: int, inputs: int, outputs: int) -> Callable[[], Tensor]:
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def measure(call: Callable[[], object]) -> str:
    """p5 and median."""
    seconds = []
    for _ in range(CALLS):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    p5, p50 = 1e6 * np.percentile(seconds, [5, 50])
    return f"p5 {p5:7.1f}  p50 {p50:7.1f}"


def main() -> None:
    """Print a line for each."""
    torch.set_num_threads(1)
    case = CASES[0]
    for name, make in (("torch", torch_linear), ("oneDNN, packed", onednn_linear)):
        layers = [make(*shape) for shape in shapes(case.config)]

        def products(layers: list[Callable[[], Tensor]] = layers) -> None:
            for layer in layers:
                layer()

        with torch.inference_mode():
            print(f"{name + ': products alone':32}{measure(products)}")
    policy = Policy(case.model(), case.predictor, inference="native")
    observation = np.zeros(case.observation_dim, dtype=np.float32)
    print(f"{'native: the whole action':32}{measure(lambda: policy.act(observation))}")


if __name__ == "__main__":
    main()
