"""What a job comes to, told while it is still being filled in: steps, time, memory. Nothing heavy is loaded.

The base is opened from its headers alone, on the meta device, where tensors are shapes, and the step is counted there as before a
run (`estimate`). A step's time is known where one like it was measured on this machine before (`speeds`). What cannot be told is
left out, never guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from . import devices, pace, prepare, registry, speeds
from .data import buckets
from .data.preflight import by, steps_of
from .errors import Problem
from .estimate import Need, Work, gb, passing_vae
from .formats import checkpoint, weights
from .memory import Ladder
from .nets import footprint
from .nets.frozen import exchange
from .texts import say

if TYPE_CHECKING:
    from .data.folder import Picture
    from .families import Family, Source, Tensors
    from .settings import Job

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

# What torch and the libraries raise where a tensor without numbers is asked for some; a step that nobody can count is no error.
UNTOLD = (RuntimeError, TypeError, ValueError, AttributeError)


class Memory(NamedTuple):
    """Bytes of the device. wanted: of a step as the settings have it; needed: once memory is saved so that it fits, if it has to
    be (fitted). free: None where nobody knows."""

    wanted: int
    needed: int
    free: int | None
    fitted: bool


@dataclass(frozen=True)
class Foresight:
    """None: nobody knows. seconds: of all steps. The rest: `Memory`."""

    device: str
    steps: int | None
    seconds: float | None = None
    each: float | None = None
    wanted: int | None = None
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
            told.append(say("Memory: about {needed} GB beside the program itself, of {free} GB free on {device}.",
                            needed=gb(self.needed), free=gb(self.free), device=self.device))
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
    # Of pictures that keep their sizes nobody knows the pixels yet.
    each = speeds.seconds(pace.speed_of(job, source, str(device), side)) if job.data.resize else None
    seconds = 60 * job.training.minutes if job.training.minutes else steps * each if steps and each else None
    told = Foresight(str(device), steps, seconds, each)
    found = from_headers(lambda: memory_of(work_of(job, source, device, side)))
    return told if found is None else replace(told, **found._asdict())


def from_headers(look: Callable[[], Found]) -> Found | None:
    """What can be told of a step without any numbers; None, and a line in the log, where something in it wants some."""
    try:
        return look()
    except UNTOLD as error:
        logger.info("what a step needs cannot be told from headers alone (%s: %s)", type(error).__name__, error)
        return None


def work_of(job: Job, source: Source, device: torch.device, side: int) -> Work:
    """A step of a job on square pictures, from headers alone. Raises RuntimeError and its like where nobody can tell."""
    with weights.unread():
        base = registry.families()[source.family].load(source, job.base, devices.precision(job.training, device))
    exchange(base.network)
    method = registry.methods()[job.method_name](base, job)
    tokens = base.family.tokenize(base, [""], job.data.max_tokens, weighted=False)
    state: Tensors = tokens.rows(0, 1)
    if not method.trains_text_encoder:
        with torch.no_grad(), footprint.on_meta(base.text_encoders, torch.float32):
            state = base.family.encode_tokens(base, tokens.to("meta"))
    return Work(job, base, method, device, job.data.live_crops, pace.pictures_of(job), (side, side), state)


def memory_of(work: Work) -> Memory:
    """What a step takes, and what is free. Raises RuntimeError where nobody can tell."""
    need, training = Need(work), work.job.training
    ladder = Ladder.of(work)
    start = ladder.start(training)
    wanted, free = need.of(start).total, devices.free_bytes(work.device)
    if free is None or training.memory == "manual":
        return Memory(wanted, wanted, free, fitted=False)
    chosen, estimate = ladder.choose(need, start, free)
    return Memory(wanted, estimate.total, free, fitted=chosen != start)


def too_large(job: Job, source: Source, family: Family, pictures: Sequence[Picture]) -> list[Problem]:
    """The pictures that keep their size and are too large for a step in the memory that is free; none where nobody can tell."""
    sizes = [buckets.own(picture.size, prepare.bucket_step(job, family)) for picture in pictures]
    device = devices.device(job.training.device)
    rising = sorted(set(sizes), key=lambda size: size[0] * size[1])
    found = from_headers(lambda: _too_large(work_of(job, source, device, prepare.resolution(job, source, family)), rising))
    if found is None:
        return []
    least, known = found[0], {"needed": gb(found[1]), "free": gb(found[2]), "device": str(device)}
    return [Problem("{file} is {size} pixels: a step at its own size needs about {needed} GB or more, and {free} GB are free on "
                    "{device}. Make it smaller, or turn resize on.",
                    {**known, "file": picture.name, "size": by(picture.size)}, picture.name,
                    warning=job.training.memory == "manual")
            for picture, size in zip(pictures, sizes) if size[0] * size[1] >= least]


def _too_large(work: Work, sizes: Sequence[tuple[int, int]]) -> tuple[int, int, int] | None:
    """Of sizes that rise in area the first that does not fit: its area, what it needs, what is free; None: all fit."""
    ram = devices.free_ram(swap=True)
    low, high, told = 0, len(sizes), None
    while low < high:
        middle = (low + high) // 2 if told else high - 1  # mostly the largest fits
        size = sizes[middle]
        memory = memory_of(replace(work, size=size))
        encoding = passing_vae(work.base, size, decode=False)  # done on the CPU where the device does not hold it
        if memory.free is not None and memory.needed > memory.free:
            high, told = middle, (size[0] * size[1], memory.needed, memory.free)
        elif ram is not None and encoding > max(ram, memory.free or 0):
            high, told = middle, (size[0] * size[1], encoding, max(ram, memory.free or 0))
        else:
            low = middle + 1
    return told


def in_words(seconds: float) -> str:
    """'40 s', '12 min', '2 h 5 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
