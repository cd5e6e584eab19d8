"""What a person is told of a folder of pictures, in a few lines; for doors that show a text. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import Problem
from ..texts import say

if TYPE_CHECKING:
    from ..data.folder import Picture

MOST = 12  # captions that are shown


def dataset_report(pictures: Sequence[Picture], problems: Sequence[Problem]) -> str:
    """Count, warnings, then the captions as they are trained."""
    captioned = sum(any(picture.captions) for picture in pictures)
    lines = [say("{pictures} pictures, {captioned} with a caption.", pictures=len(pictures), captioned=captioned)]
    lines += [say("Warning: {text}", text=str(problem)) for problem in problems]
    lines += [f"{picture.file.name}: {picture.captions[0]}" for picture in pictures[:MOST] if any(picture.captions)]
    if captioned > MOST:
        lines.append(say("... and {count} more", count=captioned - MOST))
    return "\n".join(lines)
