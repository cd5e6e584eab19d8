"""A job that fits a folder of pictures and a card, for a door that is handed nothing but pictures. Standard library only.

Of the bases there are, the best is taken that the card holds and the pictures are large enough for; without a card or without a
base it is the embedded one. Everything else keeps its default: how the step fits the card is the worker's to find (`memory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..settings import plain_name

MICRO = "micro"


@dataclass(frozen=True)
class Pictures:
    """What was found in a folder. side: of the median picture, in pixels (of its area's square root)."""

    count: int
    captioned: int
    side: int
    name: str


@dataclass(frozen=True)
class Fit:
    """When a family is taken, and how large its batch may be.

    card: GB at least. side: pixels at least. batches: (GB at least, pictures a step), the largest card first.
    """

    family: str
    card: float
    side: int
    batches: tuple[tuple[float, int], ...]


FITS = (Fit("sdxl", 10, 640, ((24, 4), (16, 2))), Fit("sd1", 4, 0, ((16, 4), (8, 2))), Fit("sd2", 4, 0, ((16, 4), (8, 2))))
PASSES = 100  # how often each picture is seen
LEAST, MOST = 400, 3000  # steps
# As the quick start teaches the embedded base.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "method": {"rank": 8, "targets": "all"}, "optimizer": {"learning_rate": 4e-3}, "samples": {"guidance": 4.0},
    "training": {"steps": 400, "batch_size": 4}}


def ready(pictures: Pictures, bases: Sequence[tuple[str, str]], card_gb: float) -> dict[str, dict[str, Any]]:
    """A job's plain values. bases: (name, family), the liked best first of each family. card_gb: 0 without a card."""
    values: dict[str, dict[str, Any]] = {"base": {"path": MICRO}, **{name: dict(inner) for name, inner in SMALL.items()}}
    found = next(((fit, name) for fit in FITS for name, family in bases
                  if family == fit.family and card_gb >= fit.card and pictures.side >= fit.side), None)
    if found is not None:
        fit, name = found
        batch = next((size for card, size in fit.batches if card_gb >= card), 1)
        steps = min(MOST, max(LEAST, PASSES * pictures.count // batch))
        values = {"base": {"path": name}, "training": {"steps": steps // 50 * 50, "batch_size": batch}}
    often = max(50, values["training"]["steps"] // 4 // 50 * 50)
    values["training"]["save_every_steps"] = often
    values.setdefault("samples", {})["sample_every_steps"] = often
    # Without captions the trigger is all that is said of a picture.
    values["data"] = {"trigger": plain_name(pictures.name) or "subject"} if pictures.captioned < pictures.count else {}
    return values
