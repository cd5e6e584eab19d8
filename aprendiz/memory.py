"""How a step is fitted into the device's memory, and what is done when it does not fit after all.

Nothing here changes what is learned: a batch is cut into parts, activations are computed again rather than kept.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from .errors import DeviceError

if TYPE_CHECKING:
    from .nets.arena import Arena
    from .prepare import Lesson

GROWTH_STEPS = 2000  # fp16: steps without overflow after which the loss scale doubles


class Fit:
    """The step's shape in memory: into how many parts a batch is cut, whether activations are recomputed, the fp16 loss scale."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.parts = lesson.job.training.gradient_accumulation
        self.recomputing = lesson.job.training.gradient_checkpointing
        self.loss_scale = 2.0**15 if lesson.arena.working.dtype == torch.float16 else 1.0
        self._fine = 0
        if self.recomputing:
            recompute(lesson)

    def lower(self) -> None:
        """One rung lower after running out of memory; says what was chosen and what it costs. Raises DeviceError at the last rung."""
        share = -(-self.lesson.loader.samples // self.lesson.processes.count)
        say = self.lesson.run.say
        if self.lesson.job.training.memory == "manual" or (self.recomputing and self.parts >= share):
            raise DeviceError("The device ran out of memory at resolution {resolution} with {parts} picture(s) at a time. Choose a smaller "
                              "resolution or rank, close other programs that use the card, or set memory to auto.",
                              resolution=self.lesson.resolution, parts=-(-share // self.parts), where="training.memory")
        if not self.recomputing:
            self.recomputing = True
            recompute(self.lesson)
            say("Out of memory: activations are now computed again instead of kept, about a third more time. Nothing is lost.", warning=True)
        else:
            self.parts = min(share, self.parts * 2)
            say("Out of memory: each batch is now trained in {parts} parts, a little slower. Nothing is lost.", warning=True, parts=self.parts)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def overflowed(self, arena: Arena) -> bool:
        """fp16 alone: whether the gradient left its range, so that the step is done again at half the loss scale.

        This is the one place where a step waits for a number; bf16 and fp32 never do.
        """
        if arena.working.dtype != torch.float16:
            return False
        if bool(torch.isfinite(arena.norm())):
            self._fine += 1
            if self._fine >= GROWTH_STEPS:
                self._fine, self.loss_scale = 0, self.loss_scale * 2
            return False
        self._fine, self.loss_scale = 0, self.loss_scale / 2
        # Below 1 it is no overflow but a loss that is no number; the meter names it.
        return self.loss_scale >= 1


def recompute(lesson: Lesson) -> None:
    """Checkpoint the network's blocks. Text encoders keep theirs: they are small, and trained in evaluation mode."""
    lesson.base.network.enable_gradient_checkpointing()  # type: ignore[operator]
