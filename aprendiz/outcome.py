"""What a run leaves behind: sample pictures, the file that hosts load with what stands beside it, the report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from .errors import ModelError, ProblemsError
from .evaluate.report import condition_file, sample_file, write_report
from .evaluate.scores import Scores
from .formats import checkpoint, graph, metadata, png
from .formats.inspect import inspect
from .generate import draw
from .request import Request, parameters

if TYPE_CHECKING:
    from .lesson import Lesson
    from .run import Run

PREVIEW_SIZE = 512  # pixels, the longer side of the picture that hosts show beside a LoRA


def draw_samples(lesson: Lesson, step: int, values: Tensor) -> list[Path]:
    """Draw the sample prompts with these trained values; their files. Step 0 is the bare base, drawn once."""
    if not lesson.processes.main or not lesson.samples:
        return []
    files = [sample_file(lesson.run.samples, step, i) for i in range(len(lesson.samples))]
    if step == 0 and all(file.is_file() for file in files):
        return files
    try:
        with lesson.arena.showing(values), lesson.on_device():
            pictures = draw(lesson.base, lesson.samples)
    except (ModelError, ProblemsError) as error:
        # A network that gives no numbers, a base that is not there any more, or not the same; a caption that is no prompt.
        lesson.run.say("No samples were drawn at step {step}: {reason} The training goes on.", warning=True, step=step,
                       reason=str(error))
        return []
    told = graph.texts(lesson.run.folder, lesson.job)
    for i, (picture, request, file) in enumerate(zip(pictures, lesson.samples, files)):
        if step == 0 and request.controls:
            png.save_over(request.controls[0].picture, condition_file(lesson.run.samples, i))
        png.save_over(beside_conditions(picture, request), file, parameters(lesson.base, request), told)
        lesson.run.event("sample", step=step, file=file, prompt=request.prompt, seed=request.seed, index=i)
    return files


def beside_conditions(picture: Image.Image, request: Request) -> Image.Image:
    """A sample with the condition pictures that it was drawn from to its left."""
    shown = [one.picture.convert("RGB").resize(picture.size) for one in request.controls]
    sheet = Image.new("RGB", (picture.width * (len(shown) + 1), picture.height))
    for place, one in enumerate([*shown, picture]):
        sheet.paste(one, (place * picture.width, 0))
    return sheet


def figures(lesson: Lesson, values: Tensor) -> dict[str, float]:
    """What the method measures of the last samples, and of the same without what was learned; nothing without pictures."""
    if not any(request.controls for request in lesson.samples):
        return {}
    if not any(sample_file(lesson.run.samples, lesson.steps, i).is_file() for i in range(len(lesson.samples))):
        return {}  # they could not be drawn, which was said
    with lesson.arena.showing(values), lesson.on_device():
        drawn = draw(lesson.base, lesson.samples)
        bare = draw(lesson.base, [replace(request, controls=()) for request in lesson.samples])
    return lesson.method.figures(lesson.samples, drawn, bare)


def save_file(lesson: Lesson, step: int, values: Tensor, started: float) -> Path:
    """The file that hosts load, as of a step: `name-000200.safetensors`, or `name.safetensors` for the last."""
    run, job = lesson.run, lesson.job
    file = run.file if step == lesson.steps else run.folder / f"{run.name}-{step:06d}.safetensors"
    facts = metadata.TrainingFacts(
        dataset=lesson.dataset, base=lesson.base, base_sha256=checkpoint.sha256(lesson.base.source),
        resolution=lesson.resolution, steps=step, batches_per_epoch=lesson.loader.plan.batches, started=started,
        finished=time.time(), graph=graph.texts(run.folder, job))
    lesson.method.write(file, lesson.arena.views(values), job, facts)
    return file


def finish(lesson: Lesson, values: Tensor, started: float) -> Path:
    """Write the result, its side-car, its preview and the report; say that the run is finished."""
    run = lesson.run
    if not lesson.processes.main:
        return run.file
    file = save_file(lesson, lesson.steps, values, started)
    metadata.write_sidecar(file, lesson.job, lesson.base.family)
    last = sample_file(run.samples, lesson.steps, 0)
    if last.is_file():
        with Image.open(last) as picture:
            picture.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
            png.save_over(picture, file.with_suffix(lesson.method.preview), texts=graph.texts(run.folder, lesson.job))
    tell_hosts(run, file)
    measured = figures(lesson, values)
    report = write_report(run, Scores(figures=measured) if measured else None)
    run.event("finished", step=lesson.steps, file=file, report=report, seconds=round(time.time() - started, 1))
    return file


def tell_hosts(run: Run, file: Path) -> None:
    """Warn of every host that opens bases of this kind and would leave out some of the file."""
    for row in inspect(file).hosts:
        if row.opens and not row.whole:
            run.say("{host} {version} would load {loaded} of the {total} modules of {file} and ignore the rest. "
                    "`python -m aprendiz inspect` names them.", warning=True, host=row.host, version=row.version,
                    loaded=row.loaded, total=row.total, file=file.name)
