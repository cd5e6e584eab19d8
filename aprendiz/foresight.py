"""What a job comes to, told while it is still being filled in: steps, time, memory. Nothing heavy is loaded.

The base is opened from its headers alone, on the meta device, where tensors are shapes, and the step is counted there as before a
run (`estimate`). A step's time is known where one like it was measured on this machine before (`speeds`). What cannot be told is
left out, never guessed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from . import devices, pace, prepare, registry, speeds
from .data.preflight import steps_of
from .estimate import Choice, Estimate, Need, Work, gb
from .formats import checkpoint, weights
from .memory import Ladder, can_stream
from .nets import footprint
from .nets.frozen import exchange
from .texts import say

if TYPE_CHECKING:
    from .families import Source, Tensors
    from .settings import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Foresight:
    """None: nobody knows. seconds: of all steps. needed, free: bytes of the device. fitted: memory has to be saved to fit."""

    device: str
    steps: int | None
    seconds: float | None = None
    each: float | None = None
    needed: int | None = None
    free: int | None = None
    fitted: bool = False

    def lines(self) -> list[str]:
        """In the person's language."""
        told = []
        if self.each is not None and self.seconds is not None and self.steps is not None:
            told.append(say("Time: about {time} for {steps} steps, {each} s each, as measured on this machine before.",
                            time=in_words(self.seconds), steps=self.steps, each=f"{self.each:.2g}"))
        elif self.each is not None and self.seconds is not None:
            told.append(say("In {time}, about {steps} steps of {each} s each fit, as measured on this machine before.",
                            time=in_words(self.seconds), steps=round(self.seconds / self.each), each=f"{self.each:.2g}"))
        elif self.steps is not None:
            told.append(say("Steps: {steps}. Their time is known after the first run of this kind on this machine.",
                            steps=self.steps))
        elif self.seconds is not None:
            told.append(say("Steps: as many as fit into {time}.", time=in_words(self.seconds)))
        if self.needed is not None and self.free is not None:
            told.append(say("Memory: about {needed} GB of {free} GB free on {device}.", needed=gb(self.needed),
                            free=gb(self.free), device=self.device))
            if self.needed > self.free:
                told.append(say("That is more than is free. Lower resolution, batch size or rank, or close other programs."))
            elif self.fitted:
                told.append(say("To fit, activations are computed again or weights take turns, which is slower."))
        return told


def foresee(job: Job, pictures: int, batches: int | None = None) -> Foresight:
    """What a job with so many pictures comes to. batches: of an epoch, where they are known. Raises AprendizError."""
    device = devices.device(job.training.device)
    source = checkpoint.find(job.base)
    family = registry.families()[source.family]
    side = prepare.resolution(job, source, family)
    steps = steps_of(job.training, pictures, batches or max(1, -(-pictures * job.data.repeats // job.training.batch_size)))
    asked = pace.speed_of(job, source, str(device), side)
    each = speeds.seconds(asked)
    seconds = 60 * job.training.minutes if job.training.minutes else steps * each if steps and each else None
    told = Foresight(str(device), steps, seconds, each)
    try:
        chosen, estimate, free = memory_of(job, source, device, side)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        logger.info("what a step needs cannot be told from headers alone (%s: %s)", type(error).__name__, error)
        return told
    return replace(told, needed=estimate.total, free=free, fitted=chosen)


def memory_of(job: Job, source: Source, device: torch.device, side: int) -> tuple[bool, Estimate, int | None]:
    """Whether memory has to be saved, what a step then takes, and what is free. Raises RuntimeError where nobody can tell."""
    with weights.unread():
        base = registry.families()[source.family].load(source, job.base, devices.precision(job.training, device))
    exchange(base.network)
    method = registry.methods()[job.method_name](base, job)
    tokens = base.family.tokenize(base, [""], job.data.max_tokens, weighted=False)
    state: Tensors = tokens.rows(0, 1)
    if not method.trains_text_encoder:
        with torch.no_grad(), footprint.on_meta(base.text_encoders, torch.float32):
            state = base.family.encode_tokens(base, tokens.to("meta"))
    pictures = pace.pictures_of(job)
    live = job.data.crop == "random" and job.data.crop_variants == 0
    work = Work(job, base, method, device, live, pictures, (side, side), state)
    need = Need(work)
    ladder = Ladder(len(need.pieces), pictures, can_stream(work))
    start = Choice(ladder.all if job.training.gradient_checkpointing else (), min(job.training.gradient_accumulation, pictures))
    free = devices.free_bytes(device)
    if free is None or job.training.memory == "manual":
        return False, need.of(start), free
    chosen, estimate = ladder.choose(need, start, free)
    return chosen != start, estimate, free


def in_words(seconds: float) -> str:
    """'40 s', '12 min', '2 h 5 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
