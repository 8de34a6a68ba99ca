"""Architecture settings of the sequence models, and the checks that all settings share.

Imports no torch; see `dtag_fast.training.config`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

ModelKind = Literal["dt", "reinformer", "mlp"]
BlockNorm = Literal["pre", "post"]
SequenceActivation = Literal["relu", "gelu"]
AttentionSpan = Literal["full", "sliding"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the sequence model. The defaults are Reinformer's."""

    kind: ModelKind = "reinformer"
    """dt: tokens (R, s, a), predicts actions. reinformer: (s, R, a), predicts returns as well. mlp:
    the current observation alone, no tokens."""

    context_length: int = 5
    """K, the number of environment steps the model sees; each is three tokens."""

    attention: AttentionSpan = "full"
    """full: every prediction is made anew from a window of the last K steps. sliding: a streaming
    model; each block's attention sees the last K steps, whatever the length of the episode, so that
    keys and values are kept while acting and a step costs three tokens instead of 3 K."""

    blocks: int = 4
    """Number of transformer blocks."""

    embedding_dim: int = 256
    """Width of a token; a multiple of attention_heads."""

    attention_heads: int = 8
    """Attention heads of a block."""

    dropout: float = 0.1
    """Dropout probability, in [0, 1), at the places the paper's code has it."""

    block_norm: BlockNorm = "post"
    """LayerNorm before each half of a block (pre, as GPT-2) or after its residual sum (post)."""

    activation: SequenceActivation = "gelu"
    """Activation of a block's MLP."""

    max_timestep: int = 4096
    """Number of distinct timesteps the model embeds: 0 ... max_timestep - 1."""

    rtg_scale: float = 1000.0
    """Returns-to-go are divided by this inside the model."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers (mlp)."""

    def __post_init__(self) -> None:
        check_words(self)
        check_widths(self, "hidden")
        check_at_least(
            self,
            1,
            "context_length",
            "blocks",
            "embedding_dim",
            "attention_heads",
            "max_timestep",
        )
        if self.embedding_dim % self.attention_heads:
            raise ValueError(
                f"embedding_dim: expected a multiple of attention_heads={self.attention_heads}, "
                f"got {self.embedding_dim}"
            )
        check_interval(self, "dropout", 0.0, 1.0, right_open=True)
        check_positive(self, "rtg_scale")
        if self.kind == "mlp" and (self.context_length != 1 or self.attention != "full"):
            raise ValueError(
                f"context_length: expected 1, and attention full, as kind mlp sees one step; got "
                f"{self.context_length} and {self.attention}"
            )

    @property
    def history(self) -> int:
        """How many steps before a window of K have an influence on what is predicted in it.

        None with full attention. With sliding attention every block looks K - 1 steps further back.
        """
        return self.blocks * (self.context_length - 1) if self.attention == "sliding" else 0


def check_words(config: Any) -> None:
    """Every field annotated with a Literal holds one of its words."""
    hints = _hints(type(config))  # type: ignore[arg-type]  # Types can be hashed.
    for name, hint in hints.items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            words = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{name}: expected one of {words}, got {getattr(config, name)!r}")


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    """Compiles every annotation: for a study's many configs once is enough."""
    return get_type_hints(cls)


def check_at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")


def check_widths(config: Any, name: str) -> None:
    """A tuple of layers' widths; JSON has made it a list."""
    widths = tuple(getattr(config, name))
    object.__setattr__(config, name, widths)
    if any(not isinstance(width, int) or isinstance(width, bool) or width < 1 for width in widths):
        raise ValueError(f"{name}: expected integers of at least 1, got {widths}")


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        check_interval(config, name, 0.0, math.inf, left_open=True, right_open=True)


def check_interval(
    config: Any,
    name: str,
    low: float,
    high: float,
    *,
    left_open: bool = False,
    right_open: bool = False,
) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    right_open = right_open or math.isinf(high)
    if (
        not number
        or not low <= value <= high
        or (left_open and value == low)
        or (right_open and value == high)
    ):
        interval = f"{'(' if left_open else '['}{low:g}, {high:g}{')' if right_open else ']'}"
        raise ValueError(f"{name}: expected a number in {interval}, got {value!r}")


def check_finite_or_none(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) is not None:
            check_interval(config, name, -math.inf, math.inf, left_open=True)
