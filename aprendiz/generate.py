"""Drawing: text-to-image, image-to-image and inpainting with any base, and any number of LoRAs and embeddings.

A picture is given by its `Request` alone: its noise comes from its seed on the CPU, so neither the device nor the pictures beside
it in a batch change it. Nothing is drawn from torch's global random numbers, so a training run may draw between two steps.

Shapes: B batch, C latent channels, H W latent height and width. Pixels are in [-1, 1]; pictures are 8-bit RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from . import knobs, samplers
from .errors import DeviceError, ModelError, Problem, ProblemsError
from .families import Base, PictureSize, Tensors
from .formats import png
from .formats.embedding import Embedding
from .knobs import knob
from .nets.controlnet import Control, joined
from .settings import SAMPLERS
from .vocabulary import used, with_embeddings

SIZE_STEP = 8          # pixels of a latent
RESCALE = 0.7          # guidance rescale of bases that reach pure noise (Lin et al. 2024, section 3.4)
DECODED_PIXELS = 2**20  # that go through the VAE at once: its memory grows with them, and large pictures gain nothing together
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture that is asked for.

    image: the picture to start from, of which `strength` is redone. mask: white where it may change, of the image's size.
    controls: control branches with their condition pictures.
    """

    prompt: str
    negative: str = knob("", "What the picture must not show.")
    seed: int = knob(0, "The picture's noise follows from it; several pictures count up.", min=0, max=2**63 - 1)
    width: int | None = knob(None, "Width in pixels, a multiple of 8. Off: the base's own.", min=8, max=8192)
    height: int | None = knob(None, "Height in pixels, a multiple of 8. Off: the base's own.", min=8, max=8192)
    steps: int = knob(20, "Steps of the sampler: the time grows with them; 20 to 30 is enough for most.", min=1, max=1000)
    guidance: float = knob(5.0, "How strictly the picture follows its prompt; 1 is without.", min=1, max=100)
    sampler: str = knob("ddim", "How pictures are drawn out of noise; ddim and euler suit every base.", choices=SAMPLERS)
    image: Image.Image | None = None
    strength: float = knob(0.75, "How much of the given picture is redone: 0 leaves it, 1 keeps little of it.", min=0, max=1)
    mask: Image.Image | None = None
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA that is folded into the base: its name as hosts call it, its weight, and the hash they know it by."""

    name: str
    weight: float
    hash: str = ""


@dataclass(frozen=True)
class Drawing:
    """A request with its size and its text states decided. noise: instead of the seed's own, (1, C, H, W)."""

    request: Request
    width: int
    height: int
    positive: Any
    negative: Any
    noise: Tensor | None = None


def draw(base: Base, requests: Sequence[Request], on_step: OnStep | None = None, batch_size: int = 8,
         states: Mapping[str, Tensors] | None = None) -> list[Image.Image]:
    """The pictures, in order. The base is left as it was found: modes, gradients and random numbers too.

    on_step(done, total): steps of all pictures together. states: text states by prompt (`encode_prompts`) for a base whose text
    encoders are no longer there. Raises ProblemsError for requests that cannot be, ModelError, DeviceError.
    """
    check(requests)
    pictures: dict[int, Image.Image] = {}
    progress = Progress(on_step, sum(_steps(request) for request in requests))
    given, known = dict(states or {}), dict[str, Any]()
    with at_rest(base):
        for group in _groups(base, requests, batch_size):
            chosen = [requests[i] for i in group]
            # Only this batch's texts are kept: a thousand prompts would fill the memory.
            known = {text: known.get(text) or given.get(text) or encode_together(base, [text]) for text in _texts(chosen)}
            drawings = [_drawing(base, request, known) for request in chosen]
            for part in _alike(drawings):
                done = _render(base, [drawings[i] for i in part], progress)
                pictures |= {group[i]: picture for i, picture in zip(part, done)}
    return [pictures[i] for i in range(len(requests))]


def draw_prepared(base: Base, drawings: Sequence[Drawing], on_step: OnStep | None = None,
                  batch_size: int = 8) -> list[Image.Image]:
    """As `draw`, where noise and text states are already decided and of one shape (walks)."""
    progress = Progress(on_step, sum(_steps(drawing.request) for drawing in drawings))
    pictures: list[Image.Image] = []
    with at_rest(base):
        for start in range(0, len(drawings), batch_size):
            pictures += _render(base, drawings[start:start + batch_size], progress)
    return pictures


def generate(base: Base, requests: Sequence[Request], out: Path, loras: Sequence[tuple[Path, float]] = (),
             on_step: OnStep | None = None, batch_size: int = 8, words: Sequence[Embedding] = ()) -> list[Path]:
    """Draw with LoRAs and embeddings and write: each picture with its parameters, under a free name. Returns the files in order.

    What can be found wrong is found before the first step, the place to write to included.
    """
    check(requests)
    png.check_writable(out)
    files: list[Path] = []
    each = [_steps(request) for request in requests]
    with with_loras(base, loras) as applied, with_embeddings(base, words):
        for start in range(0, len(requests), batch_size):
            part = requests[start:start + batch_size]
            before = sum(each[:start])
            report = None if on_step is None else _shifted(on_step, before, sum(each))
            pictures = draw(base, part, report, batch_size)
            files += png.save_all(pictures, out, [parameters(base, request, applied, words) for request in part])
    return files


def check(requests: Sequence[Request]) -> None:
    """Raises ProblemsError with everything that is wrong with the requests, each sentence once."""
    found: dict[str, Problem] = {}
    for request in requests:
        for problem in [*knobs.check(request), *_size_problems(request), *_picture_problems(request)]:
            found.setdefault(str(problem), problem)
    if found:
        raise ProblemsError(list(found.values()))


def size_of(base: Base, request: Request) -> tuple[int, int]:
    """(width, height) in pixels: as asked for, else the given picture's (shrunk to the base's area), else the base's own."""
    own = base.resolution
    if request.image is not None and request.width is None and request.height is None:
        width, height = request.image.size
        scale = min(1.0, own / math.sqrt(width * height))
        return tuple(max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP)
                     for side in (width, height))  # type: ignore[return-value]
    return request.width or own, request.height or own


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


def parameters(base: Base, request: Request, loras: Sequence[AppliedLora] = (),
               words: Sequence[Embedding] = ()) -> png.Parameters:
    """What a picture was made from, as AUTOMATIC1111 names it; its LoRAs stand in the prompt, as they are typed there."""
    width, height = size_of(base, request)
    sampler, schedule = samplers.title(base, request.sampler)
    called = "".join(f" <lora:{one.name}:{one.weight:g}>" for one in loras)
    hashes = ", ".join(f"{one.name}: {one.hash}" for one in loras if one.hash)
    found: dict[str, Any] = {
        "Steps": request.steps, "Sampler": sampler, "Schedule type": schedule, "CFG scale": f"{request.guidance:g}",
        "Seed": request.seed, "Size": f"{width}x{height}", "Model hash": (base.source.sha256 or "")[:10] or None,
        "Model": name_of(base),
        "Denoising strength": f"{request.strength:g}" if request.image is not None else None,
        "Clip skip": base.clip_skip if base.clip_skip and base.clip_skip > 1 else None,
        "RNG": "CPU", "Lora hashes": hashes or None,
        "TI hashes": ", ".join(f"{one.name}: {one.hash[:12]}" for one in used(words, (request.prompt, request.negative))) or None,
        **{f"ControlNet {n}": f"Model: {one.name}, Weight: {one.strength:g}, "
                              f"Guidance Start: {one.start:g}, Guidance End: {one.end:g}"
           for n, one in enumerate(request.controls)},
    }
    told = {name: str(value) for name, value in found.items() if value is not None}
    return png.Parameters(request.prompt + called, request.negative, told)


def name_of(base: Base) -> str:
    """What a base is called: its file's name without the suffix, its folder's name, or 'micro'."""
    path = base.source.path
    if path.name == "base" and path.parent.name == "micro":
        return "micro"
    return path.stem if base.source.kind == "file" else path.name


class Progress:
    """Steps of all pictures together, told as they are done."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0.0

    def add(self, steps: float) -> None:
        """So many more (parts of) steps are done."""
        self._done += steps
        if self._on_step is not None:
            self._on_step(min(round(self._done), self._total), self._total)


# What a request may be.


def _size_problems(request: Request) -> list[Problem]:
    problems = []
    for name in ("width", "height"):
        value = request.width if name == "width" else request.height
        if value is not None and value % SIZE_STEP:
            near = max(1, round(value / SIZE_STEP)) * SIZE_STEP
            problems.append(Problem("{name} is {value}, which is no multiple of 8. The nearest is {near}.",
                                    {"name": name, "value": value, "near": near}, name))
    return problems


def _picture_problems(request: Request) -> list[Problem]:
    problems = []
    if request.mask is not None and request.image is None:
        problems.append(Problem("A mask was given without a picture to change. Name the picture with --image.", {}, "mask"))
    elif request.mask is not None and request.image is not None and request.mask.size != request.image.size:
        sizes = {"mask": "{} x {}".format(*request.mask.size), "image": "{} x {}".format(*request.image.size)}
        problems.append(Problem("The mask is {mask} pixels and the picture {image}. Make them the same size.", sizes, "mask"))
    if request.sampler == "lcm" and request.steps > samplers.LCM_STEPS:
        problems.append(Problem("steps is {value}, but the sampler lcm takes at most {most}. Eight are plenty for it.",
                                {"value": request.steps, "most": samplers.LCM_STEPS}, "steps"))
    return problems


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


def _steps(request: Request) -> int:
    """How many of the sampler's steps are taken: with a given picture, the share that `strength` says, rounded up."""
    return request.steps if request.image is None else math.ceil(request.steps * request.strength - 1e-9)


def _texts(requests: Sequence[Request]) -> list[str]:
    """The texts that have to be encoded for these, each once; without guidance the negative prompt plays no part."""
    pairs = [[request.prompt] if request.guidance == 1 else [request.prompt, request.negative] for request in requests]
    return list(dict.fromkeys(text for pair in pairs for text in pair))


def _groups(base: Base, requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Which requests can go through the network together: same size, sampler, steps and guidance or not."""
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        key = (size_of(base, request), request.sampler, request.steps, _steps(request), request.guidance == 1,
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


# Drawing one batch.


def _render(base: Base, drawings: Sequence[Drawing], progress: Progress) -> list[Image.Image]:
    """Latents and pictures of a batch; halved for as long as the card's memory does not do."""
    try:
        latents_BCHW = _denoise(base, drawings, progress)
        together = max(1, DECODED_PIXELS // (drawings[0].width * drawings[0].height))
        pixels = torch.cat([_decode(base, part) for part in torch.split(latents_BCHW, together)])
    except torch.cuda.OutOfMemoryError as error:
        if len(drawings) == 1:
            raise DeviceError("Drawing at {width} x {height} does not fit into the card's memory. Choose a smaller size, or "
                              "--device cpu.", width=drawings[0].width, height=drawings[0].height) from error
        torch.cuda.empty_cache()
        half = len(drawings) // 2
        return _render(base, drawings[:half], progress) + _render(base, drawings[half:], progress)
    if not bool(torch.isfinite(pixels).all()):
        raise ModelError("{base} gives pictures that are not numbers. Choose precision fp32, or another VAE.", base=name_of(base))
    pictures = [_picture(one) for one in pixels]
    return [_keep_outside(drawing, picture) for drawing, picture in zip(drawings, pictures)]


def _denoise(base: Base, drawings: Sequence[Drawing], progress: Progress) -> Tensor:
    """Latents of a batch of like drawings, float32, on the network's device."""
    first, count = drawings[0], len(drawings)
    shape = base.family.latent_shape(base, first.width, first.height)
    sampler = samplers.scheduler(base, first.request.sampler, first.request.steps, (shape[1], shape[2]))
    timesteps = samplers.begin(sampler, first.request.steps - _steps(first.request))
    generators = [torch.Generator().manual_seed(drawing.request.seed) for drawing in drawings]
    # Each generator gives its picture's first noise, then (for samplers that ask) that of every step.
    own = [torch.randn((1, *shape), generator=generator) for generator in generators]
    noises = [one if drawing.noise is None else drawing.noise for drawing, one in zip(drawings, own)]
    noise_BCHW = torch.cat(noises).to(base.device)
    given_BCHW = _encode(base, drawings) if first.request.image is not None else None
    repaint_B1HW = _latent_mask(drawings, (shape[1], shape[2])).to(base.device) if first.request.mask is not None else None
    if given_BCHW is None:
        latents_BCHW = noise_BCHW * (1.0 if base.prediction == "flow" else float(sampler.init_noise_sigma))
    else:
        latents_BCHW = _noised(sampler, given_BCHW, noise_BCHW, timesteps[:1]) if len(timesteps) else given_BCHW
    ask = _Network(base, drawings)
    extra = {"generator": generators} if first.request.sampler in samplers.DRAWS_NOISE and base.prediction != "flow" else {}
    for i, timestep in enumerate(timesteps):
        prediction_BCHW = ask(sampler, latents_BCHW, timestep, i, len(timesteps))
        latents_BCHW = sampler.step(prediction_BCHW, timestep, latents_BCHW, return_dict=False, **extra)[0]
        if repaint_B1HW is not None and given_BCHW is not None:
            ahead = timesteps[i + 1:i + 2]
            outside_BCHW = _noised(sampler, given_BCHW, noise_BCHW, ahead) if len(ahead) else given_BCHW
            latents_BCHW = torch.where(repaint_B1HW, latents_BCHW, outside_BCHW)
        progress.add(_steps(first.request) * count / len(timesteps))
    return latents_BCHW


class _Network:
    """The network's prediction under guidance (Ho and Salimans 2022), both halves in one batch."""

    def __init__(self, base: Base, drawings: Sequence[Drawing]) -> None:
        states = [drawing.positive for drawing in drawings]
        self.base, self.guided = base, drawings[0].negative is not None
        if self.guided:
            states = [drawing.negative for drawing in drawings] + states
        whole = [(one.width, one.height) for one in drawings] * (2 if self.guided else 1)
        sizes = [PictureSize(original=size, crop=(0, 0), target=size) for size in whole]
        self.conditioning = base.family.collate(states, sizes).to(base.device)
        self.guidance_B111 = torch.tensor([one.request.guidance for one in drawings], device=base.device).view(-1, 1, 1, 1)
        self.controls = [(one, torch.cat([each.request.controls[n].pixels((each.width, each.height)) for each in drawings]))
                         for n, one in enumerate(drawings[0].request.controls)]

    def _residuals(self, noisy_BCHW: Tensor, timesteps_B: Tensor, step: int, steps: int) -> Any:
        """What the control branches that are heard at this step add; None where none is."""
        heard = [(one, condition) for one, condition in self.controls if one.heard(step, steps)]
        return joined([(self.base.family.control(one.branch, noisy_BCHW, timesteps_B, self.conditioning,
                                                 torch.cat([condition] * (len(noisy_BCHW) // len(condition)))), one.strength)
                       for one, condition in heard])

    def __call__(self, sampler: Any, latents_BCHW: Tensor, timestep: Tensor, step: int, steps: int) -> Tensor:
        """What the network predicts at this timestep of the sampler, number `step` of `steps`, float32."""
        flow = self.base.prediction == "flow"
        noisy_BCHW = latents_BCHW if flow else sampler.scale_model_input(latents_BCHW, timestep)
        if self.guided:
            noisy_BCHW = torch.cat([noisy_BCHW, noisy_BCHW])
        time = timestep / sampler.config.num_train_timesteps if flow else timestep
        timesteps_B = time.to(self.base.device).expand(len(noisy_BCHW))
        noisy_BCHW = noisy_BCHW.to(self.base.dtype)
        residuals = self._residuals(noisy_BCHW, timesteps_B, step, steps)
        prediction = self.base.family.predict(self.base, noisy_BCHW, timesteps_B, self.conditioning, residuals).float()
        return self._guide(prediction) if self.guided else prediction

    def _guide(self, prediction: Tensor) -> Tensor:
        without_BCHW, with_BCHW = prediction.chunk(2)
        guided_BCHW = without_BCHW + self.guidance_B111 * (with_BCHW - without_BCHW)
        if self.base.prediction == "flow" or not samplers.trailing(self.base):
            return guided_BCHW
        spread = with_BCHW.std(dim=(1, 2, 3), keepdim=True) / guided_BCHW.std(dim=(1, 2, 3), keepdim=True)
        return guided_BCHW * (RESCALE * spread + 1 - RESCALE)


def _noised(sampler: Any, latents_BCHW: Tensor, noise_BCHW: Tensor, timestep_1: Tensor) -> Tensor:
    """Latents at the noise level that the sampler comes to next, scaled as it keeps them."""
    if hasattr(sampler, "scale_noise"):  # flows, with their arguments in another order
        noised: Tensor = sampler.scale_noise(latents_BCHW, timestep_1, noise_BCHW)
    else:
        noised = sampler.add_noise(latents_BCHW, noise_BCHW, timestep_1)
    return noised


def _encode(base: Base, drawings: Sequence[Drawing]) -> Tensor:
    """The given pictures' latents: the mean, so that the same picture always gives the same."""
    pictures = [np.asarray(_given(drawing)) for drawing in drawings]
    pixels_B3HW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    where = next(_vae(base).parameters())
    means = [base.family.encode_images(base, one.to(where.device, where.dtype))[0] for one in torch.split(pixels_B3HW, 1)]
    return torch.cat(means).to(base.device, torch.float32)


def _decode(base: Base, latents_BCHW: Tensor) -> Tensor:
    """Pixels on the CPU, float32."""
    where = next(_vae(base).parameters())
    return base.family.decode(base, latents_BCHW.to(where.device, where.dtype)).float().cpu()


def _vae(base: Base) -> torch.nn.Module:
    if base.vae is None:
        raise ModelError("{base} has no VAE, so it cannot make pictures. Name one with --vae.", base=name_of(base))
    return base.vae


# Pictures and masks.


def _given(drawing: Drawing) -> Image.Image:
    """The picture to start from, upright, on white, of the drawing's size; what does not fit its shape is cut evenly."""
    assert drawing.request.image is not None
    picture = ImageOps.exif_transpose(drawing.request.image)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return ImageOps.fit(picture.convert("RGB"), (drawing.width, drawing.height), Image.Resampling.LANCZOS)


def _given_mask(drawing: Drawing) -> np.ndarray:
    """How far each pixel may change, in [0, 1], (height, width)."""
    assert drawing.request.mask is not None
    mask = ImageOps.fit(drawing.request.mask.convert("L"), (drawing.width, drawing.height), Image.Resampling.BILINEAR)
    return np.asarray(mask, dtype=np.float32) / 255


def _latent_mask(drawings: Sequence[Drawing], size: tuple[int, int]) -> Tensor:
    """Which latents are drawn anew: each that covers a pixel that may change. (B, 1, H, W), bool."""
    masks = torch.from_numpy(np.stack([_given_mask(drawing) for drawing in drawings]))
    return F.adaptive_max_pool2d(masks[:, None], size) > 0


def _keep_outside(drawing: Drawing, picture: Image.Image) -> Image.Image:
    """The given picture's own pixels where the mask is black."""
    if drawing.request.mask is None:
        return picture
    mask = _given_mask(drawing)[..., None]
    blended = np.asarray(picture, dtype=np.float32) * mask + np.asarray(_given(drawing), dtype=np.float32) * (1 - mask)
    return Image.fromarray(blended.round().astype(np.uint8))


def _picture(pixels_3HW: Tensor) -> Image.Image:
    bytes_HW3 = ((pixels_3HW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(bytes_HW3.numpy())
