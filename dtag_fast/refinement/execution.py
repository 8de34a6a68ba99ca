"""How a refinement is computed, as opposed to what: algorithm, precision, threads."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

from dtag_fast.refinement.options import check_word

Algorithm = Literal["auto", "walk", "dense"]
Precision = Literal["fp32", "tf32", "tf32x3", "bf16"]

TENSOR_CORES: tuple[Precision, ...] = ("tf32", "tf32x3")


@dataclass(frozen=True)
class Execution:
    """Checked and hashable; see `dtag_fast.refine` for the meaning of the words."""

    algorithm: Algorithm = "auto"
    precision: Precision = "fp32"
    threads: int | None = None

    @classmethod
    def check(cls, *, algorithm: Algorithm, precision: Precision, threads: int | None) -> Execution:
        """The words as given by a caller, or a ValueError or TypeError that names the bad one."""
        check_word("algorithm", algorithm, Algorithm)
        check_word("precision", precision, Precision)
        if threads is not None:
            try:
                threads = operator.index(threads)
            except TypeError:
                raise TypeError(f"threads: expected None or an integer, got {threads!r}") from None
            if threads < 1:
                raise ValueError(f"threads: expected None or 1 or more, got {threads}")
        return cls(algorithm, precision, threads)


DEFAULT = Execution()
