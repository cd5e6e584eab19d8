"""Pivotal tuning: a word and a LoRA are learned in one run, in two files that belong together.

The word takes what can be said in the network's own terms, the LoRA what is left (Roich et al. 2021 did so for GANs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..knobs import knob
from . import Method, Part
from .lora import Lora, LoraSettings
from .textual_inversion import TextualInversion, TextualInversionSettings, check_word

if TYPE_CHECKING:
    import torch

    from ..data.folder import Picture
    from ..data.loader import Batch
    from ..errors import Problem
    from ..families import Base, Family, Source
    from ..formats.metadata import TrainingFacts
    from ..objectives import Noisy
    from ..settings import Job


@dataclass(frozen=True, kw_only=True)
class PivotalSettings(TextualInversionSettings):
    """What both are told; `learning_rate` is the word's."""

    rank: int = knob(16, "How much the LoRA can learn: the rank of the update. Twice the rank is twice the file; 4 to 32 is "
                         "usual beside a word.", min=1, max=1024, level="basic")
    alpha: float | None = knob(None, "Scale of the LoRA's update is alpha / rank. Off: alpha is the rank, scale 1.", min=0.001,
                               max=4096)
    targets: str = knob("attention+ff", "Which layers the LoRA reaches: attention alone, feed-forward too, or convolutions as "
                                        "well. More layers hold more, in a larger file and slower steps.",
                        choices=("attention", "attention+ff", "all"))
    lora_learning_rate: float | str = knob(1e-4, "Learning rate of the LoRA; learning_rate is the word's. Lower it when samples "
                                                 "burn, raise it when the word alone does all.", min=0, max=1)


class Pivotal(Method):
    """`name.safetensors` holds the word, `name-lora.safetensors` the LoRA."""

    name = "pivotal"
    title = "Pivotal tuning (word and LoRA)"
    order = 25
    Settings = PivotalSettings
    needs = TextualInversion.needs
    learning_rate = TextualInversion.learning_rate
    preview = TextualInversion.preview

    def __init__(self, base: Base, job: Job) -> None:
        self.settings: PivotalSettings = job.method
        self.word = TextualInversion(base, job)
        self.lora = Lora(base, lora_job(job))

    @classmethod
    def settle(cls, job: Job) -> Job:
        return TextualInversion.settle(job)

    @classmethod
    def check(cls, job: Job, family: Family, source: Source) -> list[Problem]:
        return [*check_word(job, family, source), *Lora.check(lora_job(job), family, source)]

    @classmethod
    def captions(cls, job: Job, picture: Picture) -> tuple[str, ...]:
        return TextualInversion.captions(job, picture)

    @property
    def trains_text_encoder(self) -> bool:
        return True

    def parts(self) -> list[Part]:
        rate = self.settings.lora_learning_rate
        return [*self.word.parts(), *(replace(part, learning_rate=rate) for part in self.lora.parts())]

    def predict(self, noisy: Noisy, batch: Batch) -> torch.Tensor:
        return self.word.predict(noisy, batch)

    def enabled(self, on: bool) -> None:
        self.word.enabled(on)
        self.lora.enabled(on)

    def write(self, file: Path, tensors: dict[str, torch.Tensor], job: Job, facts: TrainingFacts) -> list[Path]:
        return [*self.word.write(file, tensors, job, facts), *self.lora.write(lora_file(file), tensors, job, facts)]

    @classmethod
    def arguments(cls, file: Path, condition: str = "...") -> list[str]:
        return [*TextualInversion.arguments(file), *Lora.arguments(lora_file(file))]


def lora_job(job: Job) -> Job:
    """The job as the LoRA sees it."""
    settings: PivotalSettings = job.method
    return replace(job, method_name=Lora.name,
                   method=LoraSettings(rank=settings.rank, alpha=settings.alpha, targets=settings.targets))


def lora_file(file: Path) -> Path:
    """Where the LoRA stands beside the word: a name of its own, for hosts know both by their names."""
    return file.with_name(f"{file.stem}-lora{file.suffix}")


METHOD = Pivotal
