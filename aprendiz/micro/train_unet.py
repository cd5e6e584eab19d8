"""Train the U-Net on encoded scenes, and the text encoder with it at a fifth of the rate.

Epsilon prediction on SD 1.x's schedule, with offset noise from the first step, a tenth of the captions dropped, and each
timestep weighed by min(SNR^-1/2, 5): more weight on the noisy steps, where the prompt decides.

Shapes: B batch, C latent channels, H W latent size, T tokens. Latents are normalised.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from ..files import move_into_place, write_atomically
from ..nets.evaluator import pixels
from .scenes import CATEGORIES, Picture, caption, category, draw, imagine
from .tokens import MAX_TOKENS
from .train_text import SHORT, WIDTH, token_ids
from .training import Average, Build, Progress, Saved, batches, cosine, logger, set_learning_rate

SCHEDULE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
                            "beta_schedule": "scaled_linear", "clip_sample": False}
CAPTIONS = 5                                     # of each scene: the plain full one, and four at random
SHARES = (0.40, 0.20, 0.27, 0.13)                # of the categories among the encoded scenes
MIXTURES = ((0.12, (0.80, 0.05, 0.15, 0.00)),    # until this share of the run, the categories are drawn like this
            (0.45, (0.56, 0.10, 0.29, 0.05)),
            (1.00, (0.42, 0.20, 0.26, 0.12)))
NOISE_OFFSET, CAPTION_DROPOUT, PLAIN_CAPTIONS, LONG_FROM = 0.2, 0.1, 0.4, 0.86


def new_unet() -> UNet2DConditionModel:
    """A random U-Net of micro's shape; its widths are c and 3c, so that it can be widened exactly (`widen`)."""
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 96, 96), layers_per_block=2, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=WIDTH,
        attention_head_dim=(2, 6, 6))
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


# Encoded scenes


class DrawnScenes(Dataset[tuple[list[Picture], list[int], list[list[str]]]]):
    """Item `number` is one file's worth of scenes: pictures, categories, captions."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, number: int) -> tuple[list[Picture], list[int], list[list[str]]]:
        rng = np.random.default_rng((1234, number))
        kinds = [int(kind) for kind in rng.choice(len(CATEGORIES), self.count, p=SHARES)]
        pictures, captions = [], []
        for kind in kinds:
            scene = imagine(rng, category(CATEGORIES[kind]))
            pictures.append(draw(scene, rng))
            captions.append([caption(scene, rng, full=True, plain=True), *(caption(scene, rng) for _ in range(CAPTIONS - 1))])
        return pictures, kinds, captions


@torch.inference_mode()
def encode_scenes(build: Build, vae: AutoencoderKL, folder: Path) -> None:
    """Draw the scenes and write their latents and captions to `folder`, file by file; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    count = build.size.scenes_a_file
    files = build.size.scenes // count
    done = len(list(folder.glob("*.safetensors")))
    progress = Progress("scenes", files)
    vae = vae.to(build.device, memory_format=torch.channels_last)
    for number, (pictures, kinds, captions) in batches(DrawnScenes(count), done, files, build):
        found = [vae.encode(pixels(pictures[i:i + 20]).to(build.device)).latent_dist for i in range(0, count, 20)]
        latents = {"mean": torch.cat([one.mean for one in found]), "deviation": torch.cat([one.std for one in found])}
        write_atomically(folder / f"{number:04}.json", json.dumps({"categories": kinds, "captions": captions}).encode())
        unfinished = folder / f"{number:04}.part"
        save_file({name: value.half().cpu().contiguous() for name, value in latents.items()}, unfinished)
        move_into_place(unfinished, folder / f"{number:04}.safetensors")
        progress.tell(number + 1)


@dataclass(frozen=True)
class Scenes:
    """All encoded scenes in memory. ids_NKT: K captions each, at the short length. members: scene numbers by category."""

    mean_NCHW: Tensor
    deviation_NCHW: Tensor
    ids_NKT: Tensor
    members: tuple[Tensor, ...]


def read_scenes(folder: Path, tokenizer: CLIPTokenizer) -> Scenes:
    """What `encode_scenes` wrote."""
    files = sorted(folder.glob("*.safetensors"))
    latents = [load_file(file) for file in files]
    told = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in files]
    texts = [text for one in told for texts in one["captions"] for text in texts]
    kinds = torch.tensor([kind for one in told for kind in one["categories"]])
    return Scenes(torch.cat([one["mean"] for one in latents]), torch.cat([one["deviation"] for one in latents]),
                  token_ids(tokenizer, texts, SHORT).short().view(-1, CAPTIONS, SHORT),
                  tuple((kinds == kind).nonzero()[:, 0] for kind in range(len(CATEGORIES))))


# Training


@dataclass(frozen=True)
class Batch:
    """Normalised latents, their noise, timesteps and token ids."""

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    ids_BT: Tensor


def draw_batch(scenes: Scenes, step: int, size: int, done: float, scale: float, empty_T: Tensor) -> Batch:
    """The batch of a step. done: the share of the run behind it. empty_T: token ids of the empty caption."""
    rng = torch.Generator().manual_seed(5_000_000 + step)
    picked_B = _pick(scenes, next(shares for until, shares in MIXTURES if done < until), size, rng)
    mean_BCHW, deviation_BCHW = scenes.mean_NCHW[picked_B].float(), scenes.deviation_NCHW[picked_B].float()
    latents_BCHW = (mean_BCHW + deviation_BCHW * torch.randn(mean_BCHW.shape, generator=rng)) * scale
    noise_BCHW = torch.randn(mean_BCHW.shape, generator=rng)
    noise_BCHW += NOISE_OFFSET * torch.randn(*mean_BCHW.shape[:2], 1, 1, generator=rng)
    timesteps_B = ((torch.arange(size) + torch.rand(size, generator=rng)) / size * SCHEDULE["num_train_timesteps"]).long()
    plain_B = torch.rand(size, generator=rng) < PLAIN_CAPTIONS
    which_B = torch.where(plain_B, 0, torch.randint(1, CAPTIONS, (size,), generator=rng))
    ids_BT = scenes.ids_NKT[picked_B, which_B].long()
    if done >= LONG_FROM:
        ids_BT = nn.functional.pad(ids_BT, (0, MAX_TOKENS - SHORT), value=int(empty_T[-1]))
    ids_BT[torch.rand(size, generator=rng) < CAPTION_DROPOUT] = empty_T[:ids_BT.shape[1]]
    return Batch(latents_BCHW, noise_BCHW, timesteps_B, ids_BT)


def _pick(scenes: Scenes, shares: tuple[float, ...], size: int, rng: torch.Generator) -> Tensor:
    """Scene numbers, B; a category without scenes is left out."""
    present = torch.tensor([share if len(members) else 0.0 for share, members in zip(shares, scenes.members)])
    kinds = torch.multinomial(present, size, replacement=True, generator=rng).tolist()
    return torch.stack([scenes.members[kind][torch.randint(len(scenes.members[kind]), (), generator=rng)] for kind in kinds])


def train_unet(build: Build, scenes: Scenes, tokenizer: CLIPTokenizer, text: Path, scale: float, folder: Path) -> None:
    """Train a new U-Net and the text encoder in `text`; write the averages of both to `folder`. scale: of the latents."""
    size, device = build.size, build.device
    torch.manual_seed(0)
    unet, encoder = new_unet().to(device).train(), CLIPTextModel.from_pretrained(text).to(device).train()
    unet_average, encoder_average = Average(unet, 0.999), Average(encoder, 0.999)
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW([{"params": list(unet.parameters())}, {"params": list(encoder.parameters())}],
                                  betas=(0.9, 0.99), weight_decay=1e-3)
    saved = Saved(build, "unet", unet=unet, encoder=encoder, unet_average=unet_average.module,
                  encoder_average=encoder_average.module, optimizer=optimizer)
    noising, weight_T = DDPMScheduler(**SCHEDULE), timestep_weights().to(device)
    empty_T = token_ids(tokenizer, [""])[0]
    progress = Progress("u-net", size.unet_steps)
    for step in range(saved.restore(), size.unet_steps):
        rate = 1e-3 * cosine(step, size.unet_steps, warmup=150, end=0.015, hold=0.5)
        set_learning_rate(optimizer, rate, 0.2 * rate)
        batch = draw_batch(scenes, step, size.unet_batch, step / size.unet_steps, scale, empty_T)
        noisy_BCHW = noising.add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.timesteps_B).to(device)
        timesteps_B = batch.timesteps_B.to(device)
        predicted_BCHW = unet(noisy_BCHW, timesteps_B, encoder(batch.ids_BT.to(device))[0]).sample
        error_B = (predicted_BCHW - batch.noise_BCHW.to(device)).square().mean((1, 2, 3))
        optimizer.zero_grad()
        (error_B * weight_T[timesteps_B]).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        unet_average.follow(step + 1)
        encoder_average.follow(step + 1)
        saved.save_if_due(step + 1)
        progress.tell(step + 1, error=error_B.mean())
    saved.save(size.unet_steps)
    unet_average.module.save_pretrained(folder / "unet")
    encoder_average.module.save_pretrained(folder / "text_encoder")
    logger.info("u-net: %d pictures seen", size.unet_steps * size.unet_batch)


def timestep_weights() -> Tensor:
    """min(SNR^-1/2, 5) of each timestep, with a mean of 1."""
    signal_T = DDPMScheduler(**SCHEDULE).alphas_cumprod
    weight_T = ((1 - signal_T) / signal_T).sqrt().clamp(max=5)
    return weight_T / weight_T.mean()
