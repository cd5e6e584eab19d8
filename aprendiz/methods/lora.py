"""LoRA (Hu et al. 2021): small low-rank matrices beside the frozen layers of the network and, if wished, of the text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AprendizError, ModelError, Problem
from ..knobs import knob
from . import Method, Part

if TYPE_CHECKING:
    import torch

    from ..data.loader import Batch
    from ..families import Base, Family, Source
    from ..formats.kohya import LoraWeight
    from ..formats.metadata import TrainingFacts
    from ..nets.lora import LoraLayer
    from ..objectives import Noisy
    from ..settings import Job


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What a LoRA is told."""

    rank: int = knob(16, "How much can be learned: the rank of the update. Twice the rank is twice the file. 4 to 32 for one "
                         "subject or style; more for many things at once.", min=1, max=1024,
                     level="basic")
    alpha: float | None = knob(None, "Scale of the update is alpha / rank. Off: alpha is the rank, scale 1. A smaller one makes "
                                     "each step weaker, as a lower learning rate does; set it to follow a recipe that names it.",
                               min=0.001, max=4096)
    targets: str = knob("attention+ff", "Which layers: attention alone, feed-forward too, or convolutions as well. More layers "
                                        "hold more, in a larger file and slower steps: all for a style, or for shapes that the "
                                        "base does not know.",
                        choices=("attention", "attention+ff", "all"))
    train_network: bool = knob(True, "Train the network that draws, the U-Net or transformer. Off only to teach words alone, "
                                     "with train_text_encoder.")
    train_text_encoder: bool = knob(False, "Train the text encoders too: a trigger that the base does not know is learned "
                                           "better. Steps are slower and take more memory, because captions can no longer be "
                                           "encoded beforehand.")
    text_encoder_learning_rate: float | str | None = knob(None, "Learning rate of the text encoders. Off: the same. Lower it, "
                                                                "to a half or a tenth, when other words suffer.", min=0,
                                                          max=1,
                                                          when=("train_text_encoder", (True,)))
    rank_dropout: float = knob(0.0, "Share of the ranks that rest for a picture at a step. Learning takes longer; 0.1 to 0.3 "
                                    "where a few pictures are learned by heart.", min=0, max=0.95)
    rank_stabilised: bool = knob(False, "Scale by alpha / sqrt(rank) (Kalajdzievski 2023), for ranks of 64 and more. Costs "
                                        "nothing; it makes each step stronger, so set alpha or lower the learning rate with it.")
    continue_from: str | None = knob(None, "A LoRA file of the same family to go on from; its rank counts.", path="file")
    layout: str = knob("kohya", "How names are written in the file: kohya for all hosts, peft for diffusers alone.",
                       choices=("kohya", "peft"))


class Lora(Method):
    """LoRA layers over the chosen modules; the file is kohya's."""

    name = "lora"
    title = "LoRA"
    order = 10
    Settings = LoraSettings

    def __init__(self, base: Base, job: Job) -> None:
        import torch

        from ..nets.lora import wrap
        settings: LoraSettings = job.method
        self.base, self.settings = base, settings
        self.layers: dict[str, dict[str, LoraLayer]] = {}
        generator = torch.Generator().manual_seed(job.training.seed)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        self.scale = alpha / (settings.rank ** 0.5 if settings.rank_stabilised else settings.rank)
        for part, names in self._targets().items():
            self.layers[part] = wrap(base.parts()[part], names, settings.rank, self.scale, generator)
        if settings.continue_from:
            self._continue(Path(settings.continue_from))

    @classmethod
    def check(cls, job: Job, family: Family, source: Source) -> list[Problem]:
        settings: LoraSettings = job.method
        problems = []
        if not settings.train_network and not settings.train_text_encoder:
            problems.append(Problem("Nothing would be trained: both train_network and train_text_encoder are off. Turn one on.",
                                    {}, "method.train_network"))
        if settings.train_text_encoder and "text_encoders" not in family.offers:
            problems.append(Problem("The text encoders of this base cannot be trained. Turn train_text_encoder off.", {},
                                    "method.train_text_encoder"))
        if settings.continue_from and not Path(settings.continue_from).is_file():
            problems.append(Problem("The LoRA to continue from, {file}, is not there. Check the path.",
                                    {"file": settings.continue_from}, "method.continue_from"))
        elif settings.continue_from:
            problems += continued_problems(Path(settings.continue_from), settings.rank, family)
        return problems

    def _targets(self) -> dict[str, list[str]]:
        targets = self.base.family.lora_targets(self.base, self.settings.targets)
        wanted = {"network": self.settings.train_network}
        return {part: names for part, names in targets.items() if wanted.get(part, self.settings.train_text_encoder) and names}

    def _continue(self, file: Path) -> None:
        """Take over the weights of a LoRA file; modules it lacks stay fresh, and so do ranks that a module of it lacks."""
        import torch
        weights = continued(file, self.settings.rank, self.base.family)
        taken = 0
        with torch.no_grad():
            for one in weights:
                layer = self.layers.get(one.part, {}).get(one.module)
                rank = one.down.shape[0]
                if layer is None or layer.down[:rank].shape != one.down.shape or layer.up[:, :rank].shape != one.up.shape:
                    continue
                layer.down[:rank] = one.down
                # Its own scale moves into the matrix, so that this job's alpha means what it says.
                layer.up[:, :rank] = one.up.float() * (one.alpha / rank / self.scale)
                taken += 1
        if taken < len(weights):
            raise ModelError("{file} holds {count} modules that this job would not train, such as those of other targets or of "
                             "a text encoder. "
                             "Choose the targets and train_text_encoder that it was made with.",
                             file=file.name, count=len(weights) - taken, where="method.continue_from")

    @property
    def trains_text_encoder(self) -> bool:
        return self.settings.train_text_encoder

    def parts(self) -> list[Part]:
        rate = self.settings.text_encoder_learning_rate
        return [Part(part, {f"{part}.{module}.{matrix}": getattr(layer, matrix) for module, layer in layers.items()
                            for matrix in ("down", "up")},
                     None if part == "network" else rate) for part, layers in self.layers.items()]

    def predict(self, noisy: Noisy, batch: Batch) -> torch.Tensor:
        if self.settings.rank_dropout:
            self._drop(batch)
        conditioning = batch.conditioning
        if conditioning is None:
            assert batch.tokens is not None
            conditioning = self.base.family.collate([self.base.family.encode_tokens(self.base, batch.tokens)], batch.sizes)
        return self.base.family.predict(self.base, noisy.noisy_BCHW, noisy.timesteps_B, conditioning)

    def _drop(self, batch: Batch) -> None:
        """Choose the resting ranks of each sample; the draws belong to the sample, not to its place in a batch."""
        rank, share = self.settings.rank, self.settings.rank_dropout
        layers = [layer for layers in self.layers.values() for layer in layers.values()]
        drawn = batch.draw("rank_dropout", (len(layers), rank)).to(layers[0].down.device)  # (B, layers, r), in [0, 1)
        keep = (drawn >= share).to(layers[0].down.dtype) / (1 - share)
        for i, layer in enumerate(layers):
            layer.keep_Br = keep[:, i]

    def enabled(self, on: bool) -> None:
        for layers in self.layers.values():
            for layer in layers.values():
                layer.on = on

    def write(self, file: Path, tensors: dict[str, torch.Tensor], job: Job, facts: TrainingFacts) -> list[Path]:
        from ..formats import inspect, kohya, metadata, peft_layout
        weights = [kohya.LoraWeight(part, module, tensors[f"{part}.{module}.down"], tensors[f"{part}.{module}.up"],
                                    self.scale * self.settings.rank)
                   for part, layers in self.layers.items() for module in layers]
        write = peft_layout.write if self.settings.layout == "peft" else kohya.write
        write(file, weights, self.base.family, metadata.lora_metadata(job, facts), again=True)
        inspect.verify(file, self.base)
        return [file]


def continued(file: Path, rank: int, family: Family) -> list[LoraWeight]:
    """The weights of a LoRA file that a job of this rank can go on from: its modules' largest. Raises ModelError."""
    from ..formats import kohya
    weights, _ = kohya.read(file, family)
    largest = max(one.down.shape[0] for one in weights)
    if largest != rank:
        raise ModelError("{file} has rank {found}, but this job's rank is {rank}. Set rank to {found}.",
                         file=file.name, found=largest, rank=rank, where="method.rank")
    return weights


def continued_problems(file: Path, rank: int, family: Family) -> list[Problem]:
    """Why a job of this rank cannot go on from a LoRA file."""
    try:
        continued(file, rank, family)
    except AprendizError as error:
        return error.problems
    return []


METHOD = Lora
