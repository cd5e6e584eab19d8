"""Aspect-ratio buckets: which size each picture is trained at.

Sizes are (width, height) in pixels. The rules:

- Both sides are multiples of `step`, so that the latents of the network's coarsest level are whole.
- No bucket's area is above resolution x resolution, and each is as tall (or as wide) as that allows: a step needs about the same
  memory and time in every bucket, and the square's is the most.
- Shapes go from 1:4 to 4:1. A longer picture gets the nearest and loses its ends.
- A picture gets the bucket with the nearest aspect ratio, measured as a factor: 2:1 is as far from 1:1 as 1:2 is. Of two that are
  equally near, the larger.
- It is resized until it just covers its bucket and the rest is cut away (`pictures.fit`).
- Where enlarging is not allowed, a picture that would have to be enlarged is left out.

Where pictures are not to be resized at all, each has a bucket of its own size: what is beyond a multiple of `step` is cut away,
and only a side shorter than one `step` is enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..settings import DataSettings

Size = tuple[int, int]

MAX_ASPECT = 4.0


@cache
def shapes(resolution: int, step: int) -> tuple[Size, ...]:
    """The buckets of a resolution, from tall to wide. A resolution below `step` gives one square of `step`."""
    square = max(step, resolution // step * step)
    found = {(square, square)}
    for short in range(step, square, step):
        long = resolution * resolution // short // step * step
        if long <= MAX_ASPECT * short:
            found |= {(short, long), (long, short)}
    for long in range(square + step, int(math.sqrt(MAX_ASPECT) * resolution) + 1, step):
        short = resolution * resolution // long // step * step
        if short and long <= MAX_ASPECT * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))


def nearest(size: Size, among: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to a picture's."""
    aspect = math.log(size[0] / size[1])

    def preference(bucket: Size) -> tuple[float, int, Size]:
        # Rounded, because 2:1 and 1:2 are equally far from 1:1 in truth and not in floating point.
        return round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9), -bucket[0] * bucket[1], bucket

    return min(among, key=preference)


def enlargement(size: Size, target: Size) -> float:
    """The factor by which a picture is scaled to cover its bucket; above 1 it is enlarged."""
    return max(target[0] / size[0], target[1] / size[1])


def cut_away(size: Size, target: Size) -> float:
    """The share of a picture that does not fit into its bucket, 0 to 1."""
    scale = enlargement(size, target)
    return 1 - target[0] * target[1] / (size[0] * size[1] * scale * scale)


def plan(sizes: Sequence[Size], resolution: int, step: int, buckets: bool, allow_upscale: bool) -> list[Size | None]:
    """The size that each picture is trained at, by the rules above; None for those left out. Without buckets: one square."""
    square = max(step, resolution // step * step)
    among = shapes(resolution, step) if buckets else ((square, square),)
    targets = [nearest(size, among) for size in sizes]
    return _offered(sizes, targets, allow_upscale)


def own(size: Size, step: int) -> Size:
    """The bucket of a picture that keeps its size."""
    return max(step, size[0] // step * step), max(step, size[1] // step * step)


def planned(settings: DataSettings, sizes: Sequence[Size], resolution: int, step: int) -> list[Size | None]:
    """The size that each picture is trained at, as the settings say; None for those left out."""
    if settings.resize:
        return plan(sizes, resolution, step, settings.buckets, settings.allow_upscale)
    return _offered(sizes, [own(size, step) for size in sizes], settings.allow_upscale)


def _offered(sizes: Sequence[Size], targets: Sequence[Size], allow_upscale: bool) -> list[Size | None]:
    """The targets, None where a picture would have to be enlarged and may not."""
    return [target if allow_upscale or enlargement(size, target) <= 1 else None for size, target in zip(sizes, targets)]
