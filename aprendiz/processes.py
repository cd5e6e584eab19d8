"""Several processes as one: who this process is, and sums over all of them. accelerate starts and connects them.

A batch belongs to the run, not to a process: each process takes its share of the samples, gradients are summed in one flat
buffer, and the result is that of one process up to the order of additions.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor


class Processes:
    """This process among those of the run; one alone unless `accelerate launch` started more."""

    def __init__(self, device: torch.device) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState
            self._state = PartialState(cpu=device.type == "cpu")

    @property
    def index(self) -> int:
        """This process's number, from 0."""
        return int(self._state.process_index) if self._state else 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    @property
    def device(self) -> torch.device | None:
        """The device that the launcher gave this process, None where it is alone."""
        return self._state.device if self._state else None

    def share(self, samples: int) -> range | None:
        """The samples of a batch that this process trains; None means all."""
        if self.count == 1:
            return None
        each = samples // self.count
        return range(self.index * each, (self.index + 1) * each)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def same(self, text: str) -> str:
        """The main process's text, in every process."""
        if self.count == 1:
            return text
        box = [text]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def main_first(self) -> contextlib.AbstractContextManager[None]:
        """The main process goes ahead; the others begin once it has ended this."""
        return self._state.main_process_first() if self._state else contextlib.nullcontext()
