"""The compiled kernels, csrc/bindings.cpp. Addresses are checked by refinement/cpu.py, not here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

class PackedCritic:
    """A copy of a critic's weights in the layouts the kernels read.

    mean and std are [S]. A layer is (weight [E, out, in], bias [E, out]), or with LayerNorm
    (weight, bias, norm_weight [E, out], norm_bias [E, out]); the last one has out = 1. Arrays are
    float32 and C-contiguous.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        heads: int,
        activation: str,
        negative_slope: float,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        layers: Sequence[Sequence[NDArray[np.float32]]],
        precision: str = "fp32",
    ) -> None: ...
    @property
    def observation_dim(self) -> int: ...
    @property
    def action_dim(self) -> int: ...

class Options:
    """The options of a refinement; low and high hold A numbers, or none without bounds."""

    def __init__(
        self,
        *,
        steps: int,
        step_size: float,
        optimizer: str,
        low: Sequence[float],
        high: Sequence[float],
        ensemble: str,
        lcb_k: float,
        select: str,
        max_distance: float | None,
        gradient: str,
    ) -> None: ...

class WeightsVersion:
    """The version of a torch module's weights; it keeps neither alive."""

    def __init__(self, module: nn.Module) -> None: ...
    def is_current(self) -> bool:
        """Whether the module's parameters and buffers are those it was made from, unchanged."""

    def expire(self) -> None:
        """From now on it is not current."""

def count_optimizer_step(*arguments: object) -> None:
    """Make every WeightsVersion there is no longer current."""

def optimizer_steps() -> int:
    """How often count_optimizer_step was called."""

def fast_call(
    critic: PackedCritic,
    options: Options,
    algorithm: str,
    threads: int | None,
    rows: tuple[int, int],
    version: WeightsVersion,
) -> Callable[[Any, Any], Any]:
    """A function of (observations, actions): the refined actions, or NotImplemented.

    It takes float32 on the CPU, contiguous: both torch tensors or both numpy arrays; the result
    is of their kind. None for `threads` is as many as torch uses; `rows` are the least
    it takes and the first that is too many.
    """

def use_exchange_api(use: bool) -> bool:
    """Whether fast calls pass tensors by DLPack's exchange API, where torch has it; for tests."""

def time_kernel(
    critic: PackedCritic,
    options: Options,
    algorithm: str,
    threads: int,
    rows: int,
    starts: int,
    observations: int,
    actions: int,
    repeats: int,
) -> list[float]:
    """Seconds of each of `repeats` calls of the kernel alone, for benchmarks."""

def refine(
    critic: PackedCritic,
    options: Options,
    algorithm: str,
    threads: int,
    rows: int,
    starts: int,
    observations: int,
    actions: int,
    result: int,
    q: int,
    q_initial: int,
    best_step: int,
    start: int,
    distance: int,
    flips: int,
    dense_steps: int,
) -> str:
    """Refine actions [rows, starts, A] to result [rows, A]; arrays come as addresses.

    Returns the algorithm used, "walk" or "dense". `threads` is the most to use.
    """

def why_no_walk(activation: str, hidden_layers: int, layer_norm: bool) -> str | None:
    """Why a critic of this kind, its weights being finite, cannot be walked, or None."""

def can_train() -> bool:
    """Whether the instruction set in use has the kernels below."""

def multiply(
    count: int,
    rows: int,
    columns: int,
    inner: int,
    a: tuple[int, int, int, int],
    b: tuple[int, int, int, int],
    bias: tuple[int, int],
    out: tuple[int, int, int],
    threads: int,
) -> None:
    """out [count, rows, columns] = a [count, rows, inner] b [count, inner, columns] + bias
    [count, 1, columns], all float32.

    An array comes as its address and its strides in floats, those of columns of bias and out, which
    are 1, left out; the address of bias may be 0.
    """

def gelu(x: int, value: int, slope: int, elements: int, threads: int) -> None:
    """The exact GELU and its derivative at each element."""

def dropout(x: int, out: int, elements: int, seed: int, probability: float, threads: int) -> None:
    """out = x / (1 - probability), or 0 where a hash of seed and element's number says so."""

def attend(
    sizes: tuple[int, int, int, int],
    tensors: Sequence[tuple[int, int, int, int]],
    probabilities: int,
    mask: tuple[int, int, int, int],
    seed: int,
    probability: float,
    threads: int,
) -> None:
    """Attention of [batch, heads, length, width] = sizes, or its derivatives.

    tensors: query, key, value, out, and for the derivatives by_out, by_query, by_key, by_value;
    each as its address and first three strides, the fourth being 1; so the mask of bytes, not 0
    where a row may look, where address 0 is the causal one. Dropout as `dropout` has it, on the
    probabilities [batch, heads, length, length].
    """

def lamb_step(
    tensors: Sequence[tuple[int, int, int, int, int]],
    numbers: tuple[float, float, float, float, float, float, float, float],
    threads: int,
) -> None:
    """LAMB's step for (parameter, gradient, exp_avg, exp_avg_sq, elements) each.

    numbers: learning rate, the factors that correct the bias of the mean and of the root of the
    square, beta1, beta2, epsilon, weight decay, a factor of the gradients.
    """

class IqlTrainer:
    """The update of an IQL critic, see csrc/training.h; tensors come as addresses.

    q and value are those of weight, bias, weight, ...: each (parameter, exp_avg, exp_avg_sq,
    target or 0).
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        batch: int,
        hidden: Sequence[int],
        heads: int,
        negative_slope: float,
        discount: float,
        expectile: float,
        polyak: float,
        joint: bool,
        q_loss_factor: float,
        mean: int,
        std: int,
        q: Sequence[Sequence[int]],
        value: Sequence[Sequence[int]],
    ) -> None: ...
    def step(
        self,
        rows: int,
        index: int,
        adam: tuple[float, float, float, float, float],
        losses: int,
        threads: int,
    ) -> None:
        """adam: rate by its bias correction, factor of the square's root, beta1, beta2, epsilon."""

class PackedTransformer:
    """A copy of a sequence model's weights in the layouts the kernels read.

    `weights` is the model's state, by name; window is K, width that of a token.
    """

    def __init__(
        self,
        *,
        kind: str,
        observation_dim: int,
        action_dim: int,
        window: int,
        blocks: int,
        width: int,
        heads: int,
        max_timestep: int,
        sliding: bool,
        pre_norm: bool,
        relu: bool,
        rtg_scale: float,
        precision: str,
        weights: Mapping[str, NDArray[np.float32]],
    ) -> None: ...

class Acting:
    """The episodes of B environments; see csrc/acting.h. Arrays come as addresses."""

    def __init__(self, model: PackedTransformer, envs: int) -> None: ...
    def reset(self, rows: Sequence[int]) -> None: ...
    def select(self, rows: Sequence[int]) -> Acting: ...
    def replace_model(self, model: PackedTransformer) -> None: ...
    def steps(self) -> NDArray[np.int64]:
        """[B], the current timesteps; -1 before the first."""

    def tokens(self) -> NDArray[np.float32]:
        """[B], the return tokens written last."""

    def begin_step(self, observations: int) -> None: ...
    def write_tokens(self, tokens: int) -> None: ...
    def write_actions(self, actions: int) -> None: ...
    def predict_returns(self, returns: int) -> None: ...
    def predict_actions(self, actions: int) -> None: ...
    def seconds(self) -> tuple[float, float]:
        """Of the last ActCall: model and refinement."""

    def report(self) -> dict[str, Any]:
        """The fields of a RefineInfo, of the last ActCall."""

class ActCall:
    """`Policy.act` in one call; NotImplemented for arguments that are not plain or not right."""

    def __init__(
        self,
        acting: Acting,
        *,
        target_return: float | None,
        critic: PackedCritic | None,
        options: Options | None,
        algorithm: str,
        threads: int | None,
        keep_refined: bool,
        versions: Sequence[WeightsVersion],
    ) -> None: ...
    def __call__(self, observations: Any, rewards: Any) -> Any: ...

def isa() -> str:
    """The instruction set whose kernels are in use."""

def isas() -> list[str]:
    """Those that this processor can run, the fastest first."""

def select_isa(name: str) -> None:
    """From now on use these kernels; ValueError if they cannot run here."""

isa_error: str | None
"""Why the instruction set that DTAG_ISA names, when the module was loaded, cannot be used."""

def build_info() -> dict[str, str]:
    """compiler, flags, build_type, processor, pybind11, version."""
