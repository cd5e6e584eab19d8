"""ControlNet (Zhang et al. 2023): a trainable copy of the network's first half, shown a condition picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem
from ..knobs import knob
from . import Method, Part

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..data.conditions import Recipe
    from ..data.folder import Picture
    from ..data.loader import Batch
    from ..families import Base, Family, Source
    from ..formats.metadata import TrainingFacts
    from ..objectives import Noisy
    from ..request import Request
    from ..settings import Job

KINDS = ("canny", "scribble", "blur", "tile", "inpaint", "color", "softedge", "pidi", "depth", "normal", "mlsd", "seg",
         "openpose", "other")
LINES = ("canny", "scribble", "softedge", "pidi", "mlsd")
# Words in a file's name that make hosts treat it as something else, unless it is.
MISLEADING = ("shuffle", "instant_id", "lllite")
# By these words in a file's name sd-webui-controlnet tells the base, in this order: it warns of a name without one, and refuses
# to draw where base and name differ. The first of each is the one that we give.
VERSIONS = {"sd1": ("sd15", "sd14", "sd16"), "sd2": ("sd21", "2.1"), "sdxl": ("sdxl", "xl")}


@dataclass(frozen=True, kw_only=True)
class ControlNetSettings:
    """What a ControlNet is told."""

    control: str = knob("canny", "What the condition pictures show. canny to color are computed; for softedge to openpose name "
                                 "the folder of their models, or bring pictures of your own, as for other.", choices=KINDS,
                        level="basic")
    condition_source: str = knob("auto", "Condition pictures from files beside the pictures, or computed. auto: files where "
                                         "there are any.", choices=("auto", "files", "computed"))
    annotators: str | None = knob(None, "The folder of the models that draw soft edges, depth, normals, lines, segments and "
                                        "poses.", path="folder")
    canny_low: float = knob(100.0, "Canny: weaker edges are left out.", min=0, max=2000, when=("control", ("canny",)))
    canny_high: float = knob(200.0, "Canny: edges begin where they are stronger than this.", min=0, max=2000,
                             when=("control", ("canny",)))
    line_thickness: int = knob(0, "Pixels by which computed lines are widened on each side. Hosts' own canny is not widened.",
                               min=0, max=8, when=("control", LINES))
    hint_init: str = knob("spread", "How the layers begin that read the condition picture: spread lets it through from the "
                                    "first step, standard is as diffusers does it and stands still for long.",
                          choices=("spread", "standard"))
    output_init: float = knob(0.0, "Random start of the zero convolutions (standard deviation). 0 is the standard: untrained, "
                                   "nothing changes.", min=0, max=0.2)
    continue_from: str | None = knob(None, "A ControlNet file of the same family to go on from. Off: a copy of the network.",
                                     path="file")
    layout: str = knob("diffusers", "How names are written in the file; all hosts read both.", choices=("diffusers", "original"))
    file_precision: str = knob("fp16", "Number format of the file.", choices=("fp16", "bf16", "fp32"))


class ControlNet(Method):
    """A control branch beside the frozen network; the file is diffusers'."""

    name = "controlnet"
    title = "ControlNet"
    order = 30
    Settings = ControlNetSettings
    needs = frozenset({"control_branch"})
    learning_rate = 1e-5
    caption_dropout = 0.5
    precise = True

    def __init__(self, base: Base, job: Job) -> None:
        from ..nets.controlnet import spread_hint, stir
        settings: ControlNetSettings = job.method
        self.base, self.settings, self.on = base, settings, True
        if settings.continue_from:
            from ..formats.controlnet import open_branch
            self.branch = open_branch(Path(settings.continue_from), base).branch
        else:
            self.branch = base.family.control_branch(base)
            if settings.hint_init == "spread":
                spread_hint(self.branch, job.training.seed)
            if settings.output_init:
                stir(self.branch, settings.output_init, job.training.seed)
        self.branch.requires_grad_(True)

    # Before anything loads

    @classmethod
    def settle(cls, job: Job) -> Job:
        job = super().settle(job)
        if job.output.name is None:
            # Hosts choose a preprocessor by the kind in the file's name, and the base by its version.
            kind, version = job.method.control, VERSIONS.get(family_of(job) or "", ("",))[0]
            words = ["control", "" if kind == "other" else kind, version]
            job = job.with_values(output={"name": "-".join(word for word in words if word)})
        return job

    @classmethod
    def check(cls, job: Job, family: Family, source: Source) -> list[Problem]:
        settings: ControlNetSettings = job.method
        problems = name_problems(job.output.name or "", settings.control, family.name)
        if settings.canny_low > settings.canny_high and settings.control == "canny":
            problems.append(Problem("canny_low {low} is above canny_high {high}. Exchange them.",
                                    {"low": settings.canny_low, "high": settings.canny_high}, "method.canny_low"))
        if settings.control == "other" and settings.condition_source == "computed":
            problems.append(Problem("Condition pictures of the kind other cannot be computed. Choose another control, or put "
                                    "name.cond.png beside each name.png.", {}, "method.control"))
        if settings.continue_from:
            from ..formats.controlnet import file_problems
            problems += file_problems(Path(settings.continue_from), family, "method.continue_from")
        return problems

    @classmethod
    def conditions(cls, job: Job) -> Recipe:
        from ..data.conditions import Recipe
        settings: ControlNetSettings = job.method
        # Nothing computes what only its maker knows.
        source = "files" if settings.control == "other" else settings.condition_source
        return Recipe(kind=settings.control, source=source, low=settings.canny_low, high=settings.canny_high,
                      thickness=settings.line_thickness, annotators=settings.annotators)

    # While it learns

    def parts(self) -> list[Part]:
        return [Part("control", dict(self.branch.named_parameters()))]

    def modules(self) -> list[torch.nn.Module]:
        return [self.branch]

    def predict(self, noisy: Noisy, batch: Batch) -> torch.Tensor:
        conditioning, condition = batch.conditioning, batch.condition_B3HW
        assert conditioning is not None and condition is not None
        family = self.base.family
        residuals = family.control(self.branch, noisy.noisy_BCHW, noisy.timesteps_B, conditioning, condition) if self.on else None
        return family.predict(self.base, noisy.noisy_BCHW, noisy.timesteps_B, conditioning, residuals)

    def enabled(self, on: bool) -> None:
        self.on = on

    # What comes of it

    def samples(self, requests: Sequence[Request], pictures: Sequence[Picture], job: Job) -> list[Request]:
        """Each prompt with the condition of the picture that it captions, else of one after another, those kept apart first."""
        from PIL import Image

        from ..data.cache import Cut
        from ..data.maps import condition_of
        from ..nets.controlnet import Control
        recipe = self.conditions(job)
        shown = sorted(pictures, key=lambda picture: not picture.validation)
        made = []
        for number, request in enumerate(requests):
            if not shown or request.width is None or request.height is None:
                return list(requests)
            picture = next((one for one in shown if request.prompt in one.captions), shown[number % len(shown)])
            condition = condition_of(Cut(picture, (request.width, request.height)), replace(job.data, crop="center"), recipe)
            control = Control(self.branch, Image.fromarray(condition), name=job.output.name or self.name, kind=recipe.kind)
            made.append(replace(request, controls=(control,)))
        return made

    def figures(self, requests: Sequence[Request], drawn: Sequence[Image], bare: Sequence[Image]) -> dict[str, float]:
        """Edge F1 against the condition's lines, or against those of a picture that would show it, with control and without."""
        import numpy as np

        from ..data.conditions import canny, edge_f1
        if self.settings.control not in LINES:
            return {}
        found = {}
        for name, pictures in (("before", bare), ("after", drawn)):
            scores = [edge_f1(np.asarray(request.controls[0].picture.convert("RGB")),
                              canny(np.asarray(picture.convert("RGB")), self.settings.canny_low, self.settings.canny_high))
                      for request, picture in zip(requests, pictures) if request.controls]
            found[f"edge_f1_{name}"] = sum(scores) / len(scores)
        return found

    def write(self, file: Path, tensors: dict[str, torch.Tensor], job: Job, facts: TrainingFacts) -> list[Path]:
        from ..formats import controlnet
        return controlnet.write(file, tensors, self.branch, controlnet.control_metadata(job, facts, self.settings.control),
                                layout=self.settings.layout, precision=self.settings.file_precision)

    @classmethod
    def arguments(cls, file: Path, condition: str = "...") -> list[str]:
        return ["--controlnet", str(file), "--control", condition]


def family_of(job: Job) -> str | None:
    """The family of a job's base, from its headers; None where it is not there."""
    from ..errors import AprendizError
    from ..formats.checkpoint import find
    try:
        return find(job.base).family
    except AprendizError:  # told of when the job is checked
        return None


def name_problems(name: str, kind: str, family: str) -> list[Problem]:
    """Names by which hosts would take a ControlNet for another kind or another base's: warnings, for people may rename it."""
    told = {"name": name, "kind": kind, "better": f"{name}-{kind}"}
    problems = [Problem("Hosts take a ControlNet with {word} in its name for another kind. Choose another name than {name}.",
                        {**told, "word": word}, "output.name", warning=True) for word in MISLEADING if word in name.lower()]
    if kind != "other" and kind not in name.lower():
        problems.append(Problem("Hosts choose the control type by the file's name, and {name} does not say {kind}. Call it "
                                "{better}.", told, "output.name", warning=True))
    version = next(((of, word) for of, words in VERSIONS.items() for word in words if word in name.lower()), None)
    if family in VERSIONS and version is None:
        better = f"{told['better'] if len(problems) else name}-{VERSIONS[family][0]}"
        problems.append(Problem("AUTOMATIC1111 tells a ControlNet's base by the file's name, and {name} does not say {version}. "
                                "Call it {better}.", {"name": name, "version": VERSIONS[family][0], "better": better},
                                "output.name", warning=True))
    elif version is not None and version[0] != family:
        problems.append(Problem("AUTOMATIC1111 takes a ControlNet with {word} in its name for one of another base, and does not "
                                "draw with it. Choose another name than {name}.", {"word": version[1], "name": name},
                                "output.name", warning=True))
    return problems


METHOD = ControlNet
