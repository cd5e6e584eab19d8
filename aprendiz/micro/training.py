"""What the stages of the build share: their amounts, batches drawn from the step's own seed, and exact resuming.

Every batch is a function of (seed, step), so a stage that was interrupted needs nothing but its step and its tensors.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything: steps of each stage, pictures to a batch, scenes in all."""

    scenes: int = 48_000             # with 5 captions each, encoded once for the U-Net
    scenes_a_file: int = 500
    vae_steps: int = 9_000
    vae_batch: int = 12              # crops of 64 pixels; a quarter of it once the pictures are whole
    text_steps: int = 1_400
    text_batch: int = 128
    unet_steps: int = 20_000
    unet_batch: int = 48
    decoder_steps: int = 3_000
    decoder_batch: int = 8
    reconstructions: int = 3_000     # pictures that the evaluator sees through the VAE
    evaluator_steps: int = 4_000
    evaluator_batch: int = 64
    measured: int = 96               # pictures to a row of the figures


QUICK = Size(scenes=24, scenes_a_file=12, vae_steps=3, vae_batch=2, text_steps=3, text_batch=4, unet_steps=3, unet_batch=4,
             decoder_steps=2, decoder_batch=2, reconstructions=4, evaluator_steps=3, evaluator_batch=8, measured=2)


@dataclass(frozen=True)
class Build:
    """Where a base is made, on what, and how large. workers: processes that draw pictures (0: the training one draws)."""

    folder: Path
    device: torch.device
    size: Size
    workers: int = 0
    save_every_seconds: float = 120

    def path(self, name: str) -> Path:
        """A file or folder of this build."""
        return self.folder / name


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Saved:
    """The state of one stage in one file, which is replaced as a whole: the step, and the states of its parts."""

    def __init__(self, build: Build, stage: str, **parts: Stateful) -> None:
        self.file, self.parts, self.every_seconds = build.path(f"{stage}.state"), parts, build.save_every_seconds
        self.saved = time.monotonic()

    def restore(self) -> int:
        """Give the parts their saved state; the step to go on from, 0 where nothing is saved."""
        if not self.file.exists():
            return 0
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        logger.info("%s: goes on at step %d", self.file.stem, state["step"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write everything; `step` steps are done."""
        replace_with(self.file, {"step": step} | {name: part.state_dict() for name, part in self.parts.items()})
        self.saved = time.monotonic()

    def save_if_due(self, step: int) -> None:
        """Write everything, if the last time is long enough ago."""
        if time.monotonic() - self.saved > self.every_seconds:
            self.save(step)


def replace_with(file: Path, content: Any) -> None:
    """Write with torch.save under another name, then rename: the file is never half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".part")
    torch.save(content, unfinished)
    os.replace(unfinished, file)


class Average:
    """An exponential moving average of a module's parameters, short at first: decay min(`decay`, step / (step + 10))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._source = module

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the module as it is after `step` steps."""
        weight = 1 - min(self.decay, step / (step + 10))
        torch._foreach_lerp_(list(self.module.parameters()), list(self._source.parameters()), weight)


def batches(dataset: Dataset[Any], start: int, stop: int, build: Build) -> Iterator[tuple[int, Any]]:
    """(step, dataset[step]) for the steps that are left, drawn by the build's worker processes if it has any."""
    loader = DataLoader(dataset, batch_size=None, sampler=range(start, stop), num_workers=build.workers, collate_fn=_as_it_is,
                        multiprocessing_context="spawn" if build.workers else None)
    return enumerate(loader, start)


def _as_it_is(item: Any) -> Any:
    return item


def cosine(step: int, steps: int, *, warmup: int, end: float = 0.02, hold: float = 0.0) -> float:
    """A factor for the learning rate: warm-up, 1 for the share `hold` of the steps, then a half cosine down to `end`."""
    done = max(0.0, step / steps - hold) / (1 - hold)
    return min(1.0, (step + 1) / warmup) * max(end, 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, *rates: float) -> None:
    """One rate for every group of parameters, in order."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class Progress:
    """Tells the story of a stage: a line about twenty times in its course."""

    def __init__(self, stage: str, steps: int) -> None:
        self.stage, self.steps, self.every = stage, steps, max(1, steps // 20)
        self.started = time.monotonic()

    def tell(self, step: int, **figures: torch.Tensor | float) -> None:
        """After `step` steps; the figures are read only when a line is due."""
        if step % self.every and step != self.steps:
            return
        told = "  ".join(f"{name} {torch.as_tensor(value).item():.4f}" for name, value in figures.items())
        logger.info("%s %d/%d  %.0f s  %s", self.stage, step, self.steps, time.monotonic() - self.started, told)
