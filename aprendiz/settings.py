"""The job: everything a run is told, in sections, from JSON, TOML or flags to one frozen object and back.

    base        which model is taught                 objective   what the loss is
    data        the pictures and their captions       optimizer   how the loss is lowered
    prior       what must not be forgotten            training    how long, how large, on what
    method      the way of teaching, with its own     samples     pictures made while training
                settings (aprendiz/methods)           output      names and what travels in the file

Every setting's name is unique over all sections and each method, so that it is also a command-line flag and may stand
at the top of a job file. The settings of a method stand in the method's file. Standard library only: hosts import this.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from . import registry
from .errors import Problem, ProblemsError
from .knobs import applies, kinds, knob, knobs, read, unknown_names

SCHEMA = 1  # raised when a setting is renamed; migrations are listed in MIGRATIONS

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "lion", "adafactor", "schedulefree")
SCHEDULES = ("constant", "linear", "cosine")
LATENT_SAMPLINGS = ("deterministic", "once", "random")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
SAMPLERS = ("ddim", "euler", "euler_a", "heun", "lms", "dpm++_2m", "dpm++_2m_karras", "dpm++_sde", "unipc", "pndm", "lcm")


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """Which model is taught, and how its file is to be read."""

    path: str = knob("micro", "The model to teach: 'micro', a diffusers folder, or a .safetensors checkpoint.",
                     level="basic", choices="checkpoints", path="either")
    vae: str | None = knob(None, "Another VAE in place of the base's own: a file or a folder.", path="either")
    text_encoder: str | None = knob(None, "A text encoder for a base that comes without one: a file or a folder.", path="either")
    prediction: str = knob("auto", "What the network predicts: noise (epsilon) or v. auto reads it from the model; set it when "
                                   "samples are grey or noisy from the first step on.", choices=("auto", "epsilon", "v"))
    clip_skip: int | None = knob(None, "Which layer of the text encoder counts, from the end: 2 skips the last, as many anime "
                                       "models want. Off: the family's own.", min=1, max=12)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The pictures, their captions, and how they become training examples."""

    path: str | None = knob(None, "The folder with the pictures.", level="basic", path="folder")
    trigger: str | None = knob(None, "The word that calls what is taught. It is put before each caption that lacks it.",
                               level="basic")
    class_word: str | None = knob(None, "What kind of thing it is (dog, vase, style): [class] in captions, and the prompt of "
                                        "the base's own pictures, where there are any.")
    caption: str | None = knob(None,
                               "One caption for pictures without their own: [trigger], [class], [folder] and [name] are "
                               "filled in.")
    resolution: int | None = knob(None,
                                  "Size of the training pictures in pixels (of the area's square root). Off: the base's own. "
                                  "Smaller takes less time and memory and learns less detail; larger than the base's own is "
                                  "seldom better.",
                                  min=64, max=4096, level="basic")
    resize: bool = knob(True, "Bring every picture to the training size. Otherwise each keeps its own, and only what is beyond a "
                              "multiple of bucket_step is cut away; large ones take much memory.")
    buckets: bool = knob(True, "Keep each picture's shape, grouping pictures of like shape. Otherwise all are cropped square.",
                         when=("resize", (True,)))
    bucket_step: int | None = knob(None, "Widths and heights are multiples of this. Off: the family's own.", min=8, max=256)
    allow_upscale: bool = knob(True, "Enlarge pictures smaller than the training size. Otherwise they are left out.")
    crop: str = knob("center", "What is cut away when the shape does not fit: the same on both sides, or at random, which shows "
                               "more of large pictures but may cut the subject.", choices=("center", "random"))
    crop_variants: int = knob(4, "How many random crops of a picture are encoded; 0 encodes anew every step, slower.", min=0,
                              max=64,
                              when=("crop", ("random",)))
    flip: bool = knob(False, "Mirror half of the pictures. Not for faces, text or anything with a left and a right.")
    repeats: int = knob(1, "How often each picture is shown in an epoch. An epoch takes that much longer; it changes nothing "
                           "where steps or minutes are set.", min=1, max=10000)
    shuffle_tags: bool = knob(False, "Shuffle the comma-separated parts of a caption each time, so that their order is not "
                                     "learned. For captions made of tags, not of sentences.")
    keep_tags: int = knob(0, "How many parts at the start of a caption stay where they are when tags are shuffled or left out, "
                             "such as the trigger.", min=0, max=100)
    tag_dropout: float = knob(0.0, "Share of the comma-separated parts left out each time, so that what is taught does not hang "
                                   "on any one of them; 0.1 is usual.", min=0, max=1)
    caption_dropout: float | None = knob(None,
                                         "Share of the steps that see no caption at all, which guidance needs. Off: what suits "
                                         "the method.",
                                         min=0, max=1)
    max_tokens: int = knob(225, "Longest caption in tokens; longer ones are cut, with a warning.", min=75, max=225)
    transparency: str = knob("background", "What transparency means: a background, or how much each pixel counts.",
                      choices=("background", "weight"))
    background: str = knob("#ffffff", "The colour behind transparent pictures.", when=("transparency", ("background",)))
    masks: bool = knob(True, "Use name.mask.png beside a picture: white counts fully, black not at all.")
    latent_sampling: str = knob("deterministic", "What is taken of the distribution that the VAE gives for a picture: its mean "
                                                 "(deterministic), one draw for the whole run (once), or a draw at every step "
                                                 "(random). They hardly differ; the mean takes half the disk space.",
                                choices=LATENT_SAMPLINGS)
    validation_share: float = knob(0.0, "Share of the pictures kept apart to measure the loss on; they are not learned from. "
                                        "0.1 where there are fifty or more.", min=0, max=0.9)
    strict: bool = knob(False, "Stop at warnings too.")

    @property
    def live_crops(self) -> bool:
        """Whether every step cuts and encodes its pictures anew, so that nothing of them is cached."""
        return self.crop == "random" and self.crop_variants == 0

    @property
    def draws_latents(self) -> bool:
        """Whether the spread of the VAE's distribution is wanted beside its mean."""
        return self.latent_sampling != "deterministic"


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Prior preservation (Ruiz et al. 2023, eq. 2): the base's own pictures are trained beside yours, so that it forgets less."""

    pictures: int = knob(0, "How many pictures the base makes beforehand, to be trained beside yours, so that it forgets less "
                            "of everything else. Drawing them takes time, and every step takes longer; 50 to 200 when other "
                            "things begin to look like yours. 0: none.", min=0, max=10000)
    prompts: tuple[str, ...] = knob((), "Prompts for these pictures. None: the class word, or your captions without the trigger.")
    prior_data: str | None = knob(None, "A folder of such pictures, instead of making them. Those without a caption are told as "
                                        "the class word says.", path="folder")
    per_batch: int = knob(1, "How many of them are in each batch, beside batch_size of yours; each makes a step as much longer "
                             "as one of yours.", min=1, max=64)
    prior_weight: float = knob(1.0, "How much they count in the loss. Lower it when too little of yours is learned.",
                               min=0, max=100)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What the loss is."""

    loss: str = knob("mse", "Squared error, or Huber, which outliers move less: for pictures of mixed quality. Takes the same "
                            "time.", choices=("mse", "huber"))
    huber_delta: float = knob(0.1, "Where Huber turns from squared to straight.", min=1e-4, max=10, when=("loss", ("huber",)))
    min_snr_gamma: float | None = knob(None, "Min-SNR weighting (Hang et al. 2023): steps with little noise no longer outweigh "
                                             "the rest, which often learns sooner. Costs nothing; 5 is usual.", min=0.1, max=100)
    noise_offset: float = knob(0.0, "Noise added per channel, which helps very dark and very bright pictures; 0.05 is usual.",
                               min=0, max=1)
    zero_terminal_snr: bool | None = knob(None,
                                          "Noise reaches pure noise at its end (Lin et al. 2024). Off: as the base was made.")
    timestep_min: int = knob(0, "Lowest timestep trained. Raise it to leave fine detail as the base draws it.", min=0, max=999)
    timestep_max: int = knob(999, "Highest timestep trained. Lower it to leave the layout of pictures as the base draws it.",
                             min=0, max=999)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the loss is lowered."""

    optimizer: str = knob("adamw", "AdamW suits nearly all. 8-bit AdamW and Adafactor save memory, Lion some of it and wants a "
                                   "smaller rate; Prodigy and schedule-free set their own pace.",
                          choices=OPTIMIZERS)
    learning_rate: float | str | None = knob(None, "Strength of learning: a number, or a schedule such as '0.005:100, 1e-5'. "
                                                   "Off: what suits the method. Halve it when samples turn harsh or fall apart, "
                                                   "double it when nothing is learned.", min=0, max=1, level="basic")
    schedule: str = knob("constant", "How the learning rate changes over the run: it stays, or falls in a line or along a "
                                     "cosine. Falling ends with finer steps; staying lets any saved file be the last.",
                         choices=SCHEDULES)
    warmup_steps: int = knob(0, "Steps over which the learning rate rises from nothing. A few dozen to hundreds when a high "
                                "rate spoils the first steps.", min=0, max=100000)
    restarts: int = knob(1, "How many times the cosine runs down.", min=1, max=100, when=("schedule", ("cosine",)))
    final_rate: float = knob(0.0, "What is left of the learning rate at the end, as a share.", min=0, max=1,
                             when=("schedule", ("linear", "cosine")))
    weight_decay: float = knob(0.01, "Pull of the trained weights towards zero. Seldom worth changing; more where a few "
                                     "pictures are learned by heart.", min=0, max=10)
    beta1: float = knob(0.9, "Memory of the mean gradient; Adafactor keeps none.", min=0, max=0.9999)
    beta2: float = knob(0.999, "Memory of the mean squared gradient.", min=0, max=0.99999)
    max_grad_norm: float | None = knob(1.0, "Gradients longer than this are shortened. Off: never.", min=1e-6, max=1000)
    max_grad_value: float | None = knob(None, "No single number of the gradient goes beyond this; before its length is looked "
                                              "at. Off: any may.", min=1e-9, max=1000)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long, how large, on what."""

    steps: int | None = knob(None, "How many optimizer steps; the time grows with them. One of steps, epochs and minutes; none "
                                   "of them: 100 for each picture, between 400 and 2000. More when the samples do not show it "
                                   "yet, fewer when they look like copies of your pictures.",
                             min=1, max=10_000_000, level="basic")
    epochs: float | None = knob(None, "How many times all pictures are seen. One of steps, epochs and minutes.", min=0.01,
                                max=100000)
    minutes: float | None = knob(None, "How long the run may take in minutes, instead of steps or epochs: the steps follow from "
                                       "the speed of the first ones.", min=0.1, max=100000, level="basic")
    batch_size: int = knob(1, "Pictures per step. Each takes time and memory; more make steadier steps. Raise it while memory "
                              "is left, lower it to 1 when it runs out.", min=1, max=1024)
    gradient_accumulation: int = knob(1, "Split a batch into this many parts: less memory, the same result, a little slower. "
                                         "For a batch that does not fit.", min=1, max=1024)
    seed: int = knob(42, "Every random draw follows from it: the same seed gives the same result, another one a result like it.",
                     min=0, max=2**63 - 1)
    precision: str = knob("auto", "Number format of the frozen base; what is trained stays in fp32. bf16 and fp16 take half the "
                                  "memory of fp32. auto: bf16 where the device has it.", choices=PRECISIONS)
    device: str = knob("auto", "cpu, cuda, cuda:1, mps or xpu. 'auto' takes the fastest there is.")
    memory: str = knob("auto", "Fit the run into the card's memory by itself, or do as the settings say.",
                       choices=("auto", "manual"))
    gradient_checkpointing: bool = knob(False, "Recompute instead of keeping: about half the memory, a third more time.")
    compile: bool = knob(False, "Compile the network first: faster steps after some minutes. For runs of an hour or more.")
    ema_decay: float | None = knob(None, "Keep a moving average of what is learned, and save that: smoother results, for a copy "
                                         "of it in memory. 0.999 is usual, in runs of a thousand steps or more.", min=0.5,
                                   max=0.99999)
    save_every_steps: int | None = knob(None, "Save a resumable state and a usable file every so many steps, so that the best "
                                              "can be chosen afterwards; each file takes disk space. Off: only when the run is "
                                              "stopped; the result is written at the end in any case.", min=1)
    keep_checkpoints: int = knob(2, "How many resumable states are kept. Usable files are all kept.", min=1, max=1000)
    validate_every_steps: int | None = knob(None, "Measure the loss on the pictures kept apart every so many steps: where it "
                                                  "rises again, your pictures are being learned by heart. Takes less than a "
                                                  "step for each of them; needs validation_share.", min=1)
    tensorboard: bool = knob(False, "Write TensorBoard logs into the run's folder; needs the package tensorboard.")
    wandb: bool = knob(False, "Log to Weights & Biases (WANDB_MODE=offline keeps it here).")


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Pictures made before, while and after training, always from the same seeds."""

    sample_prompts: tuple[str, ...] = knob((), "What to draw while training. None: your first captions.", level="basic")
    sample_every_steps: int | None = knob(None, "Draw them every so many steps, to see when it is enough; training waits "
                                                "meanwhile. Off: before the first step and after the last.", min=1)
    negative_prompt: str = knob("", "What the pictures must not show. Only heard where guidance is above 1.")
    # Seeds end at 2 ** 63 - 1, and those of the samples count up.
    sample_seed: int = knob(1, "Seed of the first sample; the next ones count up.", min=0, max=2**62)
    sampler: str = knob("ddim", "How pictures are drawn out of noise; ddim and euler suit every base. What is learned does not "
                                "depend on it.", choices=SAMPLERS)
    sampler_steps: int = knob(20, "Steps of the sampler: the time grows with them; 20 to 30 is enough for most.", min=1, max=1000)
    guidance: float = knob(5.0, "How strictly a picture follows its prompt: 5 to 8 is usual, much more burns colours. 1 draws "
                                "without guidance, in half the time.", min=1, max=100)
    sample_width: int | None = knob(None, "Width of the samples in pixels, a multiple of 8. Off: the size that is trained at.",
                                    min=64, max=4096)
    sample_height: int | None = knob(None, "Height of the samples in pixels, a multiple of 8. Off: the size that is trained at.",
                                     min=64, max=4096)


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Names, and what travels in the file."""

    name: str | None = knob(None, "Name of the run and of its file. None: what it teaches.", level="basic")
    again: bool = knob(False, "Train once more even if this very job is already done.")
    metadata: str = knob("full", "What the file tells of its making: all (full), what it is and what calls it (public), or the "
                                 "base's version and architecture alone (none), without which hosts cannot tell the family. "
                                 "Hashes stand in it in any case.", choices=("full", "public", "none"))
    captions_in_metadata: bool = knob(True, "Put caption words into the file (ss_tag_frequency), which hosts show as tags.",
                                      when=("metadata", ("full",)))
    author: str | None = knob(None, "Your name, if it is to stand in the file.")
    license: str | None = knob(None, "The licence, if it is to stand in the file.")
    keep_running: bool = knob(False, "Go on training when the program that started it closes.")


SECTIONS: dict[str, type] = {
    "base": BaseSettings, "data": DataSettings, "prior": PriorSettings, "objective": ObjectiveSettings,
    "optimizer": OptimizerSettings, "training": TrainingSettings, "samples": SampleSettings, "output": OutputSettings,
}
SHORT = {"base": "path", "data": "path", "method": "name"}  # `base = "micro"` stands for `base.path = "micro"`

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # what every host and file system takes
MIGRATIONS: dict[int, Any] = {}  # schema -> function that turns its values into those of the next


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run's settings, whole. Build it with `Job.read`; a Job that exists has passed its own checks."""

    method_name: str
    method: Any
    base: BaseSettings = field(default_factory=BaseSettings)
    data: DataSettings = field(default_factory=DataSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Job:
        """A job from nested plain values. Raises ProblemsError with everything that is wrong with them."""
        values = migrate(unfold(values))
        problems = no_tables(values)
        values = {name: value for name, value in values.items() if not any(problem.where == name for problem in problems)}
        problems += unknown_names(values, [*SECTIONS, "method", "schema"], "", also=names(values))
        sections: dict[str, Any] = {}
        for name, settings in SECTIONS.items():
            sections[name], found = read(settings, values.get(name, {}), name)
            problems += found
        method_values = dict(values.get("method", {}))
        method_name = str(method_values.pop("name", "lora"))
        method = None
        if method_name in registry.methods():
            method, found = read(registry.methods()[method_name].Settings, method_values, "method")
            problems += found
        else:
            problems.append(Problem("There is no method '{name}'. There are: {choices}.",
                                    {"name": method_name, "choices": ", ".join(registry.methods())}, "method.name"))
        problems += schedule_problems({**sections, "method": method}) + contradictions(sections)
        if any(not problem.warning for problem in problems):
            raise ProblemsError(problems)
        return registry.methods()[method_name].settle(cls(method_name=method_name, method=method, **sections))

    def values(self) -> dict[str, Any]:
        """The job as plain nested values, every default spelt out: what job.json holds."""
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS}
        return {"schema": SCHEMA, "method": {"name": self.method_name, **asdict(self.method)}, **sections}

    def with_values(self, **sections: Mapping[str, Any]) -> Job:
        """A copy with some settings of some sections changed: `job.with_values(training={"steps": 10})`."""
        return replace(self, **{name: replace(getattr(self, name), **changes) for name, changes in sections.items()})

    def hash(self, dataset: str = "") -> str:
        """Identity of what would be computed: the resolved job and the dataset's digest, less names and doors' wishes."""
        values = self.values()
        for name in ("name", "again", "keep_running"):
            values["output"].pop(name)
        text = json.dumps([values, dataset], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def unfold(values: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms made long (`base = "micro"`), dotted keys nested (`method.rank = 8`), flat names put into their section."""
    unfolded: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    method = method_settings(values)
    for name, value in values.items():
        section, _, rest = name.partition(".")
        if rest:
            unfolded.setdefault(section, {})[rest] = value
        elif section in SHORT and (value is None or isinstance(value, str)):
            unfolded.setdefault(section, {})[SHORT[section]] = value
        elif section in (*SECTIONS, "method") and isinstance(value, Mapping):
            unfolded.setdefault(section, {}).update(value)
        elif home(section) and not isinstance(value, Mapping):
            unfolded.setdefault(str(home(section)), {})[section] = value
        elif method and section in knobs(method):
            unfolded.setdefault("method", {})[section] = value
        else:
            strange[section] = value
    return {**unfolded, **strange}


def no_tables(values: Mapping[str, Any]) -> list[Problem]:
    """Sections that are something else than settings by name, such as `training = 5`."""
    return [Problem("{name} is {value}, but it takes settings by name, such as {example}.",
                    {"name": name, "value": repr(value), "example": f"{name}.{next(iter(known), 'name')}"}, name)
            for name, value in values.items()
            for known in [{"name": None} if name == "method" else knobs(SECTIONS[name]) if name in SECTIONS else None]
            if known is not None and not isinstance(value, Mapping)]


def method_settings(values: Mapping[str, Any]) -> type | None:
    """The Settings of the method that plain values name; None if there is no such method."""
    method = values.get("method") or "lora"
    name = method.get("name", "lora") if isinstance(method, Mapping) else method
    found = registry.methods().get(str(name))
    return found.Settings if found else None


def names(values: Mapping[str, Any]) -> list[str]:
    """Every setting's name that may stand at the top of a job, for suggestions."""
    method = method_settings(values)
    return [name for settings in (*SECTIONS.values(), *([method] if method else [])) for name in knobs(settings)
            if name != "path"]


def home(name: str) -> str | None:
    """The section that a setting of this name stands in; None if no common section has it."""
    for section, settings in SECTIONS.items():
        if name in knobs(settings) and name != "path":
            return section
    return None


def migrate(values: dict[str, Any]) -> dict[str, Any]:
    """Values of an older schema as today's."""
    schema = values.pop("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ProblemsError([Problem("This job was written by a newer version of Aprendiz (schema {schema}; this one reads up to "
                                     "{known}). Update Aprendiz.", {"schema": schema, "known": SCHEMA}, "schema")])
    for old in range(schema, SCHEMA):
        values = MIGRATIONS[old](values)
    return values


def contradictions(sections: Mapping[str, Any]) -> list[Problem]:
    """Settings that are each fine and impossible together. Sections that could not be read are None and left alone."""
    problems = []
    training, data, objective, output, samples = (sections[n] for n in ("training", "data", "objective", "output", "samples"))
    if training and training.steps is not None and training.epochs is not None:
        problems.append(Problem("Both steps ({steps}) and epochs ({epochs}) are set. Keep one; the other follows from it.",
                                {"steps": training.steps, "epochs": training.epochs}, "training.epochs"))
    if training and training.minutes is not None and (training.steps is not None or training.epochs is not None):
        problems.append(Problem("minutes ({minutes}) is set beside steps or epochs. Keep one of them: the steps follow from the "
                                "minutes.", {"minutes": training.minutes}, "training.minutes"))
    if training and training.batch_size % training.gradient_accumulation:
        problems.append(Problem("batch_size {batch} cannot be split into {parts} equal parts. Choose a gradient_accumulation "
                                "that divides it.",
                                {"batch": training.batch_size, "parts": training.gradient_accumulation},
                                "training.gradient_accumulation"))
    if training and data and training.validate_every_steps and not data.validation_share:
        problems.append(Problem("validate_every_steps is {steps}, but no pictures are kept apart. Set validation_share, such "
                                "as 0.1.",
                                {"steps": training.validate_every_steps}, "training.validate_every_steps"))
    if data and data.path is None:
        problems.append(Problem("No pictures were given. Name the folder that they are in (data).", {}, "data.path"))
    sizes = [("data", "resolution", data and data.resolution), ("samples", "sample_width", samples and samples.sample_width),
             ("samples", "sample_height", samples and samples.sample_height)]
    for section, name, pixels in sizes:
        if pixels and pixels % 8:
            problems.append(Problem("{name} is {value}, which is no multiple of 8. The nearest is {near}.",
                                    {"name": name, "value": pixels, "near": round(pixels / 8) * 8}, f"{section}.{name}"))
    if objective and objective.timestep_min > objective.timestep_max:
        problems.append(Problem("timestep_min {low} is above timestep_max {high}. Exchange them.",
                                {"low": objective.timestep_min, "high": objective.timestep_max}, "objective.timestep_min"))
    if output and output.name is not None:
        problems += name_problems(output.name)
    return problems


def name_problems(name: str) -> list[Problem]:
    """Why a text cannot be the name of a run and of its file in every host and file system."""
    if NAME.fullmatch(name) and not name.endswith(".") and name.split(".")[0].upper() not in WINDOWS_NAMES:
        return []
    return [Problem("The name '{name}' cannot be a file's name everywhere. Use letters, digits, dots, hyphens and underscores, "
                    "and begin with a letter or digit; folders are chosen with --out.", {"name": name}, "output.name")]


def plain_name(words: str) -> str:
    """Words as a name that every host and file system takes, in lower case, without spaces; "" where nothing is left of them."""
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:60].rstrip("-._")


WINDOWS_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def learning_rates(text: str) -> list[tuple[float, int | None]]:
    """A schedule in the WebUI's syntax as (rate, last step), the last one open: '0.005:100, 1e-5' -> [(0.005, 100), (1e-5,
    None)].

    Raises ValueError where a part is no number or the steps do not rise.
    """
    parts: list[tuple[float, int | None]] = []
    for part in text.split(","):
        rate, colon, until = part.strip().partition(":")
        parts.append((float(rate), int(until) if colon else None))
    ends = [until for _, until in parts[:-1]]
    if None in ends or any(a >= b for a, b in zip(ends, [*ends[1:], parts[-1][1] or math.inf])):  # type: ignore[operator]
        raise ValueError(text)
    return parts


def schedule_problems(sections: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the rates that are given as schedules, the methods' own too. Sections as in `contradictions`."""
    return [problem for section, settings in sections.items() if settings for name, value in rates_of(settings).items()
            if isinstance(value, str) for problem in rate_problems(value, f"{section}.{name}")]


def rates_of(settings: Any) -> dict[str, float | str | None]:
    """The learning rates among settings, numbers or schedules, by name: those that count, given their siblings."""
    kind: type = settings.__class__
    return {name: getattr(settings, name) for name, one in knobs(kind).items()
            if {float, str} <= set(kinds(kind)[name][0]) and applies(settings, one)}


def rate_problems(text: str, where: str) -> list[Problem]:
    """What is wrong with a learning-rate schedule."""
    try:
        rates = learning_rates(text)
    except ValueError:
        return [Problem("{name} is '{value}'. Write a number, or rates with the step each lasts to, such as '0.005:100, 1e-5'.",
                        {"name": where, "value": text}, where)]
    wrong = [rate for rate, _ in rates if not 0 <= rate <= 1]
    return [Problem("{name} is {value}. It must lie between {low} and {high}.",
                    {"name": where, "value": rate, "low": 0, "high": 1}, where) for rate in wrong]


def flags() -> dict[str, tuple[str, str]]:
    """Flag to (section, setting) for the common sections: '--learning-rate' -> ('optimizer', 'learning_rate')."""
    found = {}
    for section, settings in SECTIONS.items():
        for f in fields(settings):
            name = section if f.name == "path" else f.name
            found[f"--{name.replace('_', '-')}"] = (section, f.name)
    return found
