"""How a step is fitted into the device's memory, and what is done when it does not fit after all.

`memory = "auto"` goes down a ladder until the estimate fits what is free less a gigabyte: activations computed again rather than
kept, a batch trained in parts, frozen weights in 8 bits, pieces of the network brought in turn. All but the third change nothing
of what is learned, and that one says by how much. The choice is told with its cost and kept in the run's folder, so that a
resumed run makes the same. A step that runs out of memory all the same is done again one rung lower.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from . import devices
from .errors import DeviceError
from .estimate import Choice, Estimate, Need, Work, frozen_bytes, gb
from .files import write_json
from .nets import eight_bit, recompute
from .nets.offload import Stream
from .placing import drawing, free_unused
from .spill import Spill

if TYPE_CHECKING:
    from .families import Base
    from .nets.arena import Arena
    from .processes import Processes
    from .run import Run
    from .settings import TrainingSettings

logger = logging.getLogger(__name__)

MARGIN = 1_000_000_000  # bytes that are left free: other programs draw on the card too
GROWTH_STEPS = 2000     # fp16: steps without overflow after which the loss scale doubles
FILE = "memory.json"    # in the run's folder


class Ladder:
    """Which ways of fitting a step there are, from the fastest to the smallest."""

    def __init__(self, pieces: int, pictures: int, streams: bool) -> None:
        self.all, self.pictures, self.streams = tuple(range(pieces)), pictures, streams

    @classmethod
    def of(cls, work: Work) -> Ladder:
        """The ladder of a step."""
        return cls(len(recompute.pieces(work.base.family.blocks(work.base))), work.pictures, can_stream(work))

    def start(self, training: TrainingSettings) -> Choice:
        """The rung that the settings ask for."""
        return Choice(self.all if training.gradient_checkpointing else (), min(training.gradient_accumulation, self.pictures))

    def below(self, choice: Choice) -> Choice | None:
        """The next rung, whole; None at the last."""
        if len(choice.recomputed) < len(self.all):
            return replace(choice, recomputed=self.all)
        if choice.parts < self.pictures:
            return replace(choice, parts=min(self.pictures, choice.parts * 2))
        if not choice.eight_bit:
            return replace(choice, eight_bit=True)
        if self.streams and len(choice.streamed) < len(self.all):
            return replace(choice, streamed=self.all)
        return None

    def choose(self, need: Need, start: Choice, free: int) -> tuple[Choice, Estimate]:
        """The first way that fits, block by block where a rung can be taken in part; the last one if none does."""
        def fits(choice: Choice) -> bool:
            return need.of(choice).total + MARGIN <= free

        choice: Choice = start
        while not fits(choice):
            lower = self.below(choice)
            if lower is None:
                break
            choice = next((some for some in partly(need, choice, lower) if fits(some)), lower)
        return choice, need.of(choice)


def partly(need: Need, choice: Choice, lower: Choice) -> Iterator[Choice]:
    """The steps between two rungs, the cheapest first: as few pieces recomputed, or streamed, as will do."""
    if len(choice.recomputed) < len(lower.recomputed):
        order = [n for n in need.trace(need.work.each(choice)).order() if n not in choice.recomputed]
        for count in range(1, len(order) + 1):
            yield replace(choice, recomputed=tuple(sorted((*choice.recomputed, *order[:count]))))
    if len(choice.streamed) < len(lower.streamed):
        order = [n for n in need.heaviest() if n not in choice.streamed]
        for count in range(1, len(order) + 1):
            yield replace(choice, streamed=tuple(sorted((*choice.streamed, *order[:count]))))


# Choosing


def choose(work: Work, run: Run, processes: Processes, free: int | None = None) -> Choice:
    """How this run's steps are fitted in: as in its folder, else as the settings say, lower where that does not fit.

    It is told and kept. free: bytes of the device's memory; None asks the device. All processes choose as the main one.
    """
    training = work.job.training
    need = Need(work)
    ladder = Ladder.of(work)
    start = ladder.start(training)
    if training.memory == "manual":
        return start
    before = remembered(run, len(need.pieces))
    if before is not None:
        return agreed(before, processes)
    free = devices.free_bytes(work.device) if free is None else free
    if free is None:
        return start
    if work.device.type == "cpu":
        free += frozen_bytes(work.base.network)  # it is in the same memory already, and so is what is kept
    need.kept = 0 if work.device.type == "cpu" or work.kept > free / 4 else work.kept
    try:
        chosen, estimate = ladder.choose(need, start, free)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        logger.warning("What a step needs could not be estimated (%s: %s).", type(error).__name__, error)
        return agreed(start, processes)
    chosen = agreed(chosen, processes)
    keep(run, chosen, estimate, free)
    if chosen != start or work.device.type != "cpu":
        run.say("A step needs about {needed} GB of the {free} GB of memory that are free on {device}.",
                needed=gb(estimate.total), free=gb(free), device=str(work.device))
    explain(run, need, start, chosen)
    if estimate.total > free:
        run.say("Even so {needed} GB are more than the {free} GB that are free on {device}, so memory may run out. Choose a "
                "smaller resolution or rank, or close other programs that use it.",
                warning=True, needed=gb(estimate.total), free=gb(free), device=str(work.device))
    return chosen


def agreed(choice: Choice, processes: Processes) -> Choice:
    """The main process's choice, in all."""
    return Choice.read(json.loads(processes.same(json.dumps(choice.values()))))


def can_stream(work: Work) -> bool:
    """Whether pieces can wait outside of the device's memory; a compiled network is not taken apart."""
    return work.device.type != "cpu" and not work.job.training.compile


def explain(run: Run, need: Need, start: Choice, chosen: Choice) -> None:
    """Tell each thing that was done to fit, and its cost."""
    if chosen.recomputed != start.recomputed:
        slower = need.trace(need.work.each(chosen)).slower(chosen.recomputed)
        run.say("To fit, {count} of the network's {all} parts compute their activations again instead of keeping them: about "
                "{percent} % more work a step, the same result.",
                count=len(chosen.recomputed), all=len(need.pieces), percent=round(100 * slower))
    if chosen.parts != start.parts:
        run.say("To fit, {pictures} picture(s) go through the network at a time instead of {all}: a little slower, the "
                "same result.", pictures=need.work.each(chosen), all=need.work.each(start))
    if chosen.streamed:
        run.say("To fit, {count} of the network's {all} parts wait in the computer's memory and come in turn: {size} GB are "
                "copied a step, the same result.",
                count=len(chosen.streamed), all=len(need.pieces), size=gb(need.streamed_bytes(chosen)))


def remembered(run: Run, pieces: int) -> Choice | None:
    """What an earlier attempt at this run chose, if it is there and is of this network."""
    try:
        found = Choice.read(json.loads((run.folder / FILE).read_text(encoding="utf-8"))["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if max((*found.recomputed, *found.streamed), default=0) < pieces else None


def keep(run: Run, choice: Choice, estimate: Estimate | None = None, free: int | None = None) -> None:
    """Note the choice in the run's folder, with the figures that it was made from."""
    if run.main:
        told = {} if estimate is None else {"bytes": {**vars(estimate), "total": estimate.total, "free": free}}
        write_json(run.folder / FILE, {"choice": choice.values(), **told})


# Doing so


class Fitted:
    """A base whose step is fitted in as chosen."""

    def __init__(self, base: Base, device: torch.device, run: Run, ladder: Ladder, choice: Choice) -> None:
        self.base, self.device, self.run, self.ladder = base, device, run, ladder
        self.pieces = recompute.pieces(base.family.blocks(base))
        self.choice = Choice()
        self.stream: Stream | None = None
        self._told = False
        self.change(choice)

    def change(self, choice: Choice) -> None:
        """Fit it in this way instead, which is lower."""
        recompute.keep(self.pieces)
        if choice.eight_bit and not self.choice.eight_bit:
            error = eight_bit.store(self.pieces)
            self.run.say("To fit, the frozen weights are kept in 8 bits: they differ from the file's by up to {percent} %, and "
                         "losses a little. What is learned stays in fp32.", percent=f"{100 * error:.1f}")
        if choice.streamed != self.choice.streamed:
            if self.stream is not None:
                self.stream.close()
            self.stream = Stream([self.pieces[number] for number in choice.streamed], self.device)
            if self.device.type == "cuda" and not self.stream.pinned:
                self.run.say("The system pins no more memory, so copies to the card are slow. Close other programs.",
                             warning=True)
        recompute.recompute(self.pieces[number] for number in choice.recomputed)
        self.choice = choice

    @contextlib.contextmanager
    def drawing(self, size: tuple[int, int]) -> Iterator[None]:
        """While samples of this size are drawn; says once what has to stay on the CPU for it."""
        with drawing(self.base, self.device, size) as left:
            if left and not self._told:
                self._told = True
                self.run.say("There is no room for {parts} on {device} beside the network, so samples need the CPU and take "
                             "longer.", parts=", ".join(left), device=str(self.device))
            yield

    @property
    def together(self) -> int:
        """Pictures that go through the network together."""
        return -(-self.ladder.pictures // self.choice.parts)


def fit(work: Work, run: Run, processes: Processes, free: int | None = None) -> Fitted:
    """Choose, and do so. The network may still be on the CPU: what is streamed then never fills the device."""
    choice = choose(work, run, processes, free)
    return Fitted(work.base, work.device, run, Ladder.of(work), choice)


class Fit:
    """The step as it goes: its way of fitting in, the fp16 loss scale, and an eye on memory that spills."""

    def __init__(self, fitted: Fitted, arena: Arena, settings: TrainingSettings, resolution: int) -> None:
        self.fitted, self.manual, self.resolution = fitted, settings.memory == "manual", resolution
        self.loss_scale = 2.0**15 if arena.working.dtype == torch.float16 else 1.0
        self._fine = 0
        device = arena.master.device
        watched = sys.platform == "win32" and device.type == "cuda"
        self._spill = Spill(fitted.run, lambda: devices.card(device)) if watched else None

    @property
    def parts(self) -> int:
        """Into how many parts a process's share of a batch is cut."""
        return self.fitted.choice.parts

    def lower(self, arena: Arena) -> None:
        """One rung lower after running out of memory; says what it is and what it costs. Raises DeviceError at the last rung."""
        now, run = self.fitted.choice, self.fitted.run
        lower = None if self.manual else self.fitted.ladder.below(now)
        if lower is None:
            raise DeviceError("The device ran out of memory at resolution {resolution} with {parts} picture(s) at a time. Choose "
                              "a smaller resolution or rank, close other programs that use the card, or set memory to auto.",
                              resolution=self.resolution, parts=self.fitted.together, where="training.memory")
        arena.working_gradient.zero_()  # of the parts that were done; the whole gradient is emptied by the step itself
        free_unused(self.fitted.device)
        if lower.recomputed != now.recomputed:
            run.say("Out of memory: activations are now computed again instead of kept, about a third more time. Nothing is "
                    "lost.", warning=True)
        if lower.parts != now.parts:
            run.say("Out of memory: each batch is now trained in {parts} parts, a little slower. Nothing is lost.",
                    warning=True, parts=lower.parts)
        if lower.eight_bit != now.eight_bit:
            run.say("Out of memory: the frozen weights are now kept in 8 bits, which changes them a little. Nothing learned is "
                    "lost.", warning=True)
        if lower.streamed != now.streamed:
            run.say("Out of memory: the network's parts now wait in the computer's memory and come in turn, slower. Nothing is "
                    "lost.", warning=True)
        self.fitted.change(lower)
        keep(run, lower)
        free_unused(self.fitted.device)

    def done(self) -> None:
        """A step is done: look whether memory spills."""
        if self._spill is not None:
            self._spill.note(time.perf_counter())

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
