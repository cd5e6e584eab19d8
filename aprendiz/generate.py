"""Drawing: text-to-image, image-to-image and inpainting with any base, and any number of LoRAs and embeddings.

A picture is given by its `Request` alone: its noise comes from its seed on the CPU, so neither the device nor the pictures beside
it in a batch change it. Nothing is drawn from torch's global random numbers, so a training run may draw between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .errors import ModelError
from .families import Base, Tensors
from .formats import png
from .formats.embedding import Embedding
from .render import Drawing, OnStep, Progress, render
from .request import AppliedLora, Request, check, name_of, parameters, size_of, steps_of
from .vocabulary import with_embeddings


def draw(base: Base, requests: Sequence[Request], on_step: OnStep | None = None, batch_size: int = 8,
         states: Mapping[str, Tensors] | None = None) -> list[Image.Image]:
    """The pictures, in order. The base is left as it was found: modes, gradients and random numbers too.

    on_step(done, total): steps of all pictures together. states: text states by prompt (`encode_prompts`) for a base whose text
    encoders are no longer there. Raises ProblemsError for requests that cannot be, ModelError, DeviceError.
    """
    check(requests)
    pictures: dict[int, Image.Image] = {}
    progress = Progress(on_step, sum(steps_of(request) for request in requests))
    given, known = dict(states or {}), dict[str, Any]()
    with at_rest(base):
        for group in _groups(base, requests, batch_size):
            chosen = [requests[i] for i in group]
            # Only this batch's texts are kept: a thousand prompts would fill the memory.
            known = {text: known.get(text) or given.get(text) or encode_together(base, [text]) for text in _texts(chosen)}
            drawings = [_drawing(base, request, known) for request in chosen]
            for part in _alike(drawings):
                done = render(base, [drawings[i] for i in part], progress)
                pictures |= {group[i]: picture for i, picture in zip(part, done)}
    return [pictures[i] for i in range(len(requests))]


def draw_prepared(base: Base, drawings: Sequence[Drawing], on_step: OnStep | None = None,
                  batch_size: int = 8) -> list[Image.Image]:
    """As `draw`, where noise and text states are already decided and of one shape (walks)."""
    progress = Progress(on_step, sum(steps_of(drawing.request) for drawing in drawings))
    pictures: list[Image.Image] = []
    with at_rest(base):
        for start in range(0, len(drawings), batch_size):
            pictures += render(base, drawings[start:start + batch_size], progress)
    return pictures


def generate(base: Base, requests: Sequence[Request], out: Path, loras: Sequence[tuple[Path, float]] = (),
             on_step: OnStep | None = None, batch_size: int = 8, words: Sequence[Embedding] = ()) -> list[Path]:
    """Draw with LoRAs and embeddings and write: each picture with its parameters, under a free name. Returns the files in order.

    What can be found wrong is found before the first step, the place to write to included.
    """
    check(requests)
    png.check_writable(out)
    files: list[Path] = []
    each = [steps_of(request) for request in requests]
    with with_loras(base, loras) as applied, with_embeddings(base, words):
        for start in range(0, len(requests), batch_size):
            part = requests[start:start + batch_size]
            before = sum(each[:start])
            report = None if on_step is None else _shifted(on_step, before, sum(each))
            pictures = draw(base, part, report, batch_size)
            files += png.save_all(pictures, out, [parameters(base, request, applied, words) for request in part])
    return files


def encode_prompts(base: Base, prompts: Sequence[str]) -> dict[str, Tensors]:
    """The text states of each prompt, encoded on its own, so that its neighbours do not lengthen it."""
    return {prompt: encode_together(base, [prompt]) for prompt in dict.fromkeys(prompts)}


def encode_together(base: Base, prompts: Sequence[str]) -> Any:
    """The text states of prompts as one batch, the short ones padded to the longest's length."""
    if not base.text_encoders:
        raise ModelError("{base} has no text encoder, so it cannot read a prompt. Name one with --text-encoder.",
                         base=name_of(base))
    where = next(base.text_encoders[0].parameters()).device
    with at_rest(base):
        return base.family.encode_tokens(base, base.family.tokenize(base, prompts).to(where))


@contextmanager
def at_rest(base: Base) -> Iterator[None]:
    """Evaluation mode and no gradients; every module gets its own mode back afterwards."""
    modes = {module: module.training for part in base.parts().values() for module in part.modules()}
    try:
        for part in base.parts().values():
            part.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def with_loras(base: Base, files: Sequence[tuple[Path, float]]) -> Iterator[list[AppliedLora]]:
    """Fold LoRA files into the base's weights, and take them out again, bit for bit. Raises ModelError."""
    from .formats import kohya
    from .nets.lora import fold

    opened = []
    for file, weight in files:
        weights, metadata = kohya.read(file, base.family)
        _check_fit(base, file, weights)
        opened.append((weights, AppliedLora(file.stem, weight, metadata.get("sshs_model_hash", "")[:12])))
    with ExitStack() as stack:
        for weights, applied in opened:
            stack.callback(fold(base, weights, applied.weight))
        yield [applied for _, applied in opened]


def _check_fit(base: Base, file: Path, weights: Sequence[Any]) -> None:
    from .nets.lora import LoraLayer

    parts = {part: dict(module.named_modules()) for part, module in base.parts().items()}
    strange = []
    for one in weights:
        layer = parts.get(one.part, {}).get(one.module)
        shape = layer.weight.shape if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d, LoraLayer)) else (0,)
        if (shape[0], math.prod(shape[1:])) != (one.up.shape[0], math.prod(one.down.shape[1:])):
            strange.append(f"{one.part}.{one.module}")
    if strange:
        raise ModelError("{file} is a LoRA for another model: {count} of its {total} modules do not fit {base}, such as "
                         "{example}. Leave it out, or name the base that it was made for.",
                         file=file.name, count=len(strange), total=len(weights), base=name_of(base), example=strange[0])


# From requests to batches.


def _texts(requests: Sequence[Request]) -> list[str]:
    """The texts that have to be encoded for these, each once; without guidance the negative prompt plays no part."""
    pairs = [[request.prompt] if request.guidance == 1 else [request.prompt, request.negative] for request in requests]
    return list(dict.fromkeys(text for pair in pairs for text in pair))


def _groups(base: Base, requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Which requests can go through the network together: same size, sampler, steps and guidance or not."""
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        key = (size_of(base, request), request.sampler, request.steps, steps_of(request), request.guidance == 1,
               request.image is None, request.mask is None,
               tuple((id(one.branch), one.strength, one.start, one.end) for one in request.controls))
        groups.setdefault(key, []).append(i)
    return [group[i:i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def _alike(drawings: Sequence[Drawing]) -> list[list[int]]:
    """Split by the length of the text states: padding a short prompt to a long neighbour's length would change its picture."""
    groups: dict[Any, list[int]] = {}
    for i, drawing in enumerate(drawings):
        states = [drawing.positive] if drawing.negative is None else [drawing.positive, drawing.negative]
        key = tuple(tuple(tensor.shape) for state in states for tensor in state.tensors().values())
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _drawing(base: Base, request: Request, states: Mapping[str, Tensors]) -> Drawing:
    width, height = size_of(base, request)
    negative = None if request.guidance == 1 else states[request.negative]
    return Drawing(request, width, height, states[request.prompt], negative)


def _shifted(on_step: OnStep, before: int, total: int) -> OnStep:
    return lambda done, _: on_step(before + done, total)
