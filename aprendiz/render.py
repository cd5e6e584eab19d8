"""One batch of pictures, from their noise through the network and the VAE to pixels.

Shapes: B batch, C latent channels, H W latent height and width. Pixels are in [-1, 1]; pictures are 8-bit RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from . import samplers
from .errors import DeviceError, ModelError
from .families import Base, PictureSize
from .nets.controlnet import joined
from .request import Request, name_of, steps_of

RESCALE = 0.7          # guidance rescale of bases that reach pure noise (Lin et al. 2024, section 3.4)
DECODED_PIXELS = 2**20  # that go through the VAE at once: its memory grows with them, and large pictures gain nothing together
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Drawing:
    """A request with its size and its text states decided. noise: instead of the seed's own, (1, C, H, W)."""

    request: Request
    width: int
    height: int
    positive: Any
    negative: Any
    noise: Tensor | None = None


class Progress:
    """Steps of all pictures together, told as they are done."""

    def __init__(self, on_step: OnStep | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0.0

    def add(self, steps: float) -> None:
        """So many more (parts of) steps are done."""
        self._done += steps
        if self._on_step is not None:
            self._on_step(min(round(self._done), self._total), self._total)


def render(base: Base, drawings: Sequence[Drawing], progress: Progress) -> list[Image.Image]:
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
        return render(base, drawings[:half], progress) + render(base, drawings[half:], progress)
    if not bool(torch.isfinite(pixels).all()):
        raise ModelError("{base} gives pictures that are not numbers. Choose precision fp32, or another VAE.", base=name_of(base))
    pictures = [_picture(one) for one in pixels]
    return [_keep_outside(drawing, picture) for drawing, picture in zip(drawings, pictures)]


def _denoise(base: Base, drawings: Sequence[Drawing], progress: Progress) -> Tensor:
    """Latents of a batch of like drawings, float32, on the network's device."""
    first, count = drawings[0], len(drawings)
    shape = base.family.latent_shape(base, first.width, first.height)
    sampler = samplers.scheduler(base, first.request.sampler, first.request.steps, (shape[1], shape[2]))
    timesteps = samplers.begin(sampler, first.request.steps - steps_of(first.request))
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
        progress.add(steps_of(first.request) * count / len(timesteps))
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
