"""generate and walk: pictures with a base and with what was learned."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AprendizError, Problem, ProblemsError, SettingsError
from ..knobs import fit, knobs, read
from ..settings import BaseSettings, TrainingSettings
from ..texts import say
from ..views import flags
from ..views.terminal import Screen, own_output, put, put_json

if TYPE_CHECKING:
    from ..families import Base
    from ..formats.embedding import Embedding
    from ..render import OnStep
    from ..request import Request


def read_settings(asked: argparse.Namespace) -> tuple[BaseSettings, TrainingSettings]:
    """What the arguments say of the base, and of where it is to be. Raises ProblemsError."""
    names = {"path": asked.base, "vae": asked.vae, "text_encoder": asked.text_encoder, "prediction": asked.prediction,
             "clip_skip": asked.clip_skip}
    given = {name: flags.parse(BaseSettings, name, text) for name, text in names.items() if text is not None}
    settings, problems = read(BaseSettings, given, "base")
    training, more = read(TrainingSettings, {"device": asked.device, "precision": asked.precision}, "training")
    if settings is None or training is None:
        raise ProblemsError([*problems, *more])
    return settings, training


def open_base(asked: argparse.Namespace) -> Base:
    """The base that the arguments name, on its device. Raises AprendizError."""
    from .. import devices
    from ..formats import checkpoint
    from ..prepare import place
    settings, training = read_settings(asked)
    device = devices.device(training.device)
    base = checkpoint.open_base(settings, devices.precision(training, device))
    place(base, device, encoders=True, network=True)
    return base


def read_request(asked: argparse.Namespace, prompt: str) -> Request:
    """What is to be drawn. Raises ProblemsError with every value that is wrong."""
    from .. import request as drawing
    given = {name: text for name, text in vars(asked).items() if name in knobs(drawing.Request) and text is not None}
    values: dict[str, Any] = {"prompt": prompt}
    problems = []
    for name, text in given.items():
        values[name], problem = fit(drawing.Request, name, flags.parse(drawing.Request, name, text))
        problems += [problem] if problem else []
    if problems:
        raise ProblemsError(problems)
    if vars(asked).get("strength") is not None and asked.image is None:
        raise SettingsError("--strength tells how much of a picture is redone, and none was given. Name it with --image, or "
                            "leave --strength out.")
    for name in ("image", "mask"):
        file = vars(asked).get(name)
        if file is not None:
            values[name] = open_picture(file, "L" if name == "mask" else None)
    request = drawing.Request(**values)
    drawing.check([request])
    return request


def open_picture(file: Path, mode: str | None) -> Any:
    """A picture for image-to-image, upright. Raises SettingsError."""
    from PIL import Image, ImageOps
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture)
            return upright.convert(mode) if mode else upright.copy()
    except FileNotFoundError as error:
        raise SettingsError("There is no picture {file}. Check the path.", file=str(file)) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SettingsError("{file} cannot be read as a picture: it is damaged, too large, or something else. Copy it again, or "
                            "save it anew as PNG or JPEG.", file=str(file)) from error


def read_loras(asked: argparse.Namespace) -> list[tuple[Path, float]]:
    """`FILE[:weight]` as files and weights; a drive's colon is none of ours. Raises SettingsError."""
    found = [weighted(given) for given in asked.lora]
    for file, _ in found:
        if not file.is_file():
            raise SettingsError("There is no LoRA file {file}. Check the path.", file=str(file))
    return found


def read_words(asked: argparse.Namespace, texts: Sequence[str]) -> list[Embedding]:
    """The embeddings asked for, seen to fit the base and these prompts before it opens. Raises AprendizError."""
    from .. import vocabulary
    words = vocabulary.read_embeddings(asked.embedding)
    for name in vocabulary.check_prompts(words, texts):
        put(say("{name} stands in no prompt, so this embedding changes nothing. Write its name where it is to act.", name=name),
            error=True)
    vocabulary.check_base(words, read_settings(asked)[0])
    return words


def weighted(given: str) -> tuple[Path, float]:
    """`FILE[:weight]`, 1 where none is given. Raises SettingsError for a weight that is no number."""
    file, colon, weight = given.rpartition(":")
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", weight) is not None and math.isfinite(float(weight))
    if not colon or Path(given).exists() or not number:
        if colon and Path(file).is_file() and not Path(given).exists():
            raise SettingsError("The weight '{weight}' of {file} is no number. Write one such as {file}:0.8.", weight=weight,
                                file=file)
        file, weight = given, "1"
    return Path(file), float(weight)


@dataclass(frozen=True)
class Wanted:
    """A ControlNet as the arguments name it: its file, its condition picture, how strongly and when it is heard."""

    file: Path
    picture: Any
    strength: float
    start: float
    end: float


def read_controls(asked: argparse.Namespace) -> list[Wanted]:
    """The ControlNets asked for, every file's header read. Raises SettingsError, ProblemsError."""
    if asked.control and not asked.controlnet:
        raise SettingsError("--control names a condition picture, but no ControlNet is there to read it. Name one with "
                            "--controlnet.")
    if len(asked.control) != len(asked.controlnet):
        raise SettingsError("There are {nets} ControlNets and {pictures} condition pictures. Give each --controlnet its own "
                            "--control.",
                            nets=len(asked.controlnet), pictures=len(asked.control))
    from ..formats.controlnet import file_problems
    wanted, problems = [], []
    starts, ends = (shares(asked, name, len(asked.control)) for name in ("control_start", "control_end"))
    for number, (given, control) in enumerate(zip(asked.controlnet, asked.control)):
        file, strength = weighted(given)
        problems += file_problems(file, None, "controlnet")
        wanted.append(Wanted(file, open_picture(Path(control), None), strength, starts[number], ends[number]))
    if problems:
        raise ProblemsError(problems)
    return wanted


def shares(asked: argparse.Namespace, name: str, count: int) -> list[float]:
    """A number from 0 to 1 for each ControlNet; one that is given stands for all. Raises SettingsError."""
    given = vars(asked)[name] or [{"control_start": "0", "control_end": "1"}[name]]
    values = []
    for text in given:
        values.append(float(text) if re.fullmatch(r"\d*\.?\d+|\d+\.", text) else -1.0)
        if not 0 <= values[-1] <= 1:
            raise SettingsError("{name} is '{value}'. It takes a number from 0 to 1.", name=f"--{name.replace('_', '-')}",
                                value=text)
    if len(values) not in (1, count):
        raise SettingsError("{name} is given {given} times for {count} ControlNets. Give it once, or once for each.",
                            name=f"--{name.replace('_', '-')}", given=len(values), count=count)
    return values if len(values) == count else values * count


def open_controls(base: Base, wanted: list[Wanted]) -> tuple[Any, ...]:
    """The branches for this base, each file opened once. Raises ModelError."""
    from ..formats.controlnet import open_branch
    from ..nets.controlnet import Control
    opened = {file: open_branch(file, base) for file in dict.fromkeys(one.file for one in wanted)}
    return tuple(Control(opened[one.file].branch, one.picture, one.strength, one.start, one.end, one.file.stem,
                         opened[one.file].kind) for one in wanted)


def whole_numbers(text: str, name: str) -> list[int]:
    """'1,2' as numbers. Raises SettingsError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError("{name} is '{value}'. It takes whole numbers, such as 1,2.", name=name, value=text) from None


@dataclass(frozen=True)
class Order:
    """What `generate` is asked for, read and checked before the base opens."""

    first: Request
    count: int
    loras: list[tuple[Path, float]]
    controls: list[Wanted]
    words: list[Embedding]
    out: Path


def read_order(asked: argparse.Namespace) -> Order:
    """The arguments of `generate`, everything checked that needs no base. Raises AprendizError."""
    found: list[Any] = []
    problems: list[Problem] = []
    for look in (lambda: read_request(asked, asked.prompt), lambda: read_count(asked), lambda: read_loras(asked),
                 lambda: read_controls(asked), lambda: read_words(asked, (asked.prompt, asked.negative or ""))):
        try:
            found.append(look())
        except AprendizError as error:
            problems += error.problems
    if problems:
        raise ProblemsError(problems)
    return Order(*found, asked.out)


def read_count(asked: argparse.Namespace) -> int:
    """How many pictures. Raises SettingsError."""
    try:
        count = int(asked.count)
    except ValueError:
        raise SettingsError("{name} is '{value}'. It takes one whole number.", name="count", value=asked.count) from None
    if count < 1:
        raise SettingsError("{name} is {value}. It must be at least {low}.", name="count", value=count, low=1)
    return count


def carry_out(order: Order, base: Base, on_step: OnStep | None) -> list[Path]:
    """Draw what was ordered; the files written. Raises AprendizError."""
    from .. import generate as drawing
    controls = open_controls(base, order.controls)
    requests = [replace(order.first, seed=order.first.seed + index, controls=controls) for index in range(order.count)]
    return drawing.generate(base, requests, order.out, order.loras, on_step, words=order.words)


def generate(asked: argparse.Namespace) -> int:
    """Draw pictures."""
    order = read_order(asked)
    screen = Screen(own_output(), asked.json)
    for file in carry_out(order, open_base(asked), drawing_progress(screen)):
        tell_file(file, asked.json)
    return 0


def walk(asked: argparse.Namespace) -> int:
    """Draw a walk."""
    from .. import generate as drawing
    from .. import walk as walking
    from ..vocabulary import with_embeddings
    names = {"frames": asked.frames, "frames_per_second": asked.frames_per_second}
    given = {name: flags.parse(walking.Walk, name, text) for name, text in names.items() if text is not None}
    fitted = {name: fit(walking.Walk, name, value) for name, value in given.items()}
    problems = [problem for _, problem in fitted.values() if problem]
    if problems:
        raise ProblemsError(problems)
    wanted = walking.Walk(prompts=tuple(asked.prompt), seeds=tuple(whole_numbers(asked.seeds, "seeds")),
                          request=read_request(asked, asked.prompt[0]), **{name: value for name, (value, _) in fitted.items()})
    walking.check(wanted)
    walking.check_file(asked.out)
    loras, words = read_loras(asked), read_words(asked, (*wanted.prompts, wanted.request.negative))
    screen = Screen(own_output(), asked.json)
    base = open_base(asked)
    with drawing.with_loras(base, loras) as applied, with_embeddings(base, words):
        frames = walking.walk(base, wanted, drawing_progress(screen))
        told = walking.parameters(base, wanted, applied, words)
    tell_file(walking.save(frames, asked.out, wanted.frames_per_second, wanted.loop, told), asked.json)
    return 0


def drawing_progress(screen: Screen) -> Any:
    """Sampler steps on the screen; none for machines."""
    return None if screen.json_lines else lambda done, total: screen.progress(say("Drawing"), done, total)


def tell_file(file: Path, machine: bool) -> None:
    """A file that was written."""
    if machine:
        put_json({"file": str(file)})
    else:
        put(say("Written: {file}", file=str(file)))
