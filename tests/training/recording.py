"""A stand-in for CUDA graphs on the CPU: tensor operations are recorded, and done again in place.

As with the real ones, a replay reads and writes where the recorded operations did, and knows of
nothing that happened between them: a number that Python has computed is that of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Outputs = TypeVar("Outputs")

# What makes a GPU wait for the host or the host for a GPU: reading a number, sizes that depend on
# numbers, a tensor of a list, another device.
FORBIDDEN = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::lift_fresh",
    "aten::lift",
    "aten::pin_memory",
    "aten::from_file",
}


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """All operations within, of the backward pass as well; an error at one that may not be."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        name = func._schema.name
        by_mask = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        sizes_from_numbers = name == "aten::repeat_interleave" and isinstance(args[0], Tensor)
        if name in FORBIDDEN or by_mask or sizes_from_numbers:
            raise AssertionError(f"{name} cannot be part of a CUDA graph")
        out = func(*args, **given)
        self.operations.append((func, args, given, out))
        return out

    def run(self, function: Callable[[], Outputs]) -> Outputs:
        """Record what the function does; what it returns."""
        with self:
            return function()

    def replay(self) -> None:
        """Do all of it again, into the places of the first time."""
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                if _is_view(func):
                    continue
                again = func(*args, **kwargs)
                if func._schema.is_mutable:
                    continue
                for place, value in zip(
                    pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True
                ):
                    if isinstance(place, Tensor):
                        place.copy_(value)


def _is_view(func: Any) -> bool:
    """Whether what it returns lies in the memory of what it is given, and is not written to."""
    aliases = [result.alias_info for result in func._schema.returns]
    return not func._schema.is_mutable and any(alias is not None for alias in aliases)


def capturing(
    found: list[Recording],
) -> Callable[[Callable[[], Any], torch.device], tuple[Callable[[], None], Any]]:
    """In place of `cuda_graph.capture`, warm-up and all; recordings are added to `found`."""

    def capture(
        function: Callable[[], Outputs], device: torch.device
    ) -> tuple[Callable[[], None], Outputs]:
        for _ in range(3):
            function()
        recording = Recording()
        outputs = recording.run(function)
        found.append(recording)
        return recording.replay, outputs

    return capture
