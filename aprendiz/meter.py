"""Losses and speed of a run, read from the device late, so that the loop never waits for a number.

Losses of a step stay on the device; a whole window of them is copied at once and looked at when the copy has arrived.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import devices

if TYPE_CHECKING:
    from .run import Run

WINDOW = 10  # steps between looks on a device that works ahead of us; on a CPU every step is looked at


class NotFinite(Exception):
    """The loss of a step was no number."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Note:
    """What is known of a step before its loss has been read."""

    step: int
    epoch: float
    learning_rate: float
    loss: Tensor


class Meter:
    """Collects notes and turns them into `step` events."""

    def __init__(self, run: Run, steps: int, pictures: int, device: torch.device, every: int | None = None) -> None:
        self.run, self.steps, self.pictures, self.device = run, steps, pictures, device
        self.window = every or (1 if device.type == "cpu" else WINDOW)
        self.waiting: list[Note] = []
        self.sent: tuple[list[Note], Tensor, torch.cuda.Event | None] | None = None
        self.clock, self.rate = time.perf_counter(), 0.0
        self.told = 0

    def note(self, note: Note) -> None:
        """Remember a step; look at the losses that have arrived. Raises NotFinite."""
        self.waiting.append(note)
        if self.sent and (self.sent[2] is None or self.sent[2].query()):
            self._tell()
        if len(self.waiting) >= self.window:
            self.flush(wait=self.device.type == "cpu")

    def flush(self, wait: bool = True) -> None:
        """Send the waiting losses to the host; with `wait`, look at them now. Raises NotFinite."""
        if self.sent and (self.waiting or wait):
            self._tell()
        if self.waiting:
            losses = torch.stack([note.loss for note in self.waiting])
            event = None
            if self.device.type == "cuda":
                losses = losses.to("cpu", non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self.sent, self.waiting = (self.waiting, losses, event), []
        if wait and self.sent:
            self._tell()

    def pause(self) -> None:
        """Leave the time that samples, saves and pauses take out of the speed."""
        self.clock = time.perf_counter()

    def _tell(self) -> None:
        assert self.sent
        notes, losses, event = self.sent
        self.sent = None
        if event:
            event.synchronize()
        now = time.perf_counter()
        rate = len(notes) * self.pictures / max(now - self.clock, 1e-9)
        self.rate, self.clock = (rate if not self.rate else 0.9 * self.rate + 0.1 * rate), now
        self.told += len(notes)
        memory, peak = devices.memory_gb(self.device)
        for note, loss in zip(notes, losses.tolist()):
            finite = loss == loss and abs(loss) != float("inf")
            self.run.event("step", step=note.step, steps=self.steps, epoch=round(note.epoch, 3), loss=loss,
                           learning_rate=note.learning_rate,
                           pictures_per_second=round(self.rate, 3), memory_gb=round(memory, 3), peak_memory_gb=round(peak, 3))
            if not finite:
                raise NotFinite(note.step)
