"""Pictures side by side with their prompts: before and after a training, same prompt and seed.

Distances are pixels, multiples of 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..texts import say
from .canvas import INK, LINE, SOFT, line_height, sheet, width_of, wrap, write

MARGIN, BETWEEN_CARDS, BETWEEN_PICTURES = 32, 32, 8
TITLE, LABEL, CAPTION = 22, 15, 13
SMALLEST, LARGEST = 176, 320    # longest side of a picture as shown
WIDEST = 1600                   # of the whole sheet, more only if one card needs it


@dataclass(frozen=True)
class Card:
    """Pictures of one prompt and seed, in the order of the grid's columns."""

    label: str
    pictures: tuple[Image.Image, ...]


def before_after(labels: Sequence[str], before: Sequence[Image.Image], after: Sequence[Image.Image], title: str = "",
                 note: str = "") -> Image.Image:
    """The grid of a training: any number of pairs."""
    cards = [Card(*card) for card in zip(labels, zip(before, after))]
    return grid(cards, (say("before"), say("after")), title, note)


def grid(cards: Sequence[Card], columns: Sequence[str], title: str = "", note: str = "") -> Image.Image:
    """Cards with their label above and the columns' names under the pictures.

    As many stand beside each other as make a sheet of good shape. title, note: above everything, large and small.
    """
    cell = _cell(cards)
    wide = len(columns) * cell[0] + (len(columns) - 1) * BETWEEN_PICTURES
    across = _across(len(cards), wide, cell[1] + 3 * line_height(LABEL))
    width = max(2 * MARGIN + across * wide + (across - 1) * BETWEEN_CARDS, 480)
    labels = [wrap(card.label, LABEL, wide) for card in cards]
    rows = [range(start, min(start + across, len(cards))) for start in range(0, len(cards), across)]
    heights = [_row_height([labels[i] for i in row], cell[1]) for row in rows]
    head = _head(title, note, width)
    picture, draw = sheet(width, MARGIN + head + sum(heights) + BETWEEN_CARDS * max(0, len(rows) - 1) + MARGIN)
    _write_head(draw, title, note, width)
    top = MARGIN + head
    for row, height in zip(rows, heights):
        for place, i in enumerate(row):
            at = (MARGIN + place * (wide + BETWEEN_CARDS), top)
            _draw_card(picture, draw, at, cards[i], labels[i], columns, cell, height)
        top += height + BETWEEN_CARDS
    return picture


def _cell(cards: Sequence[Card]) -> tuple[int, int]:
    """(width, height) that every picture is fitted into: small ones are enlarged, so that they can be seen."""
    sizes = [picture.size for card in cards for picture in card.pictures] or [(SMALLEST, SMALLEST)]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    scale = min(max(SMALLEST, max(width, height)), LARGEST) / max(width, height)
    return max(4, round(width * scale / 4) * 4), max(4, round(height * scale / 4) * 4)


def _across(count: int, wide: int, high: int) -> int:
    """How many cards stand beside each other: the sheet about 1.4 times as wide as high, and not wider than `WIDEST`."""
    best = math.sqrt(1.4 * count * (high + BETWEEN_CARDS) / (wide + BETWEEN_CARDS))
    fit = (WIDEST - 2 * MARGIN + BETWEEN_CARDS) // (wide + BETWEEN_CARDS)
    return max(1, min(count, round(best), fit))


def _row_height(labels: Sequence[Sequence[str]], cell_height: int) -> int:
    return max(map(len, labels)) * line_height(LABEL) + 8 + cell_height + 4 + line_height(CAPTION)


def _head(title: str, note: str, width: int) -> int:
    lines = wrap(note, LABEL, width - 2 * MARGIN, most=4) if note else []
    height = (line_height(TITLE) if title else 0) + len(lines) * line_height(LABEL)
    return height + 20 if height else 0


def _write_head(draw: ImageDraw.ImageDraw, title: str, note: str, width: int) -> None:
    top = MARGIN - 4
    if title:
        write(draw, (MARGIN, top), wrap(title, TITLE, width - 2 * MARGIN, most=1)[0], TITLE)
        top += line_height(TITLE) + 4
    for line in wrap(note, LABEL, width - 2 * MARGIN, most=4) if note else []:
        write(draw, (MARGIN, top), line, LABEL, SOFT)
        top += line_height(LABEL)


def _draw_card(picture: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], card: Card, label: Sequence[str],
               columns: Sequence[str], cell: tuple[int, int], height: int) -> None:
    left, top = at
    # Labels of a row end at the same line, so that its pictures stand level.
    bottom = top + height - line_height(CAPTION) - 4 - cell[1] - 8
    for i, line in enumerate(label):
        write(draw, (left, bottom - (len(label) - i) * line_height(LABEL)), line, LABEL, INK)
    top = bottom + 8
    for name, shown in zip(columns, card.pictures):
        scale = min(cell[0] / shown.width, cell[1] / shown.height)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        spot = (left + (cell[0] - size[0]) // 2, top + (cell[1] - size[1]) // 2)
        picture.paste(shown.convert("RGB").resize(size, Image.Resampling.LANCZOS), spot)
        draw.rectangle((spot[0] - 1, spot[1] - 1, spot[0] + size[0], spot[1] + size[1]), outline=LINE)
        if width_of(name, CAPTION) <= cell[0]:
            write(draw, (left, top + cell[1] + 4), name, CAPTION, SOFT)
        left += cell[0] + BETWEEN_PICTURES
