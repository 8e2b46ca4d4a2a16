"""What the processes of one training tell each other, apart from gradients.

Small things: whether somebody was asked to stop, whether a loss went wrong, where each
of them starts.  They go through a group of their own on the CPU, so a GPU does not wait.
Every process calls the same methods at the same steps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Exchange:
    """Talk among the processes of one training; alone, everything is answered at once."""

    def __init__(self) -> None:
        self._group: Any = None

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to (told once the processes have joined)."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if not self.several:
            return value
        number = torch.tensor([value])
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._talk())
        return int(number.item())

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of their ranks; each gets all of them."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._talk())
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, such as the statistics of norms.

        Norms that are not synchronised gather statistics of their own process's images;
        the first process's are what checkpoints hold.
        """
        if not self.several:
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def _talk(self) -> Any:
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return self._group
