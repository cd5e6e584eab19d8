"""The evaluator: a small convolutional network that names what a picture of `micro` shows.

It was trained on drawn scenes and on the VAE's reconstructions of them, with the shapes and the style that the base
has never seen, and is frozen; `docs/micro.md` has its recall and its false positives.

Shapes: B batch, H W 128 pixels. Pixels are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..micro.scenes import ALL_SHAPES, BACKGROUNDS, COLORS, FILLS, STYLES, UNKNOWN, Picture, Scene, labels

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = Path(__file__).parent.parent / "micro" / "evaluator.safetensors"
SIZE = 128  # pixels
FIGURE = (len(ALL_SHAPES), len(COLORS), len(FILLS))
ANSWERS = (3, *FIGURE, *FIGURE, len(BACKGROUNDS), len(COLORS), len(STYLES))  # in the order of `scenes.Labels.flat`
LAYOUTS = ("single", "stacked", "side by side")
_WIDTHS = ((24, 2), (32, 2), (64, 2), (64, 1), (96, 2), (96, 1), (96, 2))    # channels, stride


class Evaluator(nn.Module):
    """Seven convolutions, one hidden layer, ten answers: B 3 H W -> a list of B x choices, one of each of `ANSWERS`."""

    def __init__(self) -> None:
        super().__init__()
        inputs = [3, *(width for width, _ in _WIDTHS)]
        self.features = nn.Sequential(*(_convolution(i, width, stride) for i, (width, stride) in zip(inputs, _WIDTHS)))
        self.hidden = nn.Linear(_WIDTHS[-1][0] * 16, 192)
        self.answers = nn.Linear(192, sum(ANSWERS))

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        hidden = self.hidden(self.features(pixels_B3HW).flatten(1)).relu()
        return list(self.answers(hidden).split(ANSWERS, dim=1))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Verdict:
    """What the evaluator sees, in words. second: None where there is one figure. The first is the upper or the left one."""

    layout: str
    first: tuple[str, str, str]             # shape, colour, fill
    second: tuple[str, str, str] | None
    background: tuple[str, str]             # kind, colour
    style: str

    @property
    def shapes(self) -> tuple[str, ...]:
        """Of the figures that are there."""
        return (self.first[0],) if self.second is None else (self.first[0], self.second[0])


@lru_cache(maxsize=1)
def load(file: Path = FILE) -> Evaluator:
    """The frozen evaluator, on the CPU, in float32."""
    from safetensors.torch import load_file
    evaluator = Evaluator()
    evaluator.load_state_dict({key: value.float() if value.is_floating_point() else value
                               for key, value in load_file(file).items()})
    return evaluator.eval().requires_grad_(False)


def pixels(pictures: Sequence[Image | Picture]) -> Tensor:
    """Pictures of any size to B 3 H W in [-1, 1] at the evaluator's size."""
    return torch.stack([_pixels_3HW(picture) for picture in pictures])


def _pixels_3HW(picture: Image | Picture) -> Tensor:
    if not isinstance(picture, np.ndarray):
        if picture.size != (SIZE, SIZE):
            picture = picture.resize((SIZE, SIZE))
        picture = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def judge(pictures: Sequence[Image | Picture], evaluator: Evaluator | None = None) -> list[Verdict]:
    """Name what each picture shows. evaluator: another one than the shipped one."""
    return [_verdict(row) for row in answers(pictures, evaluator).tolist()]


@torch.inference_mode()
def answers(pictures: Sequence[Image | Picture], evaluator: Evaluator | None = None) -> Tensor:
    """The likeliest answers, B x 10 indices, in the order of `scenes.Labels.flat`."""
    evaluator = evaluator or load()
    rows = []
    for start in range(0, len(pictures), 64):
        rows.append(torch.stack([choice.argmax(1) for choice in evaluator(pixels(pictures[start:start + 64]))], dim=1))
    return torch.cat(rows) if rows else torch.zeros(0, len(ANSWERS), dtype=torch.long)


def _verdict(row: list[int]) -> Verdict:
    colors = list(COLORS)
    first, second = ((ALL_SHAPES[row[at]], colors[row[at + 1]], FILLS[row[at + 2]]) for at in (1, 4))
    return Verdict(LAYOUTS[row[0]], first, second if row[0] else None, (BACKGROUNDS[row[7]], colors[row[8]]), STYLES[row[9]])


@dataclass(frozen=True)
class Right:
    """Which answers are right, picture by picture: B booleans each. What a scene does not have counts as right."""

    layout: Tensor
    shapes: Tensor
    colors: Tensor
    fills: Tensor
    background: Tensor
    style: Tensor

    @property
    def everything(self) -> Tensor:
        """All of it, B."""
        return self.layout & self.shapes & self.colors & self.fills & self.background & self.style

    def shares(self) -> dict[str, float]:
        """How often each was right, in [0, 1]."""
        every = vars(self) | {"everything": self.everything}
        return {name: rights.float().mean().item() for name, rights in every.items()}


def score(pictures: Sequence[Image | Picture], scenes: Sequence[Scene], evaluator: Evaluator | None = None) -> Right:
    """Compare what pictures show with the scenes that they should show."""
    told_B10 = torch.tensor([labels(scene).flat() for scene in scenes])
    right_B10 = (answers(pictures, evaluator) == told_B10) | (told_B10 == UNKNOWN)
    return Right(layout=right_B10[:, 0], shapes=right_B10[:, [1, 4]].all(1), colors=right_B10[:, [2, 5]].all(1),
                 fills=right_B10[:, [3, 6]].all(1), background=right_B10[:, [7, 8]].all(1), style=right_B10[:, 9])
