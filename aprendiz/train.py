"""The loop: from noised latents to learned weights, and everything that happens between two steps.

    batch -> corrupt -> predict -> loss -> gradients -> clip -> optimizer

Step n means: n steps are done. States are saved only between steps; a resumed run is the same run, bit for bit, on the same
machine, versions, threads and processes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import __version__, devices, forensics, pace, state
from .boards import boards
from .check import check
from .lesson import Learned, Lesson
from .meter import Meter, Note, NotFinite
from .objectives import ends_in_noise
from .outcome import draw_samples, finish, save_file
from .prepare import encodes, place, prepare
from .processes import Processes
from .run import Run, Stopped

if TYPE_CHECKING:
    from .data.loader import Batch
    from .memory import Fit
    from .settings import Job

logger = logging.getLogger(__name__)

clock = time.perf_counter  # seconds
SNAPSHOT_SECONDS = 20.0  # how much training an accident may cost: what is trained is copied to RAM this often,
SNAPSHOT_SHARE = 0.02    # or less often, where copying would take more than this share of the time


def train(job: Job, run: Run) -> Path:
    """Do a job whole: check, open, encode, learn, write, report. The result's file.

    Raises AprendizError, and Stopped once saved.
    """
    checked = check(job, run.folder)
    checked.raise_if_bad(job.data.strict)
    device = devices.device(job.training.device)
    processes = Processes(device)
    with run.on_devices([str(device)]):
        run.event("ready", device=str(device), pid=os.getpid(), python=sys.version.split()[0], torch=torch.__version__,
                  aprendiz=__version__)
        assert checked.report
        told = checked.report.forecast
        run.event("preflight", pictures=told.pictures, steps=told.steps, epochs=told.epochs and round(told.epochs, 2),
                  seconds=told.seconds,
                  problems=[problem for problem in checked.problems if problem.warning], memory_gb=None,
                  disk_gb=round((told.cache_bytes + told.checkpoint_bytes) / 1e9, 3), text="\n".join(checked.report.lines()))
        lesson = prepare(job, run, checked, processes)
        lesson.base.zero_terminal_snr = ends_in_noise(lesson.base, job.objective)  # so samples are drawn from what is taught
        try:
            with boards(job, run):
                learned = learn(lesson)
                return finish(lesson, learned.result(lesson), learned.started)
        finally:
            lesson.loader.close()
            if lesson.validation:
                lesson.validation.close()


def learn(lesson: Lesson) -> Learned:
    """Train to the last step. Raises Stopped once saved, TrainingError where the loss is no number, DeviceError out of memory."""
    job, run, arena, processes = lesson.job, lesson.run, lesson.arena, lesson.processes
    learned = Learned(lesson.fit(), ema=arena.master.clone() if job.training.ema_decay else None)
    resume(lesson, learned)
    began = clock()
    if learned.step == 0:
        draw_samples(lesson, 0, arena.master)
    if not lesson.steps:
        pace.decide(lesson, learned, clock() - began, lambda: rehearsed(lesson, learned, processes), clock)
    meter = Meter(run, lesson.steps, lesson.loader.samples, arena.master.device)
    share = processes.share(lesson.loader.samples)
    snapshot, next_one = copied(lesson, learned)

    while learned.step < lesson.steps:
        try:
            wishes = heard(lesson)
            if waits(wishes):
                look(lesson, learned, meter)
                wishes += pause(lesson, learned.step, wishes)
                meter.pause()
            if "stop" in wishes:
                look(lesson, learned, meter)
                del snapshot  # of a whole network two are too many
                save(lesson, learned, learned.state(lesson))
                run.event("stopped", step=learned.step)
                raise Stopped(run.name)

            batch = lesson.loader.batch(learned.step, share)
            loss = tried(lesson, learned, batch)
            if loss is None:
                continue
            meter.note(Note(learned.step, learned.step / lesson.loader.plan.batches,
                            lesson.optimizer.torch.param_groups[0]["lr"], loss))
            due = events_due(job, learned.step, lesson.steps, wishes)
            if due or time.monotonic() > next_one:
                look(lesson, learned, meter)
                del snapshot
                snapshot, next_one = copied(lesson, learned)
        except NotFinite as found:
            learned.restore(lesson, snapshot)
            save(lesson, learned, snapshot)
            raise forensics.explain(lesson, learned, found.step, update) from None
        if "validate" in due:
            validate(lesson, learned)
        if "sample" in due:
            draw_samples(lesson, learned.step, learned.result(lesson))
        if "save" in due:
            save(lesson, learned, snapshot)
        if due:
            meter.pause()
    pace.remember(lesson, meter)
    return learned


def heard(lesson: Lesson) -> list[str]:
    """What people wished since they were last asked, in their order; the same in every process."""
    return lesson.processes.same(",".join(lesson.run.commands())).split(",")


def waits(wishes: list[str]) -> bool:
    """Whether the last word of these is to pause."""
    last = [wish for wish in wishes if wish in ("pause", "resume", "stop")][-1:]
    return last == ["pause"] and "stop" not in wishes


def look(lesson: Lesson, learned: Learned, meter: Meter) -> None:
    """See that all is well before it is kept. Raises NotFinite where a loss, or what is trained, is no number."""
    meter.flush()
    if not bool(torch.isfinite(torch.linalg.vector_norm(lesson.arena.master))):
        raise NotFinite(learned.step + 1)


def copied(lesson: Lesson, learned: Learned) -> tuple[state.State, float]:
    """What an accident is recovered from, in RAM; and when the next copy is due, by the monotonic clock."""
    began = time.monotonic()
    kept = learned.state(lesson)
    now = time.monotonic()
    return kept, now + max(SNAPSHOT_SECONDS, (now - began) / SNAPSHOT_SHARE)


def rehearsed(lesson: Lesson, learned: Learned, processes: Processes) -> None:
    """One step, waited for; what it changes is put back later."""
    share = processes.share(lesson.loader.samples)
    loss = None
    while loss is None:
        loss = tried(lesson, learned, lesson.loader.batch(learned.step, share))
    loss.item()


def tried(lesson: Lesson, learned: Learned, batch: Batch) -> Tensor | None:
    """`update`, or None where memory ran out: then the same step is to be done again, in a smaller way."""
    try:
        with devices.naming_shortage():
            loss = update(lesson, learned, batch)
        learned.fit.done()
        return loss
    except devices.OutOfMemory:
        pass
    # Every draw belongs to the step, so it is the same step again. Outside of the handler, what the error holds is free.
    learned.fit.lower(lesson.arena)
    return None


def update(lesson: Lesson, learned: Learned, batch: Batch) -> Tensor | None:
    """One optimizer step. Its loss (on the device, of the whole batch), or None where fp16 overflowed: it is to be done again."""
    job, arena = lesson.job, lesson.arena
    loss = gradients(lesson, learned.fit, batch)
    lesson.processes.sum(arena.gradient)
    if learned.fit.overflowed(arena):
        return None
    if job.optimizer.max_grad_value is not None:
        arena.gradient.clamp_(-job.optimizer.max_grad_value, job.optimizer.max_grad_value)
    if job.optimizer.max_grad_norm is not None:
        arena.clip(arena.norm(), job.optimizer.max_grad_norm)
    lesson.optimizer.step(learned.step)
    arena.refresh()
    if learned.ema is not None:
        # A young average follows closely: its decay grows as (1 + n) / (10 + n).
        learned.ema.lerp_(arena.master, 1 - min(job.training.ema_decay or 0.0, (learned.step + 1) / (learned.step + 10)))
    learned.step += 1
    return lesson.processes.sum(loss)


def gradients(lesson: Lesson, fit: Fit, batch: Batch) -> Tensor:
    """Fill the arena's gradient from a batch, in as many parts as memory asks for.

    The loss (scalar, on the device, of the whole batch).
    """
    arena, objective, method = lesson.arena, lesson.objective, lesson.method
    arena.zero()
    total = torch.zeros((), device=arena.master.device)
    count = len(batch.samples)
    size = -(-count // fit.parts)
    for start in range(0, count, size):
        part = batch.rows(start, min(start + size, count))
        noisy = objective.corrupt(part)
        prediction = method.predict(noisy, part)
        loss = (objective.losses(prediction, noisy, part) * part.weight_B).sum() / lesson.loader.samples
        (loss * fit.loss_scale).backward()
        arena.collect()
        total += loss.detach()
    if fit.loss_scale != 1.0:
        arena.gradient.div_(fit.loss_scale)
    return total


def events_due(job: Job, step: int, steps: int, wishes: list[str]) -> set[str]:
    """What is to be done after a step, besides going on."""
    training, samples = job.training, job.samples
    every = {"save": training.save_every_steps, "sample": samples.sample_every_steps, "validate": training.validate_every_steps}
    due = {what for what, often in every.items() if often and step % often == 0}
    due |= {"save", "sample"} & set(wishes)
    if step == steps:
        due |= {"sample"} | ({"validate"} if training.validate_every_steps else set())
        due.discard("save")  # the result itself comes now
    return due


def resume(lesson: Lesson, learned: Learned) -> None:
    """Go on from the newest whole state, if there is one."""
    kept = state.latest(lesson.run.checkpoints)
    if kept is None:
        return
    then, now = kept.plain["versions"], state.versions()
    changed = [name for name in ("torch", "threads") if then[name] != now[name]]
    if changed:
        lesson.run.say("This run was begun with another {what} ({then}, now {now}), so the result may differ in the last "
                       "digits.", warning=True,
                       what=", ".join(changed), then=", ".join(str(then[c]) for c in changed),
                       now=", ".join(str(now[c]) for c in changed))
    learned.restore(lesson, kept)
    lesson.run.event("resumed", step=learned.step)


def save(lesson: Lesson, learned: Learned, kept: state.State) -> None:
    """A resumable state and beside it the file that hosts load."""
    if not lesson.processes.main:
        return
    folder = state.write(lesson.run.checkpoints, kept, lesson.job.training.keep_checkpoints)
    file = save_file(lesson, learned.step, learned.result(lesson), learned.started) if learned.step else None
    lesson.run.event("checkpoint", step=learned.step, folder=folder, **({"file": file} if file else {}))


def validate(lesson: Lesson, learned: Learned) -> None:
    """The loss on the pictures kept apart, always with the same noise."""
    if lesson.validation is None:
        return
    losses: list[Tensor] = []
    with torch.no_grad(), lesson.arena.showing(learned.result(lesson)):
        for number in range(4 * lesson.validation.plan.batches):
            batch = lesson.validation.batch(number)
            noisy = lesson.objective.corrupt(batch)
            losses.append(lesson.objective.losses(lesson.method.predict(noisy, batch), noisy, batch).mean())
    loss = float(torch.stack(losses).mean())
    if learned.best is None or loss < learned.best[0]:
        learned.best = (loss, learned.step)
    lesson.run.event("validation", step=learned.step, loss=loss)


def pause(lesson: Lesson, step: int, wishes: list[str]) -> list[str]:
    """Free the device until told to resume or stop; what else was wished for meanwhile. wishes: those until now."""
    run, device = lesson.run, lesson.arena.master.device
    run.event("paused", step=step, by=run.paused_by)
    if device.type != "cpu":
        lesson.loader.forget()
        place(lesson.base, torch.device("cpu"), encoders=True, network=True)
        devices.release(device)
    more: list[str] = []
    while waits([*wishes, *more]):
        time.sleep(0.2)
        more += heard(lesson)
    if device.type != "cpu":
        place(lesson.base, device, encoders=encodes(lesson.job, lesson.method), network=True)
        lesson.arena.reattach()
    if "stop" not in more:
        run.event("resumed", step=step)
    return more
