"""What this machine can do at most; the floors of bench_refine.py follow from such rates.

pytest benchmarks/bench_limits.py [--record]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from benchmarks import limits

if TYPE_CHECKING:
    from benchmarks.conftest import Table

COLUMNS = {"name": "{}", "one": "{:.1f}", "two": "{:.1f}", "unit": "{}"}


def test_limits(new_table: Callable[..., Table]) -> None:
    reason = limits.missing_reason()
    if reason is not None:
        pytest.skip(reason)
    table = new_table("limits", COLUMNS)
    table.rows += [asdict(limit) for limit in limits.measure()]
    sizes = ", ".join(f"{level} {size // 1024} KB" for level, size in limits.caches().items())
    table.notes.append(
        f"The best of {limits.TRIALS} trials, of one thread and of two together. Caches: {sizes}."
    )
