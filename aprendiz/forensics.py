"""Why a loss was no number: the steps since the last good state are done again, watched, until the first bad value shows.

Every draw belongs to its step, so the repetition is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .errors import TrainingError

if TYPE_CHECKING:
    from torch import nn

    from .lesson import Learned, Lesson


def explain(lesson: Lesson, learned: Learned, step: int, update: Callable[..., object]) -> TrainingError:
    """The error that names step, picture and module. `learned` stands at the last good state and is left at the bad step.

    update: does one optimizer step (lesson, learned, batch).
    """
    while learned.step < step - 1:
        update(lesson, learned, lesson.loader.batch(learned.step, lesson.processes.share(lesson.loader.samples)))
    batch = lesson.loader.batch(step - 1)
    pictures: list[str] = []
    module = ""
    with torch.no_grad():
        for i, name in enumerate(batch.names):
            one = batch.rows(i, i + 1)
            with Watch(lesson.base.parts()) as watch:
                noisy = lesson.objective.corrupt(one)
                loss = lesson.objective.losses(lesson.method.predict(noisy, one), noisy, one)
            if not bool(torch.isfinite(loss).all()):
                pictures.append(name)
                module = module or watch.first or ""
    return TrainingError(
        "The loss of step {step} was no number ({pictures}; first in {module}). The last good state, of step {good}, is kept. "
        "Lower the learning "
        "rate, or train in fp32 or bf16; if it is always the same picture, look at it.",
        step=step, pictures=", ".join(dict.fromkeys(pictures)) or "in its gradient", module=module or "the loss",
                         good=_last_saved(lesson))


def _last_saved(lesson: Lesson) -> int:
    return lesson.run.step


class Watch:
    """Notices the first module whose output is not finite, while active."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.parts = parts
        self.first: str | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Watch:
        for part, root in self.parts.items():
            for name, module in root.named_modules():
                if not any(module.children()):
                    self._hooks.append(module.register_forward_hook(self._look(f"{part}.{name}")))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _look(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if self.first is None and isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                self.first = name
        return hook
