"""Pictures that are no scenes, for the VAE: gradients, waves, noise at several scales, blobs and boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .scenes import Picture, plane, to_bytes, value_noise
from .shapes import Plane, disc, polygon

Canvas = NDArray[np.float32]


def texture(rng: np.random.Generator, size: int = 128) -> Picture:
    """One random picture; a third of them are grainy."""
    kind, colors = rng.integers(5), rng.random((6, 3)).astype(np.float32)
    canvas = (_gradient, _waves, _clouds, _blobs, _patches)[kind](rng, size, colors)
    if rng.random() < 0.3:
        canvas = canvas + rng.normal(0, rng.uniform(0.01, 0.06), canvas.shape)
    return to_bytes(canvas)


def _blend(below: Canvas, above: Canvas, share: Plane) -> Canvas:
    return below * (1 - share[..., None]) + above * share[..., None]


def _direction(rng: np.random.Generator, size: int) -> Plane:
    x, y = plane(size)
    angle = rng.uniform(0, 6.28)
    return x * float(np.cos(angle)) + y * float(np.sin(angle))


def _gradient(rng: np.random.Generator, size: int, colors: Canvas) -> Canvas:
    return _blend(colors[0], colors[1], np.clip(0.5 + _direction(rng, size) * rng.uniform(0.2, 1), 0, 1))


def _waves(rng: np.random.Generator, size: int, colors: Canvas) -> Canvas:
    canvas = np.broadcast_to(colors[0], (size, size, 3))
    for color in colors[1:4]:
        along = _direction(rng, size)
        frequency = float(np.exp(rng.uniform(np.log(2), np.log(30))))
        wave = 0.5 + 0.5 * np.sin(along * frequency + rng.uniform(0, 6.28))
        canvas = canvas * (1 - wave[..., None] * 0.5) + color * wave[..., None] * 0.5
    return canvas


def _clouds(rng: np.random.Generator, size: int, colors: Canvas) -> Canvas:
    octaves = [np.stack([value_noise(rng, size, cells) for _ in range(3)], -1) * 0.5 ** octave * 0.55
               for octave, cells in enumerate((3, 7, 16, 40))]
    return (sum(octaves) - np.float32(0.5)) * rng.uniform(0.3, 1.3) + colors[0]


def _blobs(rng: np.random.Generator, size: int, colors: Canvas) -> Canvas:
    canvas: Canvas = np.broadcast_to(colors[0], (size, size, 3))
    x, y = plane(size)
    for _ in range(rng.integers(3, 14)):
        at_x, at_y = rng.uniform(-1, 1, 2)
        color = rng.random(3).astype(np.float32)
        if rng.random() < 0.5:
            outline = disc(x, y, at_x, at_y, rng.uniform(0.03, 0.5))
        else:
            corners = [(at_x + rng.normal(0, 0.35), at_y + rng.normal(0, 0.35)) for _ in range(rng.integers(3, 6))]
            outline = polygon(x, y, corners)
        canvas = _blend(canvas, color, np.clip(0.5 - outline * size / 2, 0, 1))
    return canvas


def _patches(rng: np.random.Generator, size: int, colors: Canvas) -> Canvas:
    noise = value_noise(rng, size, int(rng.integers(3, 20)))
    return _blend(colors[0], colors[1], np.clip((noise - 0.5) * rng.uniform(4, 40) + 0.5, 0, 1))
