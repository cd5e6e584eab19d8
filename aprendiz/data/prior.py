"""Prior preservation (Ruiz et al. 2023): pictures that the base itself makes before it is taught, trained beside yours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DatasetError
from ..files import move_into_place, write_atomically
from ..generate import draw
from ..request import Request
from . import captions, folder

if TYPE_CHECKING:
    from ..families import Base
    from ..run import Run
    from ..settings import Job
    from .folder import Picture

FIRST_SEED = 1_000_000  # far from the seeds of samples


def make(job: Job, run: Run, base: Base, pictures: Sequence[Picture], side: int) -> list[Picture]:
    """Draw what is missing of the `prior.pictures` into the run's `prior/` folder and read it as a dataset."""
    prompts = job.prior.prompts or prompts_from(job, pictures)
    place = run.folder / "prior"
    place.mkdir(exist_ok=True)
    missing = [i for i in range(job.prior.pictures) if not (place / f"{i:05d}.png").is_file()]
    for done in range(0, len(missing), 8):
        some = missing[done:done + 8]
        run.event("caching", what="pictures of the base's own", done=done, total=len(missing))
        requests = [Request(prompt=prompts[i % len(prompts)], seed=FIRST_SEED + i, width=side, height=side,
                            steps=job.samples.sampler_steps,
                            guidance=job.samples.guidance, sampler=job.samples.sampler) for i in some]
        for i, picture in zip(some, draw(base, requests)):
            write_atomically(place / f"{i:05d}.txt", prompts[i % len(prompts)].encode())
            picture.save(place / f".{i:05d}.png", format="PNG")
            move_into_place(place / f".{i:05d}.png", place / f"{i:05d}.png")
    settings = type(job.data)(path=str(place), masks=False)
    return list(folder.scan(settings).pictures)


def prompts_from(job: Job, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """The class word, or the captions without the trigger."""
    if job.data.class_word:
        return (captions.class_prompt(job.data.class_word),)
    trigger = job.data.trigger
    bare = dict.fromkeys(p.captions[0].replace(trigger, "").strip(" ,") if trigger else "" for p in pictures)
    prompts = tuple(caption for caption in bare if caption)
    if not prompts:
        raise DatasetError("Prior preservation needs to know what else the base should remember. Give prior.prompts, or a "
                           "class_word such as "
                           "'dog', or a folder of pictures with prior_data.", where="prior.prompts")
    return prompts
