"""From a job to everything that the loop needs: the base opened, pictures checked and encoded, the method attached.

Order matters here. Everything that can be wrong is found before anything heavy loads; encoders are on the device while they
encode and leave it afterwards; the network comes last.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from . import devices, memory, pace, placing, registry, room
from .data import buckets, captions, folder
from .data.cache import Cache, Cut, Encoded, drawn_once, encode_cuts, encode_now, encode_texts
from .data.loader import Example, Loader, Plan, Store
from .data.maps import Maps
from .data.preflight import Report, steps_of
from .draws import Draws
from .errors import Problem, ProblemsError
from .estimate import Work, heavy
from .families import Source, Tensors
from .formats import checkpoint
from .lesson import Lesson
from .nets.arena import Arena
from .nets.frozen import exchange
from .objectives import objective
from .optimizers import Optimizer
from .request import Request

if TYPE_CHECKING:
    from .data.folder import Dataset, Picture
    from .families import Base, Family
    from .methods import Method
    from .processes import Processes
    from .run import Run
    from .settings import Job

logger = logging.getLogger(__name__)

CAPTION_VARIANTS = 8  # where captions are shuffled or thinned, so many forms of each are encoded


@dataclass
class Checked:
    """What is known before anything heavy loads, with every problem found on the way."""

    source: Source | None = None
    family: Family | None = None
    dataset: Dataset | None = None
    report: Report | None = None
    problems: list[Problem] = field(default_factory=list)

    def raise_if_bad(self, strict: bool) -> None:
        """Raise ProblemsError with everything that stops the run."""
        stopping = [problem for problem in self.problems if strict or not problem.warning]
        if stopping:
            raise ProblemsError(stopping)


def told(job: Job, dataset: Dataset) -> Dataset:
    """The pictures with what the method says of them."""
    method = registry.methods()[job.method_name]
    return replace(dataset, pictures=tuple(replace(picture, captions=method.captions(job, picture))
                                           for picture in dataset.pictures))


def resolution(job: Job, source: Source | None, family: Family | None) -> int:
    """Training size in pixels: the job's, else the base's, else the family's."""
    return job.data.resolution or (source and source.resolution) or (family and family.resolution) or 512


def bucket_step(job: Job, family: Family | None) -> int:
    """Multiple of widths and heights in pixels: the job's, else the family's."""
    return job.data.bucket_step or (family.bucket_step if family else 64)


def prepare(job: Job, run: Run, checked: Checked, processes: Processes) -> Lesson:
    """Open, encode, attach. Raises AprendizError."""
    assert checked.source and checked.family and checked.dataset
    device = processes.device or devices.device(job.training.device)
    dtype = devices.precision(job.training, device)
    base = checkpoint.open_base(job.base, dtype)
    exchange(base.network)
    draws = Draws(job.training.seed)
    side = resolution(job, checked.source, base.family)
    pictures = [p for p in checked.dataset.pictures if not p.validation]
    with processes.main_first():
        prior = prior_pictures(job, run, base, pictures, side, device)
    cache = Cache(run.cache)

    taught = examples(job, pictures, side, base.family)
    apart = [p for p in checked.dataset.pictures if p.validation]
    kept_apart = examples(job, apart, side, base.family)
    beside = prior_examples(prior, {bucket for _, bucket in taught}) if taught else []
    method = registry.methods()[job.method_name](base, job)
    cuts, texts, offered = lay_out(job, draws, [taught, kept_apart, beside])
    readers = [] if method.trains_text_encoder else [name for name in base.parts() if name.startswith("text_encoder")]
    states = placing.encoded(base, readers, device, run, lambda: encode_states(base, texts, job, cache, run,
                                                                               method.trains_text_encoder))
    live = job.data.live_crops
    encoded = None if live else placing.encoded(base, ["vae"], device, run, lambda: encode_cuts(
        base, cuts, job.data, cache, lambda done, of: run.event("caching", what="pictures", done=done, total=of)))
    if encoded is not None and job.data.latent_sampling == "once":
        encoded = drawn_once(encoded, draws)
    recipe = method.conditions(job)
    shown = Maps(recipe, job.data, cache) if recipe is not None else None
    if shown is not None and not live:
        shown.fill(cuts, lambda done, of: run.event("caching", what="condition pictures", done=done, total=of))
    cache.trim()

    work = work_of(Work(job, base, method, device, live=live), offered, processes, states, encoded)
    fitted = memory.fit(work, run, processes)
    place(base, device, encoders=encodes(job, method), network=True)
    store = Store(base, cuts, encoded, states, texts.index(""), method.trains_text_encoder, live_encoder(base, job) if live
                  else None, shown)
    plan = Plan(offered[0], job.training.batch_size, draws)
    prior_plan = Plan(offered[2], job.prior.per_batch, draws) if offered[2] else None
    loader = Loader(base, plan, prior_plan, store, job.data.caption_dropout or 0.0, job.prior.prior_weight)
    validation = None
    if offered[1]:
        validation = Loader(base, Plan(offered[1], 1, Draws(job.training.seed + 1)), None, store, 0.0, 1.0)
    arena = Arena(method.parts(), device, torch.float32 if method.precise else base.dtype)
    if job.training.compile:
        compile_blocks(base)
    # 0: they follow from the minutes that there are, and are decided before the first one.
    steps = steps_of(job.training, len(plan.examples), plan.batches) or pace.decided(run) or 0
    room.check_disk(run, job, arena.master.numel(), steps)
    return Lesson(job=job, run=run, base=base, method=method, dataset=checked.dataset, objective=objective(base, job.objective),
                  loader=loader,
                  validation=validation, arena=arena, optimizer=Optimizer(arena, job.optimizer, steps), processes=processes,
                  draws=draws, steps=steps,
                  samples=method.samples(sample_requests(job, pictures, side), [*pictures, *apart], job), resolution=side,
                  fitted=fitted)


def work_of(bare: Work, offered: Sequence[Sequence[Example]], processes: Processes, states: Sequence[Tensors],
            encoded: Sequence[Encoded] | None) -> Work:
    """A step at its largest: a process's share of a batch, of the largest bucket, with the longest caption."""
    pictures = bare.job.training.batch_size + (bare.job.prior.per_batch if offered[2] else 0)
    size = max((example.bucket for example in offered[0]), key=lambda bucket: bucket[0] * bucket[1])
    kept = sum(heavy(state) for state in states) + sum(4 * one.mean_CHW.numel() for one in encoded or ())
    return replace(bare, pictures=max(1, pictures // processes.count), size=size, state=max(states, key=heavy), kept=kept)


def encodes(job: Job, method: Method) -> bool:
    """Whether steps need the encoders beside the network."""
    return job.data.live_crops or method.trains_text_encoder


def place(base: Base, device: torch.device, *, encoders: bool, network: bool = False) -> None:
    """Move the encoders to the device or off it, and the network where it is wanted. What rests goes on resting."""
    for name, module in base.parts().items():
        if name == "network":
            if network:
                module.to(device)
        elif not placing.rests(module):
            module.to(device if encoders else "cpu")


def compile_blocks(base: Base) -> None:
    """Compile the network block by block: one block's code serves all of its shape."""
    # Each width, size and mode of the blocks is a compilation; beyond the default of 8 they would run eagerly.
    torch._dynamo.config.recompile_limit = 64
    for block in base.family.blocks(base):
        # Buckets are few, and code for one size is faster; code for all sizes fails in PyTorch 2.13's own compiler on a CPU.
        block.compile(dynamic=False)


def examples(job: Job, pictures: Sequence[Picture], side: int, family: Family) -> list[tuple[Picture, tuple[int, int]]]:
    """Each picture with its bucket; those left out for being small were named by preflight."""
    planned = buckets.planned(job.data, [p.size for p in pictures], side, bucket_step(job, family))
    return [(picture, bucket) for picture, bucket in zip(pictures, planned) if bucket is not None]


def prior_examples(pictures: Sequence[Picture], wanted: set[tuple[int, int]]) -> list[tuple[Picture, tuple[int, int]]]:
    """The base's own pictures, each cut to every bucket in use, so that any batch can take some."""
    return [(picture, bucket) for bucket in sorted(wanted) for picture in pictures]


def lay_out(job: Job, draws: Draws, groups: Sequence[Sequence[tuple[Picture, tuple[int, int]]]]) -> tuple[list[Cut], list[str],
                                                                                                          list[list[Example]]]:
    """All cuts and texts of a run, each once, and the examples that point at them.

    The empty caption is always among the texts. groups: the last one is of the base's own pictures, which always take the sizes
    of the others.
    """
    cuts: list[Cut] = []
    texts: dict[str, int] = {"": 0}
    offered: list[list[Example]] = []
    for number, group in enumerate(groups):
        made = []
        resize = job.data.resize or number == len(groups) - 1
        for picture, bucket in group:
            first = len(cuts)
            cuts += cuts_of(job, draws, picture, bucket, resize)
            forms = captions_of(job, draws, picture)
            places = tuple(texts.setdefault(form, len(texts)) for form in forms)
            made.append(Example(picture, bucket, tuple(range(first, len(cuts))), places, picture.repeats))
        offered.append(made)
    return cuts, list(texts), offered


def cuts_of(job: Job, draws: Draws, picture: Picture, bucket: tuple[int, int], resize: bool) -> list[Cut]:
    """The ways in which a picture is cut: centred, or at places drawn from the seed; as it is and mirrored."""
    spots = [(0.5, 0.5)]
    if job.data.crop == "random":
        pick = random.Random(f"{draws.seed}/{picture.digest}")
        spots = [(pick.random(), pick.random()) for _ in range(max(1, job.data.crop_variants))]
    return [Cut(picture, bucket, spot, flip, resize) for spot in spots for flip in ((False, True) if job.data.flip else (False,))]


def captions_of(job: Job, draws: Draws, picture: Picture) -> list[str]:
    """A picture's captions, in several forms where tags are shuffled or dropped."""
    if not (job.data.shuffle_tags or job.data.tag_dropout):
        return list(picture.captions)
    tags = replace(job.data, caption_dropout=0.0)  # whole captions are dropped step by step, by the loader
    return [captions.variant(caption, tags, random.Random(f"{draws.seed}/{caption}/{n}"), picture.trigger)
            for caption in picture.captions for n in range(CAPTION_VARIANTS)]


def encode_states(base: Base, texts: Sequence[str], job: Job, cache: Cache, run: Run, trained: bool) -> list[Tensors]:
    """Text states of every text; its tokens where the encoder is trained."""
    if trained:
        tokens = base.family.tokenize(base, texts, job.data.max_tokens, weighted=False)
        return [tokens.rows(i, i + 1) for i in range(len(texts))]
    return encode_texts(base, texts, job.data.max_tokens, cache, lambda done,
                        of: run.event("caching", what="captions", done=done, total=of))


def live_encoder(base: Base, job: Job) -> Any:
    """Encode cuts in the step itself, at places drawn anew each time (crop_variants = 0)."""
    return lambda cuts: encode_now(base, cuts, job.data)


def sample_requests(job: Job, pictures: Sequence[Picture], side: int) -> list[Request]:
    """The pictures drawn before, while and after training."""
    prompts = job.samples.sample_prompts or tuple(dict.fromkeys(p.captions[0] for p in pictures))[:4]
    width, height = job.samples.sample_width or side, job.samples.sample_height or side
    return [Request(prompt=prompt, negative=job.samples.negative_prompt, seed=job.samples.sample_seed + i, width=width,
                    height=height, steps=job.samples.sampler_steps, guidance=job.samples.guidance,
                    sampler=job.samples.sampler) for i, prompt in enumerate(prompts)]


def prior_folder(job: Job) -> Dataset:
    """The base's own pictures in a folder of yours: read as those that are taught, without what is taught."""
    return folder.scan(replace(job.data, path=job.prior.prior_data, trigger=None, caption=None, validation_share=0.0), prior=True)


def prior_pictures(job: Job, run: Run, base: Base, pictures: Sequence[Picture], side: int, device: torch.device) -> list[Picture]:
    """The base's own pictures for prior preservation: from a folder, or made now (once: they stay in the run's folder)."""
    from .data.prior import make
    if job.prior.prior_data:
        return list(prior_folder(job).pictures)
    if not job.prior.pictures:
        return []
    with placing.drawing_alone(base, device, (side, side)):
        return make(job, run, base, pictures, side)
