"""The report of a run, from its folder alone: `grid.png`, `loss.png`, `scores.json`.

It can be written again at any time, and after a resume: the pictures come from the samples, whose files say what they were
drawn from.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..formats import png
from ..formats.writing import write_whole
from ..texts import say
from .curve import Curve, draw_curve
from .grid import before_after
from .scores import Scores

if TYPE_CHECKING:
    from ..run import Run

_SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")


@dataclass(frozen=True)
class Sample:
    """A picture that was drawn while training: at which step, which of the prompts."""

    step: int
    index: int
    file: Path


def sample_file(folder: Path, step: int, index: int) -> Path:
    """Where a sample is kept: samples/step-000200-0.png."""
    return folder / f"step-{step:06d}-{index}.png"


def condition_file(folder: Path, index: int) -> Path:
    """Where the condition picture of a prompt's samples is kept, as `generate --control` takes it: samples/condition-0.png."""
    return folder / f"condition-{index}.png"


def samples(folder: Path) -> list[Sample]:
    """The samples in a folder, in order of step and prompt."""
    found = [(file, _SAMPLE.fullmatch(file.name)) for file in folder.glob("step-*.png")]
    return sorted([Sample(int(match[1]), int(match[2]), file) for file, match in found if match], key=lambda s: (s.step, s.index))


def write_report(run: Run, scores: Scores | None = None) -> Path:
    """Write the report's files into `run.report`; the folder. Scores not given are null, unless they were written before."""
    if scores is not None or not (run.report / "scores.json").exists():
        (scores or Scores()).write(run.report / "scores.json")
    scores = Scores.read(run.report / "scores.json")
    write_whole(run.report / "loss.png", _bytes(draw_curve(Curve.of(run.events()), say("{name}: loss", name=run.name))))
    sheet = grid_of(run.samples, run.name, scores)
    if sheet is not None:
        write_whole(run.report / "grid.png", _bytes(sheet))
    return run.report


def grid_of(folder: Path, name: str, scores: Scores) -> Image.Image | None:
    """The first and the last samples side by side; None if there are not two of any prompt."""
    by_index: dict[int, list[Sample]] = {}
    for sample in samples(folder):
        by_index.setdefault(sample.index, []).append(sample)
    pairs = [(drawn[0], drawn[-1]) for _, drawn in sorted(by_index.items()) if len(drawn) > 1]
    if not pairs:
        return None
    labels = [_label(after.file) for _, after in pairs]
    opened = [[_open(sample.file) for sample in side] for side in zip(*pairs)]
    last = max(after.step for _, after in pairs)
    title = say("{name}: before and after {steps} steps", name=name, steps=last)
    return before_after(labels, opened[0], opened[1], title, score_sentence(scores))


def score_sentence(scores: Scores) -> str:
    """What the figures say; never more than was measured."""
    if {"edge_f1_before", "edge_f1_after"} <= set(scores.figures):
        return say("Same prompt and seed in each pair. Edges agree with the condition picture to {after} (F1); without control, "
                   "to {before}.",
                   before=f"{scores.figures['edge_f1_before']:.0%}", after=f"{scores.figures['edge_f1_after']:.0%}")
    if scores.subject_before is None or scores.subject_after is None:
        return say("Same prompt and seed in each pair.")
    before, after = f"{scores.subject_before:.0%}", f"{scores.subject_after:.0%}"
    if scores.kept is None:
        return say("Same prompt and seed in each pair. The subject is right in {after} of {pictures} pictures, before in "
                   "{before}.", before=before, after=after, pictures=scores.pictures)
    return say("Same prompt and seed in each pair. The subject is right in {after} of {pictures} pictures, before in {before}. "
               "Of other pictures, {kept} are still right.",
               before=before, after=after, pictures=scores.pictures, kept=f"{scores.kept:.0%}")


def _label(file: Path) -> str:
    parameters = png.read(file)
    if parameters is None:
        return ""
    return say("{prompt} (seed {seed})", prompt=parameters.prompt or say("no prompt"), seed=parameters.settings.get("Seed", "?"))


def _open(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        rgb: Image.Image = picture.convert("RGB")
        return rgb


def _bytes(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
