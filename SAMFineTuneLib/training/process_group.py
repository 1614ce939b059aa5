"""Several processes that train one adapter, as `torchrun` starts them; one process alone is a group of one.

Every process holds the same network and works on its part of each batch, and the gradients are summed: the result of n
processes is that of one process with the same batch, up to rounding. Only the first process writes and tests.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from SAMFineTuneLib.errors import UserError

_PATIENCE = timedelta(hours=12)  # while the first process tests, the others wait


@dataclass(frozen=True)
class ProcessGroup:
    """This process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports and writes files."""
        return self.rank == 0

    def alone(self, look: Callable[[], None]) -> Callable[[], None]:
        """`look`; a function that does nothing in a group, whose other processes would wait for this one."""
        return look if self.size == 1 else lambda: None

    def part_of(self, batch: int) -> range:
        """Positions of this process's pictures in a batch; UserError when the batch cannot be divided evenly."""
        if batch % self.size:
            raise UserError(f"A batch of {batch} pictures cannot be shared by {self.size} processes; choose another.")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of each process by their sum over all processes."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter in trained:  # one that this process's pictures did not need must still be counted
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        together = torch.cat([parameter.grad.reshape(-1) for parameter in trained])
        torch.distributed.all_reduce(together)
        for parameter, part in zip(trained, together.split([one.numel() for one in trained]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))

    def sum(self, value: float) -> float:
        """The sum of every process's number."""
        if self.size == 1:
            return value
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total)
        return float(total)

    def from_first(self, value: Any) -> Any:
        """The first process's value; the others wait for it."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


def join_process_group(device: str) -> tuple[ProcessGroup, str]:
    """Join the processes that `torchrun` started, if any.

    Returns:
        This process's place, and the device that it should use.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ProcessGroup(), device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return ProcessGroup(torch.distributed.get_rank(), size), device


def _leave() -> None:
    """Leave the group, and wait until Gloo's threads have released their last tensors: a thread that does so after the
    interpreter has ended aborts the process (torch 2.13)."""
    torch.distributed.destroy_process_group()
    time.sleep(0.2)
