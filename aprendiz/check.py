"""Everything that can be known of a job before anything heavy loads: every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import boards, devices, foresight, objectives, optimizers, registry, room
from .data import folder, maps
from .data.preflight import Facts, preflight, read_every
from .data.prior import prompts_from
from .errors import AprendizError, Problem
from .formats import checkpoint, loading
from .prepare import Checked, bucket_step, prior_folder, resolution, told
from .request import heavy_words, too_many_steps
from .run import Run

if TYPE_CHECKING:
    from .data.folder import Dataset
    from .families import Family, Source
    from .settings import Job


def check(job: Job, output: Path) -> Checked:
    """Everything that can be known of a job without opening a model: the base's header, the settings together, every picture.

    output: the run's folder, or where one is to be.
    """
    found = Checked()
    recipe = registry.methods()[job.method_name].conditions(job)

    def attempt(step: Any) -> None:
        try:
            step()
        except AprendizError as error:
            found.problems += error.problems

    def base() -> None:
        found.source = checkpoint.find(job.base)
        found.family = registry.families()[found.source.family]
        found.problems += found.source.details.get("warnings", ())
        layout = found.family.layout()
        found.problems += loading.problems(found.source, job.base, layout) if layout is not None else []
        found.problems += [*objectives.problems(job.objective, found.source), *fits(job, found.family, found.source)]

    def pictures() -> None:
        found.dataset = told(job, folder.scan(job.data))
        if recipe is not None:
            found.problems += maps.check(found.dataset.pictures, recipe)
        found.report = preflight(job, found.dataset, output=output, resolution=resolution(job, found.source, found.family),
                                 bucket_step=bucket_step(job, found.family),
                                 facts=Facts(count_tokens=token_counter(job, found.family)))
        found.problems += [*found.report.problems, *changed(output, found.dataset)]

    def sizes() -> None:
        if not job.data.resize and found.source and found.family and found.dataset:
            found.problems += foresight.too_large(job, found.source, found.family, found.dataset.pictures)

    def prior() -> None:
        shown: list[Problem] = []
        if job.prior.prior_data:
            beside = prior_folder(job)
            found.problems += [*beside.problems, *read_every(beside.pictures, job.data)]
            shown = maps.check_prior(beside, recipe) if recipe is not None else []
        elif job.prior.pictures:
            shown = maps.check_made(job.prior.pictures, recipe) if recipe is not None else []
        found.problems += [one for one in shown if one not in found.problems]  # as of those that are taught, perhaps
        if job.prior.pictures and not (job.prior.prior_data or job.prior.prompts) and found.dataset is not None:
            prompts_from(job, found.dataset.pictures)

    def device() -> None:
        dtype = devices.precision(job.training, devices.device(job.training.device))
        if found.source is not None:
            found.problems += room.memory_problems(found.source, dtype, devices.free_ram(swap=True))

    found.problems += boards.problems(job) + optimizers.problems(job.optimizer) + optimizers.part_rates(job) + sampling(job)
    attempt(base)
    attempt(device)
    attempt(pictures)
    attempt(sizes)
    attempt(prior)
    return found


def sampling(job: Job) -> list[Problem]:
    """What the sampler has against the number of its steps, and what no prompt may give its words."""
    asked = job.samples
    found = [problem for name, prompts in (("samples.sample_prompts", asked.sample_prompts),
                                           ("samples.negative_prompt", (asked.negative_prompt,)),
                                           ("prior.prompts", job.prior.prompts))
             for prompt in prompts for problem in heavy_words(prompt, name)]
    return [*found, *too_many_steps(asked.sampler, asked.sampler_steps, "samples.sampler_steps")]


def changed(folder: Path, dataset: Dataset) -> list[Problem]:
    """That a run which goes on has other pictures than it began with; nothing where the folder is none of a run."""
    run = Run(folder)
    began = run.first_event.get("dataset")
    if began is None or began == dataset.digest or run.step == 0:
        return []
    return [Problem("The pictures or captions are not those that this run began with, and what it learned so far is of those. "
                    "Start a new run to teach the present ones from the beginning.", {}, "data.path", warning=True)]


def fits(job: Job, family: Family, source: Source) -> list[Problem]:
    """Why a method cannot be taught to a family, if it cannot; and what its own settings have against this base."""
    method = registry.methods()[job.method_name]
    lacking = method.needs - family.offers
    if lacking:
        return [Problem("{method} cannot be taught to {family}, which has no {parts}. `python -m aprendiz families` tells what "
                        "each offers.",
                        {"method": method.title, "family": family.title, "parts": ", ".join(sorted(lacking))}, "method.name")]
    return method.check(job, family, source)


def token_counter(job: Job, family: Family | None) -> Callable[[str], int] | None:
    """What counts a caption's tokens; a short one needs no tokenizer, for a token is a character at least."""
    if family is None:
        return None
    return lambda caption: len(caption) if len(caption) <= job.data.max_tokens else family.count_tokens(caption)
