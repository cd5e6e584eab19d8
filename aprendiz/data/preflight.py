"""Preflight: everything that can be known before a model is opened, and what the run will come to.

Every picture is read whole, so that a damaged one is told of now and not in the middle of the night; every problem is listed at
once with its remedy. What cannot be trained on stops the run (errors); what may be meant, as a small or an uncaptioned picture,
is a warning, which stops a `strict` one. Forecasts: steps, bytes on the disk, seconds where a step's time is known.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AprendizError, Problem, ProblemsError, SettingsError
from ..texts import say
from . import buckets, pictures
from .buckets import Size
from .folder import Dataset, Picture, reason

if TYPE_CHECKING:
    from ..settings import DataSettings, Job, TrainingSettings

MOSTLY_CUT = 0.25  # a picture that loses more than this share to its bucket is warned of; within 1:4 to 4:1 hardly any does
SHAPES_DIFFER = 0.05  # by how much a mask's aspect ratio may differ before it is warned of, as a logarithm
CACHE_BOUND = 20e9  # bytes, as in `Cache`
LONGEST_SIDE = 4096  # pixels of a picture that is not resized, as `resolution` has it
SOFT = 1.05  # a picture enlarged by more than this factor is warned of
READERS = 8  # pictures decoded at a time; each may take a gigabyte while it is
LIKE = 5  # so many problems of one kind are printed in full


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the base and the machine; forecasts are as good as these.

    count_tokens: tokens of a caption without begin and end; None leaves lengths unchecked. free_disk: bytes; None asks the disk.
    latent_channels, latent_step: channels, and pixels to a latent pixel. text_bytes: one caption's text states.
    trained_parameters, seconds_per_step: None where nobody knows yet.
    """

    count_tokens: Callable[[str], int] | None = None
    free_disk: int | None = None
    latent_channels: int = 4
    latent_step: int = 8
    text_bytes: int = 77 * 768 * 4
    trained_parameters: int | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the run will come to.

    pictures: trained on. validation: kept apart. left_out: too small, where enlarging is not allowed. shown: pictures an epoch,
    with repeats. sizes: how many pictures are trained at each size. batches: an epoch's. steps: None where they follow from
    `minutes`. free_bytes, seconds: None where unknown.
    """

    pictures: int
    validation: int
    left_out: int
    shown: int
    sizes: Mapping[Size, int]
    batches: int
    batch_size: int
    steps: int | None
    cache_bytes: int
    checkpoint_bytes: int
    free_bytes: int | None
    seconds: float | None

    @property
    def epochs(self) -> float | None:
        """How many times all pictures are seen; None where nobody knows yet."""
        if self.steps is None:
            return None
        return self.steps / self.batches if self.batches else 0.0

    def lines(self) -> list[str]:
        """The forecast in the person's language."""
        told = [say("Pictures: {count}; with repeats {shown} an epoch; sizes: {sizes}; kept apart for validation: {validation}.",
                    count=self.pictures, shown=self.shown, sizes=len(self.sizes), validation=self.validation)]
        if self.epochs is None:
            told.append(say("Steps: as many as fit into the time, batch size {batch}; an epoch has {batches}.",
                            batch=self.batch_size, batches=self.batches))
        else:
            told.append(say("Steps: {steps}, batch size {batch}; epochs: {epochs}, of {batches} steps each.", steps=self.steps,
                            batch=self.batch_size, epochs=round(self.epochs, 1), batches=self.batches))
        free = "?" if self.free_bytes is None else in_words(self.free_bytes)
        told.append(say("Disk: about {cache} for what is encoded once and {checkpoints} for checkpoints; free: {free}.",
                        cache=in_words(self.cache_bytes), checkpoints=in_words(self.checkpoint_bytes), free=free))
        if self.seconds is not None:
            told.append(say("Time: about {minutes} min of training.", minutes=max(1, round(self.seconds / 60))))
        return told


@dataclass(frozen=True)
class Report:
    """What preflight found, and what it forecasts."""

    problems: tuple[Problem, ...]
    forecast: Forecast

    @property
    def errors(self) -> list[Problem]:
        """What stops the run in any case."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def warnings(self) -> list[Problem]:
        """What stops it only if it is strict."""
        return [problem for problem in self.problems if problem.warning]

    def raise_if_bad(self, strict: bool) -> None:
        """Raise ProblemsError with everything that stops the run."""
        stopping = self.errors + (self.warnings if strict else [])
        if stopping:
            raise ProblemsError(stopping)

    def lines(self) -> list[str]:
        """The whole report in the person's language; of many problems of one kind only the first few."""
        told = self.forecast.lines()
        kinds = Counter(problem.template for problem in self.problems)
        seen: Counter[str] = Counter()
        for problem in self.errors + self.warnings:
            seen[problem.template] += 1
            if seen[problem.template] <= LIKE:
                told.append(say("Warning: {problem}", problem=problem) if problem.warning
                            else say("Error: {problem}", problem=problem))
            elif seen[problem.template] == kinds[problem.template]:
                told.append(say("... and {count} more like this.", count=kinds[problem.template] - LIKE))
        return told


def preflight(job: Job, dataset: Dataset, *, output: Path | None, resolution: int, bucket_step: int, facts: Facts | None = None,
              progress: Callable[[int, int], None] | None = None) -> Report:
    """Read every picture and look at everything else that needs no model.

    output: where the run is to be written, None leaves the disk unchecked. resolution, bucket_step: pixels, the job's or the
    base's. `progress(done, all)` is called as pictures are read.
    """
    facts = facts or Facts()
    problems = [*dataset.problems, *read_every(dataset.pictures, job.data, progress)]
    targets = buckets.planned(job.data, [p.size for p in dataset.pictures], resolution, bucket_step)
    problems += _copies(dataset.pictures)
    problems += _sizes(dataset.pictures, targets, job.data) if job.data.resize else _own_sizes(dataset.pictures, targets, job)
    problems += _lengths(dataset.pictures, job.data.max_tokens, facts.count_tokens)
    problems += _leftovers(dataset.pictures, targets, job.data)
    if resolution < bucket_step:
        problems.append(Problem("resolution {resolution} is below bucket_step {step}, which widths and heights are multiples of. "
                                "Raise the one or lower the other.",
                                {"resolution": resolution, "step": bucket_step}, "data.resolution"))
    free = facts.free_disk
    if output is not None:
        refused = _refused(output)
        problems += refused
        free = free_bytes(output) if free is None and not refused else free
    forecast = foresee(job, dataset.pictures, targets, facts, free)
    problems += [*_warmup(job.optimizer.warmup_steps, forecast.steps), *_disk(forecast, output)]
    return Report(tuple(problems), forecast)


def read_every(found: Sequence[Picture], settings: DataSettings,
               progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Decode every picture and mask, several at a time, and tell what is wrong with them."""
    problems: list[Problem] = []
    try:
        pictures.colour(settings.background)
    except SettingsError as error:
        problems += error.problems
        settings = replace(settings, background="white")
    with pictures.quietly(), ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for done, told in enumerate(pool.map(lambda picture: _read_one(picture, settings), found), 1):
            problems += told
            if progress:
                progress(done, len(found))
    return problems


def _read_one(picture: Picture, settings: DataSettings) -> list[Problem]:
    try:
        _, weight = pictures.read(picture, settings)
        mask = picture.mask and settings.masks and pictures.size(picture.mask, pictures.mask_name(picture))
    except AprendizError as error:
        return error.problems
    known = {"file": picture.name}
    if weight is not None and not weight.any():
        return [Problem("Nothing of {file} counts: it is transparent or masked everywhere. Lighten its mask, or remove it.",
                        known, picture.name, warning=True)]
    if mask and abs(math.log(mask[0] / mask[1] * picture.size[1] / picture.size[0])) > SHAPES_DIFFER:
        return [Problem("The mask of {file} is {mask} pixels and the picture {size}, so it is stretched. Give it the same shape.",
                        {**known, "mask": by(mask), "size": by(picture.size)}, picture.name, warning=True)]
    return []


def _copies(found: Sequence[Picture]) -> list[Problem]:
    """One warning for each picture that is there a second time, byte for byte."""
    first: dict[str, Picture] = {}
    return [Problem("{file} is the same picture as {other}. Remove one; a picture that should count more often gets repeats.",
                    {"file": picture.name, "other": first[picture.digest].name}, picture.name, warning=True)
            for picture in found if first.setdefault(picture.digest, picture) is not picture]


def _sizes(found: Sequence[Picture], targets: Sequence[Size | None], settings: DataSettings) -> list[Problem]:
    """Pictures that are enlarged, left out, or lose much to their bucket's shape."""
    problems = []
    for picture, target in zip(found, targets):
        known = {"file": picture.name, "size": by(picture.size)}
        if target is None:
            problems.append(Problem("{file} is only {size} pixels and is left out, because allow_upscale is off. "
                                    "Use a larger one, or lower resolution.", known, picture.name, warning=True))
            continue
        factor = buckets.enlargement(picture.size, target)
        if factor > SOFT:
            problems.append(Problem("{file} is only {size} pixels: enlarged {factor} times to {target}, it is learned as blur. "
                                    "Use a larger one, lower resolution, or turn allow_upscale off.",
                                    {**known, "factor": round(factor, 2), "target": by(target)}, picture.name, warning=True))
        share = buckets.cut_away(picture.size, target)
        if settings.buckets and share > MOSTLY_CUT:
            problems.append(Problem("{file} is {size} pixels, longer than any size trained at: {share} % of it are cut away. "
                                    "Crop it yourself.", {**known, "share": round(share * 100)}, picture.name, warning=True))
    return problems


def _own_sizes(found: Sequence[Picture], targets: Sequence[Size | None], job: Job) -> list[Problem]:
    """Pictures that keep their size: those too large for any card, those that lose much, and batches that show one again."""
    problems = []
    for picture, target in zip(found, targets):
        known = {"file": picture.name, "size": by(picture.size)}
        share = 1 - target[0] * target[1] / (picture.size[0] * picture.size[1]) if target else 0
        if max(picture.size) > LONGEST_SIDE:
            problems.append(Problem("{file} is {size} pixels, and without resizing a side may have {limit}. Make it smaller, or "
                                    "turn resize on.", {**known, "limit": LONGEST_SIDE}, picture.name))
        elif target is None or share <= 0:
            problems += _sizes([picture], [target], job.data)
        elif share > MOSTLY_CUT:
            problems.append(Problem("{file} is {size} pixels, of which only {target} are multiples of bucket_step: {share} % of "
                                    "it are cut away. Lower bucket_step, or turn resize on.",
                                    {**known, "target": by(target), "share": round(share * 100)}, picture.name, warning=True))
    shared = Counter(target for picture, target in zip(found, targets) if not picture.validation)
    alone = sum(count < job.training.batch_size for target, count in shared.items() if target)
    if alone:
        problems.append(Problem("Of {sizes} sizes, {alone} have fewer pictures than a batch of {batch}, which then shows some of "
                                "them again. Set batch_size to 1, or turn resize on.",
                                {"sizes": len(shared), "alone": alone, "batch": job.training.batch_size}, "data.resize",
                                warning=True))
    return problems


def _lengths(found: Sequence[Picture], limit: int, count: Callable[[str], int] | None) -> list[Problem]:
    """Captions whose end the text encoder never sees."""
    if count is None:
        return []
    tokens = {caption: count(caption) for picture in found for caption in picture.captions}
    return [Problem("The caption of {file} has {count} tokens; those beyond {limit} are cut off. Shorten it.",
                    {"file": picture.name, "count": tokens[caption], "limit": limit}, picture.name, warning=True)
            for picture in found for caption in picture.captions if tokens[caption] > limit]


def _leftovers(found: Sequence[Picture], targets: Sequence[Size | None], settings: DataSettings) -> list[Problem]:
    """Settings that leave nothing to train on; a folder without pictures is told of by the scan."""
    trained = [target for picture, target in zip(found, targets) if not picture.validation]
    if not found or any(target is not None for target in trained):
        return []
    if not trained:
        return [Problem("validation_share {share} of {count} pictures leaves none to train on. Lower it, or add pictures.",
                        {"share": settings.validation_share, "count": len(found)}, "data.validation_share")]
    return [Problem("All pictures are smaller than the training size, and allow_upscale is off, so none is left to train on. "
                    "Lower resolution, or turn allow_upscale on.", {}, "data.allow_upscale")]


def _warmup(warmup: int, steps: int | None) -> list[Problem]:
    """A learning rate that is still rising when the run ends."""
    if not steps or warmup < steps:
        return []
    return [Problem("warmup_steps is {warmup}, but the run has {steps} steps, so the learning rate only rises. Lower it, to a "
                    "tenth of the steps or less.", {"warmup": warmup, "steps": steps}, "optimizer.warmup_steps", warning=True)]


def _refused(output: Path) -> list[Problem]:
    """Why the output folder cannot be written, if it cannot. Nothing is made: its nearest folder that is there is tried."""
    there = nearest_folder(output)
    try:
        with tempfile.TemporaryFile(dir=there):
            return []
    except OSError as error:
        return [Problem("{file} cannot be written: {reason}. Choose another folder with --out, or change its permissions.",
                        {"file": str(output), "reason": reason(error)}, "output")]


def nearest_folder(path: Path) -> Path:
    """The path itself, or the first above it that is there."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if os.path.exists(place)), path)  # none: a drive that is not there


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that a path is, or would be, on."""
    return shutil.disk_usage(nearest_folder(path)).free


def _disk(forecast: Forecast, output: Path | None) -> list[Problem]:
    needed = forecast.cache_bytes + forecast.checkpoint_bytes
    if forecast.free_bytes is None or needed <= forecast.free_bytes:
        return []
    return [Problem("The run needs about {needed} in {folder}, and {free} are free. Free some space, choose another folder with "
                    "--out, or save less often.",
                    {"needed": in_words(needed), "folder": str(output or "."), "free": in_words(forecast.free_bytes)}, "output")]


# Forecasts


def foresee(job: Job, found: Sequence[Picture], targets: Sequence[Size | None], facts: Facts, free: int | None) -> Forecast:
    """What the run will come to."""
    trained = [(picture, target) for picture, target in zip(found, targets) if target is not None and not picture.validation]
    shown: Counter[Size] = Counter()
    for picture, target in trained:
        shown[target] += picture.repeats
    batches = sum(math.ceil(count / job.training.batch_size) for count in shown.values())
    steps = steps_of(job.training, len(trained), batches)
    return Forecast(
        pictures=len(trained), validation=sum(picture.validation for picture in found),
        left_out=sum(target is None for target in targets), shown=sum(shown.values()),
        sizes=dict(Counter(target for _, target in trained)), batches=batches, batch_size=job.training.batch_size, steps=steps,
        cache_bytes=cache_bytes(job.data, found, targets, facts),
        checkpoint_bytes=checkpoint_bytes(job.training, steps or 0, facts), free_bytes=free,
        seconds=foreseen_seconds(job.training, steps, facts))


def foreseen_seconds(training: TrainingSettings, steps: int | None, facts: Facts) -> float | None:
    """Seconds of training: those asked for, or the steps at the speed that is known; None where none is."""
    if training.minutes is not None:
        return 60 * training.minutes
    return None if facts.seconds_per_step is None or steps is None else steps * facts.seconds_per_step


def steps_of(training: TrainingSettings, examples: int, batches: int) -> int | None:
    """Optimizer steps of a run: as told, or from the epochs, or 100 for each picture within 400 and 2,000.

    None where they follow from `minutes`, once a step's time is known.
    """
    if training.minutes is not None:
        return None
    if training.steps is not None:
        return training.steps
    if training.epochs is not None:
        return math.ceil(training.epochs * batches)
    return min(2000, max(400, 100 * examples))


def cache_bytes(settings: DataSettings, found: Sequence[Picture], targets: Sequence[Size | None], facts: Facts) -> int:
    """Bytes of float32 latents of every cut (and their spread, where they are sampled), and of every caption's text states."""
    cuts = 2 if settings.flip else 1
    if settings.crop == "random":
        cuts *= settings.crop_variants  # 0: encoded anew each step, nothing is kept
    pixels = sum(target[0] * target[1] for target in targets if target is not None) // facts.latent_step ** 2
    latents = 4 * facts.latent_channels * pixels * cuts * (2 if settings.draws_latents else 1)
    texts = {caption for picture in found for caption in picture.captions}
    return min(int(CACHE_BOUND), latents + len(texts) * facts.text_bytes)


def checkpoint_bytes(training: TrainingSettings, steps: int, facts: Facts) -> int:
    """Bytes of the resumable states kept, one more while it is written, and of every usable file (two bytes a parameter)."""
    if facts.trained_parameters is None:
        return 0
    saves = steps // training.save_every_steps if training.save_every_steps else 0
    state = facts.trained_parameters * 4 * (4 if training.ema_decay else 3)  # masters, two moments, the average
    return state * (min(saves + 1, training.keep_checkpoints) + 1) + facts.trained_parameters * 2 * (saves + 1)


def by(size: Size) -> str:
    """'640 x 480'."""
    return f"{size[0]} x {size[1]}"


def in_words(count: float) -> str:
    """A number of bytes as people write it: '1.5 GB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
