"""Captioned scenes: one or two coloured figures on a background, drawn from a seed.

A scene holds what its caption says and its labels ask for. Pictures are uint8, H W 3; coordinates are in [-1, 1], y
upwards. All chance comes from one numpy Generator, and the order of its draws is part of the format: the base, the
evaluator and the fixed prompts were made with it (tests/test_micro.py keeps golden values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .shapes import HELD_OUT, KNOWN, Plane

Picture = NDArray[np.uint8]
Color = NDArray[np.float32]

COLORS = {
    "red": (220, 40, 40), "orange": (245, 140, 30), "yellow": (245, 220, 50), "green": (50, 165, 70),
    "turquoise": (60, 205, 215), "blue": (40, 80, 210), "purple": (130, 60, 180), "pink": (245, 150, 190),
    "brown": (125, 80, 45), "black": (25, 25, 25), "white": (245, 245, 245), "gray": (135, 135, 135),
}
SHAPES, HELD_OUT_SHAPES = tuple(KNOWN), tuple(HELD_OUT)
ALL_SHAPES = SHAPES + HELD_OUT_SHAPES
FILLS = ("solid", "hollow", "striped", "dotted", "watercolor")
BACKGROUNDS = ("plain", "gradient", "striped", "checked")
RELATIONS = ("above", "below", "left", "right")      # of the first figure, seen from the second
SIZES = ("small", "medium", "large")
STYLES = ("plain", "neon")                           # neon is held out as the three shapes are
CATEGORIES = ("single_simple", "single", "pair_simple", "pair")

_RADIUS = {"small": 0.28, "medium": 0.45, "large": 0.68}
_WANDER = {"small": 0.25, "medium": 0.12, "large": 0.06}
_TOWARDS = {"above": (0, 1), "below": (0, -1), "left": (-1, 0), "right": (1, 0)}
_NIGHT = np.array([0.04, 0.03, 0.12], np.float32)    # behind neon figures


@dataclass(frozen=True)
class Figure:
    """One figure: a shape of `ALL_SHAPES` in a colour and a fill, centred at (x, y), turned by `angle` radians."""

    shape: str
    color: str
    fill: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Background:
    """Plain, or a gradient, stripes or checks of two colours; `phase` shifts the stripes, in radians."""

    kind: str
    color: str
    second: str | None
    phase: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. relation: where the first of two figures stands; None where there is only one."""

    figures: tuple[Figure, ...]
    relation: str | None
    background: Background
    style: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What scenes are drawn from. figures: 1, 2, or None for either."""

    figures: int | None = None
    shapes: Sequence[str] = SHAPES
    colors: Sequence[str] = tuple(COLORS)
    fills: Sequence[str] = FILLS
    backgrounds: Sequence[str] = BACKGROUNDS
    style: str = "plain"


def category(name: str, *, shapes: Sequence[str] = SHAPES, style: str = "plain") -> Choices:
    """The choices of one of `CATEGORIES`; the simple ones are solid figures on a plain background."""
    simple = name.endswith("simple")
    return Choices(figures=2 if name.startswith("pair") else 1, shapes=shapes, fills=("solid",) if simple else FILLS,
                   backgrounds=("plain",) if simple else BACKGROUNDS, style=style)


def imagine(rng: np.random.Generator, choices: Choices = Choices()) -> Scene:
    """Draw a scene: colours never repeat within it, half of the figures are solid, most backgrounds plain."""
    two = rng.random() < 0.55 if choices.figures is None else choices.figures == 2
    kind = choices.backgrounds[rng.choice(len(choices.backgrounds), p=_background_odds(len(choices.backgrounds)))]
    colors = [str(color) for color in rng.permutation(list(choices.colors))]
    relation = RELATIONS[rng.integers(4)] if two else None
    count = 2 if two else 1
    figures = tuple(_imagine_figure(rng, choices, colors[i], relation, 1 if i == 0 else -1) for i in range(count))
    if two and kind != "plain" and rng.random() < 0.5:
        kind = "plain"
    first, second = colors[count], colors[count + 1]
    if rng.random() < 0.35 and "white" not in colors[:count]:
        first = "white"
    if second == first:
        second = colors[count + 2]
    background = Background(kind, first, second if kind != "plain" else None, rng.uniform(0, 6.28))
    return Scene(figures, relation, background, choices.style)


def _background_odds(count: int) -> list[float] | None:
    return [0.55, 0.15, 0.15, 0.15] if count == len(BACKGROUNDS) else None


def _imagine_figure(rng: np.random.Generator, choices: Choices, color: str, relation: str | None, sign: int) -> Figure:
    size = "medium" if relation else SIZES[rng.integers(3)]
    radius = rng.uniform(0.32, 0.40) if relation else _RADIUS[size] * rng.uniform(0.92, 1.08)
    fill = choices.fills[0]
    if len(choices.fills) > 1:
        others = len(choices.fills) - 1
        fill = choices.fills[rng.choice(others + 1, p=[0.5] + [0.5 / others] * others)]
    x, y = (float(at) for at in rng.uniform(-_WANDER[size], _WANDER[size], 2))
    if relation:
        along, aside = rng.uniform(0.42, 0.5), rng.uniform(-0.08, 0.08)
        to_x, to_y = _TOWARDS[relation]
        x = to_x * along * sign if to_x else aside
        y = to_y * along * sign if to_y else aside
    shape = choices.shapes[rng.integers(len(choices.shapes))]
    return Figure(shape, color, fill, size, x, y, radius, rng.normal(0, 0.05))


# Drawing


@lru_cache(maxsize=8)
def plane(size: int) -> tuple[Plane, Plane]:
    """The coordinates x and y of the pixels of a square picture."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    return np.broadcast_to(line[None], (size, size)).copy(), np.broadcast_to(-line[:, None], (size, size)).copy()


def value_noise(rng: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise in [0, 1]: random values on a grid of cells + 1, blended in between."""
    grid = rng.random((cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells - 1e-3, size)
    cell = at.astype(int)
    within = (at - cell).astype(np.float32)
    within = within * within * (3 - 2 * within)
    right, down = within[None], within[:, None]
    upper = grid[cell][:, cell] * (1 - right) + grid[cell][:, cell + 1] * right
    lower = grid[cell + 1][:, cell] * (1 - right) + grid[cell + 1][:, cell + 1] * right
    return upper * (1 - down) + lower * down


def draw(scene: Scene, rng: np.random.Generator, size: int = 128) -> Picture:
    """The picture of a scene; `rng` shifts the colours a little and paints the watercolours."""
    canvas = _draw_background(scene, rng, size)
    for figure in scene.figures:
        outline = _distance(figure, size)
        color = _near(figure.color, rng)
        if scene.style == "neon":
            canvas = _glow(canvas, outline, color)
        else:
            cover, paint = _paint(figure, outline, color, rng)
            canvas = canvas * (1 - cover[..., None]) + cover[..., None] * paint
    return to_bytes(canvas)


def draw_outlines(scene: Scene, size: int = 128) -> Picture:
    """The outlines of the figures alone, white on black, H W: what a ControlNet is given."""
    edge = _edge_width(size) * 1.2
    lines = [np.clip(1 - np.abs(_distance(figure, size)) / edge, 0, 1) for figure in scene.figures]
    return (np.maximum.reduce(lines) * 255).astype(np.uint8)


def to_bytes(canvas: NDArray[np.float32]) -> Picture:
    """[0, 1] to [0, 255]."""
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def _edge_width(size: int) -> float:
    return 1.3 / size * 1.2


def _near(name: str, rng: np.random.Generator) -> Color:
    color = np.asarray(COLORS[name], np.float32) + rng.normal(0, 10, 3).astype(np.float32) * 0.6
    return np.clip(color, 0, 255) / np.float32(255)


def _draw_background(scene: Scene, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    background = scene.background
    x, y = plane(size)
    first = _near(background.color, rng)
    second = _near(background.second, rng) if background.second else first
    if background.kind == "plain":
        mix = np.zeros_like(x)
    elif background.kind == "gradient":
        mix = (1 - y) / 2
    elif background.kind == "striped":
        mix = np.clip(0.5 + np.sin(y * np.pi * 4 + background.phase) * 2, 0, 1)
    else:
        mix = np.clip(0.5 + np.sin(x * np.pi * 2) * np.sin(y * np.pi * 2) * 6, 0, 1)
    if scene.style == "neon":
        return np.broadcast_to(_NIGHT, (size, size, 3))
    return first * (1 - mix[..., None]) + second * mix[..., None]


def _distance(figure: Figure, size: int) -> Plane:
    u, v = _own_coordinates(figure, size)
    return (KNOWN | HELD_OUT)[figure.shape](u, v) * figure.radius


def _own_coordinates(figure: Figure, size: int) -> tuple[Plane, Plane]:
    x, y = plane(size)
    u, v = (x - figure.x) / figure.radius, (y - figure.y) / figure.radius
    cosine, sine = float(np.cos(figure.angle)), float(np.sin(figure.angle))
    return cosine * u - sine * v, sine * u + cosine * v


def _paint(figure: Figure, outline: Plane, color: Color, rng: np.random.Generator) -> tuple[Plane, NDArray[np.float32]]:
    """How much of each pixel a figure covers, and in which colour."""
    edge = _edge_width(len(outline))
    cover = np.clip(0.5 - outline / edge, 0, 1)
    if figure.fill == "hollow":
        cover = np.clip(0.5 - (np.abs(outline + 0.03) - 0.045) / edge, 0, 1)
    elif figure.fill == "watercolor":
        cover = _watercolor(outline, rng)
    elif figure.fill in ("striped", "dotted"):
        u, v = (at * figure.radius for at in _own_coordinates(figure, len(outline)))
        light = color.mean() < 0.75
        if figure.fill == "striped":
            mix = np.clip(0.5 + np.sin((u + v) * 28) * 3, 0, 1)[..., None]
            other = color * 0.35 + 0.65 if light else color * 0.55
        else:
            pitch = 0.19
            to_dot = np.sqrt((np.mod(u, pitch) - pitch / 2) ** 2 + (np.mod(v, pitch) - pitch / 2) ** 2)
            mix = np.clip((to_dot - 0.058) / edge + 0.5, 0, 1)[..., None]
            other = color * 0.25 + 0.75 if light else color * 0.45
        return cover, color * mix + other * (1 - mix)
    return cover, np.broadcast_to(color, (*outline.shape, 3))


def _watercolor(outline: Plane, rng: np.random.Generator) -> Plane:
    size = len(outline)
    ragged = outline + (value_noise(rng, size, 7) - 0.5) * 0.12
    cover = np.clip(0.5 - ragged / 0.11, 0, 1) * (0.5 + 0.45 * value_noise(rng, size, 5))
    return np.clip(cover + np.clip(1 - np.abs(ragged + 0.03) / 0.05, 0, 1) * 0.25, 0, 1)


def _glow(canvas: NDArray[np.float32], outline: Plane, color: Color) -> NDArray[np.float32]:
    halo, tube = np.exp(-np.abs(outline) / 0.05)[..., None], np.clip(1.2 - np.abs(outline) / 0.03, 0, 1)[..., None]
    light = np.clip(color * 1.1 + 0.1, 0, 1)
    return np.clip(canvas + halo * light * 0.9, 0, 1) * (1 - tube * 0.55) + tube * 0.55 * (light * 0.4 + 0.6)


# Captions

_RELATION_WORDS = {
    "above": ("above", "on top of", "over"), "below": ("below", "under", "beneath"),
    "left": ("to the left of", "left of"), "right": ("to the right of", "right of"),
}
_SIZE_WORDS = {"small": "tiny", "large": "big"}
_FILL_WORDS = {"hollow": ("hollow",), "striped": ("striped",), "dotted": ("dotted", "polka dot"), "watercolor": ("watercolor",)}
_OPENINGS = ("", "", "", "", "a picture of ", "an image of ", "a drawing of ", "a photo of ", "an illustration of ")


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False, plain: bool = False) -> str:
    """A scene in words. full: nothing is left unsaid. plain: always the same words; otherwise synonyms and openings."""
    named = [_describe(figure, scene, rng, full, plain) for figure in scene.figures]
    background = _describe_background(scene.background) if full or rng.random() < 0.85 else None
    if not plain and rng.random() < 0.15:
        return _tags(named, scene.relation, background)
    text = _article(named[0])
    opening = "" if plain else _OPENINGS[rng.integers(len(_OPENINGS))]
    if scene.relation:
        words = _RELATION_WORDS[scene.relation]
        text += f" {words[0] if plain else words[rng.integers(len(words))]} {_article(named[1])}"
    return opening + text + (f" on {_article(background)}" if background else "")


def _describe(figure: Figure, scene: Scene, rng: np.random.Generator, full: bool, plain: bool) -> str:
    words = []
    if not scene.relation and figure.size != "medium" and (full or rng.random() < 0.8):
        words.append(figure.size if plain or rng.random() < 0.7 else _SIZE_WORDS[figure.size])
    if scene.style != "neon":
        if figure.fill == "solid":
            words += ["solid"] if not plain and rng.random() < 0.25 else []
        elif plain or figure.fill == "hollow":
            words.append(figure.fill)
        else:
            names = _FILL_WORDS[figure.fill]
            words.append(names[rng.integers(len(names))])
    return " ".join([*words, figure.color, figure.shape])


def _describe_background(background: Background) -> str:
    if background.kind == "plain":
        return f"{background.color} background"
    return f"{background.color} and {background.second} {background.kind} background"


def _tags(named: list[str], relation: str | None, background: str | None) -> str:
    text = named[0]
    if relation:
        words = _RELATION_WORDS[relation]
        text += f" {words[0] if relation in ('above', 'below') else words[1]} {named[1]}"
    return ", ".join([text, background]) if background else text


def _article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def vocabulary(samples: int = 20000) -> list[str]:
    """Every word that captions use, found by drawing many."""
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for _ in range(samples):
        words |= set(caption(imagine(rng), rng).replace(",", "").split())
    return sorted(words)


# Labels

UNKNOWN = -1  # there is nothing to name


@dataclass(frozen=True)
class Labels:
    """What the evaluator is asked about a picture, as indices into the tuples above; `UNKNOWN` where there is nothing.

    layout: 0 one figure, 1 one above the other, 2 side by side. The first figure is the upper or the left one.
    """

    layout: int
    first: tuple[int, int, int]     # shape, colour, fill
    second: tuple[int, int, int]
    background: tuple[int, int]     # kind, colour
    style: int

    def flat(self) -> list[int]:
        """In the order of the evaluator's answers."""
        return [self.layout, *self.first, *self.second, *self.background, self.style]


def labels(scene: Scene) -> Labels:
    """The labels of a scene; fills and background are not asked of neon pictures, which have none."""
    neon = scene.style == "neon"
    figures = scene.figures[::-1] if scene.relation in ("below", "right") else scene.figures
    named = [(ALL_SHAPES.index(figure.shape), list(COLORS).index(figure.color), UNKNOWN if neon else FILLS.index(figure.fill))
             for figure in figures]
    layout = 0 if scene.relation is None else 1 if scene.relation in ("above", "below") else 2
    background = (BACKGROUNDS.index(scene.background.kind), list(COLORS).index(scene.background.color))
    return Labels(layout, named[0], named[1] if len(named) > 1 else (UNKNOWN,) * 3,
                  (UNKNOWN, UNKNOWN) if neon else background, STYLES.index(scene.style))
