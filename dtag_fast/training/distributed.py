"""One training over several processes, as torchrun starts them.

    torchrun --nproc-per-node 2 -m dtag_fast.cli train policy ...

Every process draws the whole batch from equal generators and computes its part of it. A mean over
the batch is a sum of the parts' means, each times its share of what is counted; so gradients are
summed, and all processes then do the same step on the same weights. The curve of the losses is that
of one process with the same batch, but for rounding and for what dropout drops.

Process 0 alone writes. Nothing in a checkpoint depends on how many processes there were, except for
the other processes' generators, with which a run of as many processes resumes exactly.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# How long a process waits for the others; the first evaluates while the rest wait.
TIMEOUT = datetime.timedelta(hours=4)
SEED_STEP = 1_000_003  # between the processes' generators of dropout


class ProcessLost(RuntimeError):
    """Another process of the training has ended, or cannot be reached any more."""


@dataclass(frozen=True)
class Group:
    """The processes of a training; by default there is one.

    Attributes:
        rank: the number of this one, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Which of so many rows are this process's."""
        return slice(rows * self.rank // self.world, rows * (self.rank + 1) // self.world)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Every parameter's gradient becomes the sum of those of all processes."""
        if self.alone:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._reach(lambda: torch.distributed.all_reduce(flat))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients, [x.view_as(g) for x, g in zip(parts, gradients, strict=True)]
        )

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, without a gradient."""
        if self.alone:
            return values.detach()
        total = values.detach().clone()
        self._reach(lambda: torch.distributed.all_reduce(total))
        return total

    def sum_terms(self, terms: Tensor, wish: bool) -> tuple[Tensor, bool]:
        """The sum of all processes' terms, and whether any of them has the wish."""
        if self.alone:
            return terms, wish
        both = torch.cat((terms, terms.new_tensor([float(wish)])))
        self._reach(lambda: torch.distributed.all_reduce(both))
        return both[:-1], bool(both[-1] > 0)

    def any(self, wish: bool) -> bool:
        """Whether any process has the wish."""
        return any(self.gather(wish))

    def gather(self, value: Result) -> list[Result]:
        """What each process gives, in their order, for all of them."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world
        self._reach(lambda: torch.distributed.all_gather_object(values, value))
        return values

    def from_first(self, call: Callable[[], Result]) -> Result:
        """The result of a call in process 0, for all; its ValueError or RuntimeError likewise."""
        if self.alone:
            return call()
        outcome: list[Any] = [None, None]
        error: Exception | None = None
        if self.first:
            try:
                outcome[0] = call()
            except (ValueError, RuntimeError, OSError) as raised:
                error = raised
                outcome[1] = f"{type(raised).__name__}: {raised}"
        self._reach(lambda: torch.distributed.broadcast_object_list(outcome, src=0))
        if outcome[1] is not None:
            # All leave now, none while another still reads from it: gloo may abort where a
            # connection ends under its hands.
            self._reach(torch.distributed.barrier)
            raise error or ValueError(f"process 0: {outcome[1]}")
        result: Result = outcome[0]
        return result

    def share_state(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the tensors of process 0, in place."""
        if self.alone:
            return
        # NCCL carries what lies on a GPU, and counts of steps may lie on the CPU.
        nccl = torch.distributed.get_backend() == "nccl"
        with torch.no_grad():
            for tensor in tensors:
                carried = tensor.cuda() if nccl else tensor.contiguous()
                self._broadcast(carried)
                if carried is not tensor:
                    tensor.copy_(carried)

    def _broadcast(self, tensor: Tensor) -> None:
        self._reach(lambda: torch.distributed.broadcast(tensor, src=0))

    def _reach(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ProcessLost(
                f"process {self.rank} of {self.world} cannot reach the others, one of which has "
                f"probably ended; start all of them again, with resume (--resume) to go on from "
                f"the last checkpoint: {error}"
            ) from error


ALONE = Group()


@contextmanager
def process_group(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's variables describe; without them, this process alone.

    Processes on GPUs talk by NCCL, others by gloo.

    Raises:
        ProcessLost: not all processes came.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if not torch.distributed.is_available():
        raise RuntimeError(f"WORLD_SIZE is {world}, but this torch has no torch.distributed")
    group = Group(int(os.environ["RANK"]), world)
    if torch.distributed.is_initialized():  # by the caller, who keeps it
        yield group
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group._reach(lambda: torch.distributed.init_process_group(backend, timeout=TIMEOUT))
    try:
        yield group
    except ProcessLost:
        raise  # and leave the group standing: taking down what is broken may abort the process
    except BaseException:
        torch.distributed.destroy_process_group()
        raise
    group._reach(torch.distributed.barrier)
    torch.distributed.destroy_process_group()
