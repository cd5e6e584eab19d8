"""What the report's pictures have in common: colours, letters, lines of text that fit.

Distances are pixels, multiples of 4. Colours are those of the run panel in its light form.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache, lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PAPER = (255, 255, 255)
INK = (29, 33, 41)
SOFT = (110, 113, 119)      # for what is secondary; contrast 4.9 on paper
LINE = (226, 227, 228)
ACCENT = (194, 87, 12)
GOOD = (31, 138, 76)


@cache
def font(size: int) -> Any:
    """Pillow's own letters at this size in pixels; older Pillows have one fixed size only."""
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # before Pillow 10.1
        return ImageFont.load_default()


def mix(colour: tuple[int, int, int], share: float, over: tuple[int, int, int] = PAPER) -> tuple[int, int, int]:
    """A colour thinned over another."""
    return tuple(round(c * share + o * (1 - share)) for c, o in zip(colour, over))  # type: ignore[return-value]


def width_of(text: str, size: int) -> float:
    """How wide a text is, in pixels."""
    return float(font(size).getlength(_drawable(text, size)))


def line_height(size: int) -> int:
    """From one line to the next, a multiple of 4."""
    return -(-(size * 5 // 4) // 4) * 4


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int] = INK,
          align: str = "left") -> None:
    """One line of text, its top at `at`; align: which end stands there (left, right, middle)."""
    shift = {"left": 0.0, "right": 1.0, "middle": 0.5}[align] * width_of(text, size)
    draw.text((round(at[0] - shift), round(at[1])), _drawable(text, size), font=font(size), fill=colour)


def wrap(text: str, size: int, width: int, most: int = 3) -> list[str]:
    """A text in lines that fit the width. Too long words are broken; what does not fit into `most` lines ends in '...'."""
    lines = [""]
    for word in text.split():
        while word and len(lines) <= most:
            longer = f"{lines[-1]} {word}".strip()
            if width_of(longer, size) <= width:
                lines[-1], word = longer, ""
            elif lines[-1]:
                lines.append("")
            else:
                fits = bisect_right(range(1, len(word)), width, key=lambda n: width_of(word[:n], size)) or 1
                lines[-1], word = word[:fits], word[fits:]
    if len(lines) > most:
        lines = lines[:most]
        while lines[-1] and width_of(lines[-1] + "...", size) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] = lines[-1].rstrip(" ,;") + "..."
    return lines


def sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and what draws on it."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


@lru_cache(maxsize=4096)
def _drawable(text: str, size: int) -> str:
    """The text with a plain mark for characters that the letters lack (old Pillows' fixed ones know Latin-1 only)."""
    if isinstance(font(size), ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", errors="replace").decode("latin-1")
