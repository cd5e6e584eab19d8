"""Train the VAE, and later its decoder alone: 128 x 128 pixels to 4 x 16 x 16 latents.

It sees scenes of every kind, the held-out ones too, and textures, so that what people teach can be drawn at all.
First in crops of 64 pixels, which is faster, at the end in whole pictures.

Shapes: B batch, H W height and width. Pixels are in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from ..nets.evaluator import pixels
from .scenes import ALL_SHAPES, CATEGORIES, HELD_OUT_SHAPES, Choices, Picture, category, draw, imagine
from .textures import texture
from .training import Average, Build, Progress, Saved, batches, cosine, set_learning_rate

CROP = 64  # pixels
KL_WEIGHT = 3e-4
LEVELS = 4


def new_vae() -> AutoencoderKL:
    """A random VAE of micro's shape: f = 8, widths 16 to 64, one layer a block."""
    return AutoencoderKL(sample_size=128, latent_channels=4, block_out_channels=(16, 32, 64, 64), layers_per_block=1,
                         norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * LEVELS,
                         up_block_types=("UpDecoderBlock2D",) * LEVELS)


def any_picture(rng: np.random.Generator) -> Picture:
    """A picture of any kind."""
    kind = rng.random()
    if kind < 0.15:
        return texture(rng)
    if kind < 0.27:
        scene = imagine(rng, Choices(shapes=HELD_OUT_SHAPES))
    elif kind < 0.39:
        scene = imagine(rng, Choices(shapes=ALL_SHAPES, style="neon"))
    else:
        scene = imagine(rng, category(CATEGORIES[rng.integers(len(CATEGORIES))]))
    return draw(scene, rng)


class Pictures(Dataset[Tensor]):
    """Item `step` is a batch B 3 H W: crops, and from `whole_from` on a quarter as many whole pictures."""

    def __init__(self, seed: int, batch: int, whole_from: int) -> None:
        self.seed, self.batch, self.whole_from = seed, batch, whole_from

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.seed, step))
        if step >= self.whole_from:
            return pixels([any_picture(rng) for _ in range(max(2, self.batch // 4))])
        crops = []
        for _ in range(self.batch):
            picture = any_picture(rng)
            top, left = rng.integers(0, picture.shape[0] - CROP + 1, 2)
            crops.append(picture[top:top + CROP, left:left + CROP])
        return torch.stack([torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1) for crop in crops]).float() / 127.5 - 1


def train_vae(build: Build, folder: Path) -> None:
    """Train encoder and decoder from nothing, measure the scale of the latents, and write the model to `folder`."""
    torch.manual_seed(0)
    size = build.size
    trained = _train(build, new_vae(), "vae", Pictures(1, size.vae_batch, int(size.vae_steps * 0.85)), size.vae_steps, 2e-3,
                     decoder_only=False)
    trained.register_to_config(scaling_factor=1 / latent_deviation(trained))
    trained.save_pretrained(folder)


def finish_decoder(build: Build, source: Path, folder: Path) -> None:
    """Train the decoder of `source` further, the latents staying as they are, and write the model to `folder`."""
    size = build.size
    vae = AutoencoderKL.from_pretrained(source)
    pictures = Pictures(2, size.decoder_batch, int(size.decoder_steps * 0.7))
    _train(build, vae, "decoder", pictures, size.decoder_steps, 1e-3, decoder_only=True).save_pretrained(folder)


def _train(build: Build, vae: AutoencoderKL, stage: str, pictures: Pictures, steps: int, peak: float, *,
           decoder_only: bool) -> AutoencoderKL:
    vae = vae.to(build.device, memory_format=torch.channels_last).train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    average = Average(vae, decay=0.998)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=1e-4)
    saved = Saved(build, stage, vae=vae, average=average.module, optimizer=optimizer)
    progress = Progress(stage, steps)
    for step, batch_B3HW in batches(pictures, saved.restore(), steps, build):
        set_learning_rate(optimizer, peak * cosine(step, steps, warmup=50, end=0.03))
        torch.manual_seed(step)
        batch_B3HW = batch_B3HW.to(build.device).contiguous(memory_format=torch.channels_last)
        loss = vae_loss(vae, batch_B3HW, decoder_only=decoder_only)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.follow(step + 1)
        saved.save_if_due(step + 1)
        progress.tell(step + 1, loss=loss)
    saved.save(steps)
    return average.module


def vae_loss(vae: AutoencoderKL, pixels_B3HW: Tensor, *, decoder_only: bool) -> Tensor:
    """Absolute error + 2 x squared error + half the absolute error of neighbours' differences + a little KL."""
    with torch.set_grad_enabled(not decoder_only):
        latents = vae.encode(pixels_B3HW).latent_dist
        drawn = latents.sample()
    error = vae.decode(drawn).sample - pixels_B3HW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges
    if decoder_only:
        return loss
    return loss + KL_WEIGHT * 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).mean()


@torch.inference_mode()
def latent_deviation(vae: AutoencoderKL) -> float:
    """The standard deviation of the latents of scenes, which the U-Net is to see as 1."""
    rng = np.random.default_rng(2)
    pictures = [draw(imagine(rng, category(name)), rng) for name in CATEGORIES for _ in range(16)]
    latents = [vae.encode(pixels(pictures[i:i + 16]).to(vae.device)).latent_dist.mode() for i in range(0, len(pictures), 16)]
    return torch.cat(latents).std().item()


@torch.inference_mode()
def signal_to_noise(vae: AutoencoderKL, pictures: list[Picture]) -> float:
    """Peak signal to noise ratio of reconstructions in dB, mean over pictures."""
    ratios = []
    for picture in pictures:
        original = pixels([picture]).to(vae.device)
        made = vae.decode(vae.encode(original).latent_dist.mode()).sample.clamp(-1, 1)
        ratios.append(-10 * ((made - original) / 2).square().mean().clamp(min=1e-6).log10())
    return torch.stack(ratios).mean().item()
