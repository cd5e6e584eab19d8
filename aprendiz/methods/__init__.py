"""The ways of teaching. A file here with a `METHOD` is one; it appears in the menus, the flags, the docs and the tests by
being there.

Files here import only the standard library and `..knobs` at module level; torch inside functions. They never name a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..data.conditions import Recipe
    from ..data.folder import Picture
    from ..data.loader import Batch
    from ..errors import Problem
    from ..families import Base, Family, Source
    from ..formats.metadata import TrainingFacts
    from ..objectives import Noisy
    from ..request import Request
    from ..settings import Job


@dataclass(frozen=True)
class Part:
    """Trained tensors that share a learning rate: a slice of the arena.

    name: 'network' or 'text_encoder_1'... tensors: by name, float32, requiring gradients. learning_rate: None follows the
    optimizer's own.
    """

    name: str
    tensors: dict[str, torch.nn.Parameter]
    learning_rate: float | str | None = None


class Method:
    """A way of teaching, attached to an opened base for one run.

    `needs` names what the base's family must offer (see `Family.offers`); an impossible pair is refused in words before
    anything loads. `trains_text_encoder` tells the cache to keep tokens in place of text states.
    learning_rate, caption_dropout: what suits it where the job names none. preview: the ending of the picture beside the file
    that hosts show. precise: what is trained computes in float32, whatever the base's precision.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    order: ClassVar[int] = 100
    Settings: ClassVar[type]
    needs: ClassVar[frozenset[str]] = frozenset()
    learning_rate: ClassVar[float] = 1e-4
    caption_dropout: ClassVar[float] = 0.0
    precise: ClassVar[bool] = False
    preview: ClassVar[str] = ".png"

    def __init__(self, base: Base, job: Job) -> None:
        """Attach to the base: after this the network predicts as before, bit for bit, until something is learned."""
        raise NotImplementedError

    # Before anything loads

    @classmethod
    def settle(cls, job: Job) -> Job:
        """The job with what this method decides where nothing was said. Settling twice is settling once."""
        if job.data.caption_dropout is None:
            job = job.with_values(data={"caption_dropout": cls.caption_dropout})
        if job.optimizer.learning_rate is not None:
            return job
        # Prodigy multiplies the rate that it finds by this one.
        return job.with_values(optimizer={"learning_rate": 1.0 if job.optimizer.optimizer == "prodigy" else cls.learning_rate})

    @classmethod
    def check(cls, job: Job, family: Family, source: Source) -> list[Problem]:
        """What this job has against itself and against a base of this family; found from headers alone."""
        return []

    @classmethod
    def captions(cls, job: Job, picture: Picture) -> tuple[str, ...]:
        """What is said of a picture while it is taught, one of these at a time: its captions, or what the method has instead."""
        return picture.captions

    @classmethod
    def conditions(cls, job: Job) -> Recipe | None:
        """Which condition pictures the network is shown beside the noisy ones; None: it is shown none."""
        return None

    # While it learns

    @property
    def trains_text_encoder(self) -> bool:
        """Whether text states must be computed with gradients each step."""
        return False

    def parts(self) -> list[Part]:
        """What is trained, in a fixed order."""
        raise NotImplementedError

    def modules(self) -> list[torch.nn.Module]:
        """What takes part in a step besides the base's own modules."""
        return []

    def predict(self, noisy: Noisy, batch: Batch) -> torch.Tensor:
        """The network's prediction for a noisy batch, under this method's conditioning."""
        raise NotImplementedError

    def enabled(self, on: bool) -> None:
        """Switch what was learned on or off, for pictures of the bare base."""
        raise NotImplementedError

    # What comes of it

    def samples(self, requests: Sequence[Request], pictures: Sequence[Picture], job: Job) -> list[Request]:
        """The samples as this method has them drawn; pictures: those that are taught, and after them those kept apart."""
        return list(requests)

    def figures(self, requests: Sequence[Request], drawn: Sequence[Image], bare: Sequence[Image]) -> dict[str, float]:
        """What this method measures of its samples, and of the same without it; by name, for the report."""
        return {}

    def write(self, file: Path, tensors: dict[str, torch.Tensor], job: Job, facts: TrainingFacts) -> list[Path]:
        """Write what was learned as a file that hosts load, from `tensors` (masters or their average); read it back and match it.

        The files written, the one that is loaded first. A file of this name is this run's own, from before it was resumed.
        """
        raise NotImplementedError

    @classmethod
    def arguments(cls, file: Path, condition: str = "...") -> list[str]:
        """How `generate` is told to use the file that was written. condition: the picture to draw along, where one is wanted."""
        return ["--lora", str(file)]
