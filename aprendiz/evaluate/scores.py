"""Figures of what was learned and what was kept, where something can judge pictures.

A `Scorer` knows which pictures to ask for and which of them came out right. The embedded base has one (its evaluator); other
bases have none yet, and then the scores are null rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from ..families import Base
from ..formats.writing import write_whole
from ..generate import draw
from ..render import OnStep
from ..request import Request, name_of

if TYPE_CHECKING:
    from ..micro.pictures import Prompt
    from ..settings import Job


class Scorer(Protocol):
    """Judges pictures of one subject, and of other things that must not be forgotten."""

    def subject_requests(self) -> Sequence[Request]:
        """Pictures of what is taught."""

    def other_requests(self) -> Sequence[Request]:
        """Pictures of what the base could already do."""

    def subject_right(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Which pictures for `subject_requests` show it."""

    def others_right(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Which pictures for `other_requests` show what their prompts say."""


class MicroScorer:
    """Judges pictures of the embedded base by its evaluator: a subject that it had never seen, and single figures that it knew.

    subject: one of `micro.pictures.SUBJECTS`. called: the trigger that stands for it in prompts. count: pictures of each.
    """

    def __init__(self, subject: str, called: str | None = None, count: int = 48) -> None:
        from ..micro import pictures
        self._subject = subject
        self._prompts = pictures.subject_prompts(subject, count, called=called)
        self._others = pictures.other_prompts(count)

    def subject_requests(self) -> list[Request]:
        return [_micro_request(prompt) for prompt in self._prompts]

    def other_requests(self) -> list[Request]:
        return [_micro_request(prompt) for prompt in self._others]

    def subject_right(self, pictures: Sequence[Image.Image]) -> list[bool]:
        from ..micro.measure import subject_is_there
        return subject_is_there(pictures, self._prompts, self._subject)

    def others_right(self, pictures: Sequence[Image.Image]) -> list[bool]:
        from ..micro.measure import figure_is_right
        from ..nets.evaluator import score
        return figure_is_right(score(pictures, [prompt.scene for prompt in self._others]))


def scorer_for(base: Base, job: Job) -> Scorer | None:
    """Who can judge this job's pictures: so far only on the embedded base, a `class_word` that its evaluator knows."""
    from ..micro import pictures
    if name_of(base) != "micro" or job.data.class_word not in pictures.SUBJECTS:
        return None
    return MicroScorer(job.data.class_word, job.data.trigger)


@dataclass(frozen=True)
class Scores:
    """What a training gained and lost, as shares; None where nothing here can judge it.

    subject_before, subject_after: of the pictures that show the subject. kept: of the other pictures that the base drew right,
    those that still are. pictures: how many were judged for the subject. figures: what the method measured itself, by name.
    """

    subject_before: float | None = None
    subject_after: float | None = None
    kept: float | None = None
    pictures: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float | int | None]:
        """As in scores.json, to four places."""
        shares = {"subject_before": self.subject_before, "subject_after": self.subject_after, "kept": self.kept}
        own = {name: round(figure, 4) for name, figure in self.figures.items()}
        plain = {name: None if share is None else round(share, 4) for name, share in shares.items()}
        return {**plain, "pictures": self.pictures, **own}

    def write(self, file: Path) -> None:
        """Write scores.json."""
        write_whole(file, (json.dumps(self.values(), indent=2) + "\n").encode())

    @classmethod
    def read(cls, file: Path) -> Scores:
        """Scores that were written."""
        values = json.loads(file.read_text(encoding="utf-8"))
        before, after, kept, pictures = (values.pop(name) for name in ("subject_before", "subject_after", "kept", "pictures"))
        return cls(before, after, kept, pictures, values)


@dataclass(frozen=True)
class Judged:
    """What a scorer said of one state of a model."""

    subject: tuple[bool, ...]
    others: tuple[bool, ...]


def judge(base: Base, scorer: Scorer, on_step: OnStep | None = None, batch_size: int = 8) -> Judged:
    """Draw the scorer's pictures with the base as it now is, and have them judged."""
    subject, others = list(scorer.subject_requests()), list(scorer.other_requests())
    pictures = draw(base, [*subject, *others], on_step, batch_size)
    return Judged(tuple(scorer.subject_right(pictures[:len(subject)])), tuple(scorer.others_right(pictures[len(subject):])))


def compare(before: Judged, after: Judged) -> Scores:
    """The scores of a training."""
    held = [now for was, now in zip(before.others, after.others) if was]
    return Scores(_share(before.subject), _share(after.subject), _share(held), len(after.subject))


def measure(base: Base, scorer: Scorer | None, enabled: Callable[[bool], None], on_step: OnStep | None = None,
            before: Judged | None = None) -> Scores:
    """Scores without and with what was learned; `enabled` switches it. Null without a scorer.

    before: what `judge` said of the bare base, where it is already known.
    """
    if scorer is None:
        return Scores()
    if before is None:
        try:
            enabled(False)
            before = judge(base, scorer, on_step)
        finally:
            enabled(True)
    return compare(before, judge(base, scorer, on_step))


def _micro_request(prompt: Prompt) -> Request:
    from ..micro.measure import GUIDANCE, SAMPLER, SIZE, STEPS
    return Request(prompt=prompt.text, seed=prompt.seed, width=SIZE, height=SIZE, steps=STEPS, guidance=GUIDANCE, sampler=SAMPLER)


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
