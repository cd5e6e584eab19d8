"""What is being taught, ready to be trained, and how far it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from . import memory
from .state import State

if TYPE_CHECKING:
    from .data.folder import Dataset
    from .data.loader import Loader
    from .draws import Draws
    from .families import Base
    from .methods import Method
    from .nets.arena import Arena
    from .objectives import Objective
    from .optimizers import Optimizer
    from .processes import Processes
    from .request import Request
    from .run import Run
    from .settings import Job


@dataclass
class Lesson:
    """One run, ready to be trained."""

    job: Job
    run: Run
    base: Base
    method: Method
    dataset: Dataset
    objective: Objective
    loader: Loader
    validation: Loader | None
    arena: Arena
    optimizer: Optimizer
    processes: Processes
    draws: Draws
    steps: int
    samples: list[Request]
    resolution: int
    fitted: memory.Fitted

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """While pictures are drawn: the encoders, which otherwise leave the device to the network."""
        sizes = [(one.width or self.resolution, one.height or self.resolution) for one in self.samples]
        with self.fitted.drawing(max(sizes, key=lambda size: size[0] * size[1], default=(self.resolution, self.resolution))):
            yield

    def fit(self) -> memory.Fit:
        """The step as it begins: fitted in as chosen, the loss scale at its start."""
        return memory.Fit(self.fitted, self.arena, self.job.training, self.resolution)


@dataclass
class Learned:
    """How far a run is: steps done, the moving average, the best validation loss so far, how the step fits the memory."""

    fit: memory.Fit
    step: int = 0
    ema: Tensor | None = None
    best: tuple[float, int] | None = None
    started: float = field(default_factory=time.time)

    def state(self, lesson: Lesson) -> State:
        """Everything needed to go on, copied to the CPU."""
        tensors, plain = lesson.optimizer.tensors()
        kept = {"master": lesson.arena.master, **({"ema": self.ema} if self.ema is not None else {})}
        kept |= {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        return State(self.step, {name: t.detach().to("cpu", copy=True) for name, t in kept.items()},
                     {"optimizer": plain, "best": self.best, "loss_scale": self.fit.loss_scale, "started": self.started})

    def restore(self, lesson: Lesson, kept: State) -> None:
        """Go back, or on, to a saved state."""
        device = lesson.arena.master.device
        lesson.arena.master.copy_(kept.tensors["master"])
        lesson.arena.refresh()
        if self.ema is not None:
            self.ema.copy_(kept.tensors["ema"])
        lesson.optimizer.restore({name.removeprefix("optimizer."): tensor.to(device) if tensor.ndim else tensor.clone()
                                  for name, tensor in kept.tensors.items() if name.startswith("optimizer.")},
                                 kept.plain["optimizer"])
        self.step, self.started = kept.step, kept.plain["started"]
        self.best = tuple(kept.plain["best"]) if kept.plain["best"] else None
        self.fit.loss_scale = kept.plain["loss_scale"]

    def result(self, lesson: Lesson) -> Tensor:
        """What the run's file holds: the moving average where one is kept, else the masters. To be read at once, never kept."""
        if self.ema is not None:
            return self.ema
        return lesson.optimizer.average()
