"""What a picture is asked for with, what may be wrong with that, and what the picture's file then tells of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from . import knobs, samplers
from .errors import Problem, ProblemsError
from .families import Base
from .formats import png
from .formats.embedding import Embedding
from .knobs import knob
from .nets import clip
from .nets.controlnet import Control
from .settings import SAMPLERS
from .vocabulary import used

SIZE_STEP = 8          # pixels of a latent
LARGEST_SIDE = 8192    # pixels
MOST_WEIGHT = 1000     # of words in a prompt; far beyond, text states are no numbers any more


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture that is asked for.

    image: the picture to start from, of which `strength` is redone. mask: white where it may change, of the image's size.
    controls: control branches with their condition pictures.
    """

    prompt: str
    negative: str = knob("", "What the picture must not show.")
    seed: int = knob(0, "The picture's noise follows from it; several pictures count up.", min=0, max=2**63 - 1)
    width: int | None = knob(None, "Width in pixels, a multiple of 8. Off: the base's own.", min=SIZE_STEP, max=LARGEST_SIDE)
    height: int | None = knob(None, "Height in pixels, a multiple of 8. Off: the base's own.", min=SIZE_STEP, max=LARGEST_SIDE)
    steps: int = knob(20, "Steps of the sampler: the time grows with them; 20 to 30 is enough for most.", min=1, max=1000)
    guidance: float = knob(5.0, "How strictly the picture follows its prompt; 1 is without.", min=1, max=100)
    sampler: str = knob("ddim", "How pictures are drawn out of noise; ddim and euler suit every base.", choices=SAMPLERS)
    image: Image.Image | None = None
    strength: float = knob(0.75, "How much of the given picture is redone: 0 leaves it, 1 keeps little of it.", min=0, max=1)
    mask: Image.Image | None = None
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA that is folded into the base: its name as hosts call it, its weight, and the hash they know it by."""

    name: str
    weight: float
    hash: str = ""


def check(requests: Sequence[Request]) -> None:
    """Raises ProblemsError with everything that is wrong with the requests, each sentence once."""
    found: dict[str, Problem] = {}
    for request in requests:
        for problem in [*knobs.check(request), *heavy_words(request.prompt, "prompt"), *heavy_words(request.negative, "negative"),
                        *_size_problems(request), *_picture_problems(request),
                        *too_many_steps(request.sampler, request.steps, "steps")]:
            found.setdefault(str(problem), problem)
    if found:
        raise ProblemsError(list(found.values()))


def size_of(base: Base, request: Request) -> tuple[int, int]:
    """(width, height) in pixels: as asked for, else of the given picture's shape, else the base's own.

    A given picture of which neither side is asked for is shrunk to the base's area.
    """
    own = base.resolution
    if request.image is None or (request.width and request.height):
        return request.width or own, request.height or own
    width, height = request.image.size
    if request.width:
        scale = request.width / width
    elif request.height:
        scale = request.height / height
    else:
        scale = min(1.0, own / math.sqrt(width * height))
    near = [min(max(1, round(side * scale / SIZE_STEP)) * SIZE_STEP, LARGEST_SIDE) for side in (width, height)]
    return request.width or near[0], request.height or near[1]


def steps_of(request: Request) -> int:
    """How many of the sampler's steps are taken: with a given picture, the share that `strength` says, rounded up."""
    return request.steps if request.image is None else math.ceil(request.steps * request.strength - 1e-9)


def parameters(base: Base, request: Request, loras: Sequence[AppliedLora] = (),
               words: Sequence[Embedding] = ()) -> png.Parameters:
    """What a picture was made from, as AUTOMATIC1111 names it; its LoRAs stand in the prompt, as they are typed there."""
    width, height = size_of(base, request)
    sampler, schedule = samplers.title(base, request.sampler)
    called = "".join(f" <lora:{one.name}:{one.weight:g}>" for one in loras)
    hashes = ", ".join(f"{one.name}: {one.hash}" for one in loras if one.hash)
    found: dict[str, Any] = {
        "Steps": request.steps, "Sampler": sampler, "Schedule type": schedule, "CFG scale": f"{request.guidance:g}",
        "Seed": request.seed, "Size": f"{width}x{height}", "Model hash": (base.source.sha256 or "")[:10] or None,
        "Model": name_of(base),
        "Denoising strength": f"{request.strength:g}" if request.image is not None else None,
        "Clip skip": base.clip_skip if base.clip_skip and base.clip_skip > 1 else None,
        "RNG": "CPU", "Lora hashes": hashes or None,
        "TI hashes": ", ".join(f"{one.name}: {one.hash[:12]}" for one in used(words, (request.prompt, request.negative))) or None,
        **{f"ControlNet {n}": f"Model: {one.name}, Weight: {one.strength:g}, "
                              f"Guidance Start: {one.start:g}, Guidance End: {one.end:g}"
           for n, one in enumerate(request.controls)},
    }
    told = {name: str(value) for name, value in found.items() if value is not None}
    return png.Parameters(request.prompt + called, request.negative, told)


def name_of(base: Base) -> str:
    """What a base is called: its file's name without the suffix, its folder's name, or 'micro'."""
    path = base.source.path
    if path.name == "base" and path.parent.name == "micro":
        return "micro"
    return path.stem if base.source.kind == "file" else path.name


def heavy_words(text: str, where: str) -> list[Problem]:
    """That a prompt gives words more weight than text states can bear; where: the setting that it is."""
    strongest = max((abs(weight) for _, weight in clip.parse(text)), default=0.0)
    if strongest <= MOST_WEIGHT:
        return []
    return [Problem("{name} gives some words a weight of {value}. Weights go up to {most}; 0.5 to 1.5 is usual.",
                    {"name": where.rpartition(".")[2], "value": f"{strongest:.4g}", "most": MOST_WEIGHT}, where)]


def _size_problems(request: Request) -> list[Problem]:
    problems = []
    for name in ("width", "height"):
        value = request.width if name == "width" else request.height
        if value is not None and value % SIZE_STEP:
            near = max(1, round(value / SIZE_STEP)) * SIZE_STEP
            problems.append(Problem("{name} is {value}, which is no multiple of 8. The nearest is {near}.",
                                    {"name": name, "value": value, "near": near}, name))
    return problems


def _picture_problems(request: Request) -> list[Problem]:
    problems = []
    if request.mask is not None and request.image is None:
        problems.append(Problem("A mask was given without a picture to change. Name the picture with --image.", {}, "mask"))
    elif request.mask is not None and request.image is not None and request.mask.size != request.image.size:
        sizes = {"mask": "{} x {}".format(*request.mask.size), "image": "{} x {}".format(*request.image.size)}
        problems.append(Problem("The mask is {mask} pixels and the picture {image}. Make them the same size.", sizes, "mask"))
    return problems


def too_many_steps(sampler: str, steps: int, where: str) -> list[Problem]:
    """That a sampler takes no such number of steps; where: the setting that says it."""
    if sampler != "lcm" or steps <= samplers.LCM_STEPS:
        return []
    return [Problem("{name} is {value}, but the sampler lcm takes at most {most}. Eight are plenty for it.",
                    {"name": where.rpartition(".")[2], "value": steps, "most": samplers.LCM_STEPS}, where)]
