"""Minutes as a setting: how many steps fit into the time that a person has.

Learning-rate schedules need the number of steps before the first one. So some steps of this very job are rehearsed and timed, all
that they changed is put back, and the number is decided once and kept in the run's folder: from then on the run is, bit for bit,
the run of that many steps, however often it is stopped and taken up again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from . import room, speeds
from .files import write_json
from .optimizers import Optimizer

if TYPE_CHECKING:
    from .families import Source
    from .lesson import Learned, Lesson
    from .meter import Meter
    from .run import Run
    from .settings import Job

FILE = "pace.json"  # in the run's folder
WARM_UP = 2         # steps that are not timed: kernels are chosen, memory is taken
LEAST, MOST = 2, 20  # steps that are timed
SHARE = 0.03        # of the time that there is, for timing steps
LONGEST = 20.0      # seconds of it at most
ENOUGH = 20         # steps after which a run's speed is remembered
FORWARD = 0.35      # what a look at a validation picture takes of a step: no backward, no update


def decided(run: Run) -> int | None:
    """The number of steps that was decided for this run; None before."""
    try:
        steps = json.loads((run.folder / FILE).read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) and steps > 0 else None


def decide(lesson: Lesson, learned: Learned, drawing: float, step: Callable[[], Any], clock: Callable[[], float]) -> None:
    """Rehearse, decide how many steps there will be, put everything back, and tell.

    drawing: seconds that drawing all samples once took. step: does the next optimizer step, and waits for it. clock: seconds.
    """
    minutes = lesson.job.training.minutes
    assert minutes is not None
    each = rehearse(lesson, learned, step, clock, 60 * minutes)
    left = 60 * minutes - _since_ready(lesson.run)
    fitting = learned.step + steps_within(lesson, left, each, drawing)
    # All processes take the main one's number.
    lesson.steps = int(lesson.processes.same(str(fitting)))
    lesson.optimizer = Optimizer(lesson.arena, lesson.job.optimizer, lesson.steps)
    room.check_disk(lesson.run, lesson.job, lesson.arena.master.numel(), lesson.steps)
    if lesson.run.main:
        write_json(lesson.run.folder / FILE, {"steps": lesson.steps, "minutes": minutes, "seconds_per_step": each})
    lesson.run.say("A step takes {seconds} s here, so {steps} steps fit into {minutes} minutes.", seconds=f"{each:.3g}",
                   steps=lesson.steps, minutes=f"{minutes:g}")


def rehearse(lesson: Lesson, learned: Learned, step: Callable[[], Any], clock: Callable[[], float], seconds: float) -> float:
    """Seconds of a step, over some that are then undone."""
    before = learned.state(lesson)
    allowed = min(LONGEST, SHARE * seconds)
    for number in range(WARM_UP):
        lesson.run.event("caching", what="speed", done=number, total=WARM_UP + LEAST)
        step()
    done, began = 0, clock()

    def enough() -> bool:
        """All processes take as many steps as the main one, or they would wait for each other for ever."""
        wanted = done < LEAST or (done < MOST and clock() - began < allowed)
        return lesson.processes.same("" if wanted else "enough") != ""

    while not enough():
        step()
        done += 1
    each = (clock() - began) / done
    learned.fit = lesson.fit()  # a smaller way of fitting into memory stays; the loss scale begins anew
    lesson.optimizer = Optimizer(lesson.arena, lesson.job.optimizer, lesson.steps)
    learned.restore(lesson, before)
    return max(each, 1e-6)


def steps_within(lesson: Lesson, seconds: float, each: float, drawing: float) -> int:
    """How many steps fit, samples and validation on the way and at the end counted; one at least."""
    job = lesson.job
    looking = 0.0
    if lesson.validation is not None and job.training.validate_every_steps:
        looking = 4 * lesson.validation.plan.batches * FORWARD * each / max(1, lesson.loader.samples)
    end = drawing + looking
    with_all = each + drawing / (job.samples.sample_every_steps or float("inf"))
    with_all += looking / (job.training.validate_every_steps or float("inf"))
    return max(1, int((seconds - end) / with_all))


def remember(lesson: Lesson, meter: Meter) -> None:
    """Keep this run's speed for what is told of the next one, if enough steps were taken for it to mean something."""
    # Pictures that keep their sizes are of no pixels in particular.
    if meter.told < ENOUGH or not meter.rate or not lesson.run.main or not lesson.job.data.resize:
        return
    device = str(lesson.arena.master.device)
    asked = speed_of(lesson.job, lesson.base.source, device, lesson.resolution)
    speeds.remember(replace(asked, seconds=lesson.loader.samples / meter.rate))


def speed_of(job: Job, source: Source, device: str, side: int) -> speeds.Speed:
    """A job's step as speeds are kept, still without its time."""
    return speeds.Speed(speeds.device_name(device), job.method_name, room.opened_bytes(source, torch.float32),
                        pictures_of(job) * side * side)


def pictures_of(job: Job) -> int:
    """Pictures that a step sees, the base's own counted."""
    return job.training.batch_size + (job.prior.per_batch if job.prior.pictures or job.prior.prior_data else 0)


def _since_ready(run: Run) -> float:
    """Seconds since this attempt had its device: what was opened and encoded counts, waiting for other runs does not."""
    ready = [event["time"] for event in run.events() if event["event"] == "ready"]
    return max(0.0, time.time() - ready[-1]) if ready else 0.0
