"""The CUDA extension, csrc/cuda/bindings.cpp. refinement/cuda.py checks addresses."""

from collections.abc import Mapping, Sequence

class PackedCritic:
    """The sizes of a critic with one or two hidden layers, and where its packed weights lie.

    The names and shapes of the addresses are those of PackedCritic in csrc/cuda/job.h. ReLU has the
    negative slope 0.
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        heads: int,
        hidden: Sequence[int],
        negative_slope: float,
        precision: str,
        addresses: Mapping[str, int],
    ) -> None: ...

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

def layout(
    action_dim: int, heads: int, hidden: Sequence[int], precision: str = "fp32"
) -> tuple[int, int, int]:
    """The action dimensions of the kernel for these sizes, the padded width of a hidden layer, and
    how many of its units lie in a group; ValueError where there is no kernel.
    """

def why_not(device: int, precision: str = "fp32") -> str | None:
    """Why the CUDA device of that index cannot run the kernels in the precision, or None."""

def prepare(critic: PackedCritic, device: int) -> None:
    """Load the critic's kernels onto the device; RuntimeError with CUDA's words."""

def why_none(kernel: str, critic: PackedCritic, device: int) -> str | None:
    """Why no kernel of that name can take the critic on the CUDA device of that index, or None."""

def columns_of_maps(width: int) -> int:
    """Of P hidden units, how many a block has W_2 for that builds maps by tensor cores."""

def floats_for_maps(critic: PackedCritic, dense: bool, rows: int) -> int:
    """How many floats of memory `refine` takes beside the results for so many rows; mostly 0."""

def refine(
    critic: PackedCritic,
    options: Options,
    dense: bool,
    rows: int,
    starts: int,
    observations: int,
    actions: int,
    result: int,
    floats: int,
    indices: int,
    maps: int,
    device: int,
    stream: int,
    kernel: str = "auto",
) -> None:
    """Enqueue the refinement of actions [rows, starts, A] to result [rows, A] on the stream.

    floats [3, rows] gets q, q_initial and distance; indices [4, rows] best_step, start, flips and
    dense_steps; maps has floats_for_maps(...). `dense` is to walk no regions; `kernel` is a word of
    refinement/cuda.py's Kernel. RuntimeError with CUDA's words, or the reason, where it fails.
    """

architectures: str
"""The compute capabilities it was built for, separated by ", "."""
