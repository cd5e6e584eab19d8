"""Computed condition pictures: what a ControlNet is shown beside the prompt, made from the picture itself.

Arrays are uint8, H x W x 3; the inpainting kind has a fourth channel, 0 where the picture is hidden. The kinds here need Pillow
and NumPy alone. The others need a model that somebody else trained, in a local folder (`annotators.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .pictures import Pixels

Floats = NDArray[np.float32]

COMPUTED = ("canny", "scribble", "blur", "tile", "inpaint", "color")
LINES = ("canny", "scribble", "softedge", "pidi", "mlsd")  # white lines on black
VERSION = 1  # raised when the same picture would give another condition picture


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which condition pictures are wanted, and how they are made.

    kind: one of `COMPUTED` or of `annotators.KINDS`. source: 'files' beside the pictures, 'computed', or 'auto': files where
    there are any. low, high: canny's thresholds, as OpenCV counts them. thickness: pixels by which computed lines are widened on
    each side. blur: radius in pixels at 512, in proportion elsewhere. annotators: the folder of the models.
    """

    kind: str = "canny"
    source: str = "auto"
    low: float = 100.0
    high: float = 200.0
    thickness: int = 0
    blur: float = 12.0
    annotators: str | None = None

    def look(self) -> str:
        """Everything that changes the result, in one line."""
        return repr((VERSION, astuple(self)))


def compute(rgb: Pixels, recipe: Recipe, seed: str) -> Pixels:
    """The condition picture of a picture, of its size. seed: what random masks follow from. Raises ModelError, DeviceError."""
    made = maker(recipe, seed)(rgb)
    if recipe.thickness and recipe.kind in LINES:
        made = thicken(made, recipe.thickness)
    return made


def maker(recipe: Recipe, seed: str) -> Callable[[Pixels], Pixels]:
    """What computes this kind."""
    known: dict[str, Callable[[Pixels], Pixels]] = {
        "canny": partial(canny, low=recipe.low, high=recipe.high), "scribble": scribble,
        "blur": partial(blurred, radius=recipe.blur), "tile": tile,
        "inpaint": partial(hidden, seed=seed), "color": color_grid}
    if recipe.kind in known:
        return known[recipe.kind]
    from .annotators import annotate
    return partial(annotate, kind=recipe.kind, folder=recipe.annotators)


# Edges


def canny(rgb: Pixels, low: float = 100.0, high: float = 200.0) -> Pixels:
    """Edges one pixel wide (Canny 1986): gradient, thinning, two thresholds. White on black.

    As OpenCV does it without smoothing first, which the hosts' preprocessors use: 3 x 3 Sobel, |dx| + |dy|, of each pixel's
    strongest channel.
    """
    dx, dy = sobel(rgb)
    strength = np.abs(dx) + np.abs(dy)
    best = strength.argmax(-1)[..., None]
    dx, dy, strength = (np.take_along_axis(one, best, -1)[..., 0] for one in (dx, dy, strength))
    thin = np.where(_ridges(dx, dy, strength), strength, 0)
    return grey(_follow(thin > low, thin > high))


def sobel(rgb: Pixels) -> tuple[Floats, Floats]:
    """Horizontal and vertical derivative of each channel; the border repeats the outermost pixels."""
    padded = np.pad(rgb.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2]


def _ridges(dx: Floats, dy: Floats, strength: Floats) -> NDArray[np.bool_]:
    """Where the gradient is strongest along its own direction, of four."""
    padded = np.pad(strength, 1)
    height, width = strength.shape

    def at(down: int, right: int) -> Floats:
        return padded[1 + down:1 + down + height, 1 + right:1 + right + width]

    x, y = np.abs(dx), np.abs(dy)
    across = y < x * math.tan(math.pi / 8)
    along = y > x * math.tan(3 * math.pi / 8)
    falling = (dx >= 0) == (dy >= 0)
    before = np.select([across, along, falling], [at(0, -1), at(-1, 0), at(-1, -1)], at(-1, 1))
    behind = np.select([across, along, falling], [at(0, 1), at(1, 0), at(1, 1)], at(1, -1))
    # One of two equal neighbours stays: the comparison is strict on one side only.
    straight = across | along
    return (strength > before) & np.where(straight, strength >= behind, strength > behind)


def _follow(weak: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The weak pixels that hang together with a strong one, diagonals counted."""
    height, width = weak.shape
    left = np.pad(weak, 1).reshape(-1)  # still to be reached
    found = np.zeros_like(left)
    edge = np.flatnonzero(np.pad(strong, 1))
    row = width + 2
    around = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    left[edge], found[edge] = False, True
    while len(edge):
        near = np.unique((edge[:, None] + around).reshape(-1))
        edge = near[left[near]]
        left[edge], found[edge] = False, True
    return found.reshape(height + 2, row)[1:-1, 1:-1]


def scribble(rgb: Pixels) -> Pixels:
    """Rough thick lines where fine detail differs from its surroundings (difference of Gaussians). White on black."""
    scale = min(rgb.shape[:2]) / 512
    image = Image.fromarray(rgb)
    radii = (max(0.3, radius * scale) for radius in (0.5, 5.0))
    fine, coarse = (np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.int16) for radius in radii)
    return grey(np.abs(coarse - fine).max(-1) > 16)


def thicken(lines: Pixels, pixels: int) -> Pixels:
    """Lines widened by so many pixels on each side."""
    return np.asarray(Image.fromarray(lines).filter(ImageFilter.MaxFilter(2 * pixels + 1)))


def edge_f1(wanted: Pixels, drawn: Pixels, tolerance: int = 2) -> float:
    """How far the lines of two line pictures coincide, up to `tolerance` pixels apart: precision's and recall's harmonic mean.

    wanted: lines that were asked for; drawn: those found in what was drawn. Two pictures without lines agree.
    """
    a, b = drawn[..., 0] > 127, wanted[..., 0] > 127
    near_a, near_b = (thicken(grey(one), tolerance)[..., 0] > 127 for one in (a, b))
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    precision, recall = float((a & near_b).sum() / a.sum()), float((b & near_a).sum() / b.sum())
    return 2 * precision * recall / max(1e-9, precision + recall)


# What is left of a picture


def blurred(rgb: Pixels, radius: float = 12.0) -> Pixels:
    """The picture out of focus; the radius is in pixels at 512 and grows with the picture."""
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(radius * min(rgb.shape[:2]) / 512)))


def tile(rgb: Pixels) -> Pixels:
    """The picture at an eighth of its size, enlarged again: what upscaling in tiles is given."""
    return _through(rgb, 8, Image.Resampling.BICUBIC)


def color_grid(rgb: Pixels) -> Pixels:
    """The mean colours of squares of 64 pixels, or of an eighth of the shorter side where that is less."""
    return _through(rgb, min(64, max(1, min(rgb.shape[:2]) // 8)), Image.Resampling.NEAREST)


def _through(rgb: Pixels, factor: int, enlarge: Image.Resampling) -> Pixels:
    height, width = rgb.shape[:2]
    small = (max(1, width // factor), max(1, height // factor))
    return np.asarray(Image.fromarray(rgb).resize(small, Image.Resampling.BOX).resize((width, height), enlarge))


def hidden(rgb: Pixels, seed: str) -> Pixels:
    """The picture with a box or brush strokes hidden at random: there the fourth channel is 0, and so is the colour."""
    pick = random.Random(f"hidden/{seed}")
    height, width = rgb.shape[:2]
    shown = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(shown)
    if pick.random() < 0.4:
        w, h = (pick.uniform(0.2, 0.7) * side for side in (width, height))
        left, top = pick.uniform(0, width - w), pick.uniform(0, height - h)
        pen.rectangle((left, top, left + w, top + h), fill=0)
    else:
        for _ in range(pick.randint(1, 4)):
            points = [(pick.uniform(0, width), pick.uniform(0, height)) for _ in range(pick.randint(2, 5))]
            pen.line(points, fill=0, width=max(1, round(pick.uniform(0.05, 0.2) * min(width, height))), joint="curve")
    mask = np.asarray(shown)[..., None]
    return np.concatenate([np.where(mask > 0, rgb, 0), mask], -1).astype(np.uint8)


def grey(mask: NDArray[np.bool_]) -> Pixels:
    """White where true, black elsewhere, in three channels."""
    return np.repeat((mask * np.uint8(255))[..., None], 3, -1)
