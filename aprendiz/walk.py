"""A walk through what a base can draw: from prompt to prompt and from seed to seed, as a moving picture.

Noise goes along the great circle between two seeds (slerp: Shoemake 1985), which keeps it as strong as the network expects; text
states go straight from one prompt to the next. Every frame is drawn as any picture is.

Shapes: C latent channels, H W latent height and width.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import generate, knobs, request
from .errors import Problem, ProblemsError, SettingsError
from .families import Base, Tensors
from .formats import png
from .formats.embedding import Embedding
from .formats.png import Parameters
from .formats.writing import probe, write_new
from .knobs import knob
from .render import Drawing, OnStep
from .request import AppliedLora, Request, size_of

SUFFIXES = (".gif", ".webp", ".mp4")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A walk that is asked for. Its stops are the prompts and the seeds in pairs; the shorter list is gone through again.

    request: everything else about the frames (size, steps, guidance, sampler, negative prompt).
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = knob((0,), "The noise of each stop.")
    frames: int = knob(24, "How many frames there are in all.", min=2, max=100_000)
    loop: bool = knob(True, "Come back to the beginning, so that it can run round and round.")
    frames_per_second: float = knob(12.0, "How fast it plays.", min=0.5, max=60)
    request: Request = Request(prompt="")


def walk(base: Base, asked: Walk, on_step: OnStep | None = None, batch_size: int = 8) -> list[Image.Image]:
    """The frames, in order. Raises ProblemsError for a walk that cannot be."""
    check(asked)
    stops = max(len(asked.prompts), len(asked.seeds))
    with generate.at_rest(base):
        states = _encode_alike(base, [*asked.prompts, asked.request.negative])
    width, height = size_of(base, asked.request)
    shape = base.family.latent_shape(base, width, height)
    noises = [noise(seed, shape) for seed in asked.seeds]
    negative = None if asked.request.guidance == 1 else states[-1]
    drawings = []
    for position in positions(asked.frames, stops, asked.loop):
        here, share = int(position), position - int(position)
        there = (here + 1) % stops
        text = between(states[here % len(asked.prompts)], states[there % len(asked.prompts)], share)
        start = slerp(noises[here % len(noises)], noises[there % len(noises)], share)
        # One seed for all frames: samplers that draw noise at each step draw the same for all, so the walk does not flicker.
        drawings.append(Drawing(replace(asked.request, seed=asked.seeds[0]), width, height, text, negative, start))
    return generate.draw_prepared(base, drawings, on_step, batch_size)


def check(asked: Walk) -> None:
    """Raises ProblemsError with everything that is wrong with a walk."""
    problems = [*knobs.check(asked)]
    if not asked.prompts:
        problems.append(Problem("A walk needs a prompt. Give one or several with --prompt.", {}, "prompts"))
    elif max(len(asked.prompts), len(asked.seeds)) < 2:
        problems.append(Problem("A walk needs somewhere to go: a second --prompt, or a second seed (--seeds 1,2).",
                                where="prompts"))
    if not asked.seeds or min(asked.seeds) < 0:
        problems.append(Problem("The seeds are {value}. Give one or several whole numbers from 0 up.",
                                {"value": ", ".join(map(str, asked.seeds)) or "''"}, "seeds"))
    if asked.request.image is not None:
        problems.append(Problem("A walk begins with noise, so it takes no picture. Leave --image out.", {}, "image"))
    if problems:
        raise ProblemsError(problems)
    request.check([*(replace(asked.request, prompt=prompt) for prompt in asked.prompts),
                   *(replace(asked.request, seed=seed) for seed in asked.seeds)])


def parameters(base: Base, asked: Walk, loras: Sequence[AppliedLora] = (), words: Sequence[Embedding] = ()) -> Parameters:
    """What a walk was made from: its first stop as any picture is told, then the prompts and the seeds of all."""
    told = request.parameters(base, replace(asked.request, prompt=asked.prompts[0], seed=asked.seeds[0]), loras, words)
    stops = {"Walk prompts": json.dumps(asked.prompts, ensure_ascii=False), "Walk seeds": ", ".join(map(str, asked.seeds))}
    return replace(told, settings={**told.settings, **stops})


def positions(frames: int, stops: int, loop: bool) -> list[float]:
    """Where each frame stands between the stops: 0 is the first stop, 1.5 half way from the second to the third.

    A loop's last frame stands one pace before its first, so that nothing is shown twice.
    """
    pace = stops / frames if loop else (stops - 1) / (frames - 1)
    return [i * pace if loop else min(i * pace, stops - 1) for i in range(frames)]


def noise(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """The noise of a seed as `generate` draws it, (1, C, H, W)."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The noise at this share of the way, along the great circle through both."""
    if share == 0:
        return start
    a, b = start.double().flatten(), end.double().flatten()
    angle = math.acos(max(-1.0, min(1.0, float(torch.dot(a, b) / (a.norm() * b.norm())))))
    if math.sin(angle) < 1e-4:  # the same noise, or its very opposite
        return start + (end - start) * share
    return (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)


def between(start: Any, end: Any, share: float) -> Any:
    """Text states at this share of the way; what is no number on a scale (masks, ids) belongs to the nearer one."""
    if share == 0:
        return start
    mixed = {}
    for f in fields(start):
        a, b = getattr(start, f.name), getattr(end, f.name)
        if a is None or not a.is_floating_point():
            mixed[f.name] = a if share < 0.5 else b
        else:
            mixed[f.name] = a + (b - a) * share
    return replace(start, **mixed)


def check_file(file: Path) -> None:
    """Raises SettingsError or RunError before anything is drawn, if frames cannot be written under this name."""
    if file.suffix.lower() not in SUFFIXES:
        raise SettingsError("A walk cannot be written as {file}. End the name in .gif, .webp or .mp4.",
                            file=file.name, where="out")
    if file.suffix.lower() == ".mp4":
        _ffmpeg()
    probe(file.parent)


def save(frames: Sequence[Image.Image], file: Path, frames_per_second: float, loop: bool = True,
         text: Parameters | None = None) -> Path:
    """Write frames as GIF, WebP or MP4 (H.264), never over another file: the name used. Raises SettingsError, RunError."""
    check_file(file)
    suffix = file.suffix.lower()
    if suffix == ".mp4":
        return write_new(file, _mp4(frames, frames_per_second))
    stream, written = io.BytesIO(), text.text() if text else ""
    first, rest = frames[0], list(frames[1:])
    if suffix == ".gif":
        again = {"loop": 0} if loop else {}
        duration = max(2, round(100 / frames_per_second)) * 10  # a GIF counts in hundredths of a second
        first.save(stream, "GIF", save_all=True, append_images=rest, duration=duration, comment=written.encode(), **again)
    else:
        first.save(stream, "WEBP", save_all=True, append_images=rest, duration=round(1000 / frames_per_second),
                   loop=0 if loop else 1, quality=90, exif=png.exif(written))
    return write_new(file, stream.getvalue())


def _encode_alike(base: Base, prompts: Sequence[str]) -> list[Tensors]:
    """Text states of one length for all, so that the way between any two is straight."""
    states = generate.encode_together(base, prompts)
    return [states.rows(i, i + 1) for i in range(len(prompts))]


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise SettingsError("Writing MP4 needs the package imageio-ffmpeg. Install it with 'pip install imageio-ffmpeg', or end "
                            "the name in .webp or .gif.", where="out") from error
    return imageio_ffmpeg


def _mp4(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    import tempfile

    ffmpeg = _ffmpeg()
    width, height = frames[0].size
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "walk.mp4"
        # H.264 halves the colours' resolution, so sides must be even; ours are multiples of 8.
        writer = ffmpeg.write_frames(str(file), (width, height), fps=frames_per_second, codec="libx264", quality=8,
                                     macro_block_size=8)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame.convert("RGB")))
        writer.close()
        return file.read_bytes()
