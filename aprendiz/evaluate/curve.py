"""The loss over a run: raw values faint, their moving average strong, validation as open points, saves as diamonds on the axis.

Drawn with Pillow alone, lines three times as large and then reduced, letters at their own size. Long runs are reduced to the
lowest and highest value of each pixel column, so that a spike never vanishes; what goes beyond the top edge is marked there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ..texts import say
from .canvas import ACCENT, GOOD, INK, LINE, PAPER, SOFT, mix, width_of, write

WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 32, 56, 44
FINE = 3  # how much larger lines are drawn before they are reduced
TITLE, TEXT = 18, 13


@dataclass(frozen=True)
class Curve:
    """What is known of a run's loss: (step, loss) pairs in order, the steps that were saved, and which of them is the best."""

    losses: Sequence[tuple[int, float]]
    validation: Sequence[tuple[int, float]] = ()
    saves: Sequence[int] = ()
    best: int | None = None
    steps: int = 0  # of the whole run; the axis reaches at least so far

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Curve:
        """From a run's events: `step` (step, steps, loss), `validation` (step, loss), `checkpoint` (step).

        The best save is the one whose validation loss, measured last before it, is lowest.
        """
        losses: dict[int, float] = {}
        validation: dict[int, float] = {}
        saves: set[int] = set()
        steps = 0
        for event in events:
            step = event.get("step")
            if not isinstance(step, int):
                continue
            loss, kind = event.get("loss"), event.get("event")
            if kind == "step":
                steps = max(steps, int(event.get("steps") or 0))
            if kind in ("step", "validation") and isinstance(loss, (int, float)) and math.isfinite(loss):
                (losses if kind == "step" else validation)[step] = float(loss)
            elif kind == "checkpoint":
                saves.add(step)
        points = sorted(validation.items())
        return cls(sorted(losses.items()), points, sorted(saves), best_save(points, sorted(saves)), steps)


def best_save(validation: Sequence[tuple[int, float]], saves: Sequence[int]) -> int | None:
    """The save with the lowest validation loss at or before it; None where nothing was measured."""
    known = [([loss for at, loss in validation if at <= save] or [math.inf])[-1] for save in saves]
    lowest = min(known, default=math.inf)
    return None if lowest == math.inf else saves[known.index(lowest)]


def smooth(values: Sequence[float]) -> list[float]:
    """A moving average over about a thirtieth of the values to each side; weights fall exponentially with distance."""
    keep = 1 - 1 / max(3.0, len(values) / 30)
    before, after = _decaying(values, keep), _decaying(values[::-1], keep)[::-1]
    # Both sums hold the value itself.
    return [(a + b - value) / (m + n - 1) for (a, m), (b, n), value in zip(before, after, values)]


def _decaying(values: Sequence[float], keep: float) -> list[tuple[float, float]]:
    """For each value the sum of it and all before it, fading, and the sum of the weights."""
    sums, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        sums.append((total, weight))
    return sums


def draw_curve(curve: Curve, title: str = "") -> Image.Image:
    """The loss as a picture of 960 x 400 pixels."""
    smoothed = list(zip([step for step, _ in curve.losses], smooth([loss for _, loss in curve.losses])))
    axes = _Axes(curve, [loss for _, loss in smoothed])
    large = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
    pen = ImageDraw.Draw(large)
    for value in axes.marks:
        pen.line([*axes.at(axes.first, value, FINE), *axes.at(axes.last, value, FINE)], fill=LINE, width=FINE)
    _line(pen, axes, curve.losses, mix(ACCENT, 0.32), FINE)
    _line(pen, axes, smoothed, ACCENT, 2 * FINE)
    _marks(pen, axes, curve)
    picture = large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    _letters(ImageDraw.Draw(picture), axes, curve, smoothed, title)
    return picture


class _Axes:
    """Where a step and a loss stand on the picture."""

    def __init__(self, curve: Curve, smoothed: Sequence[float]) -> None:
        steps = [step for step, _ in (*curve.losses, *curve.validation)] + list(curve.saves)
        self.first, self.last = 0, max([curve.steps, *steps, 1])
        raw = sorted(loss for _, loss in curve.losses)
        points = [loss for _, loss in curve.validation]
        # A single spike must not press the rest flat: the axis ends a little above where most values lie.
        usual = raw[int(0.98 * (len(raw) - 1))] if raw else 0.0
        top = max([usual * 1.1, *(1.1 * value for value in (*smoothed, *points)), 1e-9])
        if raw and raw[-1] <= 1.6 * top:
            top = max(top, raw[-1] * 1.02)
        self.pace = nice(top / 4)
        self.top = top
        self.marks = [i * self.pace for i in range(int(top / self.pace + 1e-9) + 1)]

    def at(self, step: float, loss: float, scale: int = 1) -> tuple[float, float]:
        """Pixels from the left and from above."""
        x = LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / (self.last - self.first)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(loss, self.top) / self.top)
        return x * scale, y * scale

    def step_marks(self) -> list[int]:
        """Round steps to be written under the axis, and the last one."""
        pace = max(1, round(nice(self.last / 5)))
        return [*(step for step in range(0, self.last, pace) if self.last - step > pace * 0.4), self.last]


def apart(steps: Sequence[int], axes: _Axes, keep: set[int]) -> list[int]:
    """As many of the steps as can be told apart on the axis; the last one and those to keep are always among them."""
    shown: list[int] = []
    for step in sorted({*steps[-1:], *keep}) + list(steps):
        if step in keep or all(abs(axes.at(step, 0)[0] - axes.at(other, 0)[0]) >= 16 for other in shown):
            shown.append(step)
    return sorted(set(shown))


def nice(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= value * 0.999)


def _line(pen: ImageDraw.ImageDraw, axes: _Axes, points: Sequence[tuple[int, float]], colour: tuple[int, int, int],
          width: int) -> None:
    columns: dict[int, list[tuple[float, float]]] = {}
    for step, loss in points:
        x, y = axes.at(step, loss, FINE)
        columns.setdefault(int(x / FINE), []).append((x, y))
    path: list[tuple[float, float]] = []
    for column in columns.values():
        # First, highest, lowest, last: what the eye would see of all of them.
        high, low = min(column, key=lambda point: point[1]), max(column, key=lambda point: point[1])
        path += column if len(column) <= 4 else [column[0], high, low, column[-1]]
    if len(path) > 1:
        pen.line(path, fill=colour, width=width, joint="curve")
    elif path:
        (x, y), r = path[0], 2 * width
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _marks(pen: ImageDraw.ImageDraw, axes: _Axes, curve: Curve) -> None:
    for step, loss in curve.losses:
        if loss > axes.top:
            x, y = axes.at(step, loss, FINE)
            pen.polygon([(x - 4 * FINE, y), (x + 4 * FINE, y), (x, y - 6 * FINE)], fill=ACCENT)
    measured = dict(curve.validation)
    for step in apart(list(measured), axes, {min(measured, key=lambda at: measured[at])} if measured else set()):
        x, y = axes.at(step, measured[step], FINE)
        for r, colour in ((4.5 * FINE, INK), (3 * FINE, PAPER)):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    for step in apart(curve.saves, axes, set() if curve.best is None else {curve.best}):
        x, y = axes.at(step, 0, FINE)
        w, h = (7 * FINE, 8 * FINE) if step == curve.best else (5 * FINE, 6 * FINE)
        pen.polygon([(x, y - h), (x + w, y), (x, y + h), (x - w, y)], fill=GOOD if step == curve.best else SOFT, outline=PAPER)


def _letters(pen: ImageDraw.ImageDraw, axes: _Axes, curve: Curve, smoothed: Sequence[tuple[int, float]], title: str) -> None:
    write(pen, (24, 16), title or say("Loss"), TITLE)
    places = max(0, -math.floor(math.log10(axes.pace)))
    for value in axes.marks:
        write(pen, (LEFT - 12, axes.at(0, value)[1] - 8), f"{value:.{places}f}", TEXT, SOFT, "right")
    for step in axes.step_marks():
        align = "right" if step == axes.last else "middle"
        write(pen, (axes.at(step, 0)[0] + (8 if step == axes.last else 0), HEIGHT - BOTTOM + 16), str(step), TEXT, SOFT, align)
    key = [(say("loss {value}", value=f"{smoothed[-1][1]:.3g}"), ACCENT)] if smoothed else [(say("No loss yet"), SOFT)]
    if curve.validation:
        key.append((say("validation {value}", value=f"{curve.validation[-1][1]:.3g}"), INK))
    if curve.best is not None:
        key.append((say("best: step {step}", step=curve.best), GOOD))
    x: float = WIDTH - RIGHT
    for text, colour in reversed(key):
        write(pen, (x, 20), text, TEXT, colour, "right")
        x -= width_of(text, TEXT) + 24
