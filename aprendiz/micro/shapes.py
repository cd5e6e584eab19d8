"""Shapes as signed distance functions: negative inside, in units of the shape's own radius.

Every function takes the coordinates u (to the right) and v (upwards) of all pixels, two float32 arrays of one shape in
which the figure fills about [-1, 1], and returns the distance of each pixel to the outline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Distance = Callable[[Plane, Plane], Plane]


def box(u: Plane, v: Plane, x: float, y: float, half_width: float, half_height: float) -> Plane:
    """An upright rectangle around (x, y); distances beyond its corners are those of the nearer side."""
    return np.maximum(np.abs(u - x) - half_width, np.abs(v - y) - half_height)


def disc(u: Plane, v: Plane, x: float, y: float, radius: float) -> Plane:
    """A disc around (x, y)."""
    return np.sqrt((u - x) ** 2 + (v - y) ** 2) - radius


def polygon(u: Plane, v: Plane, corners: Sequence[tuple[float, float]]) -> Plane:
    """A polygon through these corners, convex or not (after I. Quilez, "2D distance functions")."""
    points = np.asarray(corners, np.float32)
    nearest = np.full(u.shape, 1e9, np.float32)
    outside = np.ones(u.shape, bool)
    for corner, previous in zip(points, np.roll(points, 1, axis=0)):
        edge_u, edge_v = previous - corner
        to_u, to_v = u - corner[0], v - corner[1]
        along = np.clip((to_u * edge_u + to_v * edge_v) / (edge_u * edge_u + edge_v * edge_v + 1e-9), 0, 1)
        off_u, off_v = to_u - edge_u * along, to_v - edge_v * along
        nearest = np.minimum(nearest, off_u * off_u + off_v * off_v)
        above_corner, below_previous, left_of_edge = v >= corner[1], v < previous[1], edge_u * to_v > edge_v * to_u
        outside ^= (above_corner & below_previous & left_of_edge) | (~above_corner & ~below_previous & ~left_of_edge)
    return np.sqrt(nearest) * np.where(outside, 1, -1)


def _star_corners() -> list[tuple[float, float]]:
    angles = [np.pi / 2 + corner * np.pi / 5 for corner in range(10)]
    radii = [1.0, 0.42] * 5
    return [(np.cos(angle) * radius, np.sin(angle) * radius) for angle, radius in zip(angles, radii)]


def _heart_corners() -> list[tuple[float, float]]:
    turns = np.linspace(0, 2 * np.pi, 25)[:-1]
    return [(16 * np.sin(t) ** 3 / 17.5,
             (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) + 2.5) / 16.0) for t in turns]


STAR, HEART = _star_corners(), _heart_corners()


def circle(u: Plane, v: Plane) -> Plane:
    return disc(u, v, 0, 0, 0.9)


def square(u: Plane, v: Plane) -> Plane:
    return box(u, v, 0, 0, 0.8, 0.8)


def triangle(u: Plane, v: Plane) -> Plane:
    return polygon(u, v, [(-0.95, -0.75), (0.95, -0.75), (0, 0.95)])


def star(u: Plane, v: Plane) -> Plane:
    return polygon(u, v, STAR)


def heart(u: Plane, v: Plane) -> Plane:
    return polygon(u, v, HEART)


def ring(u: Plane, v: Plane) -> Plane:
    return np.abs(disc(u, v, 0, 0, 0.68)) - 0.24


def cross(u: Plane, v: Plane) -> Plane:
    return np.minimum(box(u, v, 0, 0, 0.92, 0.3), box(u, v, 0, 0, 0.3, 0.92))


def crescent(u: Plane, v: Plane) -> Plane:
    return np.maximum(disc(u, v, 0, 0, 0.95), -disc(u, v, 0.45, 0.1, 0.75))


def diamond(u: Plane, v: Plane) -> Plane:
    return (np.abs(u) / 0.65 + np.abs(v) - 1) * 0.6


def house(u: Plane, v: Plane) -> Plane:
    walls, door = box(u, v, 0, -0.4, 0.65, 0.5), box(u, v, 0, -0.62, 0.18, 0.3)
    roof = polygon(u, v, [(-0.95, 0.08), (0.95, 0.08), (0, 0.95)])
    return np.maximum(np.minimum(walls, roof), -door)


def tree(u: Plane, v: Plane) -> Plane:
    trunk = box(u, v, 0, -0.7, 0.14, 0.25)
    lower = polygon(u, v, [(-0.85, -0.5), (0.85, -0.5), (0, 0.45)])
    upper = polygon(u, v, [(-0.62, 0), (0.62, 0), (0, 0.98)])
    return np.minimum(trunk, np.minimum(lower, upper))


def face(u: Plane, v: Plane) -> Plane:
    head = disc(u, v, 0, 0, 0.95)
    eyes = np.minimum(disc(u, v, -0.35, 0.25, 0.15), disc(u, v, 0.35, 0.25, 0.15))
    mouth = np.maximum(np.abs(disc(u, v, 0, 0.05, 0.55)) - 0.08, v + 0.15)
    return np.maximum(head, -np.minimum(eyes, mouth))


def fish(u: Plane, v: Plane) -> Plane:
    body = (np.sqrt(((u + 0.2) / 0.7) ** 2 + (v / 0.45) ** 2) - 1) * 0.45
    tail, eye = polygon(u, v, [(0.3, 0), (0.95, 0.5), (0.95, -0.5)]), disc(u, v, -0.5, 0.12, 0.1)
    return np.maximum(np.minimum(body, tail), -eye)


def flower(u: Plane, v: Plane) -> Plane:
    radius, angle = np.sqrt(u * u + v * v), np.arctan2(v, u)
    return np.maximum(radius - (0.68 + 0.27 * np.cos(6 * angle)), -(radius - 0.22)) * 0.8


def robot(u: Plane, v: Plane) -> Plane:
    head, antenna, body = box(u, v, 0, 0.5, 0.45, 0.32), box(u, v, 0, 0.9, 0.06, 0.12), box(u, v, 0, -0.28, 0.6, 0.36)
    legs = np.minimum(box(u, v, -0.33, -0.8, 0.14, 0.18), box(u, v, 0.33, -0.8, 0.14, 0.18))
    arms = np.minimum(box(u, v, -0.8, -0.25, 0.14, 0.1), box(u, v, 0.8, -0.25, 0.14, 0.1))
    eyes = np.minimum(box(u, v, -0.19, 0.55, 0.1, 0.1), box(u, v, 0.19, 0.55, 0.1, 0.1))
    return np.maximum(np.minimum.reduce([head, body, legs, antenna, arms]), -eyes)


KNOWN: dict[str, Distance] = {
    "circle": circle, "square": square, "triangle": triangle, "star": star, "heart": heart, "ring": ring, "cross": cross,
    "crescent": crescent, "diamond": diamond, "house": house, "tree": tree, "face": face,
}
HELD_OUT: dict[str, Distance] = {"fish": fish, "flower": flower, "robot": robot}  # never shown to the U-Net or the text encoder
